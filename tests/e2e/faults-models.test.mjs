// faults-models.test.mjs - model files that are cut, replaced and deleted while they are loaded or being loaded, disks that fail, loads that
// nobody waits for any more, memory that ends: one load or one request fails with its reason, the rest goes on.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, rmdirSync, statSync, truncateSync, unlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Daemon, build, device, needs, shared, waitFor } from './harness.mjs';
import { Faults, answerText, baseline, full, instrumented, pause, preload, settled } from './faults.mjs';

const run = promisify(execFile);
const stories = shared('models/stories260K.gguf');
const there = needs(stories, 'no shared models');
const dir = mkdtempSync(path.join(tmpdir(), 'shimmyd-faults-'));
const at = (name) => path.join(dir, `${name}.gguf`);
const genmodel = (name, ...options) => run(path.join(build, 'tests/tools/genmodel'), [at(name), ...options]);
const faults = new Faults(path.join(dir, 'faults'));
const ask = { prompt: 'Once upon a time', max_tokens: 20, temperature: 0 };
let daemon, want, other, begin;
const complete = (model, more = {}) => daemon.post('/v1/completions', { ...ask, model, ...more });
const state = async (id) => (await (await daemon.get('/v1/models')).json()).data.find((one) => one.id === id);
const unload = (id) => run(path.join(build, 'shimmyctl'), ['--socket', daemon.socket, 'unload', id]);

before(async () => {
  if (there.skip) return;
  for (const name of ['stories', 'cut', 'replaced', 'deleted']) copyFileSync(stories, at(name));
  await genmodel('other', '--layers', '1', '--vocab', '400');
  await genmodel('large', '--layers', '24', '--embd', '512', '--ff', '2048', '--heads', '8', '--kv-heads', '8', '--type', 'Q8_0');
  for (const name of ['shrinking', 'in-flight-replaced', 'in-flight-deleted']) copyFileSync(at('large'), at(name));
  daemon = await new Daemon({ models: dir, env: preload(faults.file, 'reads') }).start();
  want = (await complete('stories')).body.choices[0].text;
  other = (await complete('other', { max_tokens: 60 })).body.choices[0].text;
  assert.ok(want.length > 20 && other.length > 0);
  await Promise.all(Array.from({ length: 12 }, () => complete('stories'))); // all threads that a crowd takes
  begin = await baseline(daemon);
});
after(async () => {
  faults.clear();
  await daemon?.stop();
  rmSync(dir, { recursive: true, force: true });
});

async function serves(model, text = want) {
  const answer = await complete(model);
  assert.equal(answer.status, 200, JSON.stringify(answer.body));
  assert.equal(answer.body.choices[0].text, text);
}
async function refuses(model, reason) {
  const answer = await complete(model);
  assert.equal(answer.status, 500, JSON.stringify(answer.body));
  assert.equal(answer.body.error.code, 'model_load_failed');
  assert.match(answer.body.error.message, reason);
  assert.equal((await state(model)).state, 'failed');
}

// `during` runs while a stream of the model runs; the stream's text is what it is without.
async function amidst(model, during) {
  const body = { ...ask, model, max_tokens: 200, ignore_eos: true };
  const whole = await daemon.post('/v1/completions', body);
  const socket = await daemon.connect();
  socket.write(daemon.rawPost('/v1/completions', { ...body, stream: true }, 'Connection: close\r\n'));
  await waitFor('it streams', () => socket.text.includes('data:'));
  await during();
  await socket.ended;
  assert.equal(answerText(socket.text), whole.body.choices[0].text);
}

test('a file that is cut, replaced or deleted under its loaded model harms nothing', there, async () => {
  for (const name of ['cut', 'replaced', 'deleted']) await serves(name);
  await amidst('cut', () => truncateSync(at('cut'), 1000));
  await amidst('replaced', () => copyFileSync(at('other'), at('replaced')));
  await amidst('deleted', () => unlinkSync(at('deleted')));
  for (const name of ['cut', 'replaced', 'deleted']) await serves(name);
  // Loaded anew it is what the file is now.
  for (const name of ['cut', 'replaced', 'deleted']) await unload(name);
  await waitFor('it is unloaded', async () => (await state('cut')).state === 'discovered');
  await refuses('cut', /cut\.gguf/);
  await waitFor('it is unloaded', async () => (await state('replaced')).state === 'discovered');
  assert.equal((await complete('replaced', { max_tokens: 60 })).body.choices[0].text, other);
  const gone = await complete('deleted');
  assert.ok(gone.status === 500 || gone.status === 404, JSON.stringify(gone));
  copyFileSync(stories, at('cut'));
  copyFileSync(stories, at('deleted'));
  await serves('cut'); // a model that failed is tried again
  await waitFor('what was deleted is back', async () => (await complete('deleted')).status === 200);
  await serves('stories');
});

