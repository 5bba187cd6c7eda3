// clients.test.mjs - clients that leave, stall, dawdle or send too much: noticed, cut, and nobody else suffers.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { Daemon, endless, events, model, needs, shared, waitFor } from './harness.mjs';
import { instrumented } from './faults.mjs';

const there = needs(shared('models/stories260K.gguf'), 'no shared models');
const short = { model, prompt: 'Once upon a time', max_tokens: 3, temperature: 0 };
let daemon;
before(async () => {
  if (there.skip) return;
  daemon = await new Daemon({ args: ['--header-timeout', '2', '--max-body', '1000000', '--max-connections', '40', '--max-sequences', '8'] }).start();
  assert.equal((await daemon.post('/v1/completions', short)).status, 200);
});
after(() => daemon?.stop());

const idle = () => waitFor('nothing runs or waits', async () =>
  (await daemon.running()) === 0 && (await daemon.metric('shimmy_requests_queued')) === 0, 5000);
const queued = () => daemon.metric('shimmy_requests_queued');

async function noticed(what, condition) {
  const begun = Date.now();
  await waitFor(what, condition, 3000);
  assert.ok(Date.now() - begun < 1000, `${what}: only after ${Date.now() - begun} ms`);
}

for (const stream of [true, false]) {
  for (const how of ['closes', 'resets']) {
    test(`a client that ${how} a running ${stream ? 'stream' : 'request'} is noticed`, there, async () => {
      const socket = await daemon.connect();
      socket.write(daemon.rawPost('/v1/completions', { ...endless, stream }));
      await waitFor('it runs', async () => (await daemon.running()) === 1);
      if (how === 'closes') socket.destroy();
      else socket.resetAndDestroy();
      await noticed('the slot is free', async () => (await daemon.running()) === 0);
    });
  }

  test(`a client that leaves a waiting ${stream ? 'stream' : 'request'} is noticed`, there, async () => {
    const first = await daemon.connect();
    first.write(daemon.rawPost('/v1/completions', { ...endless, stream: true }));
    await waitFor('the first runs', async () => (await daemon.running()) === 1);
    const second = await daemon.connect();
    second.write(daemon.rawPost('/v1/completions', { ...short, stream }));
    await waitFor('the second waits', async () => (await queued()) === 1);
    second.destroy();
    await noticed('the queue is empty', async () => (await queued()) === 0);
    assert.equal(await daemon.running(), 1, 'the first goes on');
    first.destroy();
    await idle();
  });

  test(`a client that only closes its writing side gets its ${stream ? 'stream' : 'answer'}`, there, async () => {
    const first = await daemon.connect();
    first.write(daemon.rawPost('/v1/completions', { ...endless, stream: true }));
    await waitFor('the first runs', async () => (await daemon.running()) === 1);
    const second = await daemon.connect();
    second.end(daemon.rawPost('/v1/completions', { ...short, stream }, 'Connection: close\r\n'));
    await waitFor('the second waits', async () => (await queued()) === 1);
    await new Promise((done) => setTimeout(done, 700)); // long enough for probes while it is suspended
    assert.equal(await queued(), 1, 'it still waits');
    first.destroy();
    await second.ended;
    assert.match(second.text, stream ? /data: \[DONE\]/ : /"finish_reason":"length"/);
    await idle();
  });
}

test('a reader that stalls is cut off', there, async () => {
  const socket = await daemon.connect();
  socket.write(daemon.rawPost('/v1/completions', { ...endless, stream: true }));
  await waitFor('it runs', async () => (await daemon.running()) === 1);
  socket.pause();
  await waitFor('the generation is over', async () => (await daemon.running()) === 0, 120000);
  const slow = await daemon.metric('shimmy_requests_cancelled_total{reason="slow reader"}');
  assert.equal(slow, 1);
  socket.destroy();
});

