// discover.test.mjs - a home as other programs leave it: every model in it is found, told of, and served by the name it has there.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { promisify } from 'node:util';
import { copyFileSync, linkSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, symlinkSync, unlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Daemon, build, events, needs, shared, shimmyctl } from './harness.mjs';

const run = promisify(execFile);
const stories = shared('models/stories260K.gguf');
const there = needs(stories, 'no shared models');
const home = mkdtempSync(path.join(tmpdir(), 'shimmyd-home-'));
const at = (...parts) => path.join(home, ...parts);
const ollama = at('.ollama/models');
let daemon;

function write(name, data) {
  mkdirSync(path.dirname(name), { recursive: true });
  writeFileSync(name, data);
}

const generate = (name, ...flags) => {
  mkdirSync(path.dirname(name), { recursive: true });
  return run(path.join(build, 'tests/tools/genmodel'), [name, '--layers', '1', ...flags]);
};

// As `ollama pull` leaves it; returns the blob's path.
function pull(name, file) {
  const digest = createHash('sha256').update(readFileSync(file)).digest('hex');
  const blob = path.join(ollama, 'blobs', `sha256-${digest}`);
  mkdirSync(path.dirname(blob), { recursive: true });
  copyFileSync(file, blob);
  write(path.join(ollama, 'manifests', name), JSON.stringify({
    schemaVersion: 2,
    mediaType: 'application/vnd.docker.distribution.manifest.v2+json',
    config: { mediaType: 'application/vnd.docker.container.image.v1+json', digest: `sha256:${'0'.repeat(64)}`, size: 5 },
    layers: [{ mediaType: 'application/vnd.ollama.image.model', digest: `sha256:${digest}`, size: statSync(file).size }],
  }));
  return blob;
}

// A header alone, of an architecture that is no language model's.
function projector() {
  const text = (s) => { const b = Buffer.alloc(8 + s.length); b.writeBigUInt64LE(BigInt(s.length)); b.write(s, 8); return b; };
  const head = Buffer.alloc(24);
  head.write('GGUF');
  head.writeUInt32LE(3, 4);
  head.writeBigUInt64LE(0n, 8);
  head.writeBigUInt64LE(1n, 16);
  const type = Buffer.alloc(4);
  type.writeUInt32LE(8);
  return Buffer.concat([head, text('general.architecture'), type, text('clip'), Buffer.alloc(64)]);
}

const start = () => new Daemon({ discover: true, models: at('configured'), env: { HOME: home, XDG_CACHE_HOME: at('.cache') } }).start();
const ctl = (...args) => run(shimmyctl, ['--socket', daemon.socket, ...args], { cwd: home });
const discover = async () => JSON.parse((await ctl('discover', '--json')).stdout);

before(async () => {
  if (there.skip) return;
  await generate(at('configured/own.gguf'), '--seed', '1');
  const repo = at('.cache/huggingface/hub/models--org--Hub-GGUF');
  await generate(path.join(repo, 'blobs/one'), '--seed', '2');
  await generate(path.join(repo, 'blobs/two'), '--seed', '3');
  write(path.join(repo, 'refs/main'), 'bbbb');
  for (const [commit, blob] of [['aaaa', 'one'], ['bbbb', 'two']]) {
    mkdirSync(path.join(repo, 'snapshots', commit), { recursive: true });
    symlinkSync(`../../blobs/${blob}`, path.join(repo, 'snapshots', commit, 'Hub-Q8_0.gguf'));
  }
  write(path.join(repo, 'blobs/three.incomplete'), 'x');
  const blob = pull('registry.ollama.ai/library/stories/260k', stories);
  pull('registry.ollama.ai/library/stories/latest', stories);
  await generate(at('tmp/mine.gguf'), '--seed', '4');
  pull('registry.ollama.ai/someone/mine/q8', at('tmp/mine.gguf'));
  write(path.join(ollama, 'manifests/registry.ollama.ai/library/lost/latest'), JSON.stringify({
    layers: [{ mediaType: 'application/vnd.ollama.image.model', digest: `sha256:${'f'.repeat(64)}` }],
  }));
  mkdirSync(at('.lmstudio/models/maker/repo'), { recursive: true });
  linkSync(blob, at('.lmstudio/models/maker/repo/Stories-Linked.gguf'));
  write(at('models/vision.gguf'), projector());
  await generate(at('models/home.gguf'), '--seed', '5');
  daemon = await start();
});
after(async () => {
  await daemon?.stop();
  rmSync(home, { recursive: true, force: true });
});

