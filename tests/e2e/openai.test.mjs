// openai.test.mjs - the openai npm client lists, completes, chats, streams and leaves a stream.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import OpenAI from 'openai';
import { Daemon, endless, golden, model, needs, shared, waitFor } from './harness.mjs';

const there = needs(shared('models/stories260K.gguf'), 'no shared models');
let daemon, client;
before(async () => {
  if (there.skip) return;
  daemon = await new Daemon().start();
  client = new OpenAI({ baseURL: `${daemon.url}/v1`, apiKey: 'none', maxRetries: 0 });
});
after(() => daemon?.stop());

test('models are listed and found by id', there, async () => {
  const ids = [];
  for await (const one of await client.models.list()) ids.push(one.id);
  assert.ok(ids.includes(model), ids.join());
  const one = await client.models.retrieve(model);
  assert.equal(one.id, model);
  assert.equal(one.object, 'model');
  assert.equal(one.owned_by, 'shimmyd');
  await assert.rejects(client.models.retrieve('stories260J'), (error) => error.status === 404 && /stories260K/.test(error.message));
});

test('the greedy continuation has exactly the golden ids', there, async () => {
  const want = golden();
  const answer = await client.completions.create({
    model, prompt: want.prompt, max_tokens: want.max_tokens, temperature: 0, return_token_ids: true,
  });
  assert.deepEqual(answer.choices[0].token_ids, want.token_ids);
  assert.deepEqual(answer.choices[0].prompt_token_ids, want.prompt_token_ids);
  assert.equal(answer.choices[0].text, want.text);
  assert.equal(answer.choices[0].finish_reason, 'length');
  assert.equal(answer.usage.prompt_tokens, want.prompt_token_ids.length);
  assert.equal(answer.usage.completion_tokens, want.max_tokens);
  assert.equal(answer.usage.total_tokens, want.prompt_token_ids.length + want.max_tokens);
  assert.match(answer.id, /^cmpl-[0-9a-f]{24}$/);
  assert.match(answer.system_fingerprint, /^fp_/);
  assert.equal(answer.model, model);
  assert.ok(Math.abs(answer.created - Date.now() / 1000) < 60);
});

test('token ids as a prompt give the same', there, async () => {
  const want = golden();
  const answer = await client.completions.create({
    model, prompt: want.prompt_token_ids, max_tokens: 32, temperature: 0, return_token_ids: true,
  });
  assert.deepEqual(answer.choices[0].token_ids, want.token_ids.slice(0, 32));
});

test('a streamed completion adds up to the whole one', there, async () => {
  const want = golden();
  const stream = await client.completions.create({
    model, prompt: want.prompt, max_tokens: want.max_tokens, temperature: 0, stream: true, stream_options: { include_usage: true },
    return_token_ids: true,
  });
  let text = '', usage = null, finish = null;
  const ids = [];
  for await (const chunk of stream) {
    if (chunk.usage) {
      usage = chunk.usage;
      assert.deepEqual(chunk.choices, []);
      continue;
    }
    text += chunk.choices[0].text;
    ids.push(...chunk.choices[0].token_ids);
    finish = chunk.choices[0].finish_reason ?? finish;
  }
  assert.equal(text, want.text);
  assert.deepEqual(ids, want.token_ids);
  assert.equal(finish, 'length');
  assert.equal(usage.completion_tokens, want.max_tokens);
});

test('a chat answers, whole and streamed alike', there, async () => {
  const request = { model, messages: [{ role: 'user', content: 'Tell me a story.' }], max_tokens: 24, temperature: 0 };
  const whole = await client.chat.completions.create(request);
  assert.equal(whole.object, 'chat.completion');
  assert.match(whole.id, /^chatcmpl-/);
  assert.equal(whole.choices[0].message.role, 'assistant');
  assert.ok(['stop', 'length'].includes(whole.choices[0].finish_reason));
  assert.ok(whole.usage.prompt_tokens > 0);

  const stream = await client.chat.completions.create({ ...request, stream: true });
  let text = '', roles = 0, finish = null;
  for await (const chunk of stream) {
    assert.equal(chunk.object, 'chat.completion.chunk');
    const { delta, finish_reason } = chunk.choices[0];
    roles += delta.role === 'assistant' ? 1 : 0;
    text += delta.content ?? '';
    finish = finish_reason ?? finish;
  }
  assert.equal(roles, 1);
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(finish, whole.choices[0].finish_reason);
});

test('the same seed gives the same text, another one another', there, async () => {
  const request = { model, prompt: 'Once upon a time', max_tokens: 40, temperature: 1 };
  const text = async (more) => (await client.completions.create({ ...request, ...more })).choices[0].text;
  assert.equal(await text({ seed: 7 }), await text({ seed: 7 }));
  assert.notEqual(await text({ seed: 7 }), await text({ seed: 8 }));
  const random = await client.completions.create(request);
  assert.ok(Number.isSafeInteger(random.seed));
  assert.equal(await text({ seed: random.seed }), random.choices[0].text);
});

test('a stream that is left frees its slot at once', there, async () => {
  const stream = await client.completions.create({ ...endless, stream: true });
  for await (const chunk of stream) {
    assert.ok(chunk.choices.length);
    break;
  }
  stream.controller.abort();
  const begun = Date.now();
  await waitFor('no request runs', async () => (await daemon.running()) === 0, 3000);
  assert.ok(Date.now() - begun < 1000, `${Date.now() - begun} ms`);
});

test('errors reach the client with their status', there, async () => {
  await assert.rejects(client.completions.create({ model: 'nobody', prompt: 'x' }),
    (error) => error instanceof OpenAI.NotFoundError && error.code === 'model_not_found' && error.param === 'model');
  await assert.rejects(client.completions.create({ model, prompt: 'x', temperature: 'hot' }),
    (error) => error instanceof OpenAI.BadRequestError && error.param === 'temperature');
});
