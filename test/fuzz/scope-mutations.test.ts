import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { MUTATIONS } from './scope-mutations.ts';

test.each(MUTATIONS.map((mutation) => [mutation.name, mutation] as const))(
  'there is one place for: %s',
  (_, { file, find, replace }) => {
    const source = readFileSync(new URL(`../../${file}`, import.meta.url), 'utf8');
    expect(source.split(find)).toHaveLength(2);
    expect(replace).not.toBe(find);
  },
);
