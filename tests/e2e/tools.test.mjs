// tools.test.mjs - other people's tools against the daemon: promtool, curl, socat, and the parity check of the shared vectors.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { promisify } from 'node:util';
import { mkdtempSync, rmSync, symlinkSync, readdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Daemon, device, golden, has, model, needs, shared } from './harness.mjs';

const run = promisify(execFile);
const there = needs(shared('models/stories260K.gguf'), 'no shared models');
let daemon;
before(async () => {
  if (!there.skip) daemon = await new Daemon().start();
});
after(() => daemon?.stop());

function pipe(command, args, input) {
  return new Promise((done) => {
    const child = spawn(command, args);
    let output = '';
    child.stdout.on('data', (data) => { output += data; });
    child.stderr.on('data', (data) => { output += data; });
    child.on('close', (code) => done({ code, output }));
    child.stdin.end(input);
  });
}

test('promtool accepts the metrics of a daemon that has worked', there, async (t) => {
  if (!await has('promtool')) return t.skip('promtool (package prometheus) is not installed');
  const { body } = await daemon.post('/v1/completions', { model, prompt: 'Once', max_tokens: 5, temperature: 0 });
  assert.equal(body.usage.completion_tokens, 5);
  const text = await daemon.metrics();
  const { code, output } = await pipe('promtool', ['check', 'metrics'], text);
  assert.equal(code, 0, output);
  for (const series of [
    `shimmy_generated_tokens_total{model="${model}"} 5`, `shimmy_prompt_tokens_total{model="${model}"} ${body.usage.prompt_tokens}`,
    'shimmy_requests_total{route="/v1/completions",code="200"} 1', 'shimmy_requests_running 0', 'shimmy_requests_queued 0',
    'shimmy_time_to_first_token_seconds_count 1',
  ]) assert.ok(text.includes(`\n${series}\n`), `${series} is not in\n${text}`);
  assert.match(text, /^shimmy_time_per_output_token_seconds_count [1-9]/m);
  for (const family of ['shimmy_kv_pages_used', 'shimmy_kv_pages_total', 'shimmy_model_load_seconds', 'shimmy_device_memory_bytes'])
    assert.match(text, new RegExp(`^${family}\\{`, 'm'));
  assert.match(text, new RegExp(`^shimmy_model_state\\{model="${model}",state="ready"\\} 1$`, 'm'));
});

test('curl streams', there, async (t) => {
  if (!await has('curl')) return t.skip('curl is not installed');
  const want = golden();
  const { stdout } = await run('curl', ['-sN', '--fail', `${daemon.url}/v1/completions`, '-d',
    JSON.stringify({ model, prompt: want.prompt, max_tokens: 20, temperature: 0, stream: true })]);
  const text = stdout.split('\n\n').filter((line) => line.startsWith('data: {')).map((line) => JSON.parse(line.slice(6)).choices[0].text).join('');
  assert.ok(text.length > 10 && want.text.startsWith(text), text);
});

test('a line of JSON through socat', there, async (t) => {
  if (!await has('socat')) return t.skip('socat is not installed');
  const { output } = await pipe('socat', ['-t5', '-', `UNIX-CONNECT:${daemon.socket}`], '{"method":"io.shimmy.Daemon.Status"}\n');
  const reply = JSON.parse(output.split('\n')[0]);
  assert.deepEqual(reply.parameters.http, [daemon.url]);
});

const usable = shared('parity') ? readdirSync(shared('parity')).filter((name) =>
  /^llama(-(bias|headdim|linear|ropefreqs|tied))?-(F32|F16|BF16|Q4_0|Q8_0|Q4_K_M|Q4_K_S|Q5_K_M|Q6_K)\.json$/.test(name)) : [];
test('the parity vectors of the llama family over HTTP', needs(usable.length, 'no shared parity vectors'), async (t) => {
  if (!await has('python3')) return t.skip('python3 is not installed');
  const dir = mkdtempSync(path.join(tmpdir(), 'shimmyd-parity-'));
  let parity;
  try {
    for (const name of usable) symlinkSync(shared(`parity/${name.replace('.json', '.gguf')}`), path.join(dir, name.replace('.json', '.gguf')));
    parity = await new Daemon({ models: dir }).start();
    // The scalar CPU tier computes in floats throughout; faster ones round activations to 8 bits.
    const tier = device === 'cpu' && process.env.SHIMMY_CPU === 'scalar' ? [] : ['--loose'];
    const { code, output } = await pipe('python3', [shared('parity/check_http.py'), '--url', parity.url, ...tier,
      ...usable.map((name) => shared(`parity/${name}`))], '');
    assert.equal(code, 0, output);
    assert.match(output, new RegExp(`${usable.length} files: ${usable.length} ok`));
  } finally {
    await parity?.stop();
    rmSync(dir, { recursive: true, force: true });
  }
});
