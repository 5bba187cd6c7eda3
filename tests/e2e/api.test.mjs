// api.test.mjs - the routes field by field: log-probs, choices, stops, penalties, echo, tokens, errors, CORS, keys.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { Daemon, events, golden, model, needs, shared } from './harness.mjs';

const there = needs(shared('models/stories260K.gguf'), 'no shared models');
const greedy = { model, prompt: 'Once upon a time', temperature: 0 };
let daemon;
before(async () => {
  if (!there.skip) daemon = await new Daemon({ args: ['--api-key', 'sesame', '--cors-origin', 'https://example.org'] }).start();
});
after(() => daemon?.stop());

const key = { Authorization: 'Bearer sesame' };
const post = (route, body, headers = key) => daemon.post(route, body, headers);
async function complete(more) {
  const { status, body } = await post('/v1/completions', { ...greedy, ...more });
  assert.equal(status, 200, JSON.stringify(body));
  return body;
}
async function stream(route, body) {
  const response = await fetch(daemon.url + route, { method: 'POST', headers: key, body: JSON.stringify({ ...body, stream: true }) });
  assert.equal(response.status, 200);
  assert.match(response.headers.get('content-type'), /^text\/event-stream/);
  const list = events(await response.text());
  assert.equal(list.pop(), '[DONE]');
  return list;
}

test('health, and the state of the models in it', there, async () => {
  const health = await (await daemon.get('/health')).json();
  assert.equal(health.status, 'ok');
  assert.ok(health.models.total >= 1);
  const head = await daemon.get('/health', { method: 'HEAD' });
  assert.equal(head.status, 200);
  assert.equal(await head.text(), '');
});

test('log-probs of a completion match the golden first step', there, async () => {
  const want = golden();
  const { choices: [choice] } = await complete({ max_tokens: 4, logprobs: 5 });
  const { tokens, token_logprobs, top_logprobs, text_offset } = choice.logprobs;
  assert.equal(tokens.length, 4);
  assert.equal(tokens.join(''), choice.text);
  assert.deepEqual(text_offset, tokens.map((_, i) => tokens.slice(0, i).join('').length));
  for (let i = 0; i < 4; i++) {
    const best = Math.max(...Object.values(top_logprobs[i]));
    assert.ok(Math.abs(best - token_logprobs[i]) < 1e-6, 'greedy takes the likeliest');
    assert.ok(token_logprobs[i] <= 0 && Object.keys(top_logprobs[i]).length >= 5);
  }
  const asIds = await complete({ max_tokens: 4, logprobs: 5, return_tokens_as_token_ids: true });
  assert.deepEqual(asIds.choices[0].logprobs.tokens, want.token_ids.slice(0, 4).map((id) => `token_id:${id}`));
  assert.ok(`token_id:${want.token_ids[0]}` in asIds.choices[0].logprobs.top_logprobs[0]);
});

test('log-probs of a chat carry bytes', there, async () => {
  const { body } = await post('/v1/chat/completions', {
    model, messages: [{ role: 'user', content: 'Once' }], max_tokens: 3, temperature: 0, logprobs: true, top_logprobs: 2,
    return_token_ids: true,
  });
  const { content } = body.choices[0].logprobs;
  assert.equal(content.length, body.choices[0].token_ids.length);
  assert.ok(body.prompt_token_ids.length > 0);
  for (const item of content) {
    assert.equal(item.top_logprobs.length, 2);
    assert.equal(Buffer.from(item.bytes).toString(), item.token);
    assert.ok(item.top_logprobs[0].logprob >= item.top_logprobs[1].logprob);
  }
});

test('n choices, prompts in arrays, and their order', there, async () => {
  const three = await complete({ n: 3, temperature: 1, seed: 3, max_tokens: 12 });
  assert.deepEqual(three.choices.map((choice) => choice.index), [0, 1, 2]);
  assert.equal(new Set(three.choices.map((choice) => choice.text)).size, 3);
  assert.equal(three.usage.completion_tokens, 36);
  const many = await complete({ prompt: ['Once upon a time', 'Lily saw a', 'The dog'], max_tokens: 5, n: 2 });
  assert.deepEqual(many.choices.map((choice) => choice.index), [0, 1, 2, 3, 4, 5]);
  const alone = await complete({ prompt: 'Lily saw a', max_tokens: 5 });
  assert.equal(many.choices[2].text, alone.choices[0].text);
  assert.equal(many.choices[3].text, alone.choices[0].text);
  const ids = await complete({ prompt: [[1, 403, 407, 261, 378], [1, 403]], max_tokens: 5, return_token_ids: true });
  assert.deepEqual(ids.choices[0].token_ids, golden().token_ids.slice(0, 5));
  assert.deepEqual(ids.choices[1].prompt_token_ids, [1, 403]);
  const streamed = await stream('/v1/completions', { ...greedy, prompt: ['Once upon a time', 'Lily saw a'], max_tokens: 5 });
  const texts = ['', ''];
  for (const event of streamed) texts[event.choices[0].index] += event.choices[0].text;
  assert.equal(texts[1], alone.choices[0].text);
});

