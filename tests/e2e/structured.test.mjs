// structured.test.mjs - structured output on models that would otherwise say noise: 1,000 of 1,000 answers satisfy their schema, by the judgement of
// ajv; what is cut is a prefix; grammars, expressions and choices hold; what cannot be enforced is refused by name, and what explodes within limits.
//
// SHIMMY_E2E_RUNS is the number of runs (default 1000).
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import Ajv from 'ajv/dist/2020.js';
import addFormats from 'ajv-formats';
import { Daemon, events } from './harness.mjs';
import { writeModel } from './chat-models.mjs';
import { standing } from './json-prefix.mjs';
import { doubtful, open, schemas } from './schemas.mjs';
import { randomSchema } from './random-schema.mjs';

const runs = Number(process.env.SHIMMY_E2E_RUNS || 1000);
const enough = 3000; // tokens; what the schemas bound is far below
const dir = mkdtempSync(path.join(tmpdir(), 'shimmyd-structured-'));
let daemon;
before(async () => {
  for (const name of ['hermes', 'llama3', 'plain', 'thinker', 'endless']) await writeModel(dir, name);
  daemon = await new Daemon({ models: dir }).start();
});
after(async () => {
  await daemon?.stop();
  rmSync(dir, { recursive: true, force: true });
});

const ajv = new Ajv({ strict: false, allErrors: true, unicodeRegExp: true });
addFormats(ajv);
const compiled = new Map();
function validate(schema, text) {
  assert.equal(standing(text), 'whole', text);
  if (!compiled.has(schema)) compiled.set(schema, ajv.compile(schema));
  const check = compiled.get(schema);
  assert.ok(check(JSON.parse(text)), `${text}\n${ajv.errorsText(check.errors)}\n${JSON.stringify(schema)}`);
}

// Arguments are objects: any other schema becomes a property, its definitions stay where references find them.
const wrapped = new Map();
function asParameters(schema) {
  if (schema.type === 'object') return schema;
  if (!wrapped.has(schema)) {
    const { $defs, ...value } = schema;
    wrapped.set(schema, { type: 'object', properties: { value }, required: ['value'], additionalProperties: false, ...($defs ? { $defs } : {}) });
  }
  return wrapped.get(schema);
}

// Noise that may think hardly ever stops: reasoning has tests of its own (toolcalls.test.mjs).
const quiet = { chat_template_kwargs: { enable_thinking: false } };
const messages = [{ role: 'system', content: 'You answer.' }, { role: 'user', content: 'Write something.' }];
const strict = (schema) => ({ type: 'json_schema', json_schema: { name: 'answer', strict: true, schema } });
const tool = (name, parameters) => ({ type: 'function', function: { name, description: `Does ${name}.`, parameters } });

// The ways to ask for a schema: each gives the route and the body, and the text of the answer's choice that has to satisfy it.
const content = (choice) => choice.message.content;
const text = (choice) => choice.text;
function one(choice) {
  assert.equal(choice.message.tool_calls?.length, 1, JSON.stringify(choice));
  assert.equal(choice.message.tool_calls[0].type, 'function');
  return choice.message.tool_calls[0].function.arguments;
}
const chat = '/v1/chat/completions';
const completions = '/v1/completions';
const ways = {
  'chat response_format': (schema) => ({ route: chat, body: { messages, ...quiet, response_format: strict(schema) }, read: content, schema }),
  'chat guided_json': (schema) => ({ route: chat, body: { messages, ...quiet, guided_json: schema }, read: content, schema }),
  'completions guided_json': (schema) => ({ route: completions, body: { prompt: 'Write:', guided_json: schema }, read: text, schema }),
  'completions response_format': (schema) => ({ route: completions, body: { prompt: '', response_format: strict(schema) }, read: text, schema }),
  'chat guided_json as text': (schema) => ({ route: chat, body: { messages, ...quiet, guided_json: JSON.stringify(schema) }, read: content, schema }),
  'tool required': (schema) => ({
    route: chat, schema: asParameters(schema), read: one,
    body: { messages, ...quiet, tools: [tool('act', asParameters(schema))], tool_choice: 'required', parallel_tool_calls: false },
  }),
  'tool named': (schema) => ({
    route: chat, schema: asParameters(schema), read: one,
    body: {
      messages, ...quiet, tools: [tool('other', { type: 'object', properties: {}, additionalProperties: false }), tool('act', asParameters(schema))],
      tool_choice: { type: 'function', function: { name: 'act' } }, parallel_tool_calls: false,
    },
  }),
};
const models = ['hermes', 'llama3', 'plain'];
const temperatures = [1, 0.3, 2, 0, 1.5, 0.8];

