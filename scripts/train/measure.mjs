// measure.mjs - what tests/models says of its model, measured: golden.json (what it says to fixed prompts, on every executor that this machine has) and the
// README's table (perplexity and size by type of weights). To be run after a training, and read: `make all models && node scripts/train/measure.mjs`.
import { execFileSync } from 'node:child_process';
import { readFileSync, statSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { Daemon, build, root, shimmyctl } from '../../tests/e2e/harness.mjs';

const folder = path.join(root, 'tests/models');
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
  const options = device === 'cpu' ? { env: { SHIMMY_CPU: tier } } : { args: ['--vulkan-tier', tier] };
  const daemon = await new Daemon({ models: folder, device, ...options }).start();
  try {
    const found = [];
    for (const [prompt, more] of prompts) {
      const { status, body } = await daemon.post('/v1/completions', { model, prompt, ...more });
      if (status !== 200) return console.error(`${device} ${tier}: ${body.error.message}`), null;
      found.push(body.choices[0].text);
    }
    if (!(await daemon.status()).devices.some((one) => one.open && one.tier === tier)) return console.error(`${device}: no tier ${tier} here`), null;
    return found;
  } finally {
    await daemon.stop();
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