test('a stream carries what the whole answer carries', there, async () => {
  const ask = { ...greedy, max_tokens: 12, n: 2, temperature: 1, seed: 11, logprobs: 3, return_token_ids: true, stop: 'zzz' };
  const whole = await complete(ask);
  const parts = [0, 1].map(() => ({ text: '', token_ids: [], tokens: [], token_logprobs: [], text_offset: [], top_logprobs: [], prompt: [] }));
  for (const event of await stream('/v1/completions', { ...ask, stream_options: { include_usage: true } })) {
    if (event.usage) {
      assert.deepEqual(event.usage, whole.usage);
      continue;
    }
    assert.equal(event.usage, null);
    const [choice] = event.choices;
    const part = parts[choice.index];
    part.text += choice.text;
    part.token_ids.push(...choice.token_ids);
    if (choice.prompt_token_ids) part.prompt.push(choice.prompt_token_ids);
    for (const key of ['tokens', 'token_logprobs', 'text_offset', 'top_logprobs']) part[key].push(...(choice.logprobs?.[key] ?? []));
    part.finish = choice.finish_reason ?? part.finish;
  }
  whole.choices.forEach((choice, i) => {
    const { text, token_ids, prompt, finish, ...logprobs } = parts[i];
    assert.equal(text, choice.text);
    assert.equal(finish, choice.finish_reason);
    assert.deepEqual(token_ids, choice.token_ids);
    assert.deepEqual(prompt, [choice.prompt_token_ids]);
    assert.deepEqual(logprobs, choice.logprobs);
  });
});

test('a chat stream carries log-probs and ids', there, async () => {
  const ask = { model, messages: [{ role: 'user', content: 'Once' }], max_tokens: 6, temperature: 0, logprobs: true, top_logprobs: 1, return_token_ids: true };
  const { body: whole } = await post('/v1/chat/completions', ask);
  const chunks = await stream('/v1/chat/completions', ask);
  assert.deepEqual(chunks[0].prompt_token_ids, whole.prompt_token_ids);
  assert.deepEqual(chunks.flatMap((chunk) => chunk.choices[0].token_ids), whole.choices[0].token_ids);
  assert.deepEqual(chunks.flatMap((chunk) => chunk.choices[0].logprobs?.content ?? []), whole.choices[0].logprobs.content);
});

test('stop strings end the text and never show', there, async () => {
  const whole = (await complete({ max_tokens: 40 })).choices[0].text;
  for (const stop of [[' girl'], ['irl named L'], ['never there', 'Lily']]) {
    const { choices: [choice] } = await complete({ max_tokens: 40, stop });
    const at = Math.min(...stop.map((text) => whole.indexOf(text)).filter((index) => index >= 0));
    assert.equal(choice.text, whole.slice(0, at));
    assert.equal(choice.finish_reason, 'stop');
    const chunks = await stream('/v1/completions', { ...greedy, max_tokens: 40, stop });
    assert.equal(chunks.map((chunk) => chunk.choices[0].text).join(''), whole.slice(0, at));
    assert.equal(chunks.at(-1).choices[0].finish_reason, 'stop');
  }
});

test('echo gives the prompt back, with its log-probs', there, async () => {
  const plain = await complete({ max_tokens: 3 });
  const echoed = await complete({ max_tokens: 3, echo: true, logprobs: 1, return_token_ids: true });
  assert.equal(echoed.choices[0].text, greedy.prompt + plain.choices[0].text);
  const { tokens, token_logprobs, text_offset } = echoed.choices[0].logprobs;
  assert.equal(tokens.length, golden().prompt_token_ids.length + 3);
  assert.equal(token_logprobs[0], null);
  assert.ok(token_logprobs.slice(1).every((value) => value <= 0));
  assert.equal(text_offset[golden().prompt_token_ids.length], greedy.prompt.length);
  const scored = await complete({ max_tokens: 0, echo: true, logprobs: 1 });
  assert.equal(scored.choices[0].text, greedy.prompt);
  assert.deepEqual(scored.choices[0].logprobs.token_logprobs, token_logprobs.slice(0, golden().prompt_token_ids.length));
  assert.equal(scored.usage.completion_tokens, 0);
  const nothing = await complete({ max_tokens: 0 });
  assert.equal(nothing.choices[0].text, '');
  const chunks = await stream('/v1/completions', { ...greedy, max_tokens: 3, echo: true });
  assert.equal(chunks.map((chunk) => chunk.choices[0].text).join(''), echoed.choices[0].text);
});

test('bias and penalties change the choice', there, async () => {
  const first = golden().token_ids[0];
  const banned = await complete({ max_tokens: 1, logit_bias: { [first]: -100 }, return_token_ids: true });
  assert.notEqual(banned.choices[0].token_ids[0], first);
  const forced = await complete({ max_tokens: 1, logit_bias: { 417: 100 }, return_token_ids: true });
  assert.equal(forced.choices[0].token_ids[0], 417);
  const plain = await complete({ max_tokens: 60 });
  const varied = await complete({ max_tokens: 60, frequency_penalty: 2, presence_penalty: 2, repeat_penalty: 1.5 });
  assert.notEqual(varied.choices[0].text, plain.choices[0].text);
});