test('a body that is too large is a 413, announced or not', there, async () => {
  const big = 'x'.repeat(1500000);
  const announced = await daemon.post('/v1/completions', { prompt: big });
  assert.equal(announced.status, 413);
  assert.equal(announced.body.error.code, 'body_too_large');
  const socket = await daemon.connect();
  socket.write('POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n');
  for (let i = 0; i < 15; i++) socket.write(`186a0\r\n${'x'.repeat(100000)}\r\n`);
  socket.write('0\r\n\r\n');
  await socket.ended;
  assert.match(socket.text, /^HTTP\/1.1 413 /);
  const patient = await daemon.connect();
  patient.write('POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 999999999\r\n\r\n');
  await patient.ended;
  assert.match(patient.text, /^HTTP\/1.1 413 /, 'told before it sends anything');
});

test('heads and bodies that dawdle end with a 408', there, async () => {
  for (const text of ['', 'POST /v1/comp', 'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{']) {
    const socket = await daemon.connect();
    socket.write(text);
    const begun = Date.now();
    const drip = setInterval(() => socket.write(text.endsWith('{') ? ' ' : ''), 100);
    await socket.ended;
    clearInterval(drip);
    assert.match(socket.text, /^HTTP\/1.1 408 /);
    assert.ok(Date.now() - begun < 4000);
  }
});

test('too large a head is a 431', there, async () => {
  const socket = await daemon.connect();
  socket.write(`GET /health HTTP/1.1\r\nHost: x\r\n${'X-Much: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n'.repeat(2000)}\r\n`);
  await socket.ended;
  assert.match(socket.text, /^HTTP\/1.1 431 /);
});

test('two requests in one packet are answered in order', there, async () => {
  const socket = await daemon.connect();
  socket.write(`${daemon.rawPost('/v1/completions', short)}GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`);
  await socket.ended;
  assert.ok(socket.text.indexOf('text_completion') < socket.text.indexOf('"status":"ok"'));
});

test('HTTP/1.0 gets a stream without chunks', there, async () => {
  const socket = await daemon.connect();
  socket.write(daemon.rawPost('/v1/completions', { ...short, stream: true }).replace('HTTP/1.1', 'HTTP/1.0'));
  await socket.ended;
  assert.match(socket.text, /data: \[DONE\]\n\n$/);
  assert.doesNotMatch(socket.text, /chunked/i);
});

test('more connections than allowed are told so, and health still answers', there, async () => {
  const many = [];
  for (let i = 0; i < 45; i++) many.push(await daemon.connect());
  const refused = await daemon.post('/v1/completions', short);
  assert.equal(refused.status, 503);
  assert.equal(refused.body.error.code, 'too_many_connections');
  assert.equal((await daemon.get('/health')).status, 200);
  many.forEach((socket) => socket.destroy());
  await waitFor('requests are answered again', async () => (await daemon.post('/v1/completions', short)).status === 200);
});

test('fifty clients at once, a third of which leave', there, async () => {
  const one = async (i) => {
    const socket = await daemon.connect();
    socket.write(daemon.rawPost('/v1/completions', { ...short, max_tokens: 20, stream: i % 2 === 0 }, 'Connection: close\r\n'));
    if (i % 3 === 0) {
      await new Promise((done) => setTimeout(done, i * 3));
      socket.destroy();
      return;
    }
    await socket.ended;
    assert.match(socket.text, /\[DONE\]|"finish_reason":"length"|queue_full/);
  };
  for (const half of [0, 25]) await Promise.all(Array.from({ length: 25 }, (_, i) => one(i + half)));
  await idle();
});

test('a client that leaves while its model loads does no harm', there, async () => {
  const fresh = await new Daemon().start();
  try {
    const socket = await fresh.connect();
    socket.write(fresh.rawPost('/v1/completions', short));
    socket.destroy();
    const answer = await fresh.post('/v1/completions', short);
    assert.equal(answer.status, 200);
    await waitFor('its request has ended', async () => /shimmy_requests_total\{route="\/v1\/completions",code="(499|200)"\}/.test(await fresh.metrics()));
  } finally {
    await fresh.stop();
  }
});

