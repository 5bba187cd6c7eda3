// faults-vulkan.test.mjs - a Vulkan device that has no memory, is lost or never finishes: the request, the model or the device's models fail with
// the reason, models elsewhere do not notice, and what can go on goes on. On llvmpipe beneath tests/faults/vk_layer.c.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { execFile, spawnSync } from 'node:child_process';
import { promisify } from 'node:util';
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Daemon, build, needs, shared, waitFor } from './harness.mjs';
import { Faults, answerText, books, call, family, layer, settled } from './faults.mjs';

const run = promisify(execFile);
const stories = shared('models/stories260K.gguf');
const llvmpipe = /llvmpipe/.test(spawnSync(path.join(build, 'shimmyd'), ['--probe-devices'], { encoding: 'utf8' }).stdout ?? '');
const there = stories && !llvmpipe ? { skip: 'there is no llvmpipe (package mesa-vulkan-drivers)' } : needs(stories, 'no shared models');
const dir = mkdtempSync(path.join(tmpdir(), 'shimmyd-vulkan-'));
const at = (name) => path.join(dir, `${name}.gguf`);
const faults = new Faults(path.join(dir, 'faults'));
const ask = { prompt: 'Once upon a time', max_tokens: 16, temperature: 0 };
const patient = { ...ask, max_tokens: 250, ignore_eos: true };
let daemon, want, other;
const complete = (model, more = {}) => daemon.post('/v1/completions', { ...ask, model, ...more });
const state = async (id) => (await call(daemon, 'Status')).models.find((one) => one.id === id);
const ctl = (...args) => run(path.join(build, 'shimmyctl'), ['--socket', daemon.socket, ...args]);
const start = (...args) => new Daemon({ models: dir, device: 'llvmpipe', env: layer(faults.file), args: ['--config', conf, '--gpu-layers', '100', ...args] }).start();
const conf = path.join(dir, 'shimmyd.conf');
// From now on: the first steps of a model compile kernels, which takes a software driver its time.
async function impatient(whose, seconds) {
  writeFileSync(conf, `[shimmyd]\nwatchdog_timeout = ${seconds}\n`);
  whose.child.kill('SIGHUP');
  await waitFor('the limit is in force', () => /option watchdog_timeout has changed[^]*configuration reloaded/.test(whose.log));
}

before(async () => {
  if (there.skip) return;
  for (const name of ['device', 'host', 'late']) copyFileSync(stories, at(name));
  writeFileSync(conf, '');
  daemon = await start('--max-queue', '100');
  await ctl('load', 'host', '--device', 'cpu');
  const text = ({ status, body }) => assert.equal(status, 200, JSON.stringify(body)) ?? body.choices[0].text;
  want = text(await complete('device'));
  other = text(await complete('host', patient));
  assert.match((await state('device')).device, /llvmpipe/);
});
after(async () => {
  faults.clear();
  await daemon?.stop();
  rmSync(dir, { recursive: true, force: true });
});

// A stream of the model on the CPU runs meanwhile, and is what it is alone.
async function besides(during) {
  await ctl('load', 'host', '--device', 'cpu'); // a load that lacked memory may have taken its room
  const socket = await daemon.connect();
  socket.write(daemon.rawPost('/v1/completions', { ...patient, model: 'host', stream: true }, 'Connection: close\r\n'));
  await waitFor('it streams', () => socket.text.includes('data:'));
  await during();
  await socket.ended;
  assert.equal(answerText(socket.text), other);
}
async function serves(model) {
  const answer = await complete(model);
  assert.equal(answer.status, 200, JSON.stringify(answer.body));
  assert.equal(answer.body.choices[0].text, want);
}

test('a step without device memory costs its request, not the model', there, () => besides(async () => {
  for (const rule of ['vkQueueSubmit 0 0 VK_ERROR_OUT_OF_DEVICE_MEMORY', 'vkQueueSubmit 5 0 VK_ERROR_OUT_OF_DEVICE_MEMORY',
    'vkQueueSubmit 2 0 VK_ERROR_OUT_OF_HOST_MEMORY', 'vkQueueSubmit 3 1 VK_ERROR_OUT_OF_DEVICE_MEMORY']) {
    faults.set(rule);
    const answer = await complete('device');
    // One that fails once may be survived: what is in flight gives memory back.
    assert.ok(answer.status === 503 || (answer.status === 200 && / 1 VK/.test(rule)), JSON.stringify(answer.body));
    if (answer.status === 503) {
      assert.equal(answer.body.error.code, 'out_of_memory');
      assert.match(answer.body.error.message, /memory/);
    } else {
      assert.equal(answer.body.choices[0].text, want);
    }
    assert.ok(faults.hits().length > 0);
    faults.clear();
    assert.equal((await state('device')).state, 'ready');
    await serves('device');
  }
}));

