// shimmyctl as people and scripts use it: output, exit statuses, interrupts; against a real daemon and without one.
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, realpathSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, before, test } from 'node:test';
import { Daemon, build, golden, needs, shared, shimmyctl, waitFor } from './harness.mjs';

const stories = shared('models/stories260K.gguf');
const scratch = mkdtempSync(join(tmpdir(), 'shimmyctl-e2e-'));
const daemon = new Daemon({ models: stories && dirname(stories) });
const withShared = (name, body) => test(name, needs(stories, 'no reference data (SHIMMY_SHARED or ../shared)'), body);

const environment = () => {
  const variables = { ...process.env, SHIMMY_SOCKET: daemon.socket ?? join(scratch, 'nobody.sock') };
  delete variables.XDG_RUNTIME_DIR;
  return variables;
};

function start(args, options = {}) {
  const child = spawn(shimmyctl, args, { env: environment(), ...options });
  const result = { child, stdout: '', stderr: '' };
  child.stdout.setEncoding('utf8').on('data', (text) => (result.stdout += text));
  child.stderr.setEncoding('utf8').on('data', (text) => (result.stderr += text));
  result.done = new Promise((settle) =>
    child.on('close', (code, signal) => settle(Object.assign(result, { code, signal }))),
  );
  return result;
}

function run(args, input = '', options = {}) {
  const running = start(args, options);
  running.child.stdin.on('error', () => {}); // a program that reads nothing may be gone before it is written to
  running.child.stdin.end(input);
  return running.done;
}

async function succeed(args, input) {
  const result = await run(args, input);
  assert.equal(result.code, 0, `shimmyctl ${args.join(' ')}: ${result.stderr}\n${daemon.log}`);
  return result;
}

const lines = (text) => text.split('\n').filter(Boolean).map((line) => JSON.parse(line));

async function runningRequests() {
  const [status] = lines((await succeed(['status', '--json'])).stdout);
  return status.models.reduce((sum, model) => sum + model.running + model.queued, 0);
}

before(() => stories && daemon.start());

after(async () => {
  if (daemon.child) await daemon.stop();
  rmSync(scratch, { recursive: true, force: true });
});

// ---- without a daemon ----

test('no daemon: says so, and how to start one', async () => {
  for (const command of [['status'], ['list'], ['devices'], ['load', 'm'], ['generate', 'm', 'x'], ['cancel', '1']]) {
    const result = await run(['--socket', join(scratch, 'nobody.sock'), ...command]);
    assert.equal(result.code, 1);
    assert.equal(result.stdout, '');
    assert.match(result.stderr, /no daemon answers: .*nobody\.sock: No such file/);
    assert.match(result.stderr, /systemctl --user start shimmyd/);
  }
  const [answer] = lines((await run(['--json', '--socket', join(scratch, 'nobody.sock'), 'status'])).stdout);
  assert.equal(answer.error, 'NoDaemon');
});

test('usage: exit status 2, and what was expected', async () => {
  const cases = [
    [[], /a command is missing/],
    [['fly'], /unknown command "fly"/],
    [['load'], /found 0, expected MODEL/],
    [['load', 'a', 'b'], /too many arguments: .*"b"/],
    [['generate', 'm', '--top-p', '2', 'x'], /--top-p: found "2", expected a number from 0 to 1/],
    [['generate', 'm', '--nonsense', 'x'], /unknown option --nonsense/],
    [['generate', 'm', '--logit-bias', '5', 'x'], /--logit-bias: found "5", expected ID=BIAS/],
    [['generate', 'm', '--prompt', 'a', 'b'], /both --prompt and a PROMPT/],
    [['tokenize', '--jsonl', 'm'], /--jsonl needs --gguf/],
    [['detokenize', 'm', '1', 'x'], /ID: found "x"/],
    [['cancel', 'x'], /ID: found "x"/],
    [['completion', 'fish'], /found "fish", expected bash/],
  ];
  for (const [args, message] of cases) {
    const result = await run(args);
    assert.equal(result.code, 2, args.join(' '));
    assert.match(result.stderr, message);
    assert.equal(result.stdout, '');
  }
});

test('help and version', async () => {
  assert.match((await succeed(['--version'])).stdout, /^shimmyctl \d+\.\d+\.\d+\n$/);
  const all = (await succeed(['help'])).stdout;
  assert.equal((await succeed(['--help'])).stdout, all);
  const command = (await succeed(['help', 'generate'])).stdout;
  assert.equal((await succeed(['generate', '-h'])).stdout, command);
  assert.match(command, /--max-tokens/);
});

