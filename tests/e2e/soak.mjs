// soak.mjs - many mixed requests from many clients against one daemon, and what is left of them: nothing.
//
// Streams, whole answers, sessions of chats whose turns share beginnings, embeddings, grammars, several choices, requests cancelled by name,
// clients that leave, of three models under a budget of memory. Prints a table; fails if a request fails that should not, if the books do
// not balance, if pages, descriptors or threads are left, or if resident memory grows by more than its noise allows.
//
//   SOAK_REQUESTS (10000)   how many      SOAK_MINUTES (0)   or for how long, if that is more
//   SOAK_CLIENTS (24)       at once
//
// The bound on growth: after a warm-up of a tenth memory is sampled in twenty slices of which each keeps its least value. The median of the last five
// may exceed that of the first five by four times the spread (median absolute deviation) between neighbours, and 4 MiB for what an allocator keeps.
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { copyFileSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { Daemon, build, shared } from './harness.mjs';
import { baseline, books, instrumented, pause, random, resident, settled } from './faults.mjs';

const run = promisify(execFile);
const median = (list) => [...list].sort((a, b) => a - b)[Math.floor(list.length / 2)];

export async function soak({ requests = 10000, minutes = 0, clients = 24, slices = 20, print = () => {} } = {}) {
  const stories = shared('models/stories260K.gguf');
  const dir = mkdtempSync(path.join(tmpdir(), 'shimmyd-soak-'));
  const at = (name) => path.join(dir, `${name}.gguf`);
  const genmodel = (name, ...options) => run(path.join(build, 'tests/tools/genmodel'), [at(name), ...options]);
  copyFileSync(stories, at('stories'));
  await genmodel('bytes', '--bpe', '--pieces', '--vocab', '1000', '--layers', '1', '--embd', '64', '--heads', '2', '--kv-heads', '1', '--ff', '128', '--context', '1024');
  await genmodel('second', '--layers', '2', '--embd', '64', '--heads', '2', '--kv-heads', '1', '--ff', '128', '--context', '512');
  const daemon = await new Daemon({ models: dir, args: ['--max-queue', '200', '--max-connections', '200'] }).start();
  const dice = random();
  const pick = (list) => list[Math.floor(dice() * list.length)];
  const words = ['once', 'upon', 'a', 'time', 'there', 'was', 'big', 'dog', 'Lily', 'park', 'red', 'ball'];
  const text = (n) => Array.from({ length: n }, () => pick(words)).join(' ');
  const tally = {};
  const failures = [];
  const count = (what, good, why) => {
    tally[what] ??= { requests: 0, failed: 0 };
    tally[what].requests++;
    if (good) return;
    tally[what].failed++;
    if (failures.length < 20) failures.push(`${what}: ${why}`);
  };
  const post = async (what, route, body) => {
    const { status, body: answer } = await daemon.post(route, body);
    count(what, status === 200, `${status} ${JSON.stringify(answer).slice(0, 300)}`);
    return status === 200 ? answer : null;
  };
  const open = async (body) => {
    const response = await fetch(`${daemon.url}/v1/completions`, { method: 'POST', body: JSON.stringify({ ...body, stream: true }) });
    return response;
  };

  const kinds = {
    async stream() {
      const response = await open({ model: pick(['stories', 'second']), prompt: text(1 + dice() * 40), max_tokens: 1 + Math.floor(dice() * 40), seed: 1 });
      const all = await response.text();
      count('streams', response.status === 200 && all.includes('[DONE]') && !all.includes('"error"'), all.slice(0, 300));
    },
    async whole() {
      await post('whole answers', '/v1/completions', { model: pick(['stories', 'bytes', 'second']), prompt: text(1 + dice() * 60), max_tokens: 1 + Math.floor(dice() * 20), n: 1 + Math.floor(dice() * 3), temperature: dice() });
    },
    async chat() {
      const messages = [{ role: 'system', content: text(20) }];
      for (let turn = 0; turn < 3; turn++) {
        messages.push({ role: 'user', content: text(6) });
        const answer = await post('turns of chats', '/v1/chat/completions', { model: 'stories', messages, max_tokens: 12, seed: 2 });
        if (!answer) return;
        messages.push({ role: 'assistant', content: answer.choices[0].message.content ?? '' });
      }
    },
    async embeddings() {
      await post('embeddings', '/v1/embeddings', { model: pick(['stories', 'second']), input: Array.from({ length: 1 + Math.floor(dice() * 4) }, () => text(1 + dice() * 20)) });
    },
    async grammar() {
      const answer = await post('grammars', '/v1/completions', { model: 'bytes', prompt: text(5), max_tokens: 24, guided_choice: ['red', 'green', 'blue'].slice(0, 1 + Math.floor(dice() * 3)) });
      if (answer && !/^(red|green|blue)$/.test(answer.choices[0].text)) failures.push(`a grammar let through ${answer.choices[0].text}`);
    },
    async leaves() {
      const give = new AbortController();
      const gone = fetch(`${daemon.url}/v1/completions`, { method: 'POST', signal: give.signal, body: JSON.stringify({ model: 'stories', prompt: text(30), max_tokens: 300, ignore_eos: true, stream: dice() < 0.5 }) })
        .then((response) => response.text()).catch(() => null);
      await pause(dice() * 60);
      give.abort();
      await gone;
      count('clients that left', true);
    },
    async cancelled() {
      const socket = await daemon.connect();
      socket.write(daemon.rawPost('/v1/completions', { model: 'second', prompt: text(10), max_tokens: 200, ignore_eos: true, stream: true }));
      await pause(dice() * 30);
      socket.resetAndDestroy();
      count('connections reset', true);
    },
    async refused() {
      const answer = await daemon.post('/v1/completions', pick([{ model: 'stories', prompt: 7 }, { model: 'nobody', prompt: 'x' }, { model: 'second', prompt: Array(3000).fill(5) }, '{"model":']));
      count('refused rightly', answer.status === 400 || answer.status === 404, `${answer.status} ${JSON.stringify(answer.body)}`);
    },
  };
  const shares = [['stream', 30], ['whole', 20], ['chat', 8], ['embeddings', 10], ['grammar', 10], ['leaves', 12], ['cancelled', 5], ['refused', 5]];
  const bag = shares.flatMap(([kind, share]) => Array(share).fill(kind));

  try {
    for (const kind of Object.keys(kinds)) await kinds[kind]();
    await Promise.all(Array.from({ length: clients }, () => kinds.whole()));
    const begin = await baseline(daemon);
    const started = Date.now();
    const until = started + minutes * 60000;
    let made = 0;
    const samples = []; // [part of the work done, kB]
    const progress = () => Math.max(made / requests, 0) * (minutes ? Math.min(1, (Date.now() - started) / (minutes * 60000)) : 1);
    const sampler = setInterval(() => samples.push([progress(), resident(daemon.child.pid)]), 50);
    await Promise.all(Array.from({ length: clients }, async () => {
      while (made < requests || Date.now() < until) {
        made++;
        await kinds[pick(bag)]();
      }
    }));
    clearInterval(sampler);
    const took = (Date.now() - started) / 1000;
    const end = await settled(daemon, begin);

    const warm = requests < 5000 ? 0.5 : 0.1; // a short run has hardly begun at a tenth
    const least = Array.from({ length: slices }, (_, i) => {
      const inside = samples.filter(([done]) => done >= warm + ((1 - warm) * i) / slices && (done < warm + ((1 - warm) * (i + 1)) / slices || i === slices - 1));
      return inside.length ? Math.min(...inside.map(([, kilobytes]) => kilobytes)) : null;
    }).filter((value) => value !== null);
    const ends = Math.min(5, Math.floor(least.length / 2));
    const first = median(least.slice(0, ends)), last = median(least.slice(-ends));
    const steps = least.slice(1).map((value, i) => value - least[i]);
    const middle = median(steps);
    const noise = median(steps.map((step) => Math.abs(step - middle)));
    const bound = 4 * noise + 4096;

    print(`${Object.values(tally).reduce((sum, one) => sum + one.requests, 0)} requests in ${took.toFixed(1)} s from ${clients} clients`);
    for (const [what, one] of Object.entries(tally)) print(`  ${what.padEnd(20)} ${String(one.requests).padStart(7)}  failed ${one.failed}`);
    print(`generations accepted ${end.accepted}: ${Object.entries(end.ended).map(([how, n]) => `${n} ${how}`).join(', ')}`);
    print(`resident memory ${(first / 1024).toFixed(1)} MiB after the warm-up, ${(last / 1024).toFixed(1)} at the end: grown by ${((last - first) / 1024).toFixed(2)}, bound ${(bound / 1024).toFixed(2)} MiB (noise ${(noise / 1024).toFixed(2)})`);
    print(`running ${end.running}, queued ${end.queued}, pages ${end.pages}`);
    if (!instrumented && last - first > bound) failures.push(`memory grew by ${last - first} kB, more than ${Math.round(bound)}: ${least.join(' ')}`);
    if ((end.ended.failed ?? 0) > 0) failures.push(`${end.ended.failed} generations failed: ${daemon.log.split('\n').filter((line) => /failed/.test(line)).slice(0, 3).join('; ')}`);
    return { failures, tally, books: await books(daemon) };
  } finally {
    await daemon.stop();
    rmSync(dir, { recursive: true, force: true });
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { failures } = await soak({
    requests: Number(process.env.SOAK_REQUESTS || 10000), minutes: Number(process.env.SOAK_MINUTES || 0), clients: Number(process.env.SOAK_CLIENTS || 24),
    print: (line) => console.log(line),
  });
  for (const failure of failures) console.error(`FAIL ${failure}`);
  process.exitCode = failures.length ? 1 : 0;
}
