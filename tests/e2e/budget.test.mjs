// budget.test.mjs - three models and room for two: answers, evictions, waiting loads, swaps under load, refusals with figures, limits of the process.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { copyFileSync, mkdtempSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Daemon, build, device, has, needs, shimmyctl, waitFor } from './harness.mjs';

const run = promisify(execFile);
const dir = mkdtempSync(path.join(tmpdir(), 'shimmyd-budget-'));
const names = ['one', 'two', 'three'];
const onCpu = device === 'cpu' ? {} : { skip: 'the figures are those of the CPU' };
let alone; // what each says when nothing else is loaded
let bytes; // what one of them is counted with
const ask = (daemon, model, more = {}) => daemon.post('/v1/completions',
  { model, prompt: 'Once upon a time there was', max_tokens: 24, temperature: 0, ignore_eos: true, ...more });
const text = (answer) => {
  assert.equal(answer.status, 200, JSON.stringify(answer.body));
  return answer.body.choices[0].text;
};
const view = async (daemon, id) => (await daemon.status()).models.find((one) => one.id === id);
const ctl = (daemon, ...args) => run(shimmyctl, ['--socket', daemon.socket, ...args]);
const start = (...args) => new Daemon({ models: dir, args: ['--listen', '127.0.0.1:0', '--speculation=no', ...args] }).start();

before(async () => {
  for (const [i, name] of names.entries())
    await run(path.join(build, 'tests/tools/genmodel'), [path.join(dir, `${name}.gguf`), '--seed', `${i + 1}`, '--name', name]);
  const daemon = await start();
  alone = {};
  for (const name of names) {
    alone[name] = text(await ask(daemon, name));
    bytes = Math.max(bytes ?? 0, (await view(daemon, name)).memory_bytes);
  }
  await daemon.stop();
  assert.equal(new Set(Object.values(alone)).size, 3);
});
after(() => rmSync(dir, { recursive: true, force: true }));

test('three models, room for two: every answer is right, and evictions are counted', onCpu, async () => {
  const daemon = await start('--memory-limit', `${Math.ceil(bytes * 2.5)}`);
  try {
    const client = async (offset) => {
      for (let i = 0; i < 9; i++) {
        const name = names[(i + offset) % 3];
        assert.equal(text(await ask(daemon, name)), alone[name]);
      }
    };
    await Promise.all([client(0), client(1)]);
    let evicted = 0;
    for (const name of names) evicted += await daemon.metric(`shimmy_models_evicted_total{model="${name}",reason="memory"}`);
    assert.ok(evicted >= 3, `${evicted}`);
    assert.match(daemon.log, /unloaded to make room for/);
    const { models } = await daemon.status();
    assert.ok(models.filter((one) => one.state === 'ready').length <= 2);
    // The last one that was used is there still.
    const loads = await daemon.metric('shimmy_model_loads_total{model="two",result="ready"}');
    await ask(daemon, 'two');
    await ask(daemon, 'two');
    assert.ok(await daemon.metric('shimmy_model_loads_total{model="two",result="ready"}') <= loads + 1);
  } finally {
    await daemon.stop();
  }
});

test('what fits nowhere is refused with the figures, and the next model is served', onCpu, async () => {
  await run(path.join(build, 'tests/tools/genmodel'), [path.join(dir, 'large.gguf'), '--layers', '24', '--name', 'large']);
  const daemon = await start('--memory-limit', `${Math.ceil(bytes * 1.2)}`);
  try {
    const answer = await ask(daemon, 'large');
    assert.ok(answer.status >= 500, `${answer.status}`);
    assert.match(answer.body.error.message, /needs \d+ MiB on the host, models may take \d+ MiB there \(option memory_limit\)/);
    assert.equal(text(await ask(daemon, 'one')), alone.one);
    assert.equal(await daemon.metric('shimmy_model_loads_total{model="large",result="failed"}'), 1);
  } finally {
    rmSync(path.join(dir, 'large.gguf'));
    await daemon.stop();
  }
});

