// responsecache.test.mjs - kept answers: the same text, tokens and log-probs as the first time, whole and streamed, over HTTP and the control socket;
// what is not kept; age; a load of its own.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { Daemon, events, model, needs, shared, shimmyctl, waitFor } from './harness.mjs';

const there = needs(shared('models/stories260K.gguf'), 'no shared models');
const route = '/v1/completions';
const header = 'x-shimmy-response-cache';
const run = promisify(execFile);
let daemon;
before(async () => {
  if (!there.skip) daemon = await new Daemon({ args: ['--response-cache', '--response-cache-ttl', '20', '--max-sequences', '8'] }).start();
});
after(() => daemon?.stop());

const hits = () => daemon.metric('shimmy_response_cache_hits_total');
const generated = async () => Number(/shimmy_generated_tokens_total\{[^}]*\} (\d+)/.exec(await daemon.metrics())?.[1] ?? 0);
// What of two answers has to be the same: all but ids, times and cached tokens.
const essence = ({ id, created, usage, ...rest }) => ({ ...rest, prompt_tokens: usage.prompt_tokens, completion_tokens: usage.completion_tokens });
async function twice(path, body) {
  const first = await daemon.post(path, body);
  const second = await daemon.post(path, body);
  assert.equal(first.status, 200, JSON.stringify(first.body));
  return [first, second];
}

async function stream(path, body) {
  const response = await fetch(daemon.url + path, { method: 'POST', body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }) });
  assert.equal(response.status, 200);
  return { cached: response.headers.get(header), list: events(await response.text()) };
}

test('a greedy request, and one with a seed, are answered from what is kept', there, async () => {
  for (const more of [{ temperature: 0 }, { seed: 5, temperature: 1.2, n: 3, logprobs: 3, return_token_ids: true, echo: true, stop: ['zz', '.'] }]) {
    const before_it = await hits();
    const [first, second] = await twice(route, { model, prompt: 'Once upon a time', max_tokens: 20, ...more });
    assert.equal(first.headers.get(header), null);
    assert.equal(second.headers.get(header), 'hit');
    if (more.temperature) assert.deepEqual(essence(second.body), essence(first.body));
    else assert.deepEqual(second.body.choices, first.body.choices);
    assert.equal(second.body.usage.prompt_tokens_details.cached_tokens, second.body.usage.prompt_tokens);
    assert.equal(await hits(), before_it + 1);
    const computed = await generated();
    const third = await stream(route, { model, prompt: 'Once upon a time', max_tokens: 20, ...more });
    assert.equal(await generated(), computed, 'nothing was computed');
    assert.equal(third.cached, 'hit');
    assert.equal(third.list.pop(), '[DONE]');
    assert.equal(third.list.pop().usage.completion_tokens, first.body.usage.completion_tokens);
    const texts = first.body.choices.map(() => '');
    for (const { choices: [choice] } of third.list) texts[choice.index] += choice.text;
    assert.deepEqual(texts, first.body.choices.map((choice) => choice.text));
  }
});

test('chats, with tools and forms', there, async () => {
  const messages = [{ role: 'user', content: 'Tell me of Lily' }];
  const schema = (limit) => ({ type: 'json_schema', json_schema: { name: 'a', schema: { type: 'integer', minimum: 0, maximum: limit } } });
  const ask = { model, messages, temperature: 0, max_tokens: 12 };
  const [first, second] = await twice('/v1/chat/completions', ask);
  assert.equal(second.headers.get(header), 'hit');
  assert.deepEqual(second.body.choices, first.body.choices);
  const [form, again] = await twice('/v1/chat/completions', { ...ask, response_format: schema(9) });
  assert.equal(form.headers.get(header), null, 'a form makes it another request');
  assert.equal(again.headers.get(header), 'hit');
  const other = await daemon.post('/v1/chat/completions', { ...ask, response_format: schema(99) });
  assert.equal(other.headers.get(header), null);
  const tools = (name) => [{ type: 'function', function: { name, parameters: { type: 'object', properties: {} } } }];
  const [call, called] = await twice('/v1/chat/completions', { ...ask, max_tokens: 60, tools: tools('one'), tool_choice: 'required' });
  assert.equal(called.headers.get(header), 'hit');
  assert.equal(called.body.choices[0].message.tool_calls?.[0]?.function.name, call.body.choices[0].message.tool_calls?.[0]?.function.name);
  const renamed = await daemon.post('/v1/chat/completions', { ...ask, max_tokens: 60, tools: tools('two'), tool_choice: 'required' });
  assert.equal(renamed.headers.get(header), null);
});

