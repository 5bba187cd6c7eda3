// embeddings.test.mjs - POST /v1/embeddings with the openai npm client, shimmyctl embed, and clients that are wrong or leave.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import path from 'node:path';
import OpenAI from 'openai';
import { Daemon, model, needs, shared, shimmyctl, waitFor } from './harness.mjs';

const run = promisify(execFile);
const there = needs(shared('models/stories260K.gguf') && shared('parity/bert-F16.gguf'), 'no shared models');
const texts = ['Once upon a time', 'there was a little girl named Lily. She had 3 dogs; they ran.', 'x'];
let daemon, client;
before(async () => {
  if (there.skip) return;
  daemon = await new Daemon({ args: ['--model-dir', path.dirname(shared('parity/bert-F16.gguf'))] }).start();
  client = new OpenAI({ baseURL: `${daemon.url}/v1`, apiKey: 'none', maxRetries: 0 });
});
after(() => daemon?.stop());

const norm = (vector) => Math.sqrt(vector.reduce((sum, x) => sum + x * x, 0));
const same = (a, b) => assert.ok(a.length === b.length && a.every((x, i) => Math.abs(x - b[i]) < 1e-6));

test('the client decodes base64, and that is what numbers say', there, async () => {
  const packed = await client.embeddings.create({ model, input: texts }); // asks for base64 by itself
  const plain = await client.embeddings.create({ model, input: texts, encoding_format: 'float', user: 'u' });
  assert.equal(packed.object, 'list');
  assert.equal(packed.model, model);
  assert.equal(packed.data.length, 3);
  assert.deepEqual(packed.usage, plain.usage);
  assert.equal(packed.usage.prompt_tokens, packed.usage.total_tokens);
  packed.data.forEach((one, i) => {
    assert.equal(one.object, 'embedding');
    assert.equal(one.index, i);
    assert.ok(Math.abs(norm(one.embedding) - 1) < 1e-5);
    same(Array.from(one.embedding), plain.data[i].embedding);
  });
  assert.ok(packed.data[0].embedding.some((x, i) => Math.abs(x - packed.data[1].embedding[i]) > 1e-3));
});

test('a text, its ids, and texts together give the same vector', there, async () => {
  const { body: { tokens } } = await daemon.post('/tokenize', { model, content: texts[1], add_special: true });
  const one = async (input) => (await client.embeddings.create({ model, input, encoding_format: 'float' })).data.map((d) => d.embedding);
  const [alone] = await one(texts[1]);
  assert.deepEqual(await one(tokens), [alone]);
  assert.deepEqual(await one([tokens, tokens.slice(0, 3)]).then((v) => v[0]), alone);
  assert.deepEqual((await one(texts))[1], alone);
  const { stdout } = await run(shimmyctl, ['--socket', daemon.socket, 'embed', model, ...texts]);
  const lines = stdout.trimEnd().split('\n').map((line) => line.split(' ').map(Number));
  assert.equal(lines.length, 3);
  same(lines[1], alone);
});

test('dimensions keep the first numbers, brought to length 1', there, async () => {
  const [all, some] = await Promise.all([undefined, 8].map(async (dimensions) =>
    (await client.embeddings.create({ model, input: texts[0], encoding_format: 'float', dimensions })).data[0].embedding));
  assert.equal(some.length, 8);
  assert.ok(Math.abs(norm(some) - 1) < 1e-5);
  const scale = norm(all.slice(0, 8));
  same(some, all.slice(0, 8).map((x) => x / scale));
});

test('what is wrong is a 400 or 404 that says what', there, async () => {
  const fails = (input, status, words, more = {}) => assert.rejects(client.embeddings.create({ model, input, ...more }),
    (error) => error.status === status && words.test(error.message) || assert.fail(`${error.status} ${error.message}`));
  await fails('', 400, /empty string/);
  await fails([], 400, /empty array/);
  await fails(['a', ''], 400, /input\[1\]/);
  await fails('3 dogs '.repeat(2000), 400, /text 1 of 1 has \d+ tokens, stories260K takes at most \d+/);
  await fails([1, 1000000], 400, /input\[1\].*1000000/);
  await fails('a', 400, /5000 dimensions.*have \d+/, { dimensions: 5000 });
  await fails('a', 404, /nothing-like-it/, { model: 'nothing-like-it' });
  await fails('a', 400, /encoding_format/, { encoding_format: 'int4' });
});

test('an embedding model says what it is for', there, async () => {
  const answer = await client.embeddings.create({ model: 'bert-F16', input: ['hello world', 'Hello, World!'] });
  assert.equal(answer.data[0].embedding.length, 128);
  assert.deepEqual((await client.models.retrieve('bert-F16')).capabilities, ['embedding']);
  assert.deepEqual((await client.models.retrieve(model)).capabilities, ['completion', 'embedding']);
  const refused = await daemon.post('/v1/completions', { model: 'bert-F16', prompt: [2, 260, 3] });
  assert.equal(refused.status, 400);
  assert.match(refused.body.error.message, /embedding model.*\/v1\/embeddings/);
  assert.equal(refused.body.error.code, 'unsupported_model');
  const chat = await daemon.post('/v1/chat/completions', { model: 'bert-F16', messages: [{ role: 'user', content: 'hi' }] });
  assert.equal(chat.status, 400);
  const tooLong = await daemon.post('/v1/embeddings', { model: 'bert-F16', input: 'hello '.repeat(400) });
  assert.equal(tooLong.status, 400);
  assert.match(tooLong.body.error.message, /has \d+ tokens, bert-F16 takes at most 256/);
});

test('embeddings are counted, and a client that leaves is noticed', there, async () => {
  const series = `shimmy_embeddings_total{model="${model}"}`, before = await daemon.metric(series);
  await client.embeddings.create({ model, input: texts });
  assert.equal(await daemon.metric(series), before + 3);
  const socket = await daemon.connect();
  socket.write(daemon.rawPost('/v1/embeddings', { model, input: Array(2000).fill('a '.repeat(150)) }));
  await waitFor('it runs', async () => await daemon.running() > 0);
  socket.destroy();
  await waitFor('it is cancelled', async () => await daemon.running() === 0);
  assert.ok(await daemon.metric('shimmy_requests_cancelled_total{reason="client"}') > 0);
});