test('a load without device memory fails with its reason, and is tried again', there, () => besides(async () => {
  for (const skip of [0, 1, 3]) {
    faults.set(`vkAllocateMemory ${skip} 0 VK_ERROR_OUT_OF_DEVICE_MEMORY`);
    const answer = await complete('late');
    const hits = faults.hits().length;
    faults.clear();
    assert.equal(answer.status, 503, JSON.stringify(answer.body));
    assert.equal(answer.body.error.code, 'out_of_memory');
    assert.match(answer.body.error.message, /memory/);
    assert.ok(hits > 0);
    assert.equal((await state('late')).state, 'failed');
    await serves('device');
  }
  await serves('late');
  await ctl('unload', 'late');
}));

test('a lost device fails what runs there with its reason; its models are loaded anew when they are asked for', there, () => besides(async () => {
  for (const rule of ['vkQueueSubmit 20 1 VK_ERROR_DEVICE_LOST', 'vkWaitSemaphores 30 1 VK_ERROR_DEVICE_LOST']) {
    await serves('late'); // two models on the device
    const lost = (await daemon.log).split('the device is lost').length;
    faults.set(rule);
    const answers = await Promise.all(['device', 'late', 'device'].map((model) => complete(model, patient)));
    for (const { status, body } of answers) {
      assert.ok(status === 503 || status === 500 || status === 404, JSON.stringify(body));
      assert.match(body.error.message, /lost|unloaded/);
    }
    assert.equal(faults.hits().length, 1);
    faults.clear();
    assert.ok(daemon.log.split('the device is lost').length > lost);
    await waitFor('the models are failed', async () => ['failed', 'failed'].join() === [(await state('device')).state, (await state('late')).state].join());
    assert.match((await state('device')).error, /lost/);
    await serves('device');
    await serves('late');
  }
  assert.equal((await state('host')).state, 'ready');
  await ctl('unload', 'late');
}));

test('a step that never ends is noticed: its requests end with the reason, others go on, and so does it when it ends after all', there, () => besides(async () => {
  await impatient(daemon, 2);
  faults.set('vkWaitSemaphores 0 0 HOLD');
  const begun = Date.now();
  const socket = await daemon.connect();
  socket.write(daemon.rawPost('/v1/completions', { ...ask, model: 'device', stream: true }, 'Connection: close\r\n'));
  const answers = await Promise.all(Array.from({ length: 12 }, () => complete('device')));
  for (const { status, body } of answers) {
    assert.equal(status, 503, JSON.stringify(body));
    assert.match(body.error.message, /device is stuck: in a step of \d+ tokens? on llvmpipe/);
  }
  await socket.ended;
  assert.match(socket.text, /device is stuck/);
  assert.ok(Date.now() - begun < 10000);
  assert.match(daemon.log, /device is stuck/);
  const late = await complete('device');
  assert.equal(late.status, 503, JSON.stringify(late.body));
  assert.ok(Date.now() - begun < 12000, 'what comes then is refused at once');
  const health = await daemon.get('/health');
  assert.equal(health.status, 503);
  const told = await health.json();
  assert.equal(told.status, 'stuck');
  assert.match(told.reason, /device is stuck/);
  assert.match((await state('device')).error, /stuck/);
  assert.equal(await daemon.metric('shimmy_runner_stuck{model="device"}'), 1);
  assert.equal(await daemon.metric('shimmy_runner_stuck{model="host"}'), 0);
  const { accepted, ended } = await books(daemon);
  assert.ok(accepted - Object.values(ended).reduce((sum, n) => sum + n, 0) <= 1, 'all have ended but the one beside');

  faults.clear();
  await waitFor('it serves on', async () => (await daemon.metric('shimmy_runner_stuck{model="device"}')) === 0, 5000);
  await serves('device');
  assert.equal((await daemon.get('/health')).status, 200);
  assert.equal((await state('device')).error, null);
}));

test('a daemon with a stuck model ends all the same', there, async () => {
  writeFileSync(conf, '');
  const doomed = await start('--drain-timeout', '1');
  const answer = await doomed.post('/v1/completions', { ...ask, model: 'device' });
  assert.equal(answer.body.choices[0].text, want);
  await impatient(doomed, 1);
  faults.set('vkWaitSemaphores 0 0 HOLD');
  assert.equal((await doomed.post('/v1/completions', { ...ask, model: 'device' })).status, 503);
  doomed.child.kill('SIGTERM');
  const begun = Date.now();
  const { code } = await doomed.exit;
  assert.equal(code, 1, 'a failure, for whoever manages it');
  assert.ok(Date.now() - begun < 6000);
  assert.match(doomed.log, /stuck and cannot be unloaded/);
  faults.clear();
  rmSync(doomed.dir, { recursive: true, force: true });
});

test('after all of it the books balance', there, async () => {
  const { ended } = await settled(daemon);
  assert.ok(ended.failed > 0 && ended.finished > 0);
  assert.ok(family(await daemon.metrics(), 'shimmy_runner_stuck').every((one) => one.value === 0));
});
