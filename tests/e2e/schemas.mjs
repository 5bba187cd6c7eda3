// schemas.mjs - JSON schemas that bound everything that they let a model write, for structured.test.mjs; and schemas that a server has to refuse
// or to enforce, but may not ignore.

const object = (properties, more = {}) => ({
  type: 'object', properties, required: Object.keys(properties), additionalProperties: false, ...more,
});
const short = (maxLength, more = {}) => ({ type: 'string', maxLength, ...more });
const list = (items, minItems, maxItems) => ({ type: 'array', items, minItems, maxItems });
const between = (minimum, maximum) => ({ type: 'integer', minimum, maximum });
const pattern = (text) => ({ type: 'string', pattern: text });
const format = (name) => ({ type: 'string', format: name });

export const schemas = {
  // types
  boolean: { type: 'boolean' },
  null: { type: 'null' },
  string: short(12),
  integer: between(-1000, 1000),
  number: { type: 'number' },
  'several types': { type: ['boolean', 'null', 'integer'] },
  'types, the string bounded': { type: ['string', 'null'], maxLength: 5 },
  'an empty object': object({}),
  'an empty array': { type: 'array', maxItems: 0 },
  'an empty string': short(0),
  // enum, const
  enum: { enum: ['red', 'green', 'blue', 'r', 're'] },
  'enum of all kinds': { enum: [null, true, -1.5, 'x"y\\z', [1, 'two', { three: 3 }], { a: [], b: {} }] },
  'enum of a type': { type: 'string', enum: ['Ä', 'ä', '日本語', '🎉🎉', ''] },
  const: { const: { kind: 'fixed', values: [1, 2.5, null], text: 'a\nb' } },
  'const string': object({ type: { const: 'user' }, id: between(1, 9) }),
  // strings
  'lengths': short(6, { minLength: 3 }),
  'exactly one': short(1, { minLength: 1 }),
  'long string': short(120, { minLength: 60 }),
  pattern: pattern('^[a-z]{2,5}-[0-9]{3}$'),
  'pattern with choices': pattern('^(GET|POST|PUT) /[a-z]{1,8}(\\?q=\\d{1,3})?$'),
  'pattern with classes': pattern('^\\w{1,4}\\s\\d{2}[^a-z"\\\\]{1,3}$'),
  'pattern beyond ASCII': pattern('^[à-ü]{1,4}[日本]{0,2}\\u20ac?$'),
  'pattern of quotes': pattern('^"[\\\\/]{1,2}"$'),
  'pattern in parts': pattern('^(?:[A-F0-9]{2}:){5}[A-F0-9]{2}$'),
  date: format('date'),
  time: format('time'),
  'date-time': format('date-time'),
  uuid: format('uuid'),
  // integers
  'at least': { type: 'integer', minimum: 17, maximum: 23 },
  'one sign': between(-99, -10),
  'exclusive bounds': { type: 'integer', exclusiveMinimum: 0, exclusiveMaximum: 4 },
  'far bounds': between(-123456789, 987654321),
  'one value': between(7, 7),
  'across powers of ten': between(95, 10010),
  // arrays
  'array of integers': list(between(0, 255), 1, 5),
  'exactly three': list({ type: 'boolean' }, 3, 3),
  'array of arrays': list(list(between(-9, 9), 0, 3), 2, 3),
  'tuple': { type: 'array', prefixItems: [short(4), between(0, 9), { type: 'boolean' }], items: false, minItems: 3, maxItems: 3 },
  'tuple and more': { type: 'array', prefixItems: [{ const: 'head' }, { type: 'null' }], items: between(1, 3), minItems: 1, maxItems: 5 },
  'array of objects': list(object({ x: between(0, 99), y: between(0, 99) }), 0, 3),
  // objects
  object: object({ name: short(10), age: between(0, 150) }),
  'optional properties': object({ a: between(0, 9), b: short(3), c: { type: 'boolean' }, d: { type: 'null' } }, { required: ['b'] }),
  'nothing required': object({ first: between(1, 2), second: between(1, 2), third: between(1, 2) }, { required: [] }),
  'required elsewhere': object({ z: { type: 'boolean' }, a: between(0, 1), m: { type: 'null' } }, { required: ['m', 'z'] }),
  'names beyond ASCII': object({ 'naïve': between(0, 1), '日本': { type: 'boolean' }, '🎉': short(2), 'Ж': { type: 'null' } }),
  'names to escape': object({ 'a"b': between(0, 1), 'c\\d': { type: 'boolean' }, 'e\nf': { type: 'null' }, '': short(1), 'g/h': { const: 1 } }),
  'names that begin alike': object({ a: between(0, 1), ab: between(2, 3), abc: between(4, 5), abcd: { type: 'null' } }, { required: ['abc'] }),
  nested: object({ user: object({ name: short(8), address: object({ city: short(8), zip: pattern('^[0-9]{5}$') }) }), tags: list(short(4), 0, 2) }),
  'deeply nested': object({ a: object({ b: object({ c: object({ d: object({ e: list(list(object({ f: between(0, 9) }), 1, 1), 1, 1) }) }) }) }) }),
  nullable: object({ name: { anyOf: [short(5), { type: 'null' }] }, n: { type: ['integer', 'null'], minimum: 0, maximum: 9 } }),
  // references
  'a reference': { ...object({ from: { $ref: '#/$defs/point' }, to: { $ref: '#/$defs/point' } }), $defs: { point: object({ x: between(-9, 9), y: between(-9, 9) }) } },
  'references to references': { $ref: '#/$defs/a', $defs: { a: list({ $ref: '#/$defs/b' }, 1, 2), b: { $ref: '#/$defs/c' }, c: { enum: [1, 'one'] } } },
  'a chain': {
    $ref: '#/$defs/node',
    $defs: { node: object({ value: between(0, 9), next: { anyOf: [{ type: 'null' }, { type: 'null' }, { $ref: '#/$defs/node' }] } }) },
  },
  'a tree': {
    $defs: { tree: { anyOf: [between(0, 99), { type: 'array', maxItems: 2, items: { $ref: '#/$defs/tree' } }] } },
    ...object({ root: { $ref: '#/$defs/tree' } }),
  },
  'reference into properties': object({ one: short(3), two: { $ref: '#/properties/one' } }),
  'names of references to escape': { $ref: '#/$defs/a~1b~0c%20d', $defs: { 'a/b~c d': between(3, 5) } },
  // combinations
  anyOf: { anyOf: [between(0, 9), short(3), { type: 'boolean' }] },
  oneOf: { oneOf: [object({ kind: { const: 'circle' }, radius: between(1, 9) }), object({ kind: { const: 'square' }, side: between(1, 9) })] },
  allOf: { allOf: [{ type: 'integer', minimum: 5 }, { maximum: 12 }] },
  'allOf of objects': {
    type: 'object',
    allOf: [
      { properties: { a: between(0, 9) }, required: ['a'] },
      { properties: { b: short(3) }, required: ['b'] },
    ],
    properties: { a: true, b: true },
    additionalProperties: false,
  },
  'anyOf in an array': list({ anyOf: [{ type: 'null' }, object({ n: between(1, 3) }), list({ type: 'boolean' }, 1, 2)] }, 1, 3),
  // what people send
  'a function call': object({ name: { enum: ['get_weather', 'get_time'] }, arguments: object({ city: short(16, { minLength: 1 }), unit: { enum: ['C', 'F'] } }) }),
  'an event': object({
    id: format('uuid'), at: format('date-time'), day: format('date'), severity: { enum: ['low', 'high'] }, count: between(1, 64),
    title: short(20, { minLength: 1, title: 'Title', description: 'What happened', examples: ['Fire'], default: 'none' }),
  }, { $schema: 'https://json-schema.org/draft/2020-12/schema', title: 'Event', description: 'An event.' }),
  'an extraction': object({
    people: list(object({ name: short(10), born: { anyOf: [format('date'), { type: 'null' }] } }), 1, 2),
    mood: { enum: ['good', 'bad', null] }, score: { type: 'number' }, sure: { type: 'boolean' },
  }),
};

