// parity.test.mjs - reference values over HTTP: ../shared/parity/check_http.py against a live daemon, one model after another.
//
// On the CPU twice: the scalar kernels strictly, and the machine's own with the tolerance for activations of 8 bits. On a Vulkan device
// (SHIMMY_E2E_DEVICE) strictly, llvmpipe on its base tier, and with a part of the model on the CPU. SHIMMY_TEST_FULL=1 runs all
// models, else there is one for each family.
import { test } from 'node:test';
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { readdirSync } from 'node:fs';
import path from 'node:path';
import { Daemon, device, has, needs, shared, shimmyctl } from './harness.mjs';

const run = promisify(execFile);
const checker = shared('parity/check_http.py');
const folder = checker && path.dirname(checker);
const full = process.env.SHIMMY_TEST_FULL === '1';

const handful = ['llama-Q4_K_M', 'llama-IQ3_S', 'llama-TQ1_0', 'llama-yarn-Q8_0', 'qwen3-Q4_K_M', 'gemma2-Q4_0', 'gemma3-Q8_0',
  'phi3-longrope-Q8_0', 'gpt2-Q8_0', 'falcon-Q8_0', 'bloom-Q8_0', 'cohere2-Q8_0', 'granite-Q8_0', 'olmo2-swa-Q8_0', 'smollm3-Q8_0',
  'mixtral-Q4_K_M', 'deepseek2-mla-F16', 'gpt-oss-MXFP4', 'qwen35-Q8_0', 'mamba-F16', 'lfm2-Q8_0', 'bert-F16', 'jina-bert-v2-Q8_0',
  'gemma-embedding-Q8_0'].filter((name, i) => device === 'cpu' || i % 3 === 0); // software drivers are slow
const models = !folder ? [] : full ? readdirSync(folder).filter((name) => name.endsWith('.json')).map((name) => name.slice(0, -5)) : handful;

const env = device === 'llvmpipe' ? { SHIMMY_VULKAN: 'base', SHIMMY_CPU: 'scalar' } : { SHIMMY_CPU: 'scalar' };
const runs = device === 'cpu' ?
  [{ name: 'scalar CPU', env: { SHIMMY_CPU: 'scalar' }, args: [] }, { name: "the machine's CPU", env: {}, args: ['--loose'] }] :
  [{ name: device, env, args: [] },
    { name: `${device} with layers on the CPU`, env, args: [], daemon: ['--gpu-layers', '1'], only: ['gemma3-Q8_0', 'bert-F16'] },
    { name: `${device} with experts on the CPU`, env, args: [], daemon: ['--cpu-moe'], only: ['mixtral-Q4_K_M', 'deepseek2-Q8_0'] }];

const python = await has('python3');
for (const { name, env, args, daemon: flags, only } of runs) {
  test(`parity on ${name}`, python ? needs(checker, 'no shared parity vectors') : { skip: 'no python3' }, async (t) => {
    const daemon = await new Daemon({ models: folder, env, args: flags }).start();
    t.after(() => daemon.stop());
    const list = only ?? models;
    for (const model of list) {
      await t.test(`${model} on ${name}`, async () => {
        const { stdout } = await run('python3', [checker, '--url', daemon.url, ...args, path.join(folder, `${model}.json`)])
          .catch((error) => ({ stdout: `${error.stdout}${error.stderr}\n` }));
        assert.match(stdout, /^ok /, `${stdout}${daemon.log.split('\n').slice(-4).join('\n')}`);
        await run(shimmyctl, ['--socket', daemon.socket, 'unload', model]);
      });
    }
    t.diagnostic(`${list.length} models on ${name}`);
  });
}
