// forms.test.mjs - every published template of the shared data around a model of random weights: a required call comes in the form that the template
// shows, and is read back as OpenAI's; a response format holds behind whatever the template opens; whole and streamed alike.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import OpenAI from 'openai';
import Ajv from 'ajv/dist/2020.js';
import { Daemon, needs, shared } from './harness.mjs';
import { writeTemplateModel } from './chat-models.mjs';

const folder = shared('templates');
const there = needs(folder, 'no shared templates');
const names = folder ? readdirSync(folder).filter((name) => name.endsWith('.jinja')).map((name) => name.slice(0, -6)) : [];
const dir = mkdtempSync(path.join(tmpdir(), 'shimmyd-forms-'));
const bias = new Map(); // what ends reasoning, made likely: noise alone would think for ever
let daemon, client;
before(async () => {
  if (there.skip) return;
  for (const name of names) bias.set(name, await writeTemplateModel(dir, name, path.join(folder, `${name}.jinja`)));
  daemon = await new Daemon({ models: dir }).start();
  client = new OpenAI({ baseURL: `${daemon.url}/v1`, apiKey: 'none', maxRetries: 0 });
});
after(async () => {
  await daemon?.stop();
  rmSync(dir, { recursive: true, force: true });
});

const ajv = new Ajv({ strict: false });
const order = {
  type: 'object', required: ['city', 'days'], additionalProperties: false,
  properties: {
    city: { type: 'string', maxLength: 12, description: 'Where' }, days: { type: 'integer', minimum: 1, maximum: 14, description: 'How many' },
    unit: { type: 'string', enum: ['C', 'F'], description: 'In which unit' }, exact: { type: 'boolean', description: 'To the degree' },
    near: { type: 'array', items: { type: 'string', enum: ['sea', 'hill'] }, maxItems: 2, description: 'What is there' },
  },
};
const pay = { type: 'object', properties: { amount: { type: 'integer', minimum: 0, maximum: 100, description: 'How much' } }, required: ['amount'], additionalProperties: false };
const tools = [['get_weather', order], ['pay', pay]].map(([name, parameters]) => ({ type: 'function', function: { name, description: `It does ${name}.`, parameters } }));
const checks = { get_weather: ajv.compile(order), pay: ajv.compile(pay) };
// One template wants the tools as a text, and the date; who uses it has to say so.
const kwargs = (name) => (name.includes('firefunction') ? { chat_template_kwargs: { functions: JSON.stringify(tools), datetime: 'today' } } : {});
const messages = [{ role: 'user', content: 'What is the weather in Oslo?' }];

for (const name of names) {
  test(`${name}: required calls, and an answer in a format`, there, async (t) => {
    const usual = { model: name, messages, ...kwargs(name), temperature: 1, max_tokens: 2000, logit_bias: bias.get(name) };
    let cut = 0, thoughts = 0;
    for (let seed = 0; seed < 6; seed++) {
      const choice = seed % 2 ? { type: 'function', function: { name: 'pay' } } : 'required';
      const request = { ...usual, seed, tools, tool_choice: choice, parallel_tool_calls: false };
      const whole = (await client.chat.completions.create(request)).choices[0];
      if (whole.finish_reason === 'length') { // it was still thinking, or in a string without an end
        cut++;
        continue;
      }
      assert.equal(whole.finish_reason, 'tool_calls', JSON.stringify(whole));
      assert.equal(whole.message.tool_calls.length, 1, JSON.stringify(whole));
      const [call] = whole.message.tool_calls, check = checks[call.function.name];
      assert.ok(check && (seed % 2 === 0 || call.function.name === 'pay'), call.function.name);
      assert.ok(check(JSON.parse(call.function.arguments)), `${call.function.arguments}: ${ajv.errorsText(check.errors)}`);
      assert.equal((whole.message.content ?? '').trim(), '', JSON.stringify(whole));
      thoughts += whole.message.reasoning_content ? 1 : 0;
      const stream = client.beta.chat.completions.stream(request);
      const { message } = (await stream.finalChatCompletion()).choices[0];
      assert.deepEqual(message.tool_calls.map((one) => one.function.arguments), [call.function.arguments]);
      assert.equal(message.tool_calls[0].function.name, call.function.name);
    }
    for (let seed = 0; seed < 4; seed++) {
      const { choices: [{ finish_reason: finish, message }] } = await client.chat.completions.create({
        ...usual, seed, response_format: { type: 'json_schema', json_schema: { name: 'x', strict: true, schema: order } },
      });
      if (finish === 'length') {
        cut++;
        continue;
      }
      assert.ok(checks.get_weather(JSON.parse(message.content)), message.content);
      thoughts += message.reasoning_content ? 1 : 0;
    }
    t.diagnostic(`${10 - cut} of 10 whole, ${thoughts} with reasoning`);
    assert.ok(cut <= 5, `${cut} of 10 were cut`);
  });
}

test('all of them were tried', there, () => assert.ok(names.length >= 50, `${names.length} templates`));
