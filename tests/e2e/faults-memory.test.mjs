// faults-memory.test.mjs - allocations that fail, one at a time and all large ones, beneath tests/faults/memory.c: a load or a request is refused, the
// daemon and what else it serves go on.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { copyFileSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Daemon, needs, shared } from './harness.mjs';
import { Faults, full, instrumented, preload, settled } from './faults.mjs';

const stories = shared('models/stories260K.gguf');
const there = instrumented ? { skip: 'a sanitizer has an allocator of its own' } : needs(stories, 'no shared models');
const dir = mkdtempSync(path.join(tmpdir(), 'shimmyd-memory-'));
const faults = new Faults(path.join(dir, 'faults'));
const ask = { prompt: 'Once upon a time', max_tokens: 12, temperature: 0 };
let daemon, want;
// What came, or 'gone' where the connection ended without an answer; nothing takes long.
const complete = async (model, more = {}) => daemon.post('/v1/completions', { ...ask, model, ...more })
  .catch(() => ({ status: 'gone', body: {} }));

before(async () => {
  if (there.skip) return;
  copyFileSync(stories, path.join(dir, 'stories.gguf'));
  copyFileSync(stories, path.join(dir, 'late.gguf'));
  daemon = await new Daemon({ models: dir, env: preload(faults.file, 'memory') }).start();
  want = (await complete('stories')).body.choices[0].text;
});
after(async () => {
  faults.clear();
  await daemon?.stop();
  rmSync(dir, { recursive: true, force: true });
});

test('a load that finds no memory fails with its reason, at whatever allocation it is, and is tried again', there, async () => {
  let failed = 0;
  for (let skip = 0; ; skip++) {
    faults.set(`big ${skip} 0 FAIL`);
    const answer = await complete('late');
    const hit = faults.hits().length > 0;
    faults.clear();
    assert.ok(!daemon.exited, daemon.log);
    if (answer.status === 200 && !hit) break;
    assert.ok(answer.status === 500 || answer.status === 503 || answer.status === 200, `${skip}: ${JSON.stringify(answer)}`);
    if (answer.status === 200) break; // the load has what it needs; what fails now is none of it
    assert.match(answer.body.error.message, /memory|thread/);
    failed++;
    assert.equal((await complete('stories')).body.choices?.[0].text, want);
    assert.ok(skip < 100);
  }
  assert.ok(failed > 0);
  assert.equal((await complete('late')).body.choices[0].text, want);
});

test('a request that finds no memory fails alone, at whatever allocation it is', there, async () => {
  let hits = 0, refused = 0;
  for (let skip = 0; skip < (full ? 2000 : 160); skip += full ? 1 : 1 + Math.floor(skip / 12)) {
    faults.set(`alloc ${skip} 1 FAIL`);
    const answer = await complete('stories');
    hits += faults.hits().length;
    faults.clear();
    assert.ok(!daemon.exited, `after ${skip} allocations: ${daemon.log}`);
    if (answer.status === 200) assert.equal(answer.body.choices?.[0].text, want, `after ${skip} allocations: ${JSON.stringify(answer.body)}`);
    else refused++;
  }
  assert.ok(hits > 10 && refused > 0, `${hits} allocations failed, ${refused} requests`);
  assert.equal((await complete('stories')).body.choices[0].text, want);
  await settled(daemon);
});
