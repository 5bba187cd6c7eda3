// soak.test.mjs - the short form of `make soak`.
import { test } from 'node:test';
import assert from 'node:assert/strict';
import { needs, shared } from './harness.mjs';
import { full } from './faults.mjs';
import { soak } from './soak.mjs';

test('some hundred mixed requests leave nothing behind', needs(shared('models/stories260K.gguf'), 'no shared models'), async (t) => {
  const { failures } = await soak({ requests: full ? 10000 : 500, print: (line) => t.diagnostic(line) });
  assert.deepEqual(failures, []);
});
