// models.test.mjs - several models at once, files that do not load, names that fit two files, several addresses, crowds of slow connections.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Daemon, build, needs, shared, waitFor } from './harness.mjs';

const run = promisify(execFile);
const stories = shared('models/stories260K.gguf');
const there = needs(stories, 'no shared models');
const dir = mkdtempSync(path.join(tmpdir(), 'shimmyd-models-'));
let daemon;
before(async () => {
  if (there.skip) return;
  const whole = readFileSync(stories);
  mkdirSync(path.join(dir, 'other'));
  symlinkSync(stories, path.join(dir, 'stories260K.gguf'));
  writeFileSync(path.join(dir, 'twin.gguf'), whole);
  writeFileSync(path.join(dir, 'other', 'twin.gguf'), whole);
  writeFileSync(path.join(dir, 'cut.gguf'), whole.subarray(0, whole.length / 2));
  writeFileSync(path.join(dir, 'noise.gguf'), 'GGUF, but not really');
  await run(path.join(build, 'tests/tools/genmodel'), [path.join(dir, 'bytes.gguf'), '--bpe', '--vocab', '400', '--layers', '1']);
  daemon = await new Daemon({ models: dir, args: ['--listen', '127.0.0.1:0,localhost:0', '--header-timeout', '2', '--max-connections', '20'] }).start();
});
after(async () => {
  await daemon?.stop();
  rmSync(dir, { recursive: true, force: true });
});
const post = (route, body) => daemon.post(route, body);

test('without a name and with nothing loaded it is a 400', there, async () => {
  for (const [route, body] of [['/tokenize', { content: 'x' }], ['/v1/completions', { prompt: 'x' }]]) {
    const answer = await post(route, body);
    assert.equal(answer.status, 400, JSON.stringify(answer.body));
    assert.equal(answer.body.error.param, 'model');
  }
});

test('a vocabulary answers without its model being loaded', there, async () => {
  assert.equal((await post('/tokenize', { model: 'stories260K', content: 'x' })).status, 200);
  assert.equal(await daemon.metric('shimmy_model_state{model="stories260K",state="ready"}'), 0);
});

test('files that do not load say why, and are no end of the world', there, async () => {
  for (const model of ['cut', 'noise']) {
    const answer = await post('/v1/completions', { model, prompt: 'x' });
    assert.equal(answer.status, 500, JSON.stringify(answer.body));
    assert.equal(answer.body.error.code, 'model_load_failed');
    assert.match(answer.body.error.message, new RegExp(`${model}\\.gguf`));
  }
  const list = await (await daemon.get('/v1/models')).json();
  const cut = list.data.find((one) => one.id === 'cut');
  assert.equal(cut.state, 'failed');
  assert.ok(cut.error.length > 10);
});

test('a name that fits two files is refused and both are named', there, async () => {
  const answer = await post('/v1/completions', { model: 'twin', prompt: 'x' });
  assert.equal(answer.status, 400, JSON.stringify(answer.body));
  assert.match(answer.body.error.message, /other\/twin\.gguf/);
});

test('an unknown name gets near ones, a name is found however it is spelled', there, async () => {
  const answer = await post('/v1/completions', { model: 'stories', prompt: 'x' });
  assert.equal(answer.status, 404);
  assert.match(answer.body.error.message, /stories260K/);
  const spelled = await post('/v1/completions', { model: 'STORIES260k', prompt: 'x', max_tokens: 1 });
  assert.equal(spelled.status, 200);
  assert.equal(spelled.body.model, 'stories260K');
});

test('two models answer at once, and then a name is needed', there, async () => {
  const ask = (model) => post('/v1/completions', { model, prompt: 'abc', max_tokens: 20, temperature: 0, logprobs: 3, ignore_eos: true });
  const [first, second] = await Promise.all([ask('stories260K'), ask('bytes')]);
  assert.equal(first.status, 200, JSON.stringify(first.body));
  assert.equal(second.status, 200, JSON.stringify(second.body));
  assert.notEqual(first.body.system_fingerprint, second.body.system_fingerprint);
  assert.equal((await post('/tokenize', { content: 'x' })).status, 400);
  // A random model writes bytes that are no UTF-8: the text is sound all the same, and its tokens have names of their own.
  const { choices: [{ logprobs }] } = second.body;
  const names = logprobs.top_logprobs.flatMap((top) => Object.keys(top));
  assert.ok(logprobs.top_logprobs.every((top) => Object.keys(top).length >= 3));
  assert.ok(names.every((name) => !name.includes('\ufffd')), names.join(' '));
});

test('UTF-8 in pieces comes out whole, whatever the chunks', there, async () => {
  const prompt = [...Buffer.from('grüße, 日本語 🙂')];
  const ids = (await post('/tokenize', { model: 'bytes', content: 'grüße, 日本語 🙂' })).body.tokens;
  assert.equal(Buffer.from((await post('/detokenize', { model: 'bytes', tokens: ids })).body.content).length, prompt.length);
  const answer = await post('/v1/completions', { model: 'bytes', prompt: ids, max_tokens: 0, echo: true });
  assert.equal(answer.body.choices[0].text, 'grüße, 日本語 🙂');
});

test('every address answers', there, async () => {
  const { http } = await daemon.status();
  assert.ok(http.length >= 2, http.join());
  for (const url of http) assert.equal((await fetch(`${url}/health`)).status, 200);
});

test('a crowd that sends nothing is cleared away', there, async () => {
  const crowd = await Promise.all(Array.from({ length: 150 }, () => daemon.connect()));
  await waitFor('health answers', async () => {
    const give = AbortSignal.timeout(1000);
    return (await daemon.get('/health', { signal: give }).catch(() => null))?.status === 200;
  }, 15000);
  crowd.forEach((socket) => socket.destroy());
  await waitFor('requests are answered', async () => (await post('/v1/completions', { model: 'stories260K', prompt: 'x', max_tokens: 1 })).status === 200);
});