test('max_tokens defaults to 16 on completions, and the context ends a chat', there, async () => {
  const body = await complete({ ignore_eos: true });
  assert.equal(body.usage.completion_tokens, 16);
  const { status, body: chat } = await post('/v1/chat/completions',
    { model, messages: [{ role: 'user', content: 'Once upon a time '.repeat(250) }], temperature: 0, ignore_eos: true });
  assert.equal(status, 200);
  assert.equal(chat.choices[0].finish_reason, 'length');
  assert.ok(chat.usage.total_tokens >= 2040 && chat.usage.total_tokens <= 2049, JSON.stringify(chat.usage));
});

test('a prompt beyond the context is refused with the figures', there, async () => {
  const { status, body } = await post('/v1/completions', { ...greedy, prompt: Array(3000).fill(403) });
  assert.equal(status, 400);
  assert.equal(body.error.code, 'context_length_exceeded');
  assert.match(body.error.message, /3000/);
  assert.match(body.error.message, /2048/);
});

test('tokenize and detokenize', there, async () => {
  const want = golden();
  const without = await post('/tokenize', { model, content: want.prompt });
  assert.deepEqual(without.body, { tokens: want.prompt_token_ids.slice(1) });
  const special = await post('/tokenize', { model, content: want.prompt, add_special: true });
  assert.deepEqual(special.body.tokens, want.prompt_token_ids);
  const back = await post('/detokenize', { model, tokens: without.body.tokens });
  assert.deepEqual(back.body, { content: want.prompt });
  const only = await post('/tokenize', { content: 'x' });
  assert.equal(only.status, 200, 'the only loaded model is meant');
  assert.equal((await post('/detokenize', { model, tokens: [99999] })).status, 400);
});

test('errors have the shape and the status', there, async () => {
  const check = async (promise, status, code, param = null) => {
    const answer = await promise;
    assert.equal(answer.status, status, JSON.stringify(answer.body));
    assert.deepEqual(Object.keys(answer.body.error).sort(), ['code', 'message', 'param', 'type']);
    assert.equal(answer.body.error.code, code);
    assert.equal(answer.body.error.param, param);
    assert.ok(answer.body.error.message.length > 10);
    return answer;
  };
  await check(post('/v1/completions', '{"model":'), 400, 'invalid_json');
  await check(post('/v1/completions', ''), 400, 'invalid_json');
  await check(post('/v1/completions', '['.repeat(100000)), 400, 'invalid_json');
  await check(post('/v1/completions', Buffer.from('{"model":"\xff"}', 'latin1').toString('latin1')), 400, 'missing_required_parameter', 'prompt');
  await check(post('/v1/completions', { ...greedy, max_tokens: '3' }), 400, 'invalid_type', 'max_tokens');
  await check(post('/v1/completions', { ...greedy, prompt: [1, 99999] }), 400, 'invalid_value', 'prompt[1]');
  await check(post('/v1/completions', { ...greedy, suffix: 'x' }), 400, 'unsupported_parameter', 'suffix');
  await check(post('/v1/completions', { ...greedy, logit_bias: { 99999: 1 } }), 400, 'invalid_value', 'logit_bias');
  await check(post('/v1/chat/completions', { model, messages: [{ role: 'robot', content: 'x' }] }), 400, 'invalid_value', 'messages[0].role');
  await check(post('/v1/completions', { ...greedy, model: '/etc/passwd' }), 404, 'model_not_found', 'model');
  await check(post('/v1/nothing', {}), 404, 'not_found');
  await check(post('/v1/completions', greedy, {}), 401, 'invalid_api_key');
  const wrong = await check(post('/v1/completions', greedy, { Authorization: 'Bearer sesam' }), 401, 'invalid_api_key');
  assert.equal(wrong.headers.get('www-authenticate'), 'Bearer');
  const method = await daemon.get('/v1/completions', { headers: key });
  assert.equal(method.status, 405);
  assert.equal(method.headers.get('allow'), 'POST, OPTIONS');
});

test('an id may be percent-encoded', there, async () => {
  const encoded = [...model].map((c) => `%${c.charCodeAt(0).toString(16)}`).join('');
  const answer = await daemon.get(`/v1/models/${encoded}`, { headers: key });
  assert.equal(answer.status, 200);
  assert.equal((await answer.json()).id, model);
  const unknown = await daemon.get('/v1/models/org%2Fname', { headers: key });
  assert.equal(unknown.status, 404);
});

test('CORS is answered for the configured origin', there, async () => {
  const preflight = await daemon.get('/v1/completions', {
    method: 'OPTIONS',
    headers: { Origin: 'https://example.org', 'Access-Control-Request-Method': 'POST', 'Access-Control-Request-Headers': 'authorization, x-stainless-os' },
  });
  assert.equal(preflight.status, 204);
  assert.equal(preflight.headers.get('access-control-allow-origin'), 'https://example.org');
  assert.match(preflight.headers.get('access-control-allow-headers'), /x-stainless-os/);
  assert.equal((await daemon.get('/health')).headers.get('access-control-allow-origin'), 'https://example.org');
});