// Schemas without bounds: what ends satisfies them, what is cut is a prefix.
export const open = {
  anything: {},
  'true': true,
  'any string': { type: 'string' },
  'at least five characters': { type: 'string', minLength: 5 },
  'any array': { type: 'array' },
  'array of at least two': { type: 'array', minItems: 2, items: { type: 'boolean' } },
  'any object': { type: 'object' },
  'any integer': { type: 'integer' },
  'no upper bound': { type: 'integer', minimum: 12 },
  'no lower bound': { type: 'integer', maximum: -3 },
  'a map': { type: 'object', additionalProperties: between(0, 9) },
  'known names and others': { type: 'object', properties: { a: between(0, 1), b: { type: 'null' } }, required: ['a'], additionalProperties: { type: 'string', maxLength: 2 } },
  'others of any kind': { type: 'object', properties: { ab: { const: 1 }, aé: { const: 2 } }, required: ['aé'] },
  'tuple without an end': { type: 'array', prefixItems: [{ type: 'boolean' }, between(1, 2)] },
  'pattern without bounds': pattern('^a+b*$'),
  'pattern anywhere': pattern('[0-9]{2}'),
  'pattern at the start': pattern('^ab?c'),
  'words': list({ enum: ['a', 'b'] }, 0, undefined),
};

