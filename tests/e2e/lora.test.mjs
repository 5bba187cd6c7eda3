// lora.test.mjs - adapters: found by discovery, applied by a load, swapped by another, and refused where they do not fit.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Daemon, needs, shared, shimmyctl, waitFor } from './harness.mjs';

const run = promisify(execFile);
const stories = shared('models/stories260K.gguf');
const there = needs(stories, 'no shared models');
const dir = mkdtempSync(path.join(tmpdir(), 'shimmyd-lora-'));
let daemon;

// A GGUF file: keys are strings or numbers (f32), tensors are [name, dims, values] in F32.
function gguf(keys, tensors) {
  const parts = [];
  const u32 = (v) => { const b = Buffer.alloc(4); b.writeUInt32LE(v); return b; };
  const u64 = (v) => { const b = Buffer.alloc(8); b.writeBigUInt64LE(BigInt(v)); return b; };
  const text = (s) => Buffer.concat([u64(Buffer.byteLength(s)), Buffer.from(s)]);
  parts.push(Buffer.from('GGUF'), u32(3), u64(tensors.length), u64(Object.keys(keys).length));
  for (const [key, value] of Object.entries(keys)) {
    if (typeof value === 'string') parts.push(text(key), u32(8), text(value));
    else parts.push(text(key), u32(6), Buffer.from(new Float32Array([value]).buffer));
  }
  let offset = 0;
  for (const [name, dims, values] of tensors) {
    parts.push(text(name), u32(dims.length), ...dims.map(u64), u32(0), u64(offset));
    offset += Math.ceil(values.length * 4 / 32) * 32;
  }
  const pad = (length) => Buffer.alloc((32 - length % 32) % 32);
  const head = Buffer.concat(parts);
  const data = tensors.map(([, , values]) => Buffer.concat([Buffer.from(values.buffer), pad(values.length * 4)]));
  return Buffer.concat([head, pad(head.length), ...data]);
}

function adapter(base) {
  const values = (n, step) => Float32Array.from({ length: n }, (_, i) => Math.sin(i * step));
  const keys = { 'general.type': 'adapter', 'general.architecture': 'llama', 'adapter.type': 'lora', 'adapter.lora.alpha': 4,
    'general.base_model.0.name': base };
  return gguf(keys, [['blk.0.attn_q.weight.lora_a', [64, 2], values(128, 0.7)], ['blk.0.attn_q.weight.lora_b', [2, 64], values(128, 1.3)]]);
}

before(async () => {
  if (there.skip) return;
  symlinkSync(stories, path.join(dir, 'stories260K.gguf'));
  writeFileSync(path.join(dir, 'pirate.gguf'), adapter('stories260K'));
  writeFileSync(path.join(dir, 'stranger.gguf'), adapter('Some Other Model'));
  daemon = await new Daemon({ models: dir }).start();
});
after(async () => {
  await daemon?.stop();
  rmSync(dir, { recursive: true, force: true });
});

const ctl = (...args) => run(shimmyctl, ['--socket', daemon.socket, ...args]);
async function logprobs() {
  const answer = await daemon.post('/v1/completions', { model: 'stories260K', prompt: 'Once upon a time', max_tokens: 8, temperature: 0, logprobs: 5 });
  assert.equal(answer.status, 200, JSON.stringify(answer.body));
  return JSON.stringify(answer.body.choices[0].logprobs);
}
async function listed() {
  const { stdout } = await ctl('list', '--json');
  return JSON.parse(stdout).models;
}

test('adapters are no models, and a base shows those that name it', there, async () => {
  await waitFor('headers are read', async () => (await listed()).length === 1);
  const [model] = await listed();
  assert.equal(model.id, 'stories260K');
  assert.deepEqual(model.adapters, ['pirate']);
  const models = await (await daemon.get('/v1/models')).json();
  assert.deepEqual(models.data.map((m) => m.id), ['stories260K']);
});

test('a load applies an adapter at its scale, and another load swaps it', there, async () => {
  const plain = await logprobs();
  await assert.rejects(ctl('load', 'stories260K', '--lora', 'pirate'), /other settings/);
  await ctl('load', 'stories260K', '--lora', 'pirate', '--reload');
  const adapted = await logprobs();
  assert.notEqual(adapted, plain);
  const [model] = await listed();
  assert.deepEqual(model.lora, [{ path: path.join(dir, 'pirate.gguf'), scale: 1 }]);
  await ctl('load', 'stories260K', '--lora', `${path.join(dir, 'pirate.gguf')}=0.001`, '--reload');
  const slight = await logprobs();
  assert.notEqual(slight, plain);
  assert.notEqual(slight, adapted);
  await ctl('load', 'stories260K', '--reload');
  assert.equal(await logprobs(), plain);
});

test('what does not fit is refused with the reason, and the daemon goes on', there, async () => {
  await ctl('unload', 'stories260K');
  await assert.rejects(ctl('load', 'stories260K', '--lora', 'nobody'), /no adapter is known by the name 'nobody'/);
  await assert.rejects(ctl('load', 'stories260K', '--lora', stories), /'general\.type'/);
  await assert.rejects(ctl('load', path.join(dir, 'pirate.gguf')), /this is an adapter, no model/);
  const { stdout } = await run(shimmyctl, ['inspect', path.join(dir, 'pirate.gguf')]).catch((error) => error);
  assert.match(stdout, /this is an adapter/);
  await logprobs();
});