// What noise likes best, so that escapes, long numbers, early ends and names that are not asked for come up more than by chance. Bytes are tokens of
// their own in these vocabularies, in order: 0 to 255, behind <unk>, <s> and </s> in SentencePiece ones.
const liking = (more, characters) => (first) => Object.fromEntries(
  [...Buffer.from(characters, 'latin1')].map((byte) => [first + byte, more]));
const moods = [
  () => ({}), liking(5, '\\ud89c0'), liking(3, '"}]'), liking(3, String.fromCharCode(...Array.from({ length: 62 }, (_, i) => 0xc2 + i))),
  liking(5, '0123456789'), liking(4, ' \n\t,:'), liking(4, 'abcde"\\/bfnrt'), liking(5, '-.eE+0'), liking(4, '{[{[:'),
];
const inMood = (i, model) => moods[i % moods.length](model === 'plain' ? 3 : 0);

// One choice put together from a stream's chunks, as if it had come whole.
function assemble(list) {
  assert.equal(list.pop(), '[DONE]');
  const choice = { text: '', message: { content: '' }, finish_reason: null };
  let usage = null;
  for (const chunk of list) {
    assert.ok(!chunk.error, JSON.stringify(chunk));
    usage = chunk.usage ?? usage;
    for (const { text: more, delta, finish_reason: reason } of chunk.choices) {
      choice.text += more ?? '';
      choice.message.content += delta?.content ?? '';
      for (const { index, ...call } of delta?.tool_calls ?? []) {
        choice.message.tool_calls ??= [];
        const so_far = choice.message.tool_calls[index] ??= { type: call.type, function: { name: '', arguments: '' } };
        so_far.function.name += call.function.name ?? '';
        so_far.function.arguments += call.function.arguments ?? '';
      }
      choice.finish_reason = reason ?? choice.finish_reason;
    }
  }
  return { choice, usage };
}

async function ask(route, body, stream) {
  if (!stream) {
    const answer = await daemon.post(route, body);
    assert.equal(answer.status, 200, `${JSON.stringify(answer.body)}\n${JSON.stringify(body)}`);
    return { choice: answer.body.choices[0], usage: answer.body.usage };
  }
  const response = await daemon.get(route, {
    method: 'POST', body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
  });
  const got = await response.text();
  assert.equal(response.status, 200, `${got}\n${JSON.stringify(body)}`);
  return assemble(events(got));
}

// Works through a list, several at a time.
async function crowd(list, work, width = 6) {
  const left = [...list];
  await Promise.all(Array.from({ length: width }, async () => {
    while (left.length) await work(left.shift());
  }));
}

test('the checker of prefixes knows JSON', () => {
  const whole = ['{"a":[1,-0.5e+3,"x\\u00e9\\"",true,null,{}],"b":[]}', ' [ ] ', '-0', '"\\ud83d\\ude00"', '1e5', 'false'];
  for (const document of whole) {
    assert.equal(standing(document), 'whole', document);
    for (let i = 0; i < document.length; i++) assert.ok(['whole', 'prefix'].includes(standing(document.slice(0, i))), document.slice(0, i));
  }
  for (const broken of ['{a', '{"a"}', '[1,]', '01', '1.e', '"\\x', '"\n', 'tru ', '[1}', '{"a":1,}', '1 2', '-a', '.5', '"\\u12g', '{,', ']', "'"]) {
    assert.match(standing(broken), /^at \d+: found/, broken);
  }
});

