// chat-models.mjs - models of random weights that chat: they know turns, calls and reasoning, and say noise.
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { build, root } from './harness.mjs';

const run = promisify(execFile);
const template = (name) => path.join(root, 'tests/e2e/templates', `${name}.jinja`);

const chatml = ['--control', '<|im_start|>', '--control', '<|im_end|>', '--eos', '<|im_end|>'];
const calls = ['<tool_call>', '</tool_call>', '<tool_response>', '</tool_response>', '<think>', '</think>']
  .flatMap((token) => ['--user-defined', token]);
const llama3 = ['<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>', '<|eom_id|>', '<|python_tag|>']
  .flatMap((token) => ['--control', token]);

const kinds = {
  hermes: ['--bpe', ...chatml, ...calls, '--chat-template', template('hermes')],
  thinker: ['--bpe', ...chatml, ...calls, '--chat-template', template('thinker')],
  llama3: ['--bpe', ...llama3, '--eos', '<|eot_id|>', '--chat-template', template('llama3')],
  plain: ['--spm'], // no template, no markers
  endless: ['--bpe', ...chatml, '--chat-template', template('endless')],
};

// Writes DIR/NAME.gguf, one of the kinds; `more` are further arguments of genmodel.
export async function writeModel(dir, name, kind = name, more = []) {
  await run(path.join(build, 'tests/tools/genmodel'), [path.join(dir, `${name}.gguf`), '--name', name, '--layers', '2', '--embd', '64', '--heads', '2',
    '--kv-heads', '1', '--ff', '128', '--vocab', '1600', '--context', '8192', '--type', 'Q8_0', '--pieces', ...kinds[kind], ...more]);
}

// Writes DIR/NAME.gguf with a published template and the markers that it writes as tokens. Resolves to a bias that makes the ends of reasoning likely.
export async function writeTemplateModel(dir, name, file) {
  const text = readFileSync(file, 'utf8');
  const control = new Set(text.match(/<\|[^|<>\s{}]{1,40}\|>|<｜[^｜<>{}]{1,40}｜>|\[\/?[A-Z_]{3,25}\]|<(start|end)_of_turn>|<\|[a-z_]+>|<[a-z_]+\|>|<\/?seed:[a-z_]+>/g));
  const others = new Set(text.match(/<\/?(think|tool_call|tool_response|tool_calls|arg_key|arg_value)>/g));
  if (others.has('</think>')) others.add('<think>');
  control.delete('<|begin_of_text|>');
  control.delete('<|end_of_text|>');
  const given = [...control].flatMap((token) => ['--control', token]).concat([...others].flatMap((token) => ['--user-defined', token]));
  const vocab = 1600;
  await run(path.join(build, 'tests/tools/genmodel'), [path.join(dir, `${name}.gguf`), '--name', name, '--layers', '1', '--embd', '64', '--heads', '2',
    '--kv-heads', '1', '--ff', '64', '--vocab', String(vocab), '--context', '8192', '--type', 'Q8_0', '--bpe', '--pieces', '--chat-template', file, ...given]);
  // Those given stand at the end of the vocabulary, before its own BOS and EOS.
  const list = [...control, ...others];
  return Object.fromEntries(list.flatMap((token, i) =>
    /^<\/think>$|^\[\/THINK\]$|END_THINKING|inner_suffix|thought_end|^<\|end\|>$|^<channel\|>$|^<\/seed:think>$/.test(token) ? [[vocab - 2 - list.length + i, 5]] : []));
}
