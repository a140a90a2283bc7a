import { expect, test } from 'vitest';
import { readManifest } from '../../src/flight-control/manifest/read-manifest.ts';
import golden from '../golden/yaml.json' with { type: 'json' };

interface Case {
  readonly id: string;
  readonly yaml: string;
  readonly json?: unknown;
  readonly refuse?: boolean;
}

test.each(golden.cases as Case[])('$id: $yaml', ({ yaml, json, refuse }) => {
  const documents = [...readManifest(yaml)];
  if (refuse === true) {
    expect(documents.some(({ problem }) => problem !== undefined)).toBe(true);
    return;
  }
  expect(documents.filter(({ problem }) => problem !== undefined)).toEqual([]);
  const values = documents.map(({ value }) => value);
  expect(Array.isArray(json) ? values : values[0]).toEqual(json);
});

const HOSTILE: Readonly<Record<string, [() => string, RegExp]>> = {
  '100,000 levels of JSON': [() => `${'{"a":'.repeat(100_000)}1${'}'.repeat(100_000)}`, /nested deeper/],
  '100,000 levels of lists': [() => `${'['.repeat(100_000)}${']'.repeat(100_000)}`, /nested deeper/],
  '101 levels': [() => `${'['.repeat(102)}${']'.repeat(102)}`, /nested deeper/],
  'a NUL': [() => 'a: "x\\0y"', /NUL/],
  'a raw NUL': [() => 'a: x\0y', /NUL/],
  'a lone surrogate': [() => 'a: "\\uD800"', /surrogate/],
  ['__proto__']: [() => '"__proto__": {polluted: true}', /__proto__/],
  '50 MB of one string': [() => `a: "${'x'.repeat(50_000_000)}"`, /at most 8388608/],
  'four million ones': [() => `a: [${'1,'.repeat(4_000_000)}1]`, /more than 250000/],
  'four million keys': [() => `{${'"a":1,'.repeat(1_300_000)}}`, /more than 250000/],
  'a key twice': [() => 'a: 1\na: 2', /"a" stands twice/],
  'an alias of itself': [() => 'a: &a [*a]', /nested deeper|stands for|nresolved/],
  'an unknown alias': [() => 'a: *b', /b/],
  infinity: [() => 'a: .inf', /JSON/],
  'a tag of its own': [() => 'a: !!js/function x', /tag/],
};

test.each(Object.keys(HOSTILE))('refuses %s', (name) => {
  const [text, expected] = HOSTILE[name]!;
  const [document] = readManifest(text());
  expect(document?.problem).toMatch(expected);
  expect(({} as Record<string, unknown>).polluted).toBeUndefined();
});

test('counts documents as YAML does', () => {
  const numbers = [...readManifest('# head\n---\na: 1\n---\n---\n# nothing\n---\nb: [\n')].map(({ number }) => number);
  expect(numbers).toEqual([1, 4]);
});

test.each([
  ['08', 8],
  ['1_000', 1000],
  ['0b11', 3],
  ['-0x1F', -31],
  ['1e3', 1000],
  ['+7', 7],
  ['1.5.2', '1.5.2'],
  ['0x', '0x'],
  ['Yes', true],
  ['yEs', 'yEs'],
])('%s is read as YAML 1.1 reads it', (text, expected) => {
  expect([...readManifest(`a: ${text}`)][0]?.value).toEqual({ a: expected });
});

test('passes over a million empty documents', () => {
  expect([...readManifest(`${'---\n'.repeat(1_000_000)}a: 1\n`)]).toEqual([{ number: 1_000_000, value: { a: 1 } }]);
});
