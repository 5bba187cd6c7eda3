// offline.test.mjs - the commands of shimmyctl that work on model files without a daemon: quantize and perplexity.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { promisify } from 'node:util';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { needs, root, shared, shimmyctl as ctl, waitFor } from './harness.mjs';

const run = promisify(execFile);
const stories = shared('models/stories260K.gguf');
const there = needs(stories, 'no shared models');
let folder;
before(() => { folder = mkdtempSync(path.join(tmpdir(), 'shimmy-offline-')); });
after(() => rmSync(folder, { recursive: true, force: true }));

async function shimmyctl(...args) {
  try {
    const { stdout, stderr } = await run(ctl, args);
    return { code: 0, stdout, stderr };
  } catch (error) {
    return { code: error.code, stdout: error.stdout, stderr: error.stderr };
  }
}

const text = `Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball. She wanted to play with it, but it was too high.
Lily's mom said, "Lily, let's go to the park." Lily was sad and didn't know what to do. She said, "I want to play with your ball, but I can't find it."
Lily was sad and didn't know what to do. She said, "I'm sorry, Lily. I didn't know what to do." Lily didn't want to help her mom, so she said, "I'm sorry, mom. I didn't know what to do." Her mom said, "Don't worry, Lily. We can help you."
They went to the park and saw a tall slide. Lily climbed up and slid down again and again. When the sun went down, she was tired but happy. She held her mom's hand all the way home.
`;

// What llama-perplexity (build 11669) says of this text and model: -c 64: 2.1558 +/- 0.17976; -c 100: 2.1897 +/- 0.19247.
test('perplexity is that of llama-perplexity', there, async () => {
  const file = path.join(folder, 'story.txt');
  writeFileSync(file, text);
  for (const [window, perplexity, error] of [[64, 2.1558, 0.17976], [100, 2.1897, 0.19247]]) {
    const { code, stdout, stderr } = await shimmyctl('--json', 'perplexity', stories, file, '--window', String(window), '--device', 'cpu');
    assert.equal(code, 0, stderr);
    const said = JSON.parse(stdout);
    assert.ok(Math.abs(said.perplexity / perplexity - 1) < 1e-3, `found ${said.perplexity}, expected ${perplexity}`);
    assert.ok(Math.abs(said.error / error - 1) < 1e-2, `found ${said.error}, expected ${error}`);
    assert.equal(said.tokens, said.windows * (window - 1 - Math.floor(window / 2)));
  }
  const first = await shimmyctl('perplexity', stories, file, '--windows', '1', '-w', '64', '--device', 'cpu');
  assert.match(first.stdout, /^perplexity \d+\.\d{4} \+\/- \d+\.\d{4} \(31 tokens, 1 windows of 64\)$/m);
});

test('perplexity says what is wrong', there, async () => {
  const file = path.join(folder, 'short.txt');
  writeFileSync(file, 'Too short.');
  const short = await shimmyctl('perplexity', stories, file, '--device', 'cpu');
  assert.equal(short.code, 1);
  assert.match(short.stderr, /the text has \d+ tokens, a window 512/);
  const missing = await shimmyctl('perplexity', stories, path.join(folder, 'missing.txt'), '--device', 'cpu');
  assert.equal(missing.code, 1);
  assert.match(missing.stderr, /missing\.txt: No such file/);
  const directory = await shimmyctl('perplexity', stories, folder, '--device', 'cpu');
  assert.equal(directory.code, 1);
  assert.equal(directory.stderr, `shimmyctl: ${folder}: Is a directory\n`);
});

test('quantize writes what loads, and loses little', there, async () => {
  const file = path.join(folder, 'story.txt'), small = path.join(folder, 'small.gguf');
  writeFileSync(file, text);
  const measure = async (model) => JSON.parse((await shimmyctl('-j', 'perplexity', model, file, '-w', '64', '--device', 'cpu')).stdout).perplexity;
  const whole = await measure(stories);
  const done = await shimmyctl('quantize', stories, small, 'q8_0');
  assert.equal(done.code, 0, done.stderr);
  assert.ok(statSync(small).size < 0.4 * statSync(stories).size);
  assert.ok(Math.abs((await measure(small)) / whole - 1) < 0.02);
  const again = await shimmyctl('quantize', stories, small, 'Q8_0');
  assert.equal(again.code, 1);
  assert.match(again.stderr, /small\.gguf: exists; --force replaces it/);
  const before = readFileSync(small);
  assert.equal((await shimmyctl('-q', 'quantize', stories, small, 'Q8_0', '--force')).code, 0);
  assert.ok(before.equals(readFileSync(small)));
});

test('quantize says what is wrong', there, async () => {
  const out = path.join(folder, 'out.gguf');
  const type = await shimmyctl('quantize', stories, out, 'Q9');
  assert.equal(type.code, 2);
  assert.match(type.stderr, /TYPE: found 'Q9', expected one of F32, F16, .*TQ2_0/);
  const input = await shimmyctl('quantize', path.join(folder, 'none.gguf'), out, 'Q8_0');
  assert.equal(input.code, 1);
  assert.match(input.stderr, /none\.gguf/);
  assert.ok(!existsSync(out));
});

test('an interrupted quantize leaves nothing, and what was there as it was', async () => {
  const place = path.join(folder, 'interrupted'), out = path.join(place, 'out.gguf');
  mkdirSync(place);
  writeFileSync(out, 'as it was');
  for (const signal of ['SIGINT', 'SIGTERM']) {
    const child = spawn(ctl, ['quantize', '--force', '--threads', '1', path.join(root, 'tests/models/shimmy-tiny.gguf'), out, 'IQ4_XS']);
    const ended = new Promise((done) => child.on('close', (code) => done(code)));
    await waitFor('it writes', () => readdirSync(place).some((name) => name.includes('.part-')));
    child.kill(signal);
    assert.equal(await ended, 130);
    assert.deepEqual(readdirSync(place), ['out.gguf']);
    assert.equal(readFileSync(out, 'utf8'), 'as it was');
  }
});
