// report - what a run of scripts/bench measured: as one JSON file, as a table, and next to an earlier one.
//
// usage: node tests/bench/report.mjs build SAMPLES > RESULT.json     from the lines that the parts wrote (scripts/bench-common)
//        node tests/bench/report.mjs table RESULT.json
//        node tests/bench/report.mjs compare BEFORE.json AFTER.json
//
// Samples are lines of fields parted by tabs:
//   set KEY VALUE                        a fact about the run; dots in KEY make objects
//   line PART NAME KEY=VALUE...          what a line is: unit, better (higher, lower), ceiling (in the line's unit), and what is wanted:
//                                        wanted_ratio, wanted_share, wanted_value. Later ones add to earlier ones.
//   sample PART NAME ours|peer VALUE     one measurement of it
//   op MODEL PHASE OP OF TYPE PART COUNT MS GBS READ_SHARE GMACS PRODUCT_SHARE     per step (tests/bench/speed --ops --lines)
//
// A result, schema 1:
//   {schema, date, commit, dirty, quick, machine: {cpu, cores, threads, memory_bytes, kernel, flags: []}, table, peer,
//    ceilings: {name: rate}, settings: {...},
//    lines: [{part, name, unit, better, ours: [], peer: [], ours_median, peer_median, ratio, ceiling, share,
//             wanted: {ratio, share, value}, met}],
//    ops: [{model, phase, op, of, type, part, count, ms, gbs, read_share, gmacs, product_share}]}
// ratio: how many times better ours is than the peer's, whichever way better is; null without a peer. share: the median as a part of the
// ceiling (lower is better: the ceiling as a part of it); null where there is none. met: all that is wanted holds; null where nothing is wanted, or
// something could not be measured.
import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

export function median(values) {
  if (values.length === 0) return null;
  const sorted = [...values].sort((a, b) => a - b), middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

const round = (value) => (value === null ? null : Number(value.toPrecision(5)));

function finish(line) {
  const lower = line.better === 'lower';
  const ours = median(line.ours), peer = median(line.peer);
  const better = (a, b) => (lower ? b / a : a / b);
  const ratio = ours !== null && peer ? better(ours, peer) : null;
  const share = ours !== null && line.ceiling ? better(ours, line.ceiling) : null;
  const checks = [
    [line.wanted.ratio, ratio],
    [line.wanted.share, share],
  ].map(([want, have]) => (want === undefined ? true : have === null ? null : have >= want));
  if (line.wanted.value !== undefined) checks.push(ours === null ? null : lower ? ours <= line.wanted.value : ours >= line.wanted.value);
  const wants = Object.keys(line.wanted).length > 0;
  const met = !wants ? null : checks.includes(false) ? false : checks.includes(null) ? null : true;
  return { ...line, ours_median: round(ours), peer_median: round(peer), ratio: round(ratio), ceiling: line.ceiling ?? null, share: round(share), met };
}

export function build(text) {
  const result = { schema: 1, lines: [], ops: [] };
  const lines = new Map();
  const find = (part, name) => {
    const key = `${part}\t${name}`;
    if (!lines.has(key)) lines.set(key, { part, name, unit: '', better: 'higher', ours: [], peer: [], wanted: {} });
    return lines.get(key);
  };
  for (const [at, row] of text.split('\n').entries()) {
    const fields = row.split('\t');
    const fail = (why) => {
      throw new Error(`samples, line ${at + 1}: ${why}: ${JSON.stringify(row)}`);
    };
    const number = (field) => (field !== '' && Number.isFinite(Number(field)) ? Number(field) : fail(`found "${field}", expected a number`));
    if (row === '') continue;
    if (fields[0] === 'set') {
      const path = fields[1].split('.');
      let into = result;
      for (const step of path.slice(0, -1)) into = into[step] ??= {};
      const value = fields.slice(2).join(' ');
      into[path.at(-1)] = /^-?\d+(\.\d+)?$/.test(value) ? Number(value) : value === 'true' ? true : value === 'false' ? false : value;
    } else if (fields[0] === 'line') {
      const line = find(fields[1], fields[2]);
      for (const pair of fields.slice(3)) {
        const [key, value] = [pair.slice(0, pair.indexOf('=')), pair.slice(pair.indexOf('=') + 1)];
        if (key === 'unit') line.unit = value;
        else if (key === 'better' && (value === 'higher' || value === 'lower')) line.better = value;
        else if (key === 'ceiling') line.ceiling = number(value);
        else if (/^wanted_(ratio|share|value)$/.test(key)) line.wanted[key.slice(7)] = number(value);
        else fail(`"${pair}" is no attribute of a line`);
      }
    } else if (fields[0] === 'sample') {
      if (fields[3] !== 'ours' && fields[3] !== 'peer') fail(`found "${fields[3]}", expected ours or peer`);
      find(fields[1], fields[2])[fields[3]].push(number(fields[4]));
    } else if (fields[0] === 'op') {
      const [, model, phase, op, of, type, part, ...rest] = fields;
      const [count, ms, gbs, read_share, gmacs, product_share] = rest.map((field) => (field === '-' ? null : number(field)));
      result.ops.push({ model, phase, op, of, type, part, count, ms, gbs, read_share, gmacs, product_share });
    } else {
      fail('found no set, line, sample or op');
    }
  }
  result.lines = [...lines.values()].map(finish);
  if (typeof result.machine?.flags === 'string') result.machine.flags = result.machine.flags.split(' ').filter(Boolean);
  return result;
}

const text = (value, digits = 4) => {
  if (value === null || value === undefined) return '-';
  return Math.abs(value) >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(digits)));
};
const percent = (value) => (value === null ? '-' : `${(100 * value).toFixed(0)} %`);

