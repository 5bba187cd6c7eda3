// chat-models.mjs - models of random weights that chat: they know turns, calls and reasoning, and say noise.
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
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