test('shutting down ends a stream with its reason', there, async () => {
  const fresh = await new Daemon({ args: ['--drain-timeout', '1'] }).start();
  const socket = await fresh.connect();
  socket.write(fresh.rawPost('/v1/completions', { ...endless, stream: true }));
  await waitFor('it runs', async () => (await fresh.running()) === 1);
  const begun = Date.now();
  await fresh.stop();
  await socket.ended;
  assert.ok(Date.now() - begun < 6000);
  assert.match(socket.text, /"code":"shutting_down"/);
});

test('a request that takes too long ends with its reason, whole or streamed', there, async () => {
  const hasty = await new Daemon({ args: ['--request-timeout', '1'] }).start();
  try {
    const whole = await hasty.post('/v1/completions', endless);
    assert.equal(whole.status, 503);
    assert.equal(whole.body.error.code, 'deadline_exceeded');
    assert.ok(whole.headers.get('retry-after'));
    const response = await fetch(`${hasty.url}/v1/completions`, { method: 'POST', body: JSON.stringify({ ...endless, stream: true }) });
    assert.equal(response.status, 200);
    const list = events(await response.text());
    assert.equal(list.pop(), '[DONE]');
    assert.equal(list.pop().error.code, 'deadline_exceeded');
    assert.ok(list.length > 1, 'what was generated before has arrived');
    assert.equal((await hasty.post('/v1/completions', short)).status, 200);
  } finally {
    await hasty.stop();
  }
});

test('a full queue is a 429', there, async () => {
  const tight = await new Daemon({ args: ['--max-queue', '1', '--max-sequences', '8'] }).start();
  try {
    const first = await tight.connect();
    first.write(tight.rawPost('/v1/completions', { ...endless, stream: true }));
    await waitFor('the first runs', async () => (await tight.running()) === 1);
    const second = await tight.connect();
    second.write(tight.rawPost('/v1/completions', short));
    await waitFor('the second waits', async () => (await tight.metric('shimmy_requests_queued')) === 1);
    const third = await tight.post('/v1/completions', short);
    assert.equal(third.status, 429);
    assert.equal(third.body.error.code, 'queue_full');
    assert.equal(third.body.error.type, 'rate_limit_error');
    first.destroy();
    await waitFor('the second is answered', () => /"finish_reason":"length"/.test(second.text));
    second.destroy();
    // One request's many prompts wait for each other rather than for room in the queue.
    const many = await tight.post('/v1/completions', { ...short, prompt: Array(12).fill('Once upon a time') });
    assert.equal(many.status, 200, JSON.stringify(many.body));
    assert.equal(many.body.choices.length, 12);
  } finally {
    await tight.stop();
  }
});

test('many large bodies at once are bounded in memory', there, async (t) => {
  const wide = await new Daemon({ args: ['--max-body', '16M'] }).start();
  try {
    if (instrumented) return t.skip('a sanitizer keeps what is freed');
    assert.equal((await wide.post('/v1/completions', short)).status, 200);
    const rss = () => Number(/VmHWM:\s+(\d+)/.exec(readFileSync(`/proc/${wide.child.pid}/status`, 'utf8'))[1]);
    const before = rss();
    // A million small values are far larger as JSON in memory than as text.
    const text = JSON.stringify({ model, prompt: Array(1000000).fill(7) });
    const answers = await Promise.all(Array.from({ length: 8 }, () => wide.post('/v1/completions', text)));
    for (const answer of answers) assert.equal(answer.status, 400, JSON.stringify(answer.body));
    assert.match(answers[0].body.error.message, /1000000/);
    assert.ok(rss() - before < 200000, `${before} kB before, ${rss()} kB at most`);
    assert.equal((await wide.post('/v1/completions', short)).status, 200);
  } finally {
    await wide.stop();
  }
});
