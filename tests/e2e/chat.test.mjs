// chat.test.mjs - structured output, tool calls and reasoning as HTTP and the CLI show them, on a model of random weights: what it writes is
// held to a form, so the answers are known.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import OpenAI from 'openai';
import { Daemon, build, shimmyctl } from './harness.mjs';

const run = promisify(execFile);
const model = 'chatty';
// Calls as Hermes writes them; reasoning between <think> and </think>.
const template = `{%- if tools %}<|im_start|>system
# Tools
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
Call as <tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{%- if message.reasoning_content %}
<think>
{{ message.reasoning_content }}
</think>
{%- endif %}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}`;
// The answer begins within the reasoning.
const thinker = `{% if refuse is defined %}{{ raise_exception('not today') }}{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content.split('</think>')[-1] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}`;
// Calls as Mistral writes them, whose ids are nine letters and digits.
const mistral = `{{- bos_token }}{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{%- for message in messages %}{% if message.role == 'user' %}[INST]{{ message.content }}[/INST]
{%- elif message.tool_calls %}[TOOL_CALLS][{% for call in message.tool_calls %}{{ call.function | tojson }}, "id": "{{ call.id }}"{% endfor %}]{{ eos_token }}
{%- elif message.role == 'tool' %}[TOOL_RESULTS]{"content": {{ message.content }}}[/TOOL_RESULTS]
{%- else %}{{ message.content }}{% endif %}{% endfor %}`;
const messages = [{ role: 'user', content: 'Hello.' }];
const weather = { type: 'function', function: { name: 'weather', description: 'd', parameters: { type: 'object',
  properties: { city: { type: 'string', maxLength: 8 }, days: { type: 'integer', minimum: 1, maximum: 9 } }, required: ['city', 'days'],
  additionalProperties: false } } };
const stop = { type: 'function', function: { name: 'stop', parameters: { type: 'object', properties: {}, additionalProperties: false } } };
const schema = { type: 'object', properties: { ok: { type: 'boolean' }, n: { type: 'integer', minimum: 0, maximum: 9 } },
  required: ['ok', 'n'], additionalProperties: false };

let dir, daemon, client;
before(async () => {
  dir = mkdtempSync(path.join(tmpdir(), 'shimmyd-chat-'));
  writeFileSync(path.join(dir, 'template.jinja'), template);
  writeFileSync(path.join(dir, 'thinker.jinja'), thinker);
  writeFileSync(path.join(dir, 'mistral.jinja'), mistral);
  const control = ['<|im_start|>', '<|im_end|>', '<think>', '</think>', '<tool_call>', '</tool_call>', '[TOOL_CALLS]'];
  await run(path.join(build, 'tests/tools/genmodel'), [path.join(dir, `${model}.gguf`), '--embd', '64', '--heads', '2', '--kv-heads', '1',
    '--ff', '128', '--vocab', '1500', '--context', '2048', '--bpe', '--pieces', ...control.flatMap((token) => ['--control', token]),
    '--eos', '<|im_end|>', '--chat-template', path.join(dir, 'template.jinja'),
    '--named-template', `thinker=${path.join(dir, 'thinker.jinja')}`,
    '--named-template', `mistral=${path.join(dir, 'mistral.jinja')}`]);
  daemon = await new Daemon({ models: dir }).start();
  client = new OpenAI({ baseURL: `${daemon.url}/v1`, apiKey: 'none', maxRetries: 0 });
});
after(async () => {
  await daemon?.stop();
  rmSync(dir, { recursive: true, force: true });
});

// What is random does not begin to think, and so comes to its end.
const chat = (more) => client.chat.completions.create({ model, messages, max_tokens: 300, seed: 3, enable_thinking: false, ...more });
const complete = (more) => client.completions.create({ model, prompt: 'Hello', max_tokens: 100, seed: 3, ...more });

