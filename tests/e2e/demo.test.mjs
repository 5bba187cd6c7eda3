// demo.test.mjs - scripts/demo, README's first command, on the programs that are built already: what a stranger sees. Skipped where it would
// install something.
import { test } from 'node:test';
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { root } from './harness.mjs';

const missing = spawnSync('scripts/deps', ['-n', 'demo'], { cwd: root, encoding: 'utf8' });
const skip = missing.status !== 0 && `scripts/demo would install: ${missing.stdout}`;

// In a folder for temporary files of its own, so that what it leaves there shows.
function demo(env) {
  const temporary = mkdtempSync(path.join(tmpdir(), 'shimmy-demo-test-'));
  const done = spawnSync('scripts/demo', { cwd: root, encoding: 'utf8', env: { ...process.env, B: process.env.B || 'build', DEVICE: 'cpu', TOKENS: '60', TMPDIR: temporary, ...env } });
  const left = readdirSync(temporary);
  rmSync(temporary, { recursive: true });
  return { ...done, left };
}

test('it tells a story, answers, and says how to go on', { skip }, () => {
  const { status, stdout, stderr, left } = demo({});
  assert.equal(status, 0, stdout + stderr);
  const part = (title) => stdout.split(/^== /m).find((text) => text.startsWith(title)) ?? assert.fail(`no "${title}" in:\n${stdout}`);
  assert.match(part('a model is loaded: shimmy-tiny'), /\$ shimmyctl load shimmy-tiny/);
  const story = part('a story').split('\n').slice(2).join(' ');
  assert.ok(story.split(/\s+/).length >= 40 && story.includes('Mia'), story);
  assert.match(part('an answer in a chat'), /^[^$=].*Paris/m);
  const [answer] = part('the same over HTTP').split('\n').filter((line) => line.startsWith('{'));
  assert.match(JSON.parse(answer).choices[0].message.content, /Paris/);
  assert.match(part('what the daemon says of itself'), /shimmy-tiny/);
  assert.match(part('done'), /make install/);
  assert.deepEqual(left, []);
});

test('a model that is not there, or is none, ends it with the reason', { skip }, () => {
  for (const [MODEL, reason] of [['/nowhere/a.gguf', /there is no model file \/nowhere\/a\.gguf/], [path.join(root, 'README.md'), /README\.md/]]) {
    const { status, stdout, stderr, left } = demo({ MODEL });
    assert.equal(status, 1, stdout + stderr);
    assert.match(stdout + stderr, reason);
    assert.deepEqual(left, []);
  }
});