withShared('inspect', async () => {
  const text = (await succeed(['inspect', stories])).stdout;
  assert.match(text, /GGUF version 3/);
  assert.match(text, /blk\.4\.ffn_norm\.weight +F32 +64 +256 B/);
  assert.match(text, /would load\n$/);
  const [file] = lines((await succeed(['inspect', '--json', '--full', stories])).stdout);
  assert.equal(file.architecture, 'llama');
  assert.equal(file.tensors.length, 48);
  assert.equal(file.loadable, true);
  assert.equal(file.metadata.find((entry) => entry.key === 'tokenizer.ggml.tokens').value.length, 512);
  assert.equal(file.metadata.find((entry) => entry.key === 'llama.attention.layer_norm_rms_epsilon').value.toFixed(6), '0.000010');
});

withShared('inspect: a file that would not load, a broken one, none', async () => {
  const vocabulary = await run(['inspect', '--json', join(dirname(stories), '../tokenizers/ggml-vocab-gpt-2.gguf')]);
  const [file] = lines(vocabulary.stdout);
  assert.equal(vocabulary.code, 1);
  assert.equal(file.loadable, false);
  assert.ok(file.reason.length > 10);

  const cut = join(scratch, 'cut.gguf');
  writeFileSync(cut, readFileSync(stories).subarray(0, 5000));
  const broken = await run(['inspect', cut]);
  assert.equal(broken.code, 1);
  assert.match(broken.stderr, /cut\.gguf/);
  const none = await run(['inspect', join(scratch, 'none.gguf'), '--json']);
  assert.equal(none.code, 1);
  assert.equal(lines(none.stdout)[0].error, 'not_found');
});

test('inspect --supported', async () => {
  const [all] = lines((await succeed(['inspect', '--supported', '--json'])).stdout);
  assert.ok(all.architectures.length > 45 && all.architectures.every((a) => a.name && a.family && a.models));
  assert.ok(['F32', 'BF16', 'Q4_K', 'IQ1_M', 'TQ2_0', 'MXFP4'].every((type) => all.types.includes(type)), all.types.join());
  const text = (await succeed(['inspect', '--supported'])).stdout;
  for (const { name } of all.architectures) assert.match(text, new RegExp(`^${name} +[a-z]+ +`, 'm'));
  assert.equal((await run(['inspect'])).code, 2);
  assert.equal((await run(['inspect', '--supported', 'x.gguf'])).code, 2);
});

withShared('tokenize and detokenize without a daemon', async () => {
  const { prompt, prompt_token_ids: ids } = golden();
  assert.equal((await succeed(['tokenize', '--gguf', stories, '--add-special', prompt])).stdout, ids.join(' ') + '\n');
  assert.equal((await succeed(['tokenize', '--gguf', stories], prompt + '\n')).stdout, ids.slice(1).join(' ') + '\n');
  assert.match((await succeed(['detokenize', '--gguf', stories, ids.join(',')])).stdout, /Once upon a time\n$/);

  const questions = [
    { text: prompt, add_special: true, parse_special: false },
    { text: 'a\u2028b\u0000c' },
    { ids, special: true },
    { ids: [-1] },
    { nothing: 1 },
  ];
  const input = questions.map((question) => JSON.stringify(question)).join('\n') + '\n{broken\n';
  const result = await run(['tokenize', '--jsonl', '--gguf', stories], input);
  assert.equal(result.code, 1); // some lines could not be answered
  const answers = lines(result.stdout);
  assert.deepEqual(answers[0], { ids });
  assert.ok(answers[1].ids.length > 3);
  assert.match(answers[2].text, /^<s> ?Once upon a time$/);
  assert.equal(answers.length, 6);
  for (const answer of answers.slice(3)) assert.equal(typeof answer.error, 'string');
});

// ---- with one ----

