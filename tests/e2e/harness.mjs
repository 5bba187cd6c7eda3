// harness.mjs - starts the real daemon in a scratch directory, on a socket and a port of its own, and talks to it.
//
// B is the build folder (default build), SHIMMY_SHARED where the shared models lie (default ../shared beside the repository),
// SHIMMY_E2E_DEVICE the device that models run on (default cpu).
import { after } from 'node:test';
import { spawn, execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { existsSync, mkdtempSync, rmSync, readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import net from 'node:net';
import { fileURLToPath } from 'node:url';

const run = promisify(execFile);
export const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
export const build = path.resolve(root, process.env.B || 'build');
export const shimmyctl = path.join(build, 'shimmyctl');
export const device = process.env.SHIMMY_E2E_DEVICE || 'cpu';
const sharedRoot = process.env.SHIMMY_SHARED || path.resolve(root, '../shared');

// The path of a shared file, or null: then the test calls skipWithout.
export function shared(relative) {
  const at = path.join(sharedRoot, relative);
  return existsSync(at) ? at : null;
}

// An option for test(): skips by name when `what` is missing, unless REQUIRE_SHARED says that it has to be there.
export function needs(what, why) {
  if (what || process.env.REQUIRE_SHARED === '1') return {};
  return { skip: why };
}

export async function has(command) {
  try {
    await run('sh', ['-c', `command -v ${command}`]);
    return true;
  } catch {
    return false;
  }
}

export function golden() {
  return JSON.parse(readFileSync(shared('models/stories260K.greedy.json'), 'utf8'));
}

export async function waitFor(what, condition, limitMs = 10000) {
  const end = Date.now() + limitMs;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (Date.now() > end) throw new Error(`not within ${limitMs} ms: ${what}`);
    await new Promise((done) => setTimeout(done, 20));
  }
}

// A test that fails may leave its daemon, which would keep the file from ending: some time after the last test those that are left are killed.
const children = new Set();
if (process.argv[1]?.endsWith('.test.mjs')) after(() => { setTimeout(() => { for (const child of children) child.kill('SIGKILL'); }, 20000).unref(); });

// Options: args, env, models (a directory), device, wrap (a command that runs the daemon, as prlimit does).
export class Daemon {
  constructor(options = {}) {
    this.options = options;
    this.log = '';
  }

  async start() {
    this.dir = mkdtempSync(path.join(tmpdir(), 'shimmyd-e2e-'));
    this.socket = path.join(this.dir, 'control.sock');
    const env = Object.fromEntries(Object.entries(process.env).filter(([name]) =>
      !(name.startsWith('SHIMMY_') || name.startsWith('HF_') || name === 'HUGGINGFACE_HUB_CACHE' || name === 'OLLAMA_MODELS')
        || name === 'SHIMMY_VULKAN' || name === 'SHIMMY_CPU'));
    Object.assign(env, { HOME: this.dir, XDG_CONFIG_HOME: this.dir, XDG_CACHE_HOME: this.dir, XDG_RUNTIME_DIR: this.dir },
      this.options.env ?? {});
    const models = this.options.models ?? path.join(sharedRoot, 'models');
    const [command, ...before] = [...(this.options.wrap ?? []), path.join(build, 'shimmyd')];
    this.child = spawn(command, [
      ...before, '--socket', this.socket, '--listen', '127.0.0.1:0', '--model-dir', models, '--device', this.options.device ?? device, '--kv-type', 'f32',
      ...(this.options.discover ? [] : ['--discover=no']), // a machine's own models are none of the tests'
      ...(this.options.args ?? []),
    ], { cwd: this.dir, env, stdio: ['ignore', 'pipe', 'pipe'] });
    children.add(this.child);
    this.child.on('close', () => children.delete(this.child));
    this.child.stdout.on('data', (data) => { this.log += data; });
    this.child.stderr.on('data', (data) => { this.log += data; });
    this.exit = new Promise((done) => this.child.on('close', (code, signal) => {
      this.exited = { code, signal };
      done(this.exited);
    }));
    this.url = await waitFor('the daemon answers', async () => {
      if (this.exited) throw new Error(`shimmyd ended: ${JSON.stringify(this.exited)}\n${this.log}`);
      const status = await this.status().catch(() => null);
      return status?.http?.[0];
    }, 15000).catch((error) => {
      this.child.kill('SIGKILL');
      throw new Error(`${error.message}\n${this.log}`);
    });
    this.port = Number(new URL(this.url).port);
    return this;
  }

  async status() {
    const { stdout } = await run(shimmyctl, ['--socket', this.socket, 'status', '--json']);
    return JSON.parse(stdout);
  }

  // Ends the daemon as a service manager would; what it leaves behind is an error.
  async stop() {
    if (!this.exited) this.child.kill('SIGTERM');
    const late = setTimeout(() => this.child.kill('SIGKILL'), 20000);
    const end = await this.exit;
    clearTimeout(late);
    rmSync(this.dir, { recursive: true, force: true });
    if (end.code !== 0) throw new Error(`shimmyd ended with ${JSON.stringify(end)}\n${this.log}`);
  }

  get(route, options = {}) {
    return fetch(this.url + route, options);
  }

  async post(route, body, headers = {}) {
    const response = await fetch(this.url + route, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json', ...headers },
      body: typeof body === 'string' ? body : JSON.stringify(body),
    });
    return { status: response.status, headers: response.headers, body: await response.json() };
  }

  async metrics() {
    return (await this.get('/metrics')).text();
  }

  // The value of one series by its full name, 0 when it is not there.
  async metric(series) {
    for (const line of (await this.metrics()).split('\n')) {
      if (line.startsWith(`${series} `)) return Number(line.slice(series.length + 1));
    }
    return 0;
  }

  running() {
    return this.metric('shimmy_requests_running');
  }

  // A raw connection, for clients that misbehave.
  async connect() {
    const socket = net.connect({ port: this.port, host: '127.0.0.1', allowHalfOpen: true });
    await new Promise((done, failed) => socket.once('connect', done).once('error', failed));
    socket.on('error', () => {});
    socket.text = '';
    socket.on('data', (data) => { socket.text += data.toString('latin1'); });
    socket.ended = new Promise((done) => socket.once('close', done));
    socket.once('end', () => socket.end());
    return socket;
  }

  rawPost(route, body, more = '') {
    const text = JSON.stringify(body);
    return `POST ${route} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: ${Buffer.byteLength(text)}\r\n${more}\r\n${text}`;
  }
}

// The data of a stream of server-sent events; "[DONE]" stays a string.
export function events(text) {
  return text.split('\n\n').filter((part) => part.startsWith('data: ')).map((part) => {
    const data = part.slice(6);
    return data === '[DONE]' ? data : JSON.parse(data);
  });
}

export const model = 'stories260K';
// Keeps the model busy for longer than any test waits.
export const endless = { model, prompt: 'Once upon a time', max_tokens: 2000, n: 8, ignore_eos: true, logprobs: 20, seed: 1 };