function wanted(line) {
  const { ratio, share, value } = line.wanted, words = [];
  if (value !== undefined) words.push(`${line.better === 'lower' ? '<=' : '>='} ${text(value)}`);
  if (ratio !== undefined) words.push(`>= ${text(ratio)}x`);
  if (share !== undefined) words.push(`>= ${percent(share)}`);
  return words.join(', ');
}

export function table(result) {
  const out = [
    `${result.date}, ${result.commit}${result.dirty ? ' and changes' : ''}${result.quick ? ', quick' : ''}: ${result.machine.cpu}, ${result.machine.threads} threads, kernels ${result.table}`,
    `peer: ${result.peer || 'not measured'}`,
  ];
  let part = null, met = 0, missed = 0, unknown = 0;
  for (const line of result.lines) {
    if (line.part !== part) {
      part = line.part;
      out.push('', `${part.padEnd(40)} ${'ours'.padStart(9)} ${'peer'.padStart(9)} ${'ratio'.padStart(7)} ${'ceiling'.padStart(8)}  wanted`);
    }
    if (line.met === true) met++;
    else if (line.met === false) missed++;
    else if (Object.keys(line.wanted).length > 0) unknown++;
    const verdict = line.met === null ? '' : line.met ? 'met' : 'MISSED';
    out.push(
      `  ${`${line.name}, ${line.unit}`.padEnd(38)} ${text(line.ours_median).padStart(9)} ${text(line.peer_median).padStart(9)} ` +
        `${(line.ratio === null ? '-' : `${text(line.ratio, 3)}x`).padStart(7)} ${percent(line.share).padStart(8)}  ${wanted(line)} ${verdict}`.trimEnd(),
    );
  }
  out.push('', `${met} met, ${missed} missed, ${unknown} not measured`);
  return out.join('\n');
}

// How far a line's samples lie apart, as a part of their median: a smaller change than that says nothing.
const spread = (values) => (values.length < 2 ? 0 : (Math.max(...values) - Math.min(...values)) / median(values));

export function compare(before, after) {
  const out = [
    `before: ${before.date}, ${before.commit}, ${before.machine.cpu}${before.quick ? ', quick' : ''}`,
    `after:  ${after.date}, ${after.commit}, ${after.machine.cpu}${after.quick ? ', quick' : ''}`,
  ];
  if (before.machine.cpu !== after.machine.cpu || before.machine.threads !== after.machine.threads) out.push('These are different machines: compare ratios, not rates.');
  out.push('', `${''.padEnd(52)} ${'before'.padStart(9)} ${'after'.padStart(9)} ${'better by'.padStart(10)} ${'spread'.padStart(7)} ${'ratio before, after'.padStart(22)}`);
  const old = new Map(before.lines.map((line) => [`${line.part}\t${line.name}`, line]));
  for (const line of after.lines) {
    const was = old.get(`${line.part}\t${line.name}`);
    old.delete(`${line.part}\t${line.name}`);
    const label = `${line.part}: ${line.name}, ${line.unit}`.padEnd(52);
    if (!was || was.ours_median === null || line.ours_median === null) {
      out.push(`${label} ${text(was?.ours_median).padStart(9)} ${text(line.ours_median).padStart(9)}`);
      continue;
    }
    const gain = (line.better === 'lower' ? was.ours_median / line.ours_median : line.ours_median / was.ours_median) - 1;
    const noise = Math.max(spread(was.ours), spread(line.ours));
    const mark = Math.abs(gain) <= noise || Math.abs(gain) < 0.02 ? '' : gain > 0 ? ' +' : ' WORSE';
    out.push(
      `${label} ${text(was.ours_median).padStart(9)} ${text(line.ours_median).padStart(9)} ${`${(100 * gain).toFixed(1)} %`.padStart(10)} ` +
        `${`${(100 * noise).toFixed(0)} %`.padStart(7)} ${`${text(was.ratio, 3)}, ${text(line.ratio, 3)}`.padStart(22)}${mark}`,
    );
  }
  for (const line of old.values()) out.push(`${`${line.part}: ${line.name}, ${line.unit}`.padEnd(52)} ${text(line.ours_median).padStart(9)} ${'-'.padStart(9)}`);
  return out.join('\n');
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [command, first, second] = process.argv.slice(2);
  const json = (file) => JSON.parse(readFileSync(file, 'utf8'));
  if (command === 'build' && first) console.log(JSON.stringify(build(readFileSync(first, 'utf8')), null, 1));
  else if (command === 'table' && first) console.log(table(json(first)));
  else if (command === 'compare' && second) console.log(compare(json(first), json(second)));
  else {
    console.error('usage: node tests/bench/report.mjs build SAMPLES | table RESULT.json | compare BEFORE.json AFTER.json');
    process.exit(2);
  }
}
