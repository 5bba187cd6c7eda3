// concurrent.test.mjs - 32 streams of the openai client at once say what the same requests say one by one, with prefixes shared, with a cache that is
// too small for all, and with speculation by lookup and by a draft model.
import { test } from 'node:test';
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { copyFileSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import OpenAI from 'openai';
import { Daemon, model, needs, shared, shimmyctl } from './harness.mjs';

const run = promisify(execFile);

const file = shared('models/stories260K.gguf');
const there = needs(file, 'no shared models');
const STREAMS = 32;
const openings = ['Once upon a time', 'Lily and Tom went to the park. ', 'The little dog was very', 'One day, a girl named Lily '];
const schema = { type: 'object', properties: { name: { type: 'string', maxLength: 8 }, age: { type: 'integer', minimum: 0, maximum: 99 } },
  required: ['name', 'age'], additionalProperties: false };

// Different lengths, samplers, choices and stops; a third repeats itself, a few are held to a schema.
function request(i) {
  const opening = openings[i % openings.length];
  return {
    model,
    prompt: i % 3 === 0 ? `${opening} ${opening} ${opening}` : opening,
    max_tokens: 8 + (i * 7) % 60,
    temperature: [0, 0.7, 1.2][i % 3],
    seed: 100 + i,
    ...(i % 4 === 1 ? { top_p: 0.9 } : {}),
    ...(i % 5 === 2 ? { frequency_penalty: 0.5, presence_penalty: 0.2 } : {}),
    ...(i % 6 === 3 ? { stop: ['.', 'dog'] } : {}),
    ...(i % 7 === 4 ? { n: 2 } : {}),
    ...(i % 8 === 5 ? { logprobs: 2 } : {}),
    ...(i % 16 === 7 ? { max_tokens: 60, response_format: { type: 'json_schema', json_schema: { name: 'one', schema } } } : {}),
  };
}

async function say(client, i) {
  const said = { choices: [] };
  const stream = await client.completions.create({ ...request(i), stream: true, stream_options: { include_usage: true }, return_token_ids: true });
  for await (const chunk of stream) {
    if (chunk.usage) said.tokens = chunk.usage.completion_tokens;
    for (const choice of chunk.choices) {
      const to = said.choices[choice.index] ??= { text: '', ids: [], logprobs: [], finish: null };
      to.text += choice.text;
      to.ids.push(...choice.token_ids);
      to.logprobs.push(...(choice.logprobs?.token_logprobs ?? []));
      to.finish = choice.finish_reason ?? to.finish;
    }
  }
  return said;
}

async function withDaemon(options, what) {
  const daemon = await new Daemon(options).start();
  try {
    return await what(daemon, new OpenAI({ baseURL: `${daemon.url}/v1`, apiKey: 'none', maxRetries: 0 }));
  } finally {
    await daemon.stop();
  }
}

const indices = [...Array(STREAMS).keys()];

test('32 streams at once say what they say one by one', there, async () => {
  const alone = [];
  await withDaemon({ args: ['--max-sequences', '2', '--prefix-cache', '0', '--speculation=no'] }, async (daemon, client) => {
    for (const i of indices) alone.push(await say(client, i));
  });
  assert.ok(alone.every((one) => one.choices.every((choice) => choice.finish)));

  const dir = mkdtempSync(path.join(tmpdir(), 'shimmyd-concurrent-'));
  copyFileSync(file, path.join(dir, `${model}.gguf`));
  copyFileSync(file, path.join(dir, 'drafts.gguf'));
  try {
    const ways = [
      { args: ['--max-sequences', '40'] },
      { args: ['--max-sequences', '40', '--kv-tokens', '512'] },
      { args: ['--max-sequences', '40', '--draft', 'drafts'], models: dir },
    ];
    for (const way of ways) {
      await withDaemon(way, async (daemon, client) => {
        for (let round = 0; round < 2; round++) {
          const together = await Promise.all(indices.map((i) => say(client, i)));
          for (const i of indices) assert.deepEqual(together[i], alone[i], `request ${i} of round ${round} with ${way.args.join(' ')}`);
        }
        assert.equal(await daemon.metric(`shimmy_kv_pages_used{model="${model}"}`), 0);
        const series = (name, source) => daemon.metric(`${name}{model="${model}",source="${source}"}`);
        const guessed = await series('shimmy_draft_tokens_total', 'lookup') + await series('shimmy_draft_tokens_total', 'model');
        const right = await series('shimmy_draft_accepted_total', 'lookup') + await series('shimmy_draft_accepted_total', 'model');
        assert.ok(right <= guessed, `${right} of ${guessed} guesses right`);
      });
    }
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
});

test('a draft model that does not fit is refused with what differs, and one that fits is used', there, async () => {
  await withDaemon({}, async (daemon) => {
    const ctl = (...args) => run(shimmyctl, ['--socket', daemon.socket, ...args]);
    await assert.rejects(ctl('load', model, '--draft', 'llama-2-tiny-random.f16'), (error) => error.code === 1 && /32000 tokens.*512/.test(error.stderr));
    await assert.rejects(ctl('load', model, '--draft', 'nothing-of-that-name'), (error) => error.code === 1);
    const twin = path.join(daemon.dir, 'twin.gguf');
    copyFileSync(file, twin);
    await ctl('load', model, '--draft', twin);
    assert.equal((await daemon.status()).models.find((one) => one.id === model).draft, 'twin');
    const say = async (...args) => {
      const { stdout } = await ctl('generate', model, '-p', 'Once upon a time', '-n', '100', '--seed', '3', '--json', ...args);
      const lines = stdout.trim().split('\n').map((line) => JSON.parse(line));
      return { tokens: lines.map((line) => line.token).filter((token) => token !== undefined), usage: lines.at(-1).usage };
    };
    const plain = await say('--no-speculation');
    assert.equal(plain.usage.draft_tokens, 0);
    const guessed = await say();
    assert.ok(guessed.usage.accepted_tokens <= guessed.usage.draft_tokens);
    assert.equal(plain.tokens.length, 100);
    assert.deepEqual(guessed.tokens, plain.tokens);
  });
});
