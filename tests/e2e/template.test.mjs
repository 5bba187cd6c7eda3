// template.test.mjs - chat templates: what `shimmyctl template` shows is what a request is computed from, and which template that is.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Daemon, build, shimmyctl } from './harness.mjs';

const own = `{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}`;
const dir = mkdtempSync(path.join(tmpdir(), 'shimmyd-template-'));
const file = (name, text) => {
  writeFileSync(path.join(dir, name), text);
  return path.join(dir, name);
};
const messages = [{ role: 'system', content: 'Be <|im_end|> kind.' }, { role: 'user', content: [{ type: 'text', text: 'Hi' }, { type: 'text', text: '0.1' }] }];
const tools = [{ type: 'function', function: { name: 'look', parameters: { type: 'object', properties: { far: { type: 'number', minimum: 0.1 } } } } }];
const rendered = '<|im_start|>system\nBe <|im_end|> kind.<|im_end|>\n<|im_start|>user\nHi\n0.1<|im_end|>\n<|im_start|>assistant\n';

let daemon;
const ctl = (args, options = {}) => {
  const result = spawnSync(shimmyctl, args, { encoding: 'utf8', cwd: dir, env: { ...process.env, SHIMMY_SOCKET: daemon.socket }, ...options });
  return { ...result, code: result.status };
};
const chat = (model, body = {}) => daemon.post('/v1/chat/completions', { model, messages, max_tokens: 1, return_token_ids: true, ...body });

before(async () => {
  const model = (name, args) => {
    const { status, stderr } = spawnSync(path.join(build, 'tests/tools/genmodel'), [path.join(dir, `${name}.gguf`), '--embd', '64', '--heads', '2',
      '--kv-heads', '1', '--ff', '128', '--vocab', '1500', '--context', '2048', '--bpe', '--pieces', ...args]);
    assert.equal(status, 0, String(stderr));
  };
  const control = ['--control', '<|im_start|>', '--control', '<|im_end|>', '--eos', '<|im_end|>'];
  model('own', [...control, '--chat-template', file('own.jinja', own), '--named-template', `tool_use=${file('tools.jinja', `T{{ tools | tojson }}${own}`)}`]);
  model('none', control);
  model('bare', []);
  model('broken', [...control, '--chat-template', file('broken.jinja', 'first\n{% for x in %}')]);
  file('messages.json', JSON.stringify(messages));
  file('tools.json', JSON.stringify(tools));
  daemon = await new Daemon({ models: dir }).start();
});
after(async () => {
  await daemon?.stop();
  rmSync(dir, { recursive: true, force: true });
});

test('a path, a name and a request give the same prompt', async () => {
  const { body } = await chat('own');
  for (const model of ['own', './own.gguf', path.join(dir, 'own.gguf')]) {
    const text = ctl(['template', model, '--messages', 'messages.json']);
    assert.equal(text.code, 0, text.stderr);
    assert.ok(text.stdout.endsWith(rendered), text.stdout);
    const json = JSON.parse(ctl(['template', model, '--messages', 'messages.json', '--json']).stdout);
    assert.equal(json.text, text.stdout);
    assert.deepEqual(json.tokens, body.prompt_token_ids);
    assert.deepEqual([json.template, json.source], ['default', 'model']);
  }
  // <|im_end|> stands there three times; what was said stays text
  const [end, ...rest] = JSON.parse(ctl(['tokenize', 'own', '<|im_end|>', '--json']).stdout).tokens;
  assert.equal(rest.length, 0);
  assert.equal(body.prompt_token_ids.filter((id) => id === end).length, 2);
});

test('options: standard input, a whole request, tools, variables, no generation prompt, continuing', () => {
  const show = (args, input) => {
    const result = ctl(['template', 'own', ...args], { input });
    assert.equal(result.code, 0, result.stderr);
    return result.stdout;
  };
  assert.ok(show(['--messages', '-'], JSON.stringify(messages)).endsWith(rendered));
  assert.ok(show(['--messages', '-'], JSON.stringify({ model: 'x', messages, chat_template_kwargs: { enable_thinking: false } })).endsWith(`${rendered}<think></think>`));
  assert.ok(show(['--messages', 'messages.json', '--kwargs', '{"enable_thinking":false}']).endsWith(`${rendered}<think></think>`));
  assert.ok(show(['--messages', 'messages.json', '--no-generation-prompt']).endsWith('0.1<|im_end|>\n'));
  assert.match(show(['--messages', 'messages.json', '--tools', 'tools.json']), /^T\[\{"type": "function", .*"minimum": 0\.1\}\}\}\}\}\]/);
  assert.match(show(['--messages', 'messages.json', '--tools', 'tools.json', '--chat-template', 'chatml']), /"minimum": 0\.1/);
  assert.ok(show(['--messages', '-', '--continue'], JSON.stringify([...messages, { role: 'assistant', content: 'Well, ' }])).endsWith('<|im_start|>assistant\nWell, '));
  assert.ok(show(['--messages', 'messages.json', '--chat-template', './own.jinja']).endsWith(rendered));
});