withShared('on a terminal: colours unless NO_COLOR, a line feed after the text', async (t) => {
  const pty = spawnSync('script', ['-qec', 'true', '/dev/null'], { stdio: ['ignore', 'ignore', 'ignore'] });
  if (pty.status !== 0) return t.skip('no pseudo-terminal can be had here (script, /dev/pts)');
  const terminal = (command, variables) =>
    new Promise((done) => {
      const child = spawn('script', ['-qec', command, '/dev/null'], {
        env: { ...environment(), TERM: 'xterm', PATH: `${build}:${process.env.PATH}`, ...variables },
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      let text = '';
      child.stdout.setEncoding('utf8').on('data', (part) => (text += part));
      child.on('close', () => done(text.replaceAll('\r\n', '\n')));
    });
  assert.match(await terminal('shimmyctl list', { NO_COLOR: '' }), /\x1b\[1mMODEL\x1b\[0m/);
  assert.doesNotMatch(await terminal('shimmyctl list', { NO_COLOR: '1' }), /\x1b/);
  assert.doesNotMatch(await terminal('shimmyctl list', { TERM: 'dumb' }), /\x1b/);
  assert.match(
    await terminal('shimmyctl generate -q stories260K -t 0 -n 5 "Once upon a time"', { NO_COLOR: '1' }),
    /(^|\x1b\[K), there was a little\n$/,
  );
});

withShared('status, list and devices', async () => {
  const [status] = lines((await succeed(['status', '--json'])).stdout);
  assert.equal(status.socket, daemon.socket);
  assert.match(status.http[0], /^http:\/\/127\.0\.0\.1:\d+$/);
  const model = status.models.find((entry) => entry.id === 'stories260K');
  assert.equal(realpathSync(model.path), realpathSync(stories));
  assert.equal(model.arch, 'llama');
  assert.equal(model.size_bytes, readFileSync(stories).length);

  assert.match((await succeed(['status'])).stdout, /^shimmyd \d.*running/);
  await succeed(['load', 'stories260K', '--keep-alive', '5m']);
  const activity = (await succeed(['status'])).stdout;
  assert.match(activity, /^LOADED +RUNNING +WAITING +MEMORY +CACHE USED +DRAFT +UNLOADED$/m);
  assert.match(activity, /^stories260K +0 +0 +[\d.]+ MiB +0\.0 % +- +in \d+ s$/m);
  const list = (await succeed(['list'])).stdout;
  assert.match(list, /^MODEL +STATE/);
  assert.match(list, /^stories260K +\w+ +llama +F32 +1\.1 MiB/m);
  assert.doesNotMatch(list, /\x1b/); // no colours where there is no terminal
  assert.ok((await succeed(['list', '--names'])).stdout.split('\n').includes('stories260K'));

  const [{ devices }] = lines((await succeed(['devices', '--json'])).stdout);
  assert.equal(devices.filter((device) => device.selected).length, 1);
  assert.equal(devices.find((device) => device.selected).kind, 'cpu');
  assert.match((await succeed(['devices'])).stdout, /^\* /m);
  assert.match((await succeed(['-v', 'status'])).stderr, /using .*control\.sock/);
});

withShared('load: steps as JSON, a line for people, a path, a name in other letters', async () => {
  const steps = lines((await succeed(['load', '--json', 'stories260k'])).stdout);
  const last = steps.at(-1);
  assert.equal(last.phase, 'done');
  assert.equal(last.fraction, 1);
  assert.equal(last.model.id, 'stories260K');
  assert.equal(last.model.state, 'ready');
  for (let i = 1; i < steps.length; i++) assert.ok(steps[i].fraction >= steps[i - 1].fraction);
  assert.match((await succeed(['load', 'stories260K'])).stdout, /^stories260K: ready on /);

  await succeed(['unload', 'stories260K']);
  assert.equal((await run(['unload', 'stories260K'])).code, 1);
  const reloaded = await succeed(['load', '--json', '--kv-type', 'f32', '--context', '1024', stories]);
  assert.equal(lines(reloaded.stdout).at(-1).model.context_length, 1024);
  const fresh = await succeed(['load', '--json', '--kv-type', 'f32', '--reload', stories]);
  assert.equal(lines(fresh.stdout).at(-1).model.context_length, 2048);
});

withShared('load: what is refused says why', async () => {
  const unknown = await run(['load', 'stories26K']);
  assert.equal(unknown.code, 1);
  assert.match(unknown.stderr, /stories26K/);
  assert.match(unknown.stderr, /stories260K/); // a near name
  const [answer] = lines((await run(['load', 'stories26K', '--json'])).stdout);
  assert.equal(answer.error, 'io.shimmy.Daemon.ModelNotFound');
  const broken = await run(['load', join(scratch, 'cut.gguf')]);
  assert.equal(broken.code, 1);
  assert.match(broken.stderr, /cut\.gguf/);
  const device = await run(['load', 'llama-2-tiny-random.f16', '--device', 'no such device']);
  assert.equal(device.code, 1);
  assert.match(device.stderr, /no such device/);
});

withShared('generate: the golden text and nothing else', async () => {
  const { prompt, text, max_tokens: n } = golden();
  const options = ['-t', '0', '-n', String(n)];
  const direct = await succeed(['generate', 'stories260K', ...options, prompt]);
  assert.equal(direct.stdout, text);
  assert.match(direct.stderr, /5 prompt tokens .* 128 generated, .* finish: length/);
  assert.equal((await succeed(['generate', 'stories260K', ...options, '--prompt', prompt])).stdout, text);
  const piped = await succeed(['generate', '-q', 'stories260K', ...options], prompt + '\n');
  assert.equal(piped.stdout, text);
  assert.equal(piped.stderr, '');
});

withShared('generate: stop strings, seeds, bias', async () => {
  const prompt = 'Once upon a time';
  const stopped = await succeed(['generate', 'stories260K', '-t', '0', '-n', '100', '--stop', 'nowhere', '--stop', ' Lily', prompt]);
  assert.equal(stopped.stdout, ', there was a little girl named');
  assert.match(stopped.stderr, /finish: stop/);

  const sample = async (seed) => (await succeed(['generate', 'stories260K', '-t', '1.2', '-n', '40', '--seed', seed, prompt])).stdout;
  const first = await sample('7');
  assert.equal(await sample('7'), first);
  assert.notEqual(await sample('8'), first);
  const reported = await succeed(['generate', 'stories260K', '-t', '1.2', '-n', '40', prompt]);
  assert.equal(await sample(/seed (\d+)/.exec(reported.stderr)[1]), reported.stdout);

  const { token_ids: ids } = golden();
  const biased = await succeed(['generate', '--json', 'stories260K', '-t', '0', '-n', '4', '--logit-bias', `${ids[0]}=-100`, prompt]);
  assert.notEqual(lines(biased.stdout).find((reply) => Number.isInteger(reply.token)).token, ids[0]);
});

withShared('generate --json: ids, tokens, log-probabilities, usage', async () => {
  const { prompt, text, token_ids: ids } = golden();
  const replies = lines((await succeed(['generate', '--json', 'stories260K', '-t', '0', '-n', '128', '--logprobs', '2', prompt])).stdout);
  assert.ok(Number.isInteger(replies[0].id));
  const tokens = replies.filter((reply) => Number.isInteger(reply.token));
  assert.deepEqual(tokens.map((reply) => reply.token), ids);
  assert.equal(replies.map((reply) => reply.text ?? '').join(''), text);
  for (const reply of tokens) {
    assert.ok(reply.logprob <= 0);
    assert.equal(reply.top.length, 2);
    assert.equal(reply.top[0].token, reply.token);
  }
  const last = replies.at(-1);
  assert.equal(last.usage.completion_tokens, 128);
  assert.equal(last.choices[0].finish_reason, 'length');
});

withShared('generate: refused requests', async () => {
  const long = await run(['generate', 'stories260K', '-n', '1'], 'a '.repeat(4000));
  assert.equal(long.code, 1);
  assert.match(long.stderr, /2048/);
  assert.equal((await run(['generate', 'stories260K'], Buffer.from([0x61, 0xff]))).code, 1);
  assert.equal((await run(['generate', 'nobody', 'x'])).code, 1);
});

const endless = ['generate', 'stories260K', '--ignore-eos', '--json', 'Once upon a time'];

withShared('Ctrl-C cancels in the daemon, exit status 130', async () => {
  const running = start(endless);
  await waitFor('text comes', () => running.stdout.includes('"token"'));
  running.child.kill('SIGINT');
  const result = await running.done;
  assert.equal(result.code, 130);
  assert.match(result.stderr, /interrupted/);
  await waitFor('the request is gone', async () => (await runningRequests()) === 0, 1000);
});

withShared('a reader that leaves cancels', async () => {
  const running = start(endless);
  await waitFor('text comes', () => running.stdout.includes('"token"'));
  running.child.stdout.destroy();
  const result = await running.done;
  assert.notEqual(result.code, 0);
  await waitFor('the request is gone', async () => (await runningRequests()) === 0, 1000);
});

withShared('cancel by id', async () => {
  const running = start(endless);
  await waitFor('the id comes', () => running.stdout.includes('\n'));
  const { id } = JSON.parse(running.stdout.split('\n')[0]);
  await succeed(['cancel', String(id)]);
  const result = await running.done;
  assert.equal(result.code, 1);
  assert.equal(lines(result.stdout).at(-1).error, 'io.shimmy.Daemon.Cancelled');
  const again = await run(['cancel', String(id)]);
  assert.equal(again.code, 1);
});

withShared('tokenize and detokenize over the socket', async () => {
  const { prompt, prompt_token_ids: ids } = golden();
  assert.equal((await succeed(['tokenize', 'stories260K', prompt, '--add-special'])).stdout, ids.join(' ') + '\n');
  const [reply] = lines((await succeed(['tokenize', 'stories260K', '--json'], prompt + '\n')).stdout);
  assert.deepEqual(reply.tokens, ids.slice(1));
  assert.match((await succeed(['detokenize', 'stories260K', ...ids.map(String)])).stdout, /Once upon a time\n$/);
  assert.match((await succeed(['detokenize', 'stories260K', '--special'], ids.join('\n'))).stdout, /^<s>/);
  assert.equal((await run(['detokenize', 'stories260K', '99999'])).code, 1);
});