// The message that a stream adds up to, as the client's own helpers do it, and its chunks.
async function streamed(more) {
  const chunks = [];
  const message = { content: null };
  let finish = null;
  for await (const chunk of await chat({ ...more, stream: true })) {
    const [choice] = chunk.choices;
    chunks.push(chunk);
    finish = choice.finish_reason ?? finish;
    const { content, reasoning_content: reasoning, tool_calls: calls, function_call: call } = choice.delta;
    if (content) message.content = (message.content ?? '') + content;
    if (reasoning) message.reasoning_content = (message.reasoning_content ?? '') + reasoning;
    if (call) message.function_call = { name: call.name ?? message.function_call.name,
      arguments: (message.function_call?.arguments ?? '') + (call.arguments ?? '') };
    for (const { index, id, type, function: fn } of calls ?? []) {
      message.tool_calls ??= [];
      if (id) {
        assert.equal(index, message.tool_calls.length);
        assert.equal(type, 'function');
        assert.equal(fn.arguments, '');
        message.tool_calls.push({ id, type, function: { name: fn.name, arguments: '' } });
      } else {
        message.tool_calls[index].function.arguments += fn.arguments;
      }
    }
  }
  return { message, finish, chunks };
}
const withoutIds = (calls) => calls.map(({ function: fn }) => fn);

test('completions are held to choices, regular expressions, grammars and schemas', async () => {
  const choice = await complete({ guided_choice: ['yes', 'no'] });
  assert.ok(['yes', 'no'].includes(choice.choices[0].text), choice.choices[0].text);
  assert.equal(choice.choices[0].finish_reason, 'stop');
  const regex = await complete({ structured_outputs: { regex: '[a-c]{3}-[0-9]{2}' } });
  assert.match(regex.choices[0].text, /^[a-c]{3}-[0-9]{2}$/);
  const grammar = await complete({ grammar: 'root ::= "a" ("b" | "c")+ "d"', max_tokens: 200 });
  assert.match(grammar.choices[0].text, grammar.choices[0].finish_reason === 'stop' ? /^a[bc]+d$/ : /^a[bc]+$/);
  for (const more of [{ json_schema: schema }, { guided_json: JSON.stringify(schema) }, { structured_outputs: { json: schema } }]) {
    const { ok, n } = JSON.parse((await complete(more)).choices[0].text);
    assert.equal(typeof ok, 'boolean');
    assert.ok(Number.isInteger(n) && n >= 0 && n <= 9);
  }
  const several = await complete({ prompt: ['a', 'b'], n: 3, guided_choice: ['1', '2', '3'] });
  assert.equal(several.choices.length, 6);
  for (const { text } of several.choices) assert.match(text, /^[123]$/);
});

test('a schema holds chats, whole and streamed alike', async () => {
  const more = { response_format: { type: 'json_schema', json_schema: { name: 'n', strict: true, schema } } };
  const whole = await chat(more);
  const { ok, n } = JSON.parse(whole.choices[0].message.content);
  assert.ok(typeof ok === 'boolean' && Number.isInteger(n));
  assert.equal(whole.choices[0].finish_reason, 'stop');
  const stream = await streamed(more);
  assert.equal(stream.message.content, whole.choices[0].message.content);
  assert.equal(stream.finish, 'stop');
});

