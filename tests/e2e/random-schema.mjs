// random-schema.mjs - schemas drawn from a seed: every keyword that is enforced, in combinations that nobody would write. Many contradict themselves or cannot be
// enforced; a server says so, or its answers are valid.

function generator(seed) { // mulberry32
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

const patterns = ['^[a-c]{1,3}$', '^\\d+$', 'x', '^(ab|cd)*$', '[^a]$', '^.{2}$', '^$', '\\w\\s?\\w', '^[\\u00e0-\\u00ff]', '^a|b$', '\\\\', '"', '^[^"]{0,3}$'];
const formats = ['date', 'time', 'date-time', 'uuid'];
const names = ['a', 'b', 'ab', 'é', 'a"b', 'x1', '', 'x-y'];
const texts = ['', 'a', 'ab', 'é', 'x1', '12', 'a b', '"', '\\', '2024-02-29', '日本', 'cd\n'];

export function randomSchema(seed) {
  const random = generator(seed);
  const below = (n) => Math.floor(random() * n);
  const pick = (list) => list[below(list.length)];
  const chance = (p) => random() < p;
  const some = (list, most) => [...list].sort(() => random() - 0.5).slice(0, 1 + below(most));
  const defs = chance(0.4) ? ['one', 'two'] : [];

  const value = (depth) => {
    switch (below(depth > 0 ? 8 : 6)) {
      case 0: return null;
      case 1: return chance(0.5);
      case 2: return below(30) - 10;
      case 3: return (below(300) - 100) / 8;
      case 4: case 5: return pick(texts);
      case 6: return Array.from({ length: below(3) }, () => value(depth - 1));
      default: return Object.fromEntries(some(names, 2).map((name) => [name, value(depth - 1)]));
    }
  };
  const integers = (out) => {
    const low = below(400) - 200, high = low + below(pick([1, 5, 50, 5000]));
    if (chance(0.8)) out[chance(0.8) ? 'minimum' : 'exclusiveMinimum'] = low;
    if (chance(0.8)) out[chance(0.8) ? 'maximum' : 'exclusiveMaximum'] = high + 1;
    return out;
  };
  const numbers = (out) => {
    const low = (below(400) - 200) / pick([1, 4, 10, 1000]);
    if (chance(0.6)) out[chance(0.7) ? 'minimum' : 'exclusiveMinimum'] = low;
    if (chance(0.6)) out[chance(0.7) ? 'maximum' : 'exclusiveMaximum'] = low + pick([0.5, 1.25, 10, 1000.5]);
    return out;
  };
  const strings = (out) => {
    if (chance(0.6)) out.maxLength = below(8);
    if (chance(0.3)) out.minLength = below(4);
    if (chance(0.35)) out.pattern = pick(patterns);
    else if (chance(0.2)) out.format = pick(formats);
    return out;
  };
  const arrays = (out, depth) => {
    if (chance(0.4)) out.prefixItems = Array.from({ length: 1 + below(2) }, () => schema(depth - 1));
    if (chance(0.8)) out.items = chance(0.1) ? false : schema(depth - 1);
    if (chance(0.8)) out.maxItems = below(4);
    if (chance(0.3)) out.minItems = below(3);
    return out;
  };
  const objects = (out, depth) => {
    if (chance(0.9)) out.properties = Object.fromEntries(some(names, 3).map((name) => [name, schema(depth - 1)]));
    if (chance(0.6)) out.required = some([...Object.keys(out.properties ?? {}), ...(chance(0.15) ? ['q'] : [])], 3).filter((name) => name !== undefined);
    if (out.required?.length === 0) delete out.required;
    if (chance(0.75)) out.additionalProperties = chance(0.75) ? false : schema(depth - 1);
    if (chance(0.12)) out.patternProperties = { [pick(['^x', '^a', '\\d', '^[a-b]+$'])]: schema(depth - 1) };
    if (chance(0.1)) out.minProperties = below(3);
    if (chance(0.1)) out.maxProperties = 1 + below(3);
    return out;
  };
  const typed = (depth) => {
    const one = (type) => {
      if (type === 'integer') return integers({});
      if (type === 'number') return numbers({});
      if (type === 'string') return strings({});
      if (type === 'array') return arrays({}, depth);
      if (type === 'object') return objects({}, depth);
      return {};
    };
    const all = depth > 0 ? ['integer', 'number', 'string', 'string', 'boolean', 'null', 'array', 'object', 'object'] : ['integer', 'number', 'string', 'boolean', 'null'];
    if (chance(0.12)) {
      const types = [...new Set(some(all, 3))];
      return Object.assign({ type: types }, ...types.map(one));
    }
    const type = pick(all);
    return { ...(chance(0.95) ? { type } : {}), ...one(type) };
  };
  const schema = (depth) => {
    const r = random();
    if (r < 0.08) return { enum: Array.from({ length: 1 + below(4) }, () => value(1)), ...(chance(0.3) ? typed(0) : {}) };
    if (r < 0.12) return { const: value(2) };
    if (depth > 0 && r < 0.2) return { anyOf: Array.from({ length: 2 + below(2) }, () => schema(depth - 1)), ...(chance(0.2) ? typed(0) : {}) };
    if (depth > 0 && r < 0.25) return { oneOf: Array.from({ length: 2 }, () => schema(depth - 1)) };
    if (depth > 0 && r < 0.33) return { allOf: Array.from({ length: 2 }, () => schema(depth - 1)), ...(chance(0.3) ? typed(0) : {}) };
    if (defs.length > 0 && r < 0.4) return { $ref: `#/$defs/${pick(defs)}`, ...(chance(0.2) ? typed(0) : {}) };
    return typed(depth);
  };
  const root = schema(3);
  return defs.length > 0 ? { ...root, $defs: { one: schema(1), two: typed(1) } } : root;
}
