// faults-signals.test.mjs - SIGTERM and SIGHUP while requests run and arrive: what runs ends well or with its reason, nothing hangs.
import { test } from 'node:test';
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Daemon, build, endless, model, needs, shared, waitFor } from './harness.mjs';
import { answerText, baseline, books, call, full, pause, settled } from './faults.mjs';

const there = needs(shared('models/stories260K.gguf'), 'no shared models');
const short = { model, prompt: 'Once upon a time', max_tokens: 30, temperature: 0 };
// Some seconds of work, of which the end is waited for.
const long = { ...short, max_tokens: 1500, ignore_eos: true, logprobs: 20 };

async function stream(daemon, body) {
  const socket = await daemon.connect();
  socket.write(daemon.rawPost('/v1/completions', { ...body, stream: true }, 'Connection: close\r\n'));
  return socket;
}
const refused = (error) => ['ECONNREFUSED', 'ECONNRESET', 'UND_ERR_SOCKET', 'ENOENT', 'EPIPE'].includes(error.cause?.code ?? error.code);

test('SIGTERM under load: nothing new is taken, what runs finishes, another daemon takes the socket', there, async () => {
  const daemon = await new Daemon({ args: ['--drain-timeout', '60', '--max-queue', '100'] }).start();
  const whole = (await daemon.post('/v1/completions', long)).body.choices[0];
  assert.ok(whole.text.length > 1000);
  const some = { ...short, max_tokens: 600, ignore_eos: true }; // long enough to be seen running
  const brief = (await daemon.post('/v1/completions', some)).body.choices[0].text;
  const running = [await stream(daemon, long), ...await Promise.all(Array.from({ length: 12 }, () => stream(daemon, some)))];
  const idle = await daemon.connect(); // a kept connection without a request
  await waitFor('they are there', async () => {
    const now = await books(daemon);
    return now.running >= 1 && now.running + now.queued >= 5;
  });
  const log = () => daemon.log;
  daemon.child.kill('SIGTERM');
  await waitFor('it stops', () => /stopping/.test(log()));
  let refusals = 0, others = 0;
  while (!daemon.exited && running[0].readyState !== 'closed' && refusals < 20) {
    const answer = await daemon.post('/v1/completions', short).catch((error) => error);
    if (answer instanceof Error ? refused(answer) : answer.status === 503) refusals++;
    else others++;
    await pause(20);
  }
  assert.equal(others, 0, 'answers to requests that came after the signal');
  assert.ok(refusals > 0);
  const { code } = await daemon.exit;
  assert.equal(code, 0, daemon.log);
  await Promise.all(running.map((socket) => socket.ended));
  assert.equal(answerText(running[0].text), whole.text);
  for (const socket of running.slice(1)) assert.equal(answerText(socket.text), brief);
  idle.destroy();
  assert.ok(!existsSync(daemon.socket), 'its socket is gone');
  const next = spawn(path.join(build, 'shimmyd'), ['--socket', daemon.socket, '--listen', '127.0.0.1:0'], { stdio: 'ignore' });
  await waitFor('another one serves', () => call(daemon, 'Status').catch(() => null));
  next.kill('SIGTERM');
  assert.equal(await new Promise((done) => next.on('close', done)), 0);
  await daemon.stop();
});

test('the drain limit passes: what still runs or waits ends with the reason', there, async () => {
  const daemon = await new Daemon({ args: ['--drain-timeout', '1'] }).start();
  const sockets = await Promise.all(Array.from({ length: 4 }, () => stream(daemon, endless)));
  const whole = await daemon.connect();
  whole.write(daemon.rawPost('/v1/completions', endless));
  await waitFor('they are there', async () => {
    const now = await books(daemon);
    return now.running >= 1 && now.running + now.queued === 5;
  });
  const begun = Date.now();
  await daemon.stop(); // exits with 0, or throws
  assert.ok(Date.now() - begun < 8000);
  await Promise.all([...sockets, whole].map((socket) => socket.ended));
  for (const socket of sockets) assert.match(socket.text, /"code":"shutting_down"/);
  assert.match(whole.text, /^(HTTP\/1.1 100 Continue\r\n\r\n)*HTTP\/1.1 503 /);
  assert.match(daemon.log, /drain_timeout is over: \d running and \d waiting requests are cancelled/);
});

test('a second SIGTERM waits for nothing', there, async () => {
  const daemon = await new Daemon({ args: ['--drain-timeout', '600'] }).start();
  const socket = await stream(daemon, endless);
  await waitFor('it runs', async () => (await daemon.running()) === 1);
  daemon.child.kill('SIGTERM');
  await waitFor('it stops', () => /stopping/.test(daemon.log));
  daemon.child.kill('SIGTERM');
  const begun = Date.now();
  assert.equal((await daemon.exit).code, 1);
  assert.ok(Date.now() - begun < 3000);
  await socket.ended;
  rmSync(daemon.dir, { recursive: true, force: true });
});

test('SIGHUP again and again drops no stream, and the values of the file are in force', there, async () => {
  const dir = mkdtempSync(path.join(tmpdir(), 'shimmyd-hup-'));
  const file = path.join(dir, 'shimmyd.conf');
  const configure = (...lines) => writeFileSync(file, ['[shimmyd]', ...lines, ''].join('\n'));
  configure('log_level = info');
  const daemon = await new Daemon({ args: ['--config', file, '--max-queue', '100'] }).start();
  try {
    const want = (await daemon.post('/v1/completions', { ...long, max_tokens: 400 })).body.choices[0].text;
    const begin = await baseline(daemon);
    const rounds = full ? 500 : 50;
    const reloads = () => daemon.log.split('configuration reloaded').length - 1;
    const streams = await Promise.all(Array.from({ length: 8 }, () => stream(daemon, { ...long, max_tokens: 400 })));
    for (let i = 1; i <= rounds; i++) {
      configure(`log_level = ${i % 2 ? 'debug' : 'info'}`, `keep_alive = ${100 + i}`);
      daemon.child.kill('SIGHUP');
      await waitFor(`reload ${i}`, () => reloads() === i);
    }
    assert.match(daemon.log, /option keep_alive has changed/);
    await Promise.all(streams.map((socket) => socket.ended));
    for (const socket of streams) assert.equal(answerText(socket.text), want);
    configure('log_level = debug');
    daemon.child.kill('SIGHUP');
    await waitFor('the last reload', () => reloads() === rounds + 1);
    await daemon.post('/v1/completions', short);
    await waitFor('the new level is in force', () => /request \d+: done/.test(daemon.log.slice(daemon.log.lastIndexOf('configuration reloaded'))));

    // A file with an error: the old values stay, and it is said where.
    configure('log_level = error', 'drain_timeout = soon');
    daemon.child.kill('SIGHUP');
    await waitFor('it is refused', () => /the old one stays in force/.test(daemon.log));
    assert.match(daemon.log, /shimmyd\.conf:3:/);
    const from = daemon.log.length;
    await daemon.post('/v1/completions', short);
    await waitFor('the old level is in force', () => /request \d+: done/.test(daemon.log.slice(from)));
    await settled(daemon, { ...begin, threads: begin.threads + 3 });
  } finally {
    await daemon.stop();
    rmSync(dir, { recursive: true, force: true });
  }
});
