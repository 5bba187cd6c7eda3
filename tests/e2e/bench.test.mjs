// The bench's arithmetic: samples to a result, its table, two results next to each other. Nothing is measured.
import test from 'node:test';
import assert from 'node:assert/strict';
import { build, compare, median, table } from '../bench/report.mjs';

const samples = (...rows) => rows.map((row) => row.join('\t')).join('\n');
const facts = [['set', 'date', '2026-01-02T03:04:05Z'], ['set', 'commit', 'abc1234'], ['set', 'quick', 'false'], ['set', 'machine.cpu', 'A CPU'],
  ['set', 'machine.threads', '2'], ['set', 'machine.flags', 'avx2 fma '], ['set', 'table', 'avx2'], ['set', 'ceilings.read', '30.5']];

test('medians', () => {
  assert.equal(median([]), null);
  assert.equal(median([3, 1, 2]), 2);
  assert.equal(median([10, 9, 1, 2]), 5.5);
});

test('ratios, shares and what is wanted, whichever way better is', () => {
  const result = build(samples(
    ...facts,
    ['line', 'models', 'x decode', 'unit=tok/s', 'ceiling=50', 'wanted_ratio=1.8', 'wanted_share=0.75'],
    ['sample', 'models', 'x decode', 'ours', '40'], ['sample', 'models', 'x decode', 'ours', '44'], ['sample', 'models', 'x decode', 'ours', '1'],
    ['sample', 'models', 'x decode', 'peer', '20'],
    ['line', 'start', 'ready', 'unit=ms', 'better=lower', 'wanted_value=100', 'ceiling=2'],
    ['sample', 'start', 'ready', 'ours', '8'], ['sample', 'start', 'ready', 'peer', '80'],
    ['line', 'models', 'y decode', 'unit=tok/s', 'wanted_ratio=2'], ['sample', 'models', 'y decode', 'ours', '9'],
    ['line', 'load', 'z', 'unit=s', 'better=lower', 'wanted_value=0.1'], ['sample', 'load', 'z', 'ours', '0.2'],
    ['line', 'load', 'plain', 'unit=s'], ['sample', 'load', 'plain', 'ours', '1e-3'],
  ));
  const [x, ready, y, z, plain] = result.lines;
  assert.equal(x.ours_median, 40);
  assert.equal(x.ratio, 2);
  assert.equal(x.share, 0.8);
  assert.equal(x.met, true);
  assert.equal(ready.ratio, 10);
  assert.equal(ready.share, 0.25);
  assert.equal(ready.met, true);
  assert.equal(y.met, null, 'the peer was not measured');
  assert.equal(z.met, false);
  assert.equal(plain.met, null);
  assert.deepEqual(result.machine, { cpu: 'A CPU', threads: 2, flags: ['avx2', 'fma'] });
  assert.equal(result.ceilings.read, 30.5);
  assert.equal(result.quick, false);
  const text = table(result);
  assert.match(text, /x decode, tok\/s +40 +20 +2x +80 %  >= 1.8x, >= 75 % met/);
  assert.match(text, /z, s +0.2 .*<= 0.1 MISSED/);
  assert.match(text, /2 met, 1 missed, 1 not measured/);
});

test('ops keep what is not known as null', () => {
  const result = build(samples(['op', 'm', 'prefill', 'norm', 'attn_norm', '', '', '22.0', '1.5', '10.5', '0.3', '-', '-']));
  assert.deepEqual(result.ops[0], { model: 'm', phase: 'prefill', op: 'norm', of: 'attn_norm', type: '', part: '', count: 22, ms: 1.5, gbs: 10.5, read_share: 0.3, gmacs: null, product_share: null });
});

test('a line that is not understood is refused, with its number', () => {
  for (const wrong of [['sample', 'a', 'b', 'them', '1'], ['sample', 'a', 'b', 'ours', 'fast'], ['sample', 'a', 'b', 'ours', ''], ['line', 'a', 'b', 'colour=red'],
    ['line', 'a', 'b', 'better=sometimes'], ['line', 'a', 'b', 'ceiling='], ['what'], ['op', 'm', 'p', 'o', 'f', '', '', 'x', '1', '-', '-', '-', '-']])
    assert.throws(() => build(samples(['set', 'date', 'x'], wrong)), /samples, line 2:/, wrong.join(' '));
});

test('a comparison tells gains from noise', () => {
  const run = (...values) => build(samples(...facts, ['line', 'p', 'rate', 'unit=tok/s'], ...values.map((v) => ['sample', 'p', 'rate', 'ours', String(v)]),
    ['line', 'p', 'time', 'unit=ms', 'better=lower'], ['sample', 'p', 'time', 'ours', String(1000 / values[0])]));
  const lines = (a, b) => compare(a, b).split('\n').filter((line) => line.startsWith('p: '));
  const [rate, time] = lines(run(100, 101, 99), run(150, 149, 151));
  assert.match(rate, /50\.0 % .* \+$/);
  assert.match(time, /50\.0 % .* \+$/);
  assert.match(lines(run(100, 100, 100), run(80, 80, 80))[0], /-20\.0 % .* WORSE$/);
  assert.match(lines(run(100, 120, 80), run(110, 111, 109))[0], /10\.0 % +40 % +-, -$/);
  assert.match(compare(run(1), build(samples(...facts, ['line', 'p', 'new', 'unit=s'], ['sample', 'p', 'new', 'ours', '1']))), /p: rate, tok\/s +1 +-$/m);
});
