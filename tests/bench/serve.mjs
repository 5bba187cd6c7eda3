// serve - how a server that speaks OpenAI's API serves several clients: streams of completions over plain node:http, and what came when.
//
// usage: node tests/bench/serve.mjs SCENARIO --url http://127.0.0.1:PORT --model NAME [--clients N] [--requests M] [--seed S]
//        [--shortest 16] [--longest 1500] [--least 32] [--most 128] [--vocab 32000]
//
// Prints name, tab, value. Prompts are token ids at random, the same for the same seed, whatever the server; end tokens are ignored, so
// that every server generates the same number of tokens. Times are milliseconds.
//   load     N clients, each with one request after another, M in all: prompt lengths from shortest to longest, even in their logarithm, answers
//            of least to most tokens. A request has failed if it ends without its number of tokens.
//   arrival  N streams; when all run, a prompt of `longest` tokens arrives: gaps between tokens before it, and until its first token.
//   turns    a chat of about `longest` tokens, then its next turn: time to the first token of both. Needs POST /tokenize.
import http from 'node:http';
import { parseArgs } from 'node:util';

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: Object.fromEntries(['url', 'model', 'clients', 'requests', 'seed', 'shortest', 'longest', 'least', 'most', 'vocab'].map((name) => [name, { type: 'string' }])),
});
const number = (name, otherwise) => (values[name] === undefined ? otherwise : Number(values[name]));
const url = new URL(values.url);
const clients = number('clients', 1), requests = number('requests', 8), vocab = number('vocab', 32000);
const shortest = number('shortest', 16), longest = number('longest', 1500), least = number('least', 32), most = number('most', 128);

// A small generator of its own (mulberry32), since Math.random takes no seed.
let state = number('seed', 1) >>> 0;
function random() {
  state = (state + 0x6d2b79f5) >>> 0;
  let t = state;
  t = Math.imul(t ^ (t >>> 15), t | 1);
  t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
}
const promptOf = (length) => Array.from({ length }, () => 300 + Math.floor(random() * (vocab - 300)));

// Streams a request. Resolves to {begun, times: [of each event with text], tokens, error}; onEvent is told of each as it comes.
function stream(path, body, onEvent = () => {}) {
  return new Promise((resolve) => {
    const result = { begun: performance.now(), times: [], tokens: 0, text: '', error: null };
    const end = (error) => {
      result.error ??= error;
      result.ended = performance.now();
      resolve(result);
    };
    const text = JSON.stringify({ model: values.model, stream: true, stream_options: { include_usage: true }, temperature: 0, ignore_eos: true, ...body });
    const request = http.request(
      { host: url.hostname, port: url.port, path, method: 'POST', agent: false, headers: { 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(text) } },
      (response) => {
        let rest = '', done = false;
        response.setEncoding('utf8');
        response.on('data', (piece) => {
          const now = performance.now();
          rest += piece;
          for (let at; (at = rest.indexOf('\n')) >= 0; rest = rest.slice(at + 1)) {
            const line = rest.slice(0, at).trim();
            if (!line.startsWith('data:')) continue;
            const data = line.slice(5).trim();
            if (data === '[DONE]') {
              done = true;
              continue;
            }
            const event = JSON.parse(data);
            if (event.error) result.error ??= event.error.message;
            if (event.usage?.completion_tokens) result.tokens = event.usage.completion_tokens;
            const choice = event.choices?.[0];
            const word = choice?.text ?? choice?.delta?.content ?? choice?.delta?.reasoning_content;
            if (!word) continue;
            result.text += word;
            result.times.push(now);
            onEvent(result);
          }
        });
        response.on('end', () => end(response.statusCode !== 200 ? `status ${response.statusCode}` : done ? null : 'cut off'));
        response.on('error', (error) => end(error.message));
      },
    );
    request.on('error', (error) => end(error.message));
    request.end(text);
  });
}

const gapsOf = (times) => times.slice(1).map((time, i) => time - times[i]);
function quantile(list, q) {
  const sorted = [...list].sort((a, b) => a - b);
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.ceil(q * sorted.length) - 1)] : NaN;
}
const print = (name, value) => console.log(`${name}\t${typeof value === 'number' ? value.toFixed(2) : value}`);
function printQuantiles(name, list) {
  for (const [suffix, q] of [['p50', 0.5], ['p95', 0.95], ['p99', 0.99]]) print(`${name}_${suffix}`, quantile(list, q));
}
function fail(result, what) {
  console.error(`${what}: ${result.error}`);
  process.exit(1);
}

