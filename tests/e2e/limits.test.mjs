// limits.test.mjs - each limit with its status, its headers and its counter; clients apart from each other; reload; who only holds connections.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Daemon, build, endless, has, model, needs, shared, waitFor } from './harness.mjs';

const there = needs(shared('models/stories260K.gguf'), 'no shared models');
const short = { model, prompt: 'Once upon a time', max_tokens: 3, temperature: 0 };
const key = (text) => ({ Authorization: `Bearer ${text}` });
const route = '/v1/completions';
let scratch;
before(() => { scratch = mkdtempSync(path.join(tmpdir(), 'shimmyd-limits-')); });
after(() => rmSync(scratch, { recursive: true, force: true }));

async function with_daemon(args, use) {
  const daemon = await new Daemon({ args }).start();
  try {
    await use(daemon);
  } finally {
    await daemon.stop();
  }
}

const refused = (daemon, reason) => daemon.metric(`shimmy_requests_refused_total{reason="${reason}"}`);

// Refused with this status and code, counted once; the answer.
async function expect_refusal(daemon, status, code, ask) {
  const before_it = await refused(daemon, code);
  const answer = await ask();
  assert.equal(answer.status, status, JSON.stringify(answer.body));
  assert.equal(answer.body.error.code, code);
  assert.equal(answer.body.error.type, status === 429 ? 'rate_limit_error' : status >= 500 ? 'server_error' : 'invalid_request_error');
  assert.equal(await refused(daemon, code), before_it + 1, 'it is counted');
  if (status === 429 || status === 503) assert.match(answer.headers.get('retry-after'), /^[1-9][0-9]*$/);
  return answer;
}

test('requests a minute: a burst, then 429 with the time to wait; each key has its own', there, async () => {
  const keys = path.join(scratch, 'keys');
  writeFileSync(keys, '# the keys\nsecret-1 editor\nsecret-2 script\nsecret-3\n');
  chmodSync(keys, 0o600);
  await with_daemon(['--api-key-file', keys, '--rate-limit', '6', '--rate-burst', '2', '--token-rate-limit', '100000'], async (daemon) => {
    const first = await daemon.post(route, short, key('secret-1'));
    assert.equal(first.status, 200);
    assert.equal(first.headers.get('x-ratelimit-limit-requests'), '6');
    assert.equal(first.headers.get('x-ratelimit-remaining-requests'), '1');
    assert.match(first.headers.get('x-ratelimit-reset-requests'), /^(10|9\.\d+)s$/);
    assert.equal(first.headers.get('x-ratelimit-limit-tokens'), '100000');
    assert.equal((await daemon.post(route, short, key('secret-1'))).status, 200);
    const late = await expect_refusal(daemon, 429, 'rate_limit_exceeded', () => daemon.post(route, short, key('secret-1')));
    const wait = Number(late.headers.get('retry-after'));
    assert.ok(wait >= 8 && wait <= 10, `${wait} s`);
    assert.equal(late.headers.get('x-ratelimit-remaining-requests'), '0');
    assert.equal((await daemon.post(route, short, key('secret-2'))).status, 200);
    assert.equal((await daemon.post(route, short, key('secret-3'))).status, 200);
    await expect_refusal(daemon, 401, 'invalid_api_key', () => daemon.post(route, short, key('secret-4')));
    await expect_refusal(daemon, 401, 'invalid_api_key', () => daemon.post(route, short));
    for (let i = 0; i < 20; i++) assert.equal((await daemon.get('/health')).status, 200, 'health is not limited');
    assert.equal(await daemon.metric('shimmy_client_requests_total{client="editor"}'), 3);
    assert.equal(await daemon.metric('shimmy_client_requests_total{client="script"}'), 1);
    assert.equal(await daemon.metric('shimmy_client_tokens_total{client="editor",kind="generated"}'), 6);
    assert.equal(await daemon.metric('shimmy_client_tokens_total{client="script",kind="prompt"}'), 5);

    // A reload takes keys and rates: from the file, as flags stay what they were.
    writeFileSync(keys, 'secret-4 other\n');
    daemon.child.kill('SIGHUP');
    await waitFor('the new key is known', async () => (await daemon.post(route, short, key('secret-4'))).status === 200);
    assert.equal((await daemon.post(route, short, key('secret-1'))).status, 401);
    writeFileSync(keys, '# none\n');
    daemon.child.kill('SIGHUP');
    await waitFor('it says what is wrong', () => /found no keys/.test(daemon.log));
    assert.notEqual((await daemon.post(route, short, key('secret-4'))).status, 401, 'what was in force stays so');
  });
});

test('a file of keys that is not there or empty is an error at the start', there, async () => {
  await assert.rejects(with_daemon(['--api-key-file', path.join(scratch, 'nothing')], () => {}), /api_key_file .*nothing/);
  const check = spawnSync(path.join(build, 'shimmyd'), ['--config', '/dev/null', '--check-config', '--api-key-file', path.join(scratch, 'nothing')]);
  assert.equal(check.status, 1);
  assert.match(String(check.stderr), /api_key_file .*nothing/);
});

