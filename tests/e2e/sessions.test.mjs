// sessions.test.mjs - sessions saved to disk and brought back: over a restart, under their names, within their limits, and refused where they do not fit.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Daemon, model, needs, shared, shimmyctl } from './harness.mjs';

const there = needs(shared('models/stories260K.gguf'), 'no shared models');
const route = '/v1/completions';
const text = 'Once upon a time there was a little girl named Lily. She loved to play outside in the park with her friends. '.repeat(6);
let scratch;
before(() => { scratch = mkdtempSync(path.join(tmpdir(), 'shimmyd-sessions-')); });
after(() => rmSync(scratch, { recursive: true, force: true }));

const args = (...more) => ['--session-dir', path.join(scratch, 'saved'), ...more];
function ctl(daemon, ...words) {
  return new Promise((done) => execFile(shimmyctl, ['--socket', daemon.socket, ...words], (error, out, err) =>
    done({ code: error?.code ?? 0, out, err })));
}
async function fine(daemon, ...words) {
  const { code, out, err } = await ctl(daemon, ...words);
  assert.equal(code, 0, err);
  return out;
}
const ask = (daemon, more = {}) => daemon.post(route, { model, prompt: text, max_tokens: 12, temperature: 0, ...more });
const cached = ({ body }) => body.usage.prompt_tokens_details.cached_tokens;
async function with_daemon(more, use) {
  const daemon = await new Daemon({ args: args(...more) }).start();
  try {
    await use(daemon);
  } finally {
    await daemon.stop();
  }
}

test('a session survives a restart', there, async () => {
  let first;
  await with_daemon([], async (daemon) => {
    assert.equal(await fine(daemon, 'session', 'list'), '');
    first = await ask(daemon, { session: 'lily' });
    assert.equal(first.status, 200, JSON.stringify(first.body));
    assert.equal(cached(first), 0);
    const { tokens, bytes, path: file } = JSON.parse(await fine(daemon, 'session', 'save', model, 'lily', '--json'));
    assert.ok(tokens > 100 && bytes > tokens * 100, `${tokens} tokens, ${bytes} bytes`);
    assert.equal(statSync(file).mode & 0o777, 0o600);
    assert.equal(statSync(file).size, bytes);
    assert.deepEqual(readdirSync(path.dirname(file)), [path.basename(file)], 'nothing half-written is left');
    assert.match(await fine(daemon, 'session', 'list'), new RegExp(`lily +${tokens} +${bytes} .*${model}`));
  });
  await with_daemon([], async (daemon) => {
    const restored = await fine(daemon, 'session', 'restore', model, 'lily');
    assert.match(restored, /^\d+ tokens restored from /);
    const again = await ask(daemon);
    assert.deepEqual(again.body.choices, first.body.choices, 'the same answer');
    assert.ok(cached(again) >= 100, `${cached(again)} cached`);
    const salted = await ask(daemon, { cache_salt: 'other' });
    assert.equal(cached(salted), 0, 'not for those of another salt');
    await fine(daemon, 'session', 'remove', model, 'lily');
    assert.equal((await ctl(daemon, 'session', 'restore', model, 'lily')).code, 1);
    assert.equal((await ctl(daemon, 'session', 'remove', model, 'lily')).code, 1);
  });
});

test('salted sessions, names, and what is refused', there, async () => {
  await with_daemon(['--session-bytes', '200K'], async (daemon) => {
    assert.match((await ctl(daemon, 'session', 'save', model, 'none')).err, /not loaded|no request/);
    await ask(daemon, { session: 's.1', cache_salt: 'a', prompt: 'A short one of some tokens, just enough for a page or two of it all' });
    assert.match((await ctl(daemon, 'session', 'save', model, 's.1')).err, /no request/);
    await fine(daemon, 'session', 'save', model, 's.1', '--cache-salt', 'a');
    for (const name of ['../up', '.hidden', 'a/b', '']) {
      const { code, err } = await ctl(daemon, 'session', 'save', model, name);
      assert.equal(code, 1, name);
      assert.match(err, /session: /);
    }
    assert.equal((await ctl(daemon, 'session', 'dance')).code, 2);
    assert.equal((await ctl(daemon, 'session', 'save', model)).code, 2);
    await ask(daemon, { session: 'long' });
    const { code, err } = await ctl(daemon, 'session', 'save', model, 'long');
    assert.equal(code, 1);
    assert.match(err, /session_bytes/);
    const files = readdirSync(path.join(scratch, 'saved'));
    assert.equal(files.length, 1, `${files}`);
    const file = path.join(scratch, 'saved', files[0]);
    const bytes = readFileSync(file);
    for (const damage of [(b) => b.subarray(0, b.length - 100), (b) => { const c = Buffer.from(b); c[c.length >> 1] ^= 1; return c; }, () => Buffer.from('x')]) {
      writeFileSync(file, damage(bytes));
      const damaged = await ctl(daemon, 'session', 'restore', model, 's.1', '--cache-salt', 'a');
      assert.equal(damaged.code, 1, damaged.out);
      assert.equal((await ask(daemon)).status, 200, 'nobody else is harmed');
    }
    writeFileSync(file, bytes);
    await fine(daemon, 'session', 'restore', model, 's.1', '--cache-salt', 'a');
  });
  await with_daemon(['--kv-type', 'f16'], async (daemon) => {
    const { code, err } = await ctl(daemon, 'session', 'restore', model, 's.1', '--cache-salt', 'a');
    assert.equal(code, 1);
    assert.match(err, /f32|f16/, 'which cache it is for');
    assert.equal((await ask(daemon)).status, 200);
  });
});

test('sessions are saved while others generate', there, async () => {
  await with_daemon([], async (daemon) => {
    await ask(daemon, { session: 'one' });
    const others = Array.from({ length: 6 }, (_, i) => daemon.post(route, { model, prompt: `${i}`, max_tokens: 300, ignore_eos: true, seed: i }));
    for (let i = 0; i < 5; i++) {
      await fine(daemon, 'session', 'save', model, 'one');
      await fine(daemon, 'session', 'restore', model, 'one');
    }
    for (const answer of await Promise.all(others)) assert.equal(answer.status, 200);
  });
});