test('many requests, one load', async () => {
  const daemon = await start();
  try {
    const answers = await Promise.all(Array.from({ length: 8 }, () => ask(daemon, 'one')));
    for (const answer of answers) assert.equal(text(answer), alone.one);
    assert.equal(await daemon.metric('shimmy_model_loads_total{model="one",result="ready"}'), 1);
  } finally {
    await daemon.stop();
  }
});

test('a file is replaced and the model swapped, under load: no request fails', async () => {
  const daemon = await start();
  try {
    let going = true, answered = 0;
    const client = async () => {
      while (going) {
        const answer = await ask(daemon, 'one');
        assert.equal(text(answer), alone.one);
        answered++;
      }
    };
    const clients = Array.from({ length: 4 }, client);
    for (let i = 0; i < 4; i++) {
      const before = answered;
      await waitFor('answers come', () => answered > before + 4, 30000);
      copyFileSync(path.join(dir, 'one.gguf'), path.join(dir, 'one.new'));
      renameSync(path.join(dir, 'one.new'), path.join(dir, 'one.gguf'));
      assert.equal((await view(daemon, 'one')).stale, true);
      await ctl(daemon, 'load', 'one', '--reload');
      assert.equal((await view(daemon, 'one')).stale, false);
    }
    going = false;
    await Promise.all(clients);
    assert.equal(await daemon.metric('shimmy_model_loads_total{model="one",result="ready"}'), 5);
  } finally {
    await daemon.stop();
  }
});

test('an unloaded model comes back as it was loaded, until it is unloaded by name', async () => {
  const daemon = await start();
  try {
    await ctl(daemon, 'load', 'one', '--context', '100');
    text(await ask(daemon, 'one', { keep_alive: 0 }));
    await waitFor('it went', async () => (await view(daemon, 'one')).state === 'discovered');
    assert.equal(await daemon.metric('shimmy_models_evicted_total{model="one",reason="idle"}'), 1);
    text(await ask(daemon, 'one'));
    assert.equal((await view(daemon, 'one')).context_length, 100);
    await ctl(daemon, 'unload', 'one');
    text(await ask(daemon, 'one'));
    assert.notEqual((await view(daemon, 'one')).context_length, 100);
    const { expires, keep_alive_seconds: keep } = await view(daemon, 'one');
    assert.equal(keep, 1800);
    assert.ok(Math.abs(expires - Date.now() / 1000 - 1800) < 10, `${expires}`);
  } finally {
    await daemon.stop();
  }
});

test('models of preload are there, and one that is not is told', async () => {
  const daemon = await start('--preload', 'two,nothing,one');
  try {
    await waitFor('both are ready', async () => (await daemon.status()).models.filter((one) => one.state === 'ready').length === 2);
    assert.match(daemon.log, /preload: .*nothing/);
    assert.deepEqual((await (await daemon.get('/health')).json()).models.preload, { wanted: 3, ready: 2, failed: 1 });
    assert.equal((await view(daemon, 'one')).keep_alive_seconds, -1);
    assert.equal((await view(daemon, 'one')).expires, null);
  } finally {
    await daemon.stop();
  }
});

test('a limit of the process on its address space: the load is refused with the figures, the rest goes on',
  needs(onCpu.skip ? null : await has('prlimit'), 'no prlimit, or not on the CPU'), async () => {
    const daemon = await start();
    try {
      text(await ask(daemon, 'one'));
      const pages = Number(readFileSync(`/proc/${daemon.child.pid}/statm`, 'utf8').split(' ')[0]);
      await run('prlimit', ['--pid', `${daemon.child.pid}`, `--as=${pages * 4096 + (30 << 20)}:unlimited`]);
      const refused = await ask(daemon, 'two');
      assert.ok(refused.status >= 500, JSON.stringify(refused.body));
      assert.match(refused.body.error.message, /needs \d+ MiB/);
      assert.equal(text(await ask(daemon, 'one')), alone.one);
      await run('prlimit', ['--pid', `${daemon.child.pid}`, '--as=unlimited:unlimited']);
      assert.equal(text(await ask(daemon, 'two')), alone.two);
    } finally {
      await daemon.stop();
    }
  });