test('rates by address, changed by a reload', there, async () => {
  const conf = path.join(scratch, 'shimmyd.conf');
  writeFileSync(conf, 'rate_limit = 60\nrate_burst = 1\n');
  await with_daemon(['--config', conf], async (daemon) => {
    assert.equal((await daemon.post(route, short)).status, 200);
    await expect_refusal(daemon, 429, 'rate_limit_exceeded', () => daemon.post(route, short));
    writeFileSync(conf, 'rate_limit = 0\n');
    daemon.child.kill('SIGHUP');
    await waitFor('it is reloaded', () => /configuration reloaded/.test(daemon.log));
    for (let i = 0; i < 5; i++) assert.equal((await daemon.post(route, short)).status, 200);
  });
});

test('tokens a minute: a debt is paid before the next request', there, async () => {
  await with_daemon(['--token-rate-limit', '60'], async (daemon) => {
    const first = await daemon.post(route, { ...short, max_tokens: 56, ignore_eos: true });
    assert.equal(first.status, 200);
    assert.equal(first.headers.get('x-ratelimit-limit-tokens'), '60');
    const { total_tokens } = first.body.usage;
    assert.equal(total_tokens, 61);
    const late = await expect_refusal(daemon, 429, 'token_rate_limit_exceeded', () => daemon.post(route, short));
    assert.equal(late.headers.get('x-ratelimit-remaining-tokens'), '0');
    await new Promise((done) => setTimeout(done, Number(late.headers.get('retry-after')) * 1000 + 200));
    assert.equal((await daemon.post(route, short)).status, 200);
  });
});

test('requests of one client at once', there, async () => {
  await with_daemon(['--max-requests-per-client', '1'], async (daemon) => {
    const first = await daemon.connect();
    first.write(daemon.rawPost(route, { ...endless, stream: true }));
    await waitFor('it runs', async () => (await daemon.running()) === 1);
    await expect_refusal(daemon, 429, 'too_many_requests', () => daemon.post(route, short));
    first.destroy();
    await waitFor('there is room again', async () => (await daemon.post(route, short)).status === 200);
  });
});

test('prompt tokens and choices', there, async () => {
  await with_daemon(['--max-prompt-tokens', '8', '--max-choices', '6'], async (daemon) => {
    assert.equal((await daemon.post(route, short)).status, 200);
    const long = { ...short, prompt: 'Once upon a time there was a little girl named Lily' };
    const answer = await expect_refusal(daemon, 400, 'prompt_too_long', () => daemon.post(route, long));
    assert.match(answer.body.error.message, /expected at most 8/);
    assert.equal(answer.body.error.param, 'prompt');
    await expect_refusal(daemon, 400, 'prompt_too_long', () => daemon.post(route, { ...short, prompt: [short.prompt, short.prompt] }));
    await expect_refusal(daemon, 400, 'prompt_too_long',
      () => daemon.post('/v1/chat/completions', { model, messages: [{ role: 'user', content: long.prompt }] }));
    await expect_refusal(daemon, 400, 'prompt_too_long', () => daemon.post('/v1/embeddings', { model, input: long.prompt }));
    await expect_refusal(daemon, 400, 'too_many_choices', () => daemon.post(route, { ...short, n: 7 }));
    await expect_refusal(daemon, 400, 'too_many_choices', () => daemon.post(route, { ...short, prompt: ['a', 'b'], n: 4 }));
    assert.equal((await daemon.post(route, { ...short, prompt: ['a', 'b'], n: 3 })).status, 200);
  });
});

test('heads: too large, strange codings, two lengths', there, async () => {
  await with_daemon(['--max-header', '4K'], async (daemon) => {
    const raw = async (text) => {
      const socket = await daemon.connect();
      socket.write(text);
      await socket.ended;
      return socket.text;
    };
    const head = (more) => `POST ${route} HTTP/1.1\r\nHost: x\r\n${more}\r\n`;
    const large = await raw(head(`X-Much: ${'y'.repeat(5000)}\r\n`));
    assert.match(large, /^HTTP\/1.1 431 /);
    assert.equal(JSON.parse(large.split('\r\n\r\n')[1]).error.code, 'header_too_large');
    const path_too_long = await raw(`GET /health?${'y'.repeat(5000)} HTTP/1.1\r\nHost: x\r\n\r\n`);
    assert.match(path_too_long, /^HTTP\/1.1 431 [^]*header_too_large/);
    assert.equal(await refused(daemon, 'header_too_large'), 2);
    assert.match(await raw(head('Transfer-Encoding: gzip\r\n')), /^HTTP\/1.1 501 [^]*unsupported_transfer_encoding/);
    assert.match(await raw(head('Transfer-Encoding: chunked\r\nContent-Length: 5\r\n') + '0\r\n\r\n'), /^HTTP\/1.1 400 [^]*invalid_header/);
    assert.match(await raw(head('Content-Length: nonsense\r\n')), /^HTTP\/1.1 400 /);
    assert.match(await raw('NONSENSE\r\n\r\n'), /^HTTP\/1.[01] 400 |^$/);
    assert.equal((await daemon.post(route, short)).status, 200);
  });
});