test('what cannot be shown says why', () => {
  const cases = [
    [['template', 'own', '--messages', 'nowhere.json'], 1, /nowhere\.json: No such file/],
    [['template', 'own', '--messages', 'own.jinja'], 1, /own\.jinja: not JSON at line 1/],
    [['template', 'own', '--messages', 'messages.json', '--continue'], 1, /messages\[1\]\.role: found "user", expected "assistant"/],
    [['template', './own.gguf', '--messages', 'messages.json', '--chat-template', 'nonsense'], 1, /expected a file or one of default, tool_use; built in: /],
    [['template', 'own', '--messages', 'messages.json', '--chat-template', 'nonsense'], 1, /expected a file or one of default, tool_use; built in: /],
    [['template', 'own', '--messages', 'messages.json', '--chat-template', './broken.jinja'], 1, /broken\.jinja: template, line 2/],
    [['template', './broken.gguf', '--messages', 'messages.json'], 1, /tokenizer\.chat_template: template, line 2/],
    [['template', 'nobody', '--messages', 'messages.json'], 1, /no model is called 'nobody'/],
    [['template', './nobody.gguf', '--messages', 'messages.json'], 1, /nobody\.gguf/],
    [['template', 'own'], 2, /--messages FILE is missing/],
    [['template', 'own', '--messages', 'messages.json', '--kwargs', '[]'], 2, /--kwargs: found no JSON object/],
    [['template', '--messages', 'messages.json'], 2, /--messages needs a MODEL/],
    [['template', 'own', '--file', 'own.jinja'], 2, /--file is for use without MODEL/],
    [['template'], 2, /MODEL is missing \(or --file FILE\)/],
  ];
  for (const [args, code, message] of cases) {
    const result = ctl(args);
    assert.equal(result.code, code, `${args.join(' ')}: ${result.stderr}`);
    assert.equal(result.stdout, '');
    assert.match(result.stderr, message);
  }
});

test('a model without a template gets a built-in one, which is reported', async () => {
  for (const [model, name, end] of [['none', 'chatml', rendered], ['bare', 'plain', 'System: Be <|im_end|> kind.\nUser: Hi\n0.1\nAssistant:']]) {
    const { body } = await chat(model);
    const json = JSON.parse(ctl(['template', model, '--messages', 'messages.json', '--json']).stdout);
    assert.deepEqual([json.template, json.source, json.text], [name, 'built-in', end]);
    assert.match(json.reason, name === 'chatml' ? /vocabulary has <\|im_start\|>, <\|im_end\|>/ : /no tokens/);
    assert.deepEqual(json.tokens, body.prompt_token_ids);
    assert.match(ctl(['list']).stdout, new RegExp(`^${model}: chat template ${name}: the model has no template`, 'm'));
    assert.match(ctl(['inspect', `./${model}.gguf`]).stdout, new RegExp(`^chat template ${name} \\(built-in\\): the model has no template`, 'm'));
    assert.match(daemon.log, new RegExp(`${model}: chat template: ${name} \\(built-in\\)`));
  }
});

test("a model's own template that is wrong costs its chats alone", async () => {
  const { status, body } = await chat('broken');
  assert.equal(status, 400);
  assert.equal(body.error.code, 'chat_template');
  assert.match(body.error.message, /tokenizer\.chat_template: template, line 2/);
  const plain = await daemon.post('/v1/completions', { model: 'broken', prompt: 'a', max_tokens: 1 });
  assert.equal(plain.status, 200);
  assert.match(ctl(['list']).stdout, /^broken: no chats: tokenizer\.chat_template: template, line 2/m);
});

test('load --chat-template: a name, a file, what is wrong, another than the loaded one', async () => {
  const template = async () => (await daemon.status()).models.find((model) => model.id === 'broken').chat.template;
  let result = ctl(['load', 'broken', '--chat-template', 'chatml', '--reload']);
  assert.equal(result.code, 0, result.stderr);
  assert.equal(await template(), 'chatml');
  assert.equal((await chat('broken')).status, 200);
  result = ctl(['load', 'broken', '--chat-template', 'llama3']);
  assert.equal(result.code, 1);
  assert.match(result.stderr, /chat template.*reload swaps it/);
  result = ctl(['load', 'broken', '--chat-template', 'own.jinja', '--reload']); // the client makes the path absolute
  assert.equal(result.code, 0, result.stderr);
  assert.equal(await template(), path.join(dir, 'own.jinja'));
  assert.ok(ctl(['template', 'broken', '--messages', 'messages.json']).stdout.endsWith(rendered));
  for (const [name, message] of [['./broken.jinja', /broken\.jinja: template, line 2: /], ['nonsense', /found "nonsense", expected a file or one of built in/],
    ['./nowhere.jinja', /nowhere\.jinja: No such file/]]) {
    result = ctl(['load', 'none', '--reload', '--chat-template', name]);
    assert.equal(result.code, 1);
    assert.match(result.stderr, message);
  }
  assert.equal((await chat('none')).status, 200); // loaded anew, with its own again
});

test('chat_template as a setting is the default of loads', async () => {
  const other = await new Daemon({ models: dir, args: ['--chat-template', 'tool_use'] }).start();
  try {
    const { body } = await other.post('/v1/chat/completions', { model: 'own', messages, tools, max_tokens: 1, return_token_ids: true });
    assert.deepEqual(body.prompt_token_ids, (await chat('own', { tools })).body.prompt_token_ids);
    const { status, body: refused } = await other.post('/v1/chat/completions', { model: 'none', messages, max_tokens: 1 });
    assert.equal(status, 500);
    assert.match(refused.error.message, /found "tool_use", expected a file or one of built in/);
  } finally {
    await other.stop();
  }
});
