// faults.mjs - what the tests of faults share: the books that have to balance, scripts of faults, clients in processes of their own.
import { spawn, spawnSync } from 'node:child_process';
import assert from 'node:assert/strict';
import { existsSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { build, waitFor } from './harness.mjs';

// Longer runs: more clients, more rounds.
export const full = process.env.SHIMMY_TEST_FULL === '1';
// A sanitizer keeps what is freed, and needs an address space that no ceiling leaves it: such a program does not even start there.
export const instrumented = /lib[at]san/.test(spawnSync('ldd', [path.join(build, 'shimmyd')], { encoding: 'utf8' }).stdout ?? '');
export const pause = (ms) => new Promise((done) => setTimeout(done, ms));

// Random numbers of a seed, so that a failure comes again: SHIMMY_TEST_SEED changes them.
export function random(seed = Number(process.env.SHIMMY_TEST_SEED ?? 1)) {
  let state = seed >>> 0;
  return () => { // mulberry32
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

// All series of a family: [{labels: {..}, value}].
export function family(text, name) {
  const found = [];
  for (const line of text.split('\n')) {
    const match = new RegExp(`^${name}(?:\\{(.*)\\})? (\\S+)$`).exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, key, value] of (match[1] ?? '').matchAll(/(\w+)="([^"]*)"/g)) labels[key] = value;
    found.push({ labels, value: Number(match[2]) });
  }
  return found;
}
const sum = (series) => series.reduce((total, one) => total + one.value, 0);

// What the daemon's books say: nothing of it may be left when all requests have ended.
export async function books(daemon) {
  const text = await daemon.metrics();
  return {
    running: sum(family(text, 'shimmy_requests_running')),
    queued: sum(family(text, 'shimmy_requests_queued')),
    pages: sum(family(text, 'shimmy_kv_pages_used')),
    accepted: sum(family(text, 'shimmy_generations_accepted_total')),
    ended: Object.fromEntries(family(text, 'shimmy_generations_ended_total').map((one) => [one.labels.result, one.value])),
  };
}

const descriptors = (pid) => readdirSync(`/proc/${pid}/fd`).length;
const threads = (pid) => readdirSync(`/proc/${pid}/task`).length;
export function resident(pid) {
  return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]);
}

// The state to come back to. Take it when the models are loaded and some requests were served, so that threads and pools are there.
// Threads that tokenise (daemon/work.c) are made when there is work for them, and stay.
const workers = 3;

export async function baseline(daemon) {
  await settle(daemon);
  const { pid } = daemon.child;
  return { descriptors: descriptors(pid), threads: threads(pid) };
}

async function settle(daemon) {
  await waitFor('nothing runs, waits or holds a page', async () => {
    const now = await books(daemon);
    return now.running === 0 && now.queued === 0 && now.pages === 0;
  }, 15000);
}

// After whatever happened: nothing runs or waits, no page is held, descriptors and threads are back, and every generation that was
// accepted has ended in one way. Returns the books.
export async function settled(daemon, before) {
  await settle(daemon);
  const { pid } = daemon.child;
  if (before) {
    let now;
    await waitFor('descriptors and threads are back', () => {
      now = { descriptors: descriptors(pid), threads: threads(pid) };
      return now.descriptors <= before.descriptors && now.threads <= before.threads + workers;
    }, 15000).catch((error) => {
      const open = readdirSync(`/proc/${pid}/fd`).length;
      throw new Error(`${error.message}: ${JSON.stringify(before)} before, ${JSON.stringify(now)} after (${open} open)`);
    });
  }
  const now = await books(daemon);
  const { finished = 0, failed = 0, cancelled = 0, ...others } = now.ended;
  assert.deepEqual(others, {}, 'other results than finished, failed and cancelled');
  assert.equal(finished + failed + cancelled, now.accepted, JSON.stringify(now.ended));
  return now;
}