test('bodies: told before they are sent, or while', there, async (t) => {
  if (!await has('curl')) return t.skip('curl is not installed');
  const { execFile } = await import('node:child_process');
  await with_daemon(['--max-body', '100K'], async (daemon) => {
    const file = path.join(scratch, 'body');
    writeFileSync(file, JSON.stringify({ ...short, prompt: 'x'.repeat(3000000) }));
    for (const more of [[], ['-H', 'Transfer-Encoding: chunked'], ['-H', 'Expect: 100-continue'], ['-H', 'Expect:']]) {
      const text = await new Promise((done) => execFile('curl', ['-sS', '-w', '%{http_code}', '--data-binary', `@${file}`, ...more, daemon.url + route],
        (error, out, err) => done(out + err)));
      assert.match(text, /body_too_large[^]*413/, `${more}: ${text}`);
    }
    assert.equal(await refused(daemon, 'body_too_large'), 4);
  });
});

test('connections of one address', there, async () => {
  await with_daemon(['--max-connections-per-address', '5'], async (daemon) => {
    const many = [];
    for (let i = 0; i < 5; i++) many.push(await daemon.connect());
    const over = await daemon.connect();
    over.write(daemon.rawPost(route, short));
    await over.ended;
    assert.match(over.text, /^HTTP\/1.1 429 [^]*Retry-After: 1[^]*too_many_connections/);
    const beyond = [];
    for (let i = 0; i < 12; i++) beyond.push(await daemon.connect());
    await waitFor('those far beyond are closed', () => beyond.filter((socket) => socket.destroyed || socket.readableEnded).length >= 8);
    for (const socket of [...many, ...beyond]) socket.destroy();
    await waitFor('requests are answered again', async () => (await daemon.post(route, short).catch(() => ({}))).status === 200);
    assert.ok(await refused(daemon, 'too_many_connections') >= 9, 'those that got no answer are counted, too');
  });
});

test('clients that only hold connections keep nobody out', there, async () => {
  await with_daemon(['--max-connections', '64', '--header-timeout', '60'], async (daemon) => {
    assert.equal((await daemon.post(route, short)).status, 200);
    const holders = [];
    const drips = [];
    for (let i = 0; i < 120; i++) {
      const socket = daemon.connect().then((s) => {
        s.write(i % 2 ? 'POST /v1/comp' : '');
        drips.push(setInterval(() => s.destroyed || s.write(i % 2 ? 'l' : ''), 300));
        return s;
      }, () => null);
      holders.push(socket);
    }
    await new Promise((done) => setTimeout(done, 500));
    let answered = 0;
    for (let i = 0; i < 20; i++) {
      const answer = await daemon.post(route, short).catch(() => ({}));
      answered += answer.status === 200;
      await new Promise((done) => setTimeout(done, 200));
    }
    assert.ok(answered >= 10, `${answered} of 20 were answered`);
    assert.ok(await daemon.metric('shimmy_connections_cut_total{reason="overload"}') > 0);
    drips.forEach(clearInterval);
    for (const socket of await Promise.all(holders)) socket?.destroy();
  });
});

test('many slow heads and bodies at once, while others are served', there, async () => {
  await with_daemon(['--header-timeout', '3'], async (daemon) => {
    assert.equal((await daemon.post(route, short)).status, 200);
    const slow = await Promise.all(Array.from({ length: 100 }, async (_, i) => {
      const socket = await daemon.connect();
      const body = i % 2 === 0;
      socket.write(body ? `POST ${route} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{` : 'POST /v1/comp');
      socket.drip = setInterval(() => socket.write(body ? ' ' : 'x'), 200);
      return socket;
    }));
    const begun = Date.now();
    while (Date.now() - begun < 2000) {
      const asked = Date.now();
      assert.equal((await daemon.post(route, short)).status, 200);
      assert.ok(Date.now() - asked < 1500, 'nobody waits for them');
    }
    await Promise.all(slow.map((socket) => socket.ended));
    slow.forEach((socket) => clearInterval(socket.drip));
    assert.ok(slow.every((socket) => /^HTTP\/1.1 408 [^]*request_timeout/.test(socket.text)));
    assert.equal(await daemon.metric('shimmy_connections_cut_total{reason="head"}'), 50);
    assert.equal(await daemon.metric('shimmy_connections_cut_total{reason="body"}'), 50);
    assert.equal(await refused(daemon, 'request_timeout'), 100);
  });
});

test('a full queue tells how long it may take', there, async () => {
  await with_daemon(['--max-queue', '1', '--max-sequences', '8'], async (daemon) => {
    assert.equal((await daemon.post(route, short)).status, 200);
    const first = await daemon.connect();
    first.write(daemon.rawPost(route, { ...endless, stream: true }));
    await waitFor('the first runs', async () => (await daemon.running()) === 1);
    const second = await daemon.connect();
    second.write(daemon.rawPost(route, { ...short, n: 8 }));
    await waitFor('the second waits', async () => (await daemon.metric('shimmy_requests_queued')) === 1);
    await expect_refusal(daemon, 429, 'queue_full', () => daemon.post(route, { ...short, n: 8 }));
    first.destroy();
    second.destroy();
  });
});