// Keywords that are hard to enforce. A server has to say so by name (400), or to enforce them; noise never satisfies these schemas by chance.
export const doubtful = {
  not: { type: 'integer', minimum: 0, maximum: 9, not: { enum: [0, 1, 2, 3, 4, 5, 6, 7, 8] } },
  if: { type: 'integer', minimum: 0, maximum: 9, if: { minimum: 0 }, then: { const: 4 }, else: false },
  oneOf: { oneOf: [between(0, 99), between(1, 100)] },
  multipleOf: { type: 'integer', minimum: 1, maximum: 99999, multipleOf: 10007 },
  uniqueItems: { type: 'array', items: { type: 'boolean' }, minItems: 2, maxItems: 2, uniqueItems: true },
  contains: { type: 'array', items: { type: 'integer', minimum: 0, maximum: 99 }, minItems: 2, maxItems: 2, contains: { const: 42 } },
  patternProperties: { type: 'object', patternProperties: { '^x': { const: 1 } }, required: ['x1'], additionalProperties: { type: 'string', maxLength: 1 } },
  propertyNames: { type: 'object', propertyNames: { pattern: '^[ab]{3}$' }, minProperties: 1, maxProperties: 2, additionalProperties: { type: 'null' } },
  minProperties: object({ a: { type: 'null' }, b: { type: 'null' }, c: { type: 'null' } }, { required: [], minProperties: 3 }),
  dependentRequired: object({ a: { const: 1 }, b: { const: 2 } }, { required: ['a'], dependentRequired: { a: ['b'] } }),
  dependentSchemas: object({ a: { const: 1 }, b: { enum: [1, 2, 3, 4, 5] } }, { dependentSchemas: { a: { properties: { b: { const: 5 } } } } }),
  unevaluatedProperties: { type: 'object', allOf: [{ properties: { a: { type: 'null' } }, required: ['a'] }], unevaluatedProperties: false },
  minimum: { type: 'number', minimum: 0.5, maximum: 0.75 },
  format: { type: 'string', format: 'ipv4', maxLength: 15 },
  $dynamicRef: { $defs: { a: { $dynamicAnchor: 'x', const: 3 } }, $dynamicRef: '#x' },
  pattern: { type: 'string', pattern: '^(?=.*7)[0-9]{4}$' },
  maxLength: { type: 'string', pattern: '[0-9]{2}', maxLength: 4 },
};