// A load whose reads are slow enough to do something meanwhile.
async function whileLoading(model, during) {
  faults.set('pread 0 0 SLOW');
  const answer = complete(model);
  await waitFor('it loads', async () => (await state(model)).state === 'loading');
  await waitFor('it reads', () => faults.hits().length > 30);
  await during();
  await serves('stories'); // at once, whatever loads
  faults.clear();
  return answer;
}

test('a file that is cut while it is loaded fails with its reason', there, async () => {
  const bytes = statSync(at('large')).size;
  const answer = await whileLoading('shrinking', () => truncateSync(at('shrinking'), bytes / 8));
  assert.equal(answer.status, 500, JSON.stringify(answer.body));
  assert.match(answer.body.error.message, /shrinking\.gguf/);
  copyFileSync(at('large'), at('shrinking'));
  assert.equal((await complete('shrinking', { max_tokens: 2 })).status, 200);
  await unload('shrinking');
});

test('a file that is deleted while it is loaded fails with its reason, and is tried again', there, async () => {
  const text = (await complete('large')).body.choices[0].text;
  await unload('large');
  const answer = await whileLoading('in-flight-deleted', () => unlinkSync(at('in-flight-deleted')));
  if (answer.status === 200) assert.equal(answer.body.choices[0].text, text);
  else assert.match(answer.body.error.message, /in-flight-deleted\.gguf/);
  copyFileSync(at('large'), at('in-flight-deleted'));
  await serves('in-flight-deleted', text);
  await unload('in-flight-deleted');
});

test('a file that is replaced while it is loaded is never half of each', there, async () => {
  const name = 'in-flight-replaced';
  const answer = await whileLoading(name, () => {
    copyFileSync(stories, `${at(name)}.new`);
    renameSync(`${at(name)}.new`, at(name));
  });
  assert.equal(answer.status, 500, JSON.stringify(answer.body));
  assert.match(answer.body.error.message, /in-flight-replaced\.gguf: the file was replaced/);
  await serves(name);
  await unload(name);
});

test('a read that fails costs the load, at whatever read it is; a short one nothing', there, async () => {
  let failed = 0;
  for (const [what, reason] of [['EIO', /Input\/output error/], ['END', /bytes|short|ends/]]) {
    for (let skip = 0; ; skip += full ? 1 : 1 + skip) {
      await unload('cut').catch(() => {});
      await waitFor('it is unloaded', async () => ['discovered', 'failed'].includes((await state('cut')).state));
      faults.set(`pread ${skip} 1 ${what}`);
      const answer = await complete('cut');
      const hit = faults.hits().length > 0;
      faults.clear();
      if (!hit) break;
      failed++;
      assert.equal(answer.status, 500, `${what} after ${skip} reads: ${JSON.stringify(answer.body)}`);
      assert.match(answer.body.error.message, /cut\.gguf/);
      assert.match(answer.body.error.message, reason);
      await serves('stories');
    }
  }
  assert.ok(failed > 4, `${failed} loads failed`);
  await unload('cut').catch(() => {});
  await waitFor('it is unloaded', async () => (await state('cut')).state === 'discovered');
  faults.set('pread 0 0 SHORT');
  await serves('cut');
  assert.ok(faults.hits().length > 0);
  faults.clear();
});

test('a load that nobody waits for any more stops, and the next one is not spoilt', there, async () => {
  faults.set('pread 0 0 SLOW');
  const socket = await daemon.connect();
  socket.write(daemon.rawPost('/v1/completions', { ...ask, model: 'large' }));
  await waitFor('it loads', async () => (await state('large')).state === 'loading' && faults.hits().length > 30);
  socket.destroy();
  await waitFor('the load has stopped', async () => (await state('large')).state === 'discovered', 5000);
  faults.clear();
  assert.equal((await complete('large', { max_tokens: 2 })).status, 200);
  await unload('large');
});