test('every store is searched, and what is left out is told with the reason', there, async () => {
  const said = await discover();
  const inHome = (list) => list.filter((one) => one.path.startsWith(home));
  assert.deepEqual(inHome(said.models).map((one) => one.id).sort(), ['Hub-Q8_0', 'home', 'own', 'someone/mine:q8', 'stories:260k']);
  assert.ok(said.models.find((one) => one.id === 'Hub-Q8_0').path.includes('/snapshots/bbbb/'));
  assert.deepEqual(said.models.find((one) => one.id === 'stories:260k').names, ['stories:latest', 'Stories-Linked']);
  const reasons = Object.fromEntries(inHome(said.left_out).map((one) => [path.relative(home, one.path), one.reason]));
  assert.match(reasons['models/vision.gguf'], /no language model, but a multimodal projector/);
  assert.match(reasons['.ollama/models/manifests/registry.ollama.ai/library/lost/latest'], /No such file/);
  assert.match(reasons['.cache/huggingface/hub/models--org--Hub-GGUF/blobs/three.incomplete'], /not ended/);
  assert.match(reasons['.cache/huggingface/hub/models--org--Hub-GGUF/snapshots/aaaa/Hub-Q8_0.gguf'], /revision/);
  assert.equal(Object.keys(reasons).length, 4, JSON.stringify(reasons));
  const roots = Object.fromEntries(inHome(said.roots).map((one) => [path.relative(home, one.path), one.models]));
  assert.deepEqual(roots, { configured: 1, '.cache/huggingface/hub': 1, '.ollama/models': 2, '.lmstudio/models': 0, models: 1 });
  assert.ok(said.milliseconds >= 0);

  const { stdout } = await ctl('discover', '--all');
  assert.match(stdout, /vision\.gguf +no language model, but a multimodal projector/);
  assert.match(stdout, /stories:260k: also called stories:latest, Stories-Linked/);
  const plain = (await ctl('discover')).stdout;
  assert.match(plain, /left out \(--all says what and why\)/);
  assert.doesNotMatch(plain, /vision\.gguf/);
  assert.match(daemon.log, /left out: .*vision\.gguf: no language model/);
  assert.equal(daemon.log.match(/left out: .*lost\/latest/g).length, 1); // once, however often is searched
});

test("a store's names work wherever a model is named", there, async () => {
  const ask = { prompt: 'Once upon a time', max_tokens: 5, temperature: 0 };
  for (const model of ['stories:260k', 'stories', 'Stories:Latest', 'library/stories', 'stories-linked']) {
    const answer = await daemon.post('/v1/completions', { model, ...ask });
    assert.equal(answer.status, 200, JSON.stringify(answer.body));
    assert.equal(answer.body.model, 'stories:260k');
  }
  const stream = await (await daemon.get('/v1/chat/completions', {
    method: 'POST',
    body: JSON.stringify({ model: 'someone/mine:q8', messages: [{ role: 'user', content: 'x' }], max_tokens: 3, stream: true }),
  })).text();
  assert.equal(events(stream)[0].model, 'someone/mine:q8');
  const list = (await (await daemon.get('/v1/models')).json()).data;
  for (const id of ['stories:260k', 'someone/mine:q8']) {
    assert.ok(list.find((one) => one.id === id));
    for (const url of [id, encodeURIComponent(id)]) {
      const one = await daemon.get(`/v1/models/${url}`);
      assert.equal(one.status, 200);
      assert.equal((await one.json()).id, id);
    }
    assert.equal(await daemon.metric(`shimmy_model_state{model="${id}",state="ready"}`), 1);
  }
  const { stdout } = await ctl('generate', 'stories', '-q', '-n', '5', '-t', '0', 'Once upon a time');
  assert.ok(stdout.length > 5);
  await ctl('unload', 'someone/mine:q8');
  await ctl('load', 'someone/mine:Q8');
  assert.match((await ctl('list', '--names')).stdout, /^someone\/mine:q8$/m);
  await assert.rejects(ctl('load', 'someone/none:q8'), (error) => {
    assert.match(error.stderr, /no model is called 'someone\/none:q8'.*someone\/mine:q8/);
    return true;
  });
  assert.equal((await daemon.post('/v1/completions', { model: 'stories:1b', prompt: 'x' })).status, 404);
  assert.equal((await daemon.post('/v1/completions', { model: 'vision', prompt: 'x' })).status, 404);
});

test('a version that is pulled under a loaded model makes it stale, and a reload takes it', there, async () => {
  const before = JSON.parse((await ctl('list', '--json')).stdout).models.find((one) => one.id === 'stories:260k');
  await generate(at('tmp/next.gguf'), '--seed', '9');
  for (const tag of ['260k', 'latest']) pull(`registry.ollama.ai/library/stories/${tag}`, at('tmp/next.gguf'));
  unlinkSync(before.path);
  const now = (await discover()).models.filter((one) => one.id === 'stories:260k' || one.names.includes('stories:260k'));
  assert.equal(now.length, 1, JSON.stringify(now));
  assert.equal(now[0].state, 'ready');
  assert.equal(now[0].stale, true);
  assert.notEqual(now[0].path, before.path);
  assert.equal((await daemon.post('/v1/completions', { model: 'stories', prompt: 'x', max_tokens: 1 })).status, 200);
  await ctl('load', 'stories', '--reload');
  const fresh = JSON.parse((await ctl('list', '--json')).stdout).models.find((one) => one.id === now[0].id);
  assert.equal(fresh.stale, false);
  assert.notEqual(fresh.size_bytes, before.size_bytes);
});

test('what was seen before is found at once after a restart, and what is new with the next search', there, async () => {
  await daemon.stop();
  assert.ok(readFileSync(at('.cache/shimmy/discovered'), 'utf8').includes('vision.gguf'));
  daemon = await start();
  assert.ok((await discover()).left_out.some((one) => one.path.endsWith('vision.gguf')));
  await generate(at('models/later.gguf'), '--seed', '6');
  assert.doesNotMatch((await ctl('list', '--names')).stdout, /later/);
  assert.match((await ctl('list', '--names', '--rescan')).stdout, /^later$/m); // the answer waits for the search
});