test(`${runs} of ${runs} runs satisfy their schemas`, async (t) => {
  const names = Object.keys(schemas);
  assert.ok(names.length >= 40);
  const plan = Array.from({ length: runs }, (_, i) => {
    const round = Math.floor(i / names.length), name = names[i % names.length], k = i % names.length + round;
    return { i, name, way: Object.keys(ways)[k % 7], model: models[k % 3], stream: (k + round) % 2 === 1,
      temperature: temperatures[k % 6], mood: (i + round) % moods.length };
  });
  let good = 0, cut = 0, streamed = 0, tokens = 0;
  const bad = [];
  const begun = Date.now();
  await crowd(plan, async ({ i, name, way, model, stream, temperature, mood }) => {
    const { route, body, read, schema } = ways[way](schemas[name]);
    const what = `run ${i}: ${name}, ${way}, ${model}, temperature ${temperature}, mood ${mood}${stream ? ', streamed' : ''}`;
    try {
      // One that is cut is counted apart and drawn again: greedy noise may write digits for ever.
      for (let attempt = 0; ; attempt++) {
        const { choice, usage } = await ask(route, {
          model, ...body, temperature: attempt ? 1 : temperature, seed: i + 100000 * attempt, max_tokens: enough,
          logit_bias: attempt ? {} : inMood(mood, model),
        }, stream);
        tokens += usage.completion_tokens;
        if (choice.finish_reason === 'length' && attempt < 5) {
          cut++;
          assert.ok(['prefix', 'whole'].includes(standing(read(choice))), read(choice));
          continue;
        }
        assert.ok(['stop', 'tool_calls'].includes(choice.finish_reason), JSON.stringify(choice));
        validate(schema, read(choice));
        break;
      }
      good++;
      streamed += stream ? 1 : 0;
    } catch (error) {
      bad.push(`${what}: ${error.message}`);
    }
  });
  t.diagnostic(`RAN ${runs} structured answers over ${names.length} schemas: ${good} valid (${streamed} streamed), ${cut} cut by length, ` +
    `${tokens} tokens in ${((Date.now() - begun) / 1000).toFixed(1)} s`);
  assert.equal(bad.length, 0, `${bad.length} of ${runs} failed:\n${bad.slice(0, 12).join('\n\n')}`);
  assert.equal(good, runs);
});

test('what is cut by length is a prefix of a valid answer', async (t) => {
  let cuts = 0;
  const list = Object.keys(schemas).flatMap((name, i) => [[name, i, false], [name, i + 1000, true]]);
  await crowd(list, async ([name, seed, stream]) => {
    const way = Object.keys(ways)[seed % 7];
    const { route, body, read, schema } = ways[way](schemas[name]);
    const request = { model: models[seed % 3], ...body, temperature: 1, seed, max_tokens: enough };
    const whole = await ask(route, request, stream);
    const n = whole.usage.completion_tokens;
    if (whole.choice.finish_reason === 'length' || n < 2) return;
    validate(schema, read(whole.choice));
    const short = await ask(route, { ...request, max_tokens: 1 + (seed * 7919) % (n - 1) }, stream);
    if (short.choice.finish_reason !== 'length') {
      assert.equal(read(short.choice), read(whole.choice)); // only white space or the end token was left
      return;
    }
    cuts++;
    // The cut may be before or in the middle of a call, or in the middle of a character.
    const part = way.startsWith('tool') ? short.choice.message.tool_calls?.[0]?.function.arguments ?? '' : read(short.choice) ?? '';
    const kept = part.replace(/\ufffd+$/, '');
    assert.ok(read(whole.choice).startsWith(kept), `${name}: '${part}' is no prefix of '${read(whole.choice)}'`);
    assert.ok(['prefix', 'whole'].includes(standing(kept)), kept);
  });
  t.diagnostic(`RAN ${cuts} cut answers, all of them prefixes of valid ones`);
  assert.ok(cuts > list.length / 2, `${cuts} of ${list.length} were cut`);
});

test('schemas without bounds: what ends is valid, what is cut is a prefix', async (t) => {
  let whole = 0, cut = 0;
  await crowd(Object.entries(open).flatMap(([name, schema], k) => moods.map((_, mood) => [name, schema, mood, k + mood])), async ([name, schema, mood, i]) => {
    const model = models[i % 3];
    const { choice } = await ask(completions, {
      model, prompt: 'x', guided_json: schema === true ? 'true' : schema, seed: i, temperature: 1, max_tokens: 250, logit_bias: inMood(mood, model),
    }, i % 2);
    if (choice.finish_reason === 'stop') {
      validate(schema, choice.text);
      whole++;
    } else {
      assert.match(standing(choice.text.replace(/\ufffd+$/, '')), /^(whole|prefix)$/, `${name}: ${choice.text}`);
      cut++;
    }
  });
  t.diagnostic(`RAN ${whole} whole answers and ${cut} cut ones over ${Object.keys(open).length} schemas without bounds`);
  assert.ok(whole > 40, `${whole} ended`);
});