test('a load whose disk does not answer is noticed: who waits for it or behind it is told, models serve on, and it all goes on when the disk does', there, async () => {
  const conf = path.join(dir, 'shimmyd.conf');
  writeFileSync(conf, '[shimmyd]\nwatchdog_timeout = 2\n');
  const doomed = await new Daemon({ models: dir, env: preload(faults.file, 'reads'), args: ['--config', conf, '--drain-timeout', '1'] }).start();
  const get = (model) => doomed.post('/v1/completions', { ...ask, model });
  try {
    assert.equal((await get('stories')).body.choices[0].text, want);
    faults.set('pread 3 1 HOLD');
    const begun = Date.now();
    const answers = await Promise.all(['large', 'other', 'large'].map(get));
    for (const { status, body } of answers) {
      assert.equal(status, 503, JSON.stringify(body));
      assert.match(body.error.message, /the loader is stuck: loading (large|other)/);
    }
    assert.ok(Date.now() - begun < 10000);
    assert.equal((await get('stories')).body.choices[0].text, want);
    assert.match((await get('other')).body.error.message, /the loader is stuck/, 'and what comes then is refused at once');
    const health = await doomed.get('/health');
    assert.equal(health.status, 503);
    assert.match((await health.json()).reason, /the loader is stuck/);
    assert.equal(await doomed.metric('shimmy_loader_stuck'), 1);

    faults.clear();
    await waitFor('it goes on', async () => (await doomed.metric('shimmy_loader_stuck')) === 0, 5000);
    assert.equal((await doomed.get('/health')).status, 200);
    for (const model of ['large', 'other']) assert.equal((await get(model)).status, 200);
    assert.match(doomed.log, /the loader goes on after all/);

    await run(path.join(build, 'shimmyctl'), ['--socket', doomed.socket, 'unload', 'other']);
    faults.set('pread 3 1 HOLD');
    assert.equal((await get('other')).status, 503);
    doomed.child.kill('SIGTERM');
    assert.equal((await doomed.exit).code, 1, 'a load that hangs does not keep it from ending, as a failure');
    assert.match(doomed.log, /stuck and cannot be unloaded/);
  } finally {
    faults.clear();
    doomed.child.kill('SIGKILL');
    await doomed.exit;
    rmSync(doomed.dir, { recursive: true, force: true });
  }
});

test('after all of it nothing is left', there, async () => {
  for (const name of ['cut', 'replaced', 'deleted']) await unload(name).catch(() => {});
  await pause(300);
  await serves('stories');
  await settled(daemon, begin);
});

// ---- memory that ends ----

// Models larger than what a daemon may take are refused; those that fit serve on. `wrap` runs it under its ceiling.
async function underCeiling(wrap, t) {
  if (instrumented) return t.skip('a sanitizer takes more address space than any ceiling');
  const small = await new Daemon({ models: dir, wrap }).start();
  try {
    const get = (model, more = {}) => small.post('/v1/completions', { ...ask, model, ...more });
    assert.equal((await get('stories')).body.choices[0].text, want);
    const streams = Array.from({ length: 4 }, () => get('stories', { max_tokens: 100 }));
    const answer = await get('huge', { max_tokens: 2 });
    assert.ok(answer.status >= 500, JSON.stringify(answer.body));
    assert.match(answer.body.error.message, /memory|models may take/);
    const texts = (await Promise.all(streams)).map(({ status, body }) => {
      assert.equal(status, 200, JSON.stringify(body));
      return body.choices[0].text;
    });
    assert.equal(new Set(texts).size, 1);
    assert.equal((await get('stories')).body.choices[0].text, want);
    await settled(small);
  } finally {
    await small.stop();
  }
}

before(async () => {
  if (!there.skip && device === 'cpu') await genmodel('huge', '--layers', '8', '--embd', '2048', '--heads', '16', '--ff', '8192', '--vocab', '32000');
});

const onCpu = device === 'cpu' ? there : { skip: 'of the CPU alone' };
for (const limit of ['--data=400000000', '--as=1000000000']) {
  test(`under prlimit ${limit} a model that does not fit is refused, and the others serve on`, onCpu, async (t) => {
    assert.ok(statSync(at('huge')).size > 600e6);
    await underCeiling(['prlimit', limit], t);
  });
}

// A group of ours with a limit, where this user may make one.
function memoryGroup(bytes) {
  for (const [root, limit] of [['/sys/fs/cgroup/memory', 'memory.limit_in_bytes'], ['/sys/fs/cgroup', 'memory.max']]) {
    const folder = path.join(root, `shimmy-test-${process.pid}`);
    try {
      if (!existsSync(path.join(root, 'cgroup.procs'))) continue;
      mkdirSync(folder);
      if (existsSync(path.join(folder, limit))) {
        writeFileSync(path.join(folder, limit), String(bytes));
        return folder;
      }
      rmdirSync(folder);
    } catch {
      // not for us
    }
  }
  return null;
}

test('in a control group with a limit a model that does not fit is refused, and the others serve on', onCpu, async (t) => {
  const group = memoryGroup(500e6);
  if (!group) return t.skip('no control group with a memory limit can be made here');
  try {
    await underCeiling(['sh', '-c', `echo $$ > ${group}/cgroup.procs && exec "$@"`, 'sh'], t);
  } finally {
    await waitFor('the group is empty', () => readFileSync(path.join(group, 'cgroup.procs'), 'utf8').trim() === '');
    rmdirSync(group);
  }
});
