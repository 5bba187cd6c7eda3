// measure.mjs - what tests/models says of its model, measured: golden.json (what it says to fixed prompts, on every executor that this machine has) and the
// README's table (perplexity and size by type of weights). To be run after a training, and read: `make all models && node scripts/train/measure.mjs`.
import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const build = path.resolve(root, process.env.B || 'build');
const folder = path.join(root, 'tests/models');
const shimmyctl = path.join(build, 'shimmyctl');
const model = 'shimmy-tiny';

const asked = (question) => `<|im_start|>user\n${question}<|im_end|>\n<|im_start|>assistant\n`;
const prompts = [
  ['Once upon a time', { max_tokens: 100, temperature: 0 }],
  ['Once upon a time, there was a curious fox named Mia.', { max_tokens: 100, temperature: 0 }],
  ['One day, a small bear lost a red ball.', { max_tokens: 100, temperature: 0 }],
  [asked('What is the capital of France?'), { max_tokens: 30, temperature: 0 }],
  [asked('What is 7 + 8?'), { max_tokens: 30, temperature: 0 }],
  [asked('Write as JSON: The name is Anna, the age is 7, the city is Rome.'), { max_tokens: 60, temperature: 0 }],
  ['Once upon a time', { max_tokens: 60, temperature: 0.8, seed: 1 }],
  ['Once upon a time', { max_tokens: 60, temperature: 0.8, seed: 2 }],
  [asked('Tell me a story about a cat who helped a bird.'), { max_tokens: 60, temperature: 0.8, top_k: 20, seed: 3 }],
];

// The texts of one executor; null where this machine has it not.
async function texts(device, tier) {
  const scratch = mkdtempSync(path.join(tmpdir(), 'shimmy-measure-'));
  const socket = path.join(scratch, 'control.sock');
  const child = spawn(path.join(build, 'shimmyd'), ['--socket', socket, '--listen', '127.0.0.1:0', '--model-dir', folder, '--discover=no', '--device', device, '--kv-type', 'f32',
    ...(device === 'cpu' ? [] : ['--vulkan-tier', tier])],
  { cwd: scratch, stdio: 'ignore', env: { ...process.env, HOME: scratch, XDG_CACHE_HOME: scratch, ...(device === 'cpu' ? { SHIMMY_CPU: tier } : {}) } });
  const status = () => JSON.parse(execFileSync(shimmyctl, ['--socket', socket, '--json', 'status'], { stdio: ['ignore', 'pipe', 'ignore'] }));
  try {
    let url;
    for (let tries = 0; !url && tries < 100; tries++) {
      try { [url] = status().http; } catch { await new Promise((done) => setTimeout(done, 100)); }
    }
    const found = [];
    for (const [prompt, options] of prompts) {
      const response = await fetch(`${url}/v1/completions`, { method: 'POST', body: JSON.stringify({ model, prompt, ...options }) });
      const body = await response.json();
      if (!response.ok) return console.error(`${device} ${tier}: ${body.error.message}`), null;
      found.push(body.choices[0].text);
    }
    if (!status().devices.some((one) => one.open && one.tier === tier)) return console.error(`${device}: no tier ${tier} here`), null;
    return found;
  } finally {
    child.kill();
    rmSync(scratch, { recursive: true, force: true });
  }
}

// Executors of different arithmetic may part where two words are nearly as likely as each other, which is often in stories: each has its own text.
async function golden() {
  const entries = prompts.map(([prompt, options]) => ({ prompt, options, texts: [] }));
  for (const [device, tier] of [...['scalar', 'avx2', 'avxvnni', 'avx512'].map((tier) => ['cpu', tier]), ['llvmpipe', 'base'], ['llvmpipe', 'intdot']]) {
    for (const [i, text] of (await texts(device, tier) ?? []).entries()) {
      const same = entries[i].texts.find((one) => one.text === text);
      if (same) same.tiers.push(tier);
      else entries[i].texts.push({ tiers: [tier], text });
    }
  }
  writeFileSync(path.join(folder, 'golden.json'), `${JSON.stringify(entries, null, 1)}\n`);
}

function table() {
  const types = execFileSync('make', ['-s', '-C', root, 'models-types'], { encoding: 'utf8' }).trim().split(/\s+/);
  const rows = ['Q8_0', ...types].map((type) => {
    const file = type === 'Q8_0' ? path.join(folder, `${model}.gguf`) : path.join(build, 'models', `${model}-${type}.gguf`);
    const { perplexity, error } = JSON.parse(execFileSync(shimmyctl, ['-j', 'perplexity', '--device', 'cpu', file, path.join(folder, 'held-out.txt')]));
    return { type, bytes: statSync(file).size, perplexity, error };
  });
  const base = rows.find((row) => row.type === 'F16').perplexity;
  const lines = rows.sort((a, b) => b.bytes - a.bytes).map(({ type, bytes, perplexity, error }) =>
    `| ${type} | ${(bytes / 1e6).toFixed(2)} MB | ${perplexity.toFixed(4)} | ${error.toFixed(4)} | ${((perplexity / base - 1) * 100).toFixed(2)} % |`);
  const file = path.join(folder, 'README.md');
  const text = readFileSync(file, 'utf8').replace(/(<!-- perplexity \{[^\n]*-->\n)[^]*(<!-- \} perplexity -->)/,
    (_, begin, end) => `${begin}| weights | file | perplexity | +/- | next to F16 |\n|---|---|---|---|---|\n${lines.join('\n')}\n${end}`);
  writeFileSync(file, text);
}

await golden();
table();