test('random schemas are refused, or hold', async (t) => {
  let refused = 0, whole = 0, cut = 0;
  // 10237: a branch of oneOf of which one type is impossible, and the other is not
  await crowd([10237, ...Array.from({ length: 200 }, (_, i) => i)], async (seed) => {
    const schema = randomSchema(seed), model = models[seed % 3];
    const request = { model, prompt: 'x', guided_json: schema, seed, temperature: 1, max_tokens: 200, logit_bias: inMood(seed, model), n: 2 };
    const { status, body } = await daemon.post(completions, request);
    if (status === 400) {
      assert.match(body.error.message, /^guided_json: schema, #/, JSON.stringify([seed, body.error]));
      refused++;
      return;
    }
    assert.equal(status, 200, JSON.stringify([seed, body]));
    for (const choice of body.choices) {
      if (choice.finish_reason === 'stop') {
        validate(schema, choice.text);
        whole++;
      } else {
        assert.match(standing(choice.text.replace(/\ufffd+$/, '')), /^(whole|prefix)$/, `${seed}: ${choice.text}`);
        cut++;
      }
    }
  });
  t.diagnostic(`RAN ${whole} whole answers and ${cut} cut ones over ${201 - refused} random schemas; ${refused} were refused`);
  assert.ok(whole > 200, `${whole} ended`);
});

test('json_object gives an object, whatever the noise', async () => {
  await crowd(Array.from({ length: 30 }, (_, i) => i), async (i) => {
    const { choice } = await ask(chat, { model: models[i % 3], messages, ...quiet, response_format: { type: 'json_object' }, max_tokens: 400, seed: i, temperature: 1 }, i % 2);
    const got = choice.message.content;
    if (choice.finish_reason === 'length') {
      assert.match(standing(got.replace(/\ufffd$/, '')), /^(prefix|whole)$/, got);
    } else {
      assert.equal(standing(got), 'whole', got);
      assert.equal(Object.prototype.toString.call(JSON.parse(got)), '[object Object]');
    }
    assert.match(got, /^\s*(\{|$)/);
  });
});

const expressions = [
  '[a-z]{3,8}', '\\d{1,3}(\\.\\d{1,3}){3}', '(yes|no|maybe)( please)?', '[A-Z][a-z]{1,5} [A-Z][a-z]{1,5}', '(?:[01]\\d|2[0-3]):[0-5]\\d',
  '#[0-9a-fA-F]{6}', '[^x]{4}', '\\u00e4{2}[\\u65e5\\u672c]', '"[^"\\n]{0,10}"', '(a|ab)(c|bcd)(d{0,2})', '-?(0|[1-9][0-9]{0,4})', 'x?y{2}z{1,2}',
  '[\\w.+-]{1,10}@[a-z]{1,8}\\.(com|org)', '🎉{1,3}', '(\\(\\)|\\[\\]|\\{\\}){1,3}', '\\t\\n\\r?', '[\\s\\S]{5}',
];
test('guided_regex: the whole answer matches', async () => {
  await crowd(expressions.flatMap((one_of, i) => [0, 1, 2, 3].map((k) => [one_of, i, k])), async ([expression, i, k]) => {
    const [route, read] = k % 2 ? [chat, content] : [completions, text];
    const prompt = k % 2 ? { messages, ...quiet } : { prompt: 'Say:' };
    const { choice } = await ask(route, { model: models[(i + k) % 3], ...prompt, guided_regex: expression, seed: k, temperature: 1 + k / 3, max_tokens: 200 }, k > 1);
    assert.equal(choice.finish_reason, 'stop', JSON.stringify([expression, choice]));
    assert.match(read(choice), new RegExp(`^(?:${expression})$`, 'u'));
  });
});

test('guided_choice: the answer is one of them, and all come up', async () => {
  const choices = ['yes', 'no', 'yes, of course', 'Ä\n"x"', '日本', '{"a": 1}'];
  for (const [route, prompt, read] of [[chat, { messages, ...quiet }, content], [completions, { prompt: 'Say:' }, text]]) {
    const seen = new Set();
    await crowd(Array.from({ length: 60 }, (_, i) => i), async (i) => {
      const { choice } = await ask(route, { model: models[i % 3], ...prompt, guided_choice: choices, seed: i, temperature: 2, max_tokens: 100 }, i % 2);
      assert.equal(choice.finish_reason, 'stop');
      assert.ok(choices.includes(read(choice)), read(choice));
      seen.add(read(choice));
    });
    assert.ok(seen.size >= 4, [...seen].join());
  }
});

const grammars = [
  ['root ::= "yes" | "no"', /^(yes|no)$/],
  ['root ::= item{2,4}\nitem ::= "- " [a-z]+ "\\n"', /^(- [a-z]+\n){2,4}$/],
  ['root ::= "(" root? ")"', /^(\(+)(\)+)$/, (s) => s.indexOf(')') * 2 === s.length],
  ['# sums\nroot ::= term ("+" term)*\nterm ::= [0-9] | "(" root ")"', /^[0-9+()]+$/],
  ['root ::= [^\\x00-\\x7F]{3} "\\u00e9"?', /^[^\x00-\x7f]{3}\u00e9?$/u],
  ['root ::= ws "a" ws\nws ::= [ \\t]{0,3}', /^[ \t]{0,3}a[ \t]{0,3}$/],
];
test('grammar and guided_grammar: the answer is derived', async () => {
  await crowd(grammars.flatMap((grammar, i) => [0, 1, 2, 3].map((k) => [grammar, i, k])), async ([[grammar, like, more], i, k]) => {
    const [route, read] = k % 2 ? [chat, content] : [completions, text];
    const body = { ...(k % 2 ? { messages, ...quiet } : { prompt: 'x' }), ...(k > 1 ? { grammar } : { guided_grammar: grammar }) };
    const { choice } = await ask(route, { model: models[(i + k) % 3], ...body, seed: k, temperature: 1, max_tokens: 500 }, i % 2);
    if (choice.finish_reason === 'length') return;
    assert.match(read(choice), like);
    if (more) assert.ok(more(read(choice)), read(choice));
  });
});

for (const [name, schema] of Object.entries(doubtful)) {
  test(`the keyword ${name} is enforced, or refused by name`, async (t) => {
    const check = ajv.compile(schema);
    for (let seed = 0; seed < 12; seed++) {
      const { status, body } = await daemon.post(completions, { model: 'hermes', prompt: 'x', guided_json: schema, seed, temperature: 1, max_tokens: 600 });
      if (status === 400) {
        assert.match(body.error.message, new RegExp(`["'/]${name.replace('$', '\\$')}\\b|^.*: regular expression, `), `the message does not name ${name}`);
        t.diagnostic(`refused: ${body.error.message}`);
        return;
      }
      assert.equal(status, 200, JSON.stringify(body));
      if (body.choices[0].finish_reason === 'length') continue;
      assert.ok(check(JSON.parse(body.choices[0].text)), `${body.choices[0].text} against ${JSON.stringify(schema)}`);
    }
    t.diagnostic('enforced');
  });
}

test('what is wrong is a 400 that says where', async () => {
  const wrong = [
    [{ guided_regex: '(a' }, /guided_regex|expression|'\)'/], [{ grammar: 'root ::= "a' }, /line 1|grammar/], [{ grammar: 'a ::= "b"' }, /root/],
    [{ grammar: 'root ::= nobody' }, /nobody/], [{ grammar: 'root ::= root "a" | "a"' }, /root/], [{ guided_choice: [] }, /guided_choice|choice/],
    [{ guided_choice: 'yes' }, /guided_choice/], [{ guided_json: 7 }, /guided_json|schema/], [{ guided_json: { type: 'strnig' } }, /"type"/],
    [{ guided_json: { $ref: '#/$defs/none' } }, /none/], [{ guided_json: { $ref: '#' } }, /\$ref|itself|recurs|matches|#/], [{ response_format: { type: 'xml' } }, /xml/],
    [{ response_format: { type: 'json_schema' } }, /json_schema/], [{ guided_json: { $ref: 'https://example.org/x.json' } }, /example\.org/],
    [{ guided_json: { type: 'string', minLength: 3, maxLength: 2 } }, /minLength|maxLength|nothing|matches/], [{ guided_json: false }, /false|nothing|matches/],
    [{ guided_json: '{"type": ' }, /guided_json|JSON/],
  ];
  for (const [more, message] of wrong) {
    const answer = await daemon.post(completions, { model: 'hermes', prompt: 'x', max_tokens: 5, ...more });
    assert.equal(answer.status, 400, JSON.stringify([more, answer.body]));
    assert.equal(answer.body.error.type, 'invalid_request_error');
    assert.match(answer.body.error.message, message, JSON.stringify(more));
  }
});

// Reads streams one after the other until told to stop, and knows the longest time in which nothing came.
function listener(model) {
  const state = { on: true, tokens: 0, longest: 0 };
  state.done = (async () => {
    while (state.on) {
      const response = await daemon.get(completions, {
        method: 'POST', body: JSON.stringify({ model, prompt: 'x', max_tokens: 4000, ignore_eos: true, stream: true }),
      });
      let last = Date.now();
      for await (const chunk of response.body) {
        state.longest = Math.max(state.longest, Date.now() - last);
        state.tokens += chunk.length > 0 ? 1 : 0;
        last = Date.now();
        if (!state.on) break;
      }
    }
  })();
  return state;
}

const nested = (depth, inner) => `${'{"type":"array","minItems":1,"maxItems":1,"items":'.repeat(depth)}${inner}${'}'.repeat(depth)}`; // as text
const doubled = (depth) => ({
  $ref: '#/$defs/d0',
  $defs: Object.fromEntries(Array.from({ length: depth }, (_, i) => [`d${i}`, i + 1 < depth
    ? { type: 'array', prefixItems: [{ $ref: `#/$defs/d${i + 1}` }, { $ref: `#/$defs/d${i + 1}` }], minItems: 2, maxItems: 2 } : { type: 'null' }])),
});
const explosive = {
  'huge bounds within each other': { guided_json: { type: 'array', minItems: 1000000, maxItems: 2000000000, items: { type: 'array', maxItems: 2000000000, items: { type: 'string', maxLength: 2000000000 } } } },
  'a deep schema': { guided_json: nested(5000, 'true') },
  'definitions that double': { guided_json: doubled(60) },
  'alternatives that double': { guided_json: { $ref: '#/$defs/d0', $defs: Object.fromEntries(Array.from({ length: 40 }, (_, i) => [`d${i}`, i < 39 ? { anyOf: [{ $ref: `#/$defs/d${i + 1}` }, { $ref: `#/$defs/d${i + 1}` }] } : { type: 'integer', minimum: 0, maximum: 9 }])) } },
  'a product of allOf': { guided_json: { allOf: Array.from({ length: 30 }, (_, i) => ({ anyOf: [{ type: 'integer', minimum: i, maximum: 1000 }, { type: 'integer', minimum: 0, maximum: 2000 + i }] })) } },
  'many optional properties': { guided_json: { type: 'object', additionalProperties: false, properties: Object.fromEntries(Array.from({ length: 400 }, (_, i) => [`p${i}`, { type: 'boolean' }])) } },
  'a large enum': { guided_json: { enum: Array.from({ length: 20000 }, (_, i) => `value number ${i * 7919}`) } },
  'repeats of repeats': { guided_regex: '(((((a{1,1000}){1,1000}){1,1000})b?){1,1000}c?){1,1000}' },
  'many ways to match': { guided_regex: '((a|a|a)*(a|a)*(a?){100})*b' },
  'what many states begin': { guided_regex: '[ab]*a[ab]{300}c' },
  'a long expression': { guided_regex: '(x|y)'.repeat(30000) },
  'deep brackets': { guided_regex: `${'('.repeat(20000)}a${')'.repeat(20000)}` },
  'a deep grammar': { grammar: `root ::= ${'('.repeat(20000)}"a"${')'.repeat(20000)}` },
  'rules that call each other': { grammar: `root ::= r0\n${Array.from({ length: 2000 }, (_, i) => `r${i} ::= r${(i + 1) % 2000} r${(i + 7) % 2000} | "a"`).join('\n')}` },
  'an ambiguous grammar': { grammar: 'root ::= s\ns ::= "a" s s | "a" s | "a" | ""' },
  'a grammar of two megabytes': { grammar: `root ::= ${'"a" | '.repeat(350000)}"b"` },
};
test('schemas, expressions and grammars that explode end within limits, while another model streams on', async (t) => {
  const other = listener('llama3');
  try {
    for (const [name, more] of Object.entries(explosive)) {
      const begun = Date.now();
      const answer = await daemon.post(completions, { model: 'hermes', prompt: 'x', max_tokens: 40, temperature: 1, seed: 1, ...more });
      const took = Date.now() - begun;
      t.diagnostic(`${name}: ${answer.status} in ${took} ms${answer.status === 200 ? '' : `: ${answer.body.error.message.slice(0, 120)}`}`);
      assert.ok(answer.status === 200 || answer.status === 400, `${name}: ${JSON.stringify(answer.body)}`);
      assert.ok(took < 20000, `${name} took ${took} ms`);
    }
  } finally {
    other.on = false;
    await other.done;
  }
  assert.ok(other.tokens > 100, `${other.tokens} pieces came`);
  assert.ok(other.longest < 3000, `nothing came for ${other.longest} ms`);
  assert.equal((await daemon.post(completions, { model: 'hermes', prompt: 'x', max_tokens: 3 })).status, 200);
});

test('a template that computes for ever is refused within limits, while another model streams on', async () => {
  const other = listener('llama3');
  const begun = Date.now();
  const answer = await daemon.post(chat, { model: 'endless', messages, max_tokens: 3 });
  other.on = false;
  await other.done;
  assert.ok(answer.status >= 400 && answer.status < 600, JSON.stringify(answer.body));
  assert.match(answer.body.error.message, /limit/);
  assert.ok(Date.now() - begun < 20000);
  assert.ok(other.longest < 3000, `nothing came for ${other.longest} ms`);
  assert.equal((await daemon.post(completions, { model: 'endless', prompt: 'x', max_tokens: 3 })).status, 200, 'its template is not needed there');
});

test('the same schema again is answered from what was compiled', async () => {
  const schema = { ...schemas.nested, title: 'a schema of its own' };
  const request = { model: 'hermes', prompt: 'x', guided_json: schema, seed: 5, temperature: 1, max_tokens: enough };
  const first = await daemon.post(completions, request), second = await daemon.post(completions, request);
  assert.equal(first.status, 200, JSON.stringify(first.body));
  assert.equal(second.body.choices[0].text, first.body.choices[0].text);
});

test('a constrained answer beside free ones: all are right', async () => {
  const free = await daemon.post(completions, { model: 'hermes', prompt: 'Once', max_tokens: 200, temperature: 1, seed: 3, ignore_eos: true });
  const [again, held] = await Promise.all([
    daemon.post(completions, { model: 'hermes', prompt: 'Once', max_tokens: 200, temperature: 1, seed: 3, ignore_eos: true }),
    daemon.post(completions, { model: 'hermes', prompt: 'Once', max_tokens: enough, temperature: 1, seed: 3, n: 4, guided_json: schemas['an event'] }),
  ]);
  assert.equal(again.body.choices[0].text, free.body.choices[0].text);
  assert.equal(held.body.choices.length, 4);
  for (const choice of held.body.choices) validate(schemas['an event'], choice.text);
  assert.equal(new Set(held.body.choices.map((choice) => choice.text)).size, 4);
});

test('logprobs and token ids come with constrained answers, forced tokens too', async () => {
  const { status, body } = await daemon.post(completions, {
    model: 'hermes', prompt: 'x', guided_json: schemas.object, seed: 2, temperature: 1, max_tokens: enough, logprobs: 2, return_token_ids: true,
  });
  assert.equal(status, 200, JSON.stringify(body));
  const [choice] = body.choices;
  assert.equal(choice.logprobs.tokens.length, choice.token_ids.length);
  assert.ok(choice.logprobs.token_logprobs.every((value) => value <= 0));
  validate(schemas.object, choice.text);
  const detokenized = await daemon.post('/detokenize', { model: 'hermes', tokens: choice.token_ids });
  assert.equal(detokenized.body.content ?? detokenized.body.prompt, choice.text);
});