test('what is not kept: random answers, those that were not to be cached, long ones, broken off ones', there, async () => {
  const ask = { model, prompt: 'Lily saw', max_tokens: 8 };
  for (const more of [{ temperature: 1 }, { temperature: 0, cache_prompt: false }, { temperature: 0, session: 'mine' },
    { temperature: 0, max_tokens: 1500, n: 8, ignore_eos: true }]) {
    const [, second] = await twice(route, { ...ask, ...more });
    assert.equal(second.headers.get(header), null, JSON.stringify(more));
  }
  const cut = { model, prompt: 'The dog', temperature: 0, max_tokens: 400, ignore_eos: true };
  const socket = await daemon.connect();
  socket.write(daemon.rawPost(route, { ...cut, stream: true }));
  await waitFor('it has begun', () => /data: /.test(socket.text));
  socket.destroy();
  await waitFor('it is over', async () => (await daemon.running()) === 0);
  assert.equal((await daemon.post(route, cut)).headers.get(header), null);
});

test('salts keep answers apart', there, async () => {
  const ask = { model, prompt: 'A salted prompt', temperature: 0, max_tokens: 6 };
  const [first] = await twice(route, ask);
  const salted = await daemon.post(route, { ...ask, cache_salt: 'a' });
  assert.equal(salted.headers.get(header), null);
  assert.deepEqual(salted.body.choices, first.body.choices);
  assert.equal((await daemon.post(route, { ...ask, cache_salt: 'a' })).headers.get(header), 'hit');
});

test('the control socket has the same answers', there, async () => {
  const generate = async () => {
    const { stdout } = await run(shimmyctl, ['--socket', daemon.socket, 'generate', model, '--json', '-t', '0', '-n', '7', '-p', 'A boy and'], { encoding: 'utf8' });
    return stdout.trim().split('\n').map((line) => JSON.parse(line));
  };
  const first = await generate();
  const second = await generate();
  assert.equal(first.at(-1).usage.replayed, false);
  assert.equal(second.at(-1).usage.replayed, true);
  const texts = (list) => list.map((reply) => reply.text ?? '').join('');
  assert.equal(texts(second), texts(first));
  const http = await daemon.post(route, { model, prompt: 'A boy and', temperature: 0, max_tokens: 7 });
  assert.equal(http.headers.get(header), null, 'its repeat penalty looks back otherwise');
});

test('a model that is loaded anew answers anew; an answer grows old', there, async () => {
  const ask = { model, prompt: 'The sun was', temperature: 0, max_tokens: 6 };
  const [first] = await twice(route, ask);
  await run(shimmyctl, ['--socket', daemon.socket, 'load', '--reload', model]);
  const after_load = await daemon.post(route, ask);
  assert.equal(after_load.headers.get(header), null);
  assert.deepEqual(after_load.body.choices, first.body.choices);
  assert.equal((await daemon.post(route, ask)).headers.get(header), 'hit');
  await waitFor('it is too old', async () => (await daemon.post(route, ask)).headers.get(header) === null, 30000);
  assert.ok(await daemon.metric('shimmy_response_cache_evictions_total{reason="age"}') > 0);
  assert.ok(await daemon.metric('shimmy_response_cache_entries') > 0);
  assert.ok(await daemon.metric('shimmy_response_cache_bytes') > 1000);
});

test('it is off unless asked for', there, async () => {
  const plain = await new Daemon().start();
  try {
    const ask = { model, prompt: 'Once', temperature: 0, max_tokens: 4 };
    await plain.post(route, ask);
    assert.equal((await plain.post(route, ask)).headers.get(header), null);
    assert.equal(await plain.metric('shimmy_response_cache_misses_total'), 0);
  } finally {
    await plain.stop();
  }
});