test('what is wrong with a form is said of its field', async () => {
  const refused = (promise, param, code, words) => assert.rejects(promise, (error) => {
    assert.equal(error.status, 400);
    assert.equal(error.param, param);
    assert.equal(error.code, code);
    assert.match(error.message, words);
    return true;
  });
  for (const ask of [complete, chat]) {
    await refused(ask({ guided_json: { type: 'strange' } }), 'guided_json', 'invalid_schema', /type/);
    await refused(ask({ json_schema: { type: 'array', uniqueItems: true } }), 'json_schema', 'unsupported_schema', /uniqueItems/);
    await refused(ask({ grammar: 'root ::= (' }), 'grammar', 'invalid_grammar', /grammar: .*line 1/);
    await refused(ask({ guided_regex: '(' }), 'guided_regex', 'invalid_regex', /guided_regex: /);
    await refused(ask({ guided_regex: 'a', guided_choice: ['a'] }), 'guided_choice', 'invalid_value', /guided_regex and guided_choice/);
  }
  await refused(chat({ tools: [stop], tool_choice: 'required', guided_regex: 'a' }), 'tool_choice', 'invalid_value', /guided_regex/);
  const tool = (properties) => ({ type: 'function', function: { name: 'f', parameters: { type: 'object', properties } } });
  await refused(chat({ tools: [tool({ a: { type: 'strange' } })], tool_choice: 'required' }), 'tools', 'invalid_schema', /properties\/a.*type/);
  await refused(chat({ tools: [tool({ a: { type: 'array', uniqueItems: true } })], tool_choice: 'required' }), 'tools', 'unsupported_schema',
    /uniqueItems/);
});

test('a required call is made, whole and streamed alike', async () => {
  const more = { tools: [weather, stop], tool_choice: { type: 'function', function: { name: 'weather' } }, parallel_tool_calls: false };
  const whole = (await chat(more)).choices[0];
  assert.equal(whole.finish_reason, 'tool_calls');
  assert.equal(whole.message.content, null);
  assert.equal(whole.message.tool_calls.length, 1);
  const [call] = whole.message.tool_calls;
  assert.match(call.id, /^call_[0-9a-f]{24}$/);
  assert.equal(call.type, 'function');
  assert.equal(call.function.name, 'weather');
  const { city, days } = JSON.parse(call.function.arguments);
  assert.ok(typeof city === 'string' && [...city].length <= 8 && Number.isInteger(days) && days >= 1 && days <= 9);
  const stream = await streamed(more);
  assert.deepEqual(withoutIds(stream.message.tool_calls), withoutIds(whole.message.tool_calls));
  assert.equal(stream.finish, 'tool_calls');
  assert.equal(stream.message.content, null);
  const any = (await chat({ tools: [weather, stop], tool_choice: 'required' })).choices[0];
  for (const one of any.message.tool_calls) assert.ok(['weather', 'stop'].includes(one.function.name));
});

test('ids that are made up have the form that the template wants', async () => {
  const { message, finish_reason: finish } = (await chat({ chat_template: 'mistral', tools: [stop, weather], tool_choice: 'required' })).choices[0];
  assert.equal(finish, 'tool_calls');
  assert.ok(message.tool_calls.length > 0);
  for (const { id } of message.tool_calls) assert.match(id, /^[0-9A-Za-z]{9}$/);
});

test('the former functions get a function_call', async () => {
  const more = { functions: [weather.function], function_call: { name: 'weather' } };
  const whole = (await chat(more)).choices[0];
  assert.equal(whole.finish_reason, 'function_call');
  assert.equal(whole.message.tool_calls, undefined);
  assert.equal(whole.message.function_call.name, 'weather');
  JSON.parse(whole.message.function_call.arguments);
  const stream = await streamed(more);
  assert.deepEqual(stream.message.function_call, whole.message.function_call);
  assert.equal(stream.finish, 'function_call');
});

test('a model that need not call writes what it is held to, or calls', async () => {
  const more = { tools: [weather], guided_regex: 'Well[.] \\{"a": [0-9]\\}',
    n: 8, temperature: 20, top_k: 0, top_p: 1, min_p: 0, max_tokens: 400 };
  const answers = await Promise.all([1, 2, 3, 4].map((seed) => chat({ ...more, seed })));
  const reasons = new Set();
  for (const { message, finish_reason: finish } of answers.flatMap((answer) => answer.choices)) {
    reasons.add(finish);
    if (finish === 'length') continue;
    assert.equal(finish, message.tool_calls ? 'tool_calls' : 'stop');
    if (!message.tool_calls) assert.match(message.content, /^Well[.] \{"a": [0-9]\}$/);
    for (const { id, function: fn } of message.tool_calls ?? []) {
      assert.match(id, /^call_/);
      assert.equal(fn.name, 'weather');
      assert.ok(typeof JSON.parse(fn.arguments) === 'object');
    }
  }
  assert.ok(reasons.has('tool_calls') && reasons.has('stop'), [...reasons].join());
  const ids = answers.flatMap((answer) => answer.choices).flatMap(({ message }) => message.tool_calls ?? []).map((call) => call.id);
  assert.equal(new Set(ids).size, ids.length);
});

