// stalled.test.mjs - clients that do not read what they asked for, or a byte a second: cut in time, small in memory, and nobody else waits for them.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import net from 'node:net';
import { Daemon, endless, model, needs, shared, waitFor } from './harness.mjs';
import { instrumented } from './faults.mjs';

const there = needs(shared('models/stories260K.gguf'), 'no shared models');
const short = { model, prompt: 'Once upon a time', max_tokens: 3, temperature: 0 };
const route = '/v1/completions';
let daemon;
before(async () => {
  if (there.skip) return;
  daemon = await new Daemon({ args: ['--stall-timeout', '2', '--max-sequences', '64', '--max-connections', '256'] }).start();
  assert.equal((await daemon.post(route, short)).status, 200);
});
after(() => daemon?.stop());

const cut = () => daemon.metric('shimmy_connections_cut_total{reason="stalled"}');
const rss = () => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${daemon.child.pid}/status`, 'utf8'))[1]);
const open = () => daemon.metric('shimmy_http_connections');
const embed = (count) => ({ model, input: Array.from({ length: count }, (_, i) => `text ${i}`) });

// A connection that has asked and reads nothing of the answer; with `drip`, a byte a second.
async function stalls(body, path = route, drip = false) {
  const socket = net.connect({ port: daemon.port, host: '127.0.0.1', highWaterMark: 1024 });
  await new Promise((done, failed) => socket.once('connect', done).once('error', failed));
  socket.on('error', () => {});
  socket.pause();
  socket.write(daemon.rawPost(path, body));
  socket.drip = drip ? setInterval(() => socket.read(1), 1000) : null;
  return socket;
}

function done(sockets) {
  for (const socket of sockets) {
    clearInterval(socket.drip);
    socket.destroy();
  }
}

test('streams that nobody reads are cut, and take little memory until then', there, async (t) => {
  const before_it = rss();
  const idle = await open();
  const many = await Promise.all(Array.from({ length: 40 }, () => stalls({ ...endless, n: 1, stream: true })));
  let most = 0;
  await waitFor('all are cut', async () => {
    most = Math.max(most, rss());
    assert.equal((await daemon.post(route, short)).status, 200, 'others are served');
    return (await open()) <= idle;
  }, instrumented ? 300000 : 90000);
  done(many);
  assert.equal(await daemon.running(), 0);
  if (instrumented) return t.skip('a sanitizer keeps what is freed');
  assert.ok(most - before_it < 250000, `${before_it} kB before, ${most} kB at most`);
  return undefined;
});

for (const drip of [false, true]) {
  test(`long whole answers that ${drip ? 'are read a byte a second' : 'nobody reads'} are cut`, there, async () => {
    const before_it = await cut();
    const many = await Promise.all(Array.from({ length: 6 }, () => stalls(embed(2048), '/v1/embeddings', drip)));
    // 1.4 MB may take 2 s and a second for each 16 KiB where some of it is read, else 2 s.
    await waitFor('all are cut', async () => (await cut()) >= before_it + 6, 120000);
    done(many);
    assert.equal((await daemon.post(route, short)).status, 200);
  });
}

test('one that reads slowly but steadily gets all', there, async () => {
  const socket = await stalls(embed(1024), '/v1/embeddings');
  let length = 0;
  let text = '';
  const reading = setInterval(() => {
    for (let chunk; (chunk = socket.read()) !== null && length < 1e9;) {
      length += chunk.length;
      text = (text + chunk.toString('latin1')).slice(-100);
      break;
    }
  }, 1);
  await waitFor('the end', () => /"usage":\{[^}]*\}\}$/.test(text), 60000);
  clearInterval(reading);
  socket.destroy();
  assert.ok(length > 500000);
});

test('the control socket lets go who does not read', there, async () => {
  const before_it = await cut();
  const socket = net.connect(daemon.socket);
  socket.on('error', () => {});
  const closed = new Promise((over) => socket.once('close', over));
  socket.pause();
  for (let i = 0; i < 3000; i++) socket.write('{"method":"io.shimmy.Daemon.Status"}\0');
  await waitFor('it is cut', async () => (await cut()) === before_it + 1, 20000);
  socket.destroy();
  await closed;
  assert.equal((await daemon.status()).state, 'running');
});
