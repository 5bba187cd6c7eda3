// faults-clients.test.mjs - crowds of clients half of which go away at random points, clients that are stopped, that drip or never read: the
// others get what they would get alone, and the books balance.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { Daemon, endless, model, needs, shared, waitFor } from './harness.mjs';
import { answerText, baseline, books, client, full, pause, random, settled } from './faults.mjs';

const there = needs(shared('models/stories260K.gguf'), 'no shared models');
const prompts = ['Once upon a time', 'Lily saw a', 'The dog ran', 'One day, Tom', 'In the big park', 'A small bird'];
const kinds = 20;
const ask = (kind) => ({ model, prompt: prompts[kind % prompts.length].repeat(1 + (kind % 7) * 4), max_tokens: 8 + kind, temperature: kind % 3 ? 1 : 0, seed: kind });
let daemon, want, begin;
before(async () => {
  if (there.skip) return;
  daemon = await new Daemon({ args: ['--header-timeout', '3', '--max-connections', '400', '--max-queue', '400'] }).start();
  want = [];
  for (let kind = 0; kind < kinds; kind++) {
    const { status, body } = await daemon.post('/v1/completions', ask(kind));
    assert.equal(status, 200, JSON.stringify(body));
    want.push(body.choices[0].text);
  }
  await Promise.all(want.map((_, kind) => daemon.post('/v1/completions', ask(kind)))); // all threads that a crowd takes
  begin = await baseline(daemon);
});
after(() => daemon?.stop());

// Points at which a client leaves.
const leaving = {
  'before it says anything': (socket) => socket,
  'in the middle of the head': (socket, text) => socket.write(text.slice(0, 20)),
  'in the middle of the body': (socket, text) => socket.write(text.slice(0, text.length - 10)),
  'with the request': (socket, text) => socket.write(text),
  'a little later': async (socket, text, dice) => {
    socket.write(text);
    await pause(dice() * 400);
  },
  'at the first byte': async (socket, text) => {
    socket.write(text);
    await waitFor('a byte', () => socket.text.length > 0 || socket.destroyed, 60000);
  },
  'amidst the stream': async (socket, text, dice) => {
    socket.write(text);
    const bytes = 400 + dice() * 3000;
    await waitFor('some bytes', () => socket.text.length > bytes || socket.destroyed || /\[DONE\]/.test(socket.text), 60000);
  },
};

test('two hundred clients, half of which leave at random points', there, async () => {
  const dice = random();
  const names = Object.keys(leaving);
  const clients = full ? 1000 : 200;
  let wrong = 0;
  const one = async (i) => {
    const kind = Math.floor(dice() * kinds), streams = dice() < 0.5, leaves = i % 2 === 0, how = names[Math.floor(dice() * names.length)];
    const resets = dice() < 0.5, half = dice() < 0.2;
    await pause(dice() * 1500);
    const socket = await daemon.connect();
    const text = daemon.rawPost('/v1/completions', { ...ask(kind), stream: leaves || streams }, 'Connection: close\r\n');
    if (leaves) {
      await leaving[how](socket, text, dice);
      if (resets) socket.resetAndDestroy();
      else socket.destroy();
      return;
    }
    if (half) socket.end(text); // its writing side alone
    else socket.write(text);
    await socket.ended;
    if (answerText(socket.text) === want[kind]) return;
    wrong++;
    assert.equal(answerText(socket.text), want[kind], `client ${i}, kind ${kind}, ${streams ? 'stream' : 'whole'}${half ? ', half closed' : ''}: ${socket.text.slice(0, 3000)}`);
  };
  for (let at = 0; at < clients; at += 200) await Promise.all(Array.from({ length: 200 }, (_, i) => one(at + i)));
  assert.equal(wrong, 0);
  const { ended } = await settled(daemon, begin);
  assert.equal(ended.failed ?? 0, 0);
});

test('a client that is stopped holds up nobody, and goes on or is cut', there, async () => {
  const stopped = client(daemon, '/v1/completions', { ...endless, stream: true });
  const brief = client(daemon, '/v1/completions', { ...ask(6), stream: true });
  try {
    await waitFor('it streams', () => stopped.text.length > 1000);
    stopped.kill('SIGSTOP');
    brief.kill('SIGSTOP');
    const begun = Date.now();
    const others = await Promise.all([1, 2, 3, 4].map((kind) => daemon.post('/v1/completions', { ...ask(kind), max_tokens: 8 + kind })));
    others.forEach(({ status, body }, i) => {
      assert.equal(status, 200, JSON.stringify(body));
      assert.equal(body.choices[0].text, want[i + 1]);
    });
    assert.ok(Date.now() - begun < 60000);
    await waitFor('the stopped one is cut', async () => (await books(daemon)).running === 0, 60000);
    assert.ok(await daemon.metric('shimmy_requests_cancelled_total{reason="slow reader"}') >= 1);
    brief.kill('SIGCONT');
    await brief.ended;
    assert.equal(answerText(brief.text), want[6], 'one that fits the buffers arrives when its reader goes on');
  } finally {
    stopped.kill('SIGKILL');
    brief.kill('SIGKILL');
  }
  await Promise.all([stopped.ended, brief.ended]);
  await settled(daemon, begin);
});

test('dripping heads and bodies and readers that never read take no place of others', there, async () => {
  const head = daemon.rawPost('/v1/completions', ask(0));
  const slow = await Promise.all(Array.from({ length: 60 }, () => daemon.connect()));
  const drips = slow.map((socket, i) => {
    let at = i % 3 === 0 ? 0 : head.length - 30;
    socket.write(head.slice(0, at));
    if (i % 3 === 2) { // the whole request, and not a byte is read
      socket.write(head.slice(at));
      socket.pause();
      return null;
    }
    return setInterval(() => {
      if (at < head.length - 1 && socket.writable) socket.write(head[at++]);
    }, 300);
  });
  try {
    for (let i = 0; i < 8; i++) {
      const { status, body } = await daemon.post('/v1/completions', ask(i));
      assert.equal(status, 200);
      assert.equal(body.choices[0].text, want[i]);
    }
    await Promise.all(slow.filter((_, i) => i % 3 !== 2).map((socket) => socket.ended));
    slow.forEach((socket, i) => i % 3 !== 2 && assert.match(socket.text, /^HTTP\/1.1 408 /));
  } finally {
    drips.forEach((drip) => clearInterval(drip));
    slow.forEach((socket) => socket.destroy());
  }
  await settled(daemon, begin);
});