async function load() {
  const list = Array.from({ length: requests }, () => {
    const length = Math.round(shortest * (longest / shortest) ** random());
    return { prompt: promptOf(length), max_tokens: least + Math.floor(random() * (most - least + 1)) };
  });
  const results = [], begun = performance.now();
  let next = 0;
  await Promise.all(
    Array.from({ length: clients }, async () => {
      while (next < list.length) {
        const wanted = list[next++];
        const result = await stream('/v1/completions', wanted);
        if (!result.error && result.tokens !== wanted.max_tokens) result.error = `${result.tokens} tokens instead of ${wanted.max_tokens}`;
        if (result.error) console.error(`failed: ${result.error}`);
        results.push(result);
      }
    }),
  );
  const seconds = (performance.now() - begun) / 1000, good = results.filter((result) => !result.error);
  const generated = results.reduce((sum, result) => sum + result.tokens, 0);
  print('requests', String(list.length));
  print('failed', String(results.length - good.length));
  print('prompt_tokens', String(list.reduce((sum, wanted) => sum + wanted.prompt.length, 0)));
  print('generated_tokens', String(generated));
  print('tokens_per_second', generated / seconds);
  printQuantiles('first_token', good.map((result) => result.times[0] - result.begun));
  printQuantiles('between_tokens', good.flatMap((result) => gapsOf(result.times)));
}

async function arrival() {
  const length = number('most', 1500), settle = 20;
  let running = 0, all;
  const everyone = new Promise((resolve) => (all = resolve));
  const streams = [];
  for (let i = 0; i < clients; i++)
    streams.push(
      stream('/v1/completions', { prompt: promptOf(shortest), max_tokens: length }, (result) => {
        if (result.times.length === settle && ++running === clients) all();
        streams[i].times = result.times;
      }),
    );
  await Promise.race([everyone, ...streams.map((one) => one.then((result) => fail(result, 'a stream ended before the others ran')))]);
  const from = performance.now();
  await new Promise((resolve) => setTimeout(resolve, number('requests', 8) * 1000));
  const arrived = performance.now();
  const late = await stream('/v1/completions', { prompt: promptOf(longest), max_tokens: 4 });
  if (late.error) fail(late, 'the long prompt');
  const first = late.times[0], before = [], during = [];
  for (const one of streams) {
    gapsOf(one.times).forEach((gap, i) => {
      const end = one.times[i + 1];
      if (end > from && end <= arrived) before.push(gap);
      else if (end > arrived && end - gap < first) during.push(gap);
    });
    if (one.times.at(-1) < first) fail({ error: 'raise --most' }, 'a stream ended before the prompt was taken in');
  }
  printQuantiles('before', before);
  printQuantiles('during', during);
  print('ratio_p95', quantile(during, 0.95) / quantile(before, 0.95));
  print('first_token', first - late.begun);
  process.exit(0); // the streams are of no more use
}

function post(path, body) {
  return fetch(new URL(path, url), { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) }).then((answer) => answer.json());
}

async function turns() {
  const words = 'the river ran past a small house where two people talked about bread and the price of salt in winter'.split(' ');
  const say = (count) => Array.from({ length: count }, () => words[Math.floor(random() * words.length)]).join(' ');
  let text = say(8);
  for (let tokens = 0; tokens < longest; ) {
    text += ` ${say(16)}`;
    tokens = (await post('/tokenize', { model: values.model, content: text })).tokens.length;
  }
  const messages = [{ role: 'user', content: text }];
  const first = await stream('/v1/chat/completions', { messages, max_tokens: least });
  if (first.error) fail(first, 'the first turn');
  messages.push({ role: 'assistant', content: first.text }, { role: 'user', content: 'And what did they say?' });
  const second = await stream('/v1/chat/completions', { messages, max_tokens: least });
  if (second.error) fail(second, 'the second turn');
  const a = first.times[0] - first.begun, b = second.times[0] - second.begun;
  print('first_turn', a);
  print('second_turn', b);
  print('share', b / a);
}

const scenarios = { load, arrival, turns };
if (!scenarios[positionals[0]] || !values.url || !values.model) {
  console.error(`usage: serve.mjs ${Object.keys(scenarios).join('|')} --url URL --model NAME [...]`);
  process.exit(2);
}
await scenarios[positionals[0]]();