test('reasoning is told apart, left out or left in', async () => {
  const { body: { tokens } } = await daemon.post('/tokenize', { model, content: '</think><|im_end|>' });
  const more = { chat_template: 'thinker', max_tokens: 30, logit_bias: Object.fromEntries(tokens.map((id) => [id, -100])) };
  const whole = await chat(more);
  const [{ message, finish_reason: finish }] = whole.choices;
  assert.equal(message.content, '');
  assert.ok(message.reasoning_content.length > 0);
  assert.equal(finish, 'length');
  assert.equal(whole.usage.completion_tokens_details.reasoning_tokens, 30);
  const stream = await streamed(more);
  assert.equal(stream.message.reasoning_content, message.reasoning_content);
  assert.equal(stream.message.content, null);
  const without = (await chat({ ...more, include_reasoning: false })).choices[0].message;
  assert.equal(without.content, '');
  assert.equal('reasoning_content' in without, false);
  const raw = await chat({ ...more, reasoning_format: 'none' });
  assert.equal('reasoning_content' in raw.choices[0].message, false);
  assert.ok(raw.choices[0].message.content.includes(message.reasoning_content.trim()));
  assert.equal(raw.usage.completion_tokens_details, undefined);
  const seen = await chat({ ...more, logprobs: true, return_token_ids: true }); // the log-probs are of all tokens
  assert.equal(seen.choices[0].logprobs.content.length, 30);
  assert.equal(seen.choices[0].token_ids.length, 30);
  await assert.rejects(chat({ chat_template: 'nothing' }), (error) => error.status === 400 && error.param === 'chat_template');
  await assert.rejects(chat({ ...more, chat_template_kwargs: { refuse: true } }), (error) => error.status === 400 && /not today/.test(error.message));
});

test('a conversation with calls is rendered', async () => {
  const answer = await client.chat.completions.create({ model, max_tokens: 20, chat_template_kwargs: { enable_thinking: false }, guided_choice: ['1', '2'], tools: [weather], tool_choice: 'none', messages: [
    ...messages,
    { role: 'assistant', content: null, tool_calls: [{ id: 'c1', type: 'function', function: { name: 'weather', arguments: '{"city":"Rome","days":2}' } }] },
    { role: 'tool', tool_call_id: 'c1', content: 'sunny' },
  ] });
  assert.match(answer.choices[0].message.content, /^[12]$/);
  assert.ok(answer.usage.prompt_tokens > 50);
});

test('the command line holds a text to a form', async () => {
  const generate = (...more) => run(shimmyctl, ['--socket', daemon.socket, '-q', 'generate', model, 'Hello', '--seed', '3', '-n', '100', ...more]);
  assert.match((await generate('--choice', 'yes', '--choice', 'no')).stdout, /^(yes|no)$/);
  assert.match((await generate('--regex', '[a-c]{4}')).stdout, /^[a-c]{4}$/);
  assert.equal(typeof JSON.parse((await generate('--json-schema', JSON.stringify(schema))).stdout).ok, 'boolean');
  const file = path.join(dir, 'g.gbnf');
  writeFileSync(file, 'root ::= "x" [0-9] "\\n"');
  assert.match((await generate('--grammar', file)).stdout, /^x[0-9]\n$/);
  await assert.rejects(generate('--regex', '('), (error) => error.code === 1 && /regex/.test(error.stderr));
  await assert.rejects(generate('--regex', 'a', '--choice', 'b'), (error) => error.code === 2 && /--regex and --choice/.test(error.stderr));
});