// One call on the control socket.
export function call(daemon, method, parameters = {}) {
  return new Promise((done, failed) => {
    const socket = net.connect(daemon.socket, () => socket.write(`${JSON.stringify({ method: `io.shimmy.Daemon.${method}`, parameters })}\0`));
    let text = '';
    socket.on('error', failed);
    socket.on('data', (data) => {
      text += data;
      if (!text.endsWith('\0')) return;
      socket.destroy();
      const reply = JSON.parse(text.slice(0, -1));
      if (reply.error) failed(new Error(JSON.stringify(reply)));
      else done(reply.parameters);
    });
  });
}

// The text of an answer, streamed or whole, out of everything that came over a raw connection; null if it is not whole.
export function answerText(all) {
  const raw = all.replace(/^(HTTP\/1\.1 100 Continue\r\n\r\n)+/, '');
  const at = raw.indexOf('\r\n\r\n');
  if (at < 0 || !/^HTTP\/1\.1 200 /.test(raw)) return null;
  let body = raw.slice(at + 4);
  if (/^transfer-encoding: chunked/im.test(raw.slice(0, at))) {
    let whole = '';
    for (;;) {
      const end = body.indexOf('\r\n');
      const size = parseInt(body.slice(0, end), 16);
      if (!(size >= 0)) return null;
      if (size === 0) break;
      whole += body.slice(end + 2, end + 2 + size);
      body = body.slice(end + 2 + size + 2);
    }
    body = whole;
  }
  if (!/^content-type: text\/event-stream/im.test(raw.slice(0, at))) {
    try {
      return JSON.parse(body).choices[0].text;
    } catch {
      return null;
    }
  }
  if (!body.includes('data: [DONE]')) return null;
  return body.split('\n\n').filter((part) => part.startsWith('data: {')).map((part) => JSON.parse(part.slice(6)).choices[0]?.text ?? '').join('');
}

// A script of tests/faults: one rule a line, in force from now on. hits() is what was made to fail so far.
export class Faults {
  constructor(file) {
    this.file = file;
  }

  set(...rules) {
    rmSync(`${this.file}.hits`, { force: true });
    writeFileSync(`${this.file}.new`, rules.map((rule) => `${rule} ${Faults.count += 1}\n`).join(''));
    rmSync(this.file, { force: true });
    writeFileSync(this.file, readFileSync(`${this.file}.new`));
  }

  clear() {
    rmSync(this.file, { force: true });
  }

  hits() {
    return existsSync(`${this.file}.hits`) ? readFileSync(`${this.file}.hits`, 'latin1').trim().split('\n') : [];
  }
}
Faults.count = 0;
export const layer = (file) => ({
  VK_LAYER_PATH: path.join(build, 'tests/faults'), VK_INSTANCE_LAYERS: 'VK_LAYER_SHIMMY_faults', SHIMMY_VK_FAULTS: file,
});
// `library`: reads or memory. A sanitizer that is not the first library says so and ends, unless told not to.
export const preload = (file, library) => ({
  LD_PRELOAD: path.join(build, `tests/faults/${library}.so`), SHIMMY_FAULTS: file,
  ASAN_OPTIONS: `${process.env.ASAN_OPTIONS ?? ''}:verify_asan_link_order=0`,
});

// A client in a process of its own, which signals reach: reads a stream to its end and prints what came.
export function client(daemon, route, body) {
  const child = spawn(process.execPath, ['-e', `
    const socket = require('net').connect(${daemon.port}, '127.0.0.1', () => socket.write(${JSON.stringify(daemon.rawPost(route, body))}));
    socket.on('data', (data) => process.stdout.write(data));
    socket.on('close', () => process.exit(0));
    socket.on('error', () => process.exit(1));`], { stdio: ['ignore', 'pipe', 'inherit'] });
  child.text = '';
  child.stdout.on('data', (data) => { child.text += data.toString('latin1'); });
  child.ended = new Promise((done) => child.on('close', (code) => done(code)));
  return child;
}
