import { rm } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { editedTree, MUTATIONS, mutationNamed } from './mutations.ts';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));

test.each(MUTATIONS.map((mutation) => [mutation.name, mutation] as const))(
  'what %s takes out is still there to be taken out',
  async (_, mutation) => {
    const tree = await editedTree(ROOT, mutation, [...(mutation.widened ?? []), ...mutation.edits]);
    await rm(tree, { recursive: true });
  },
);

test('a mutation whose place is gone fails', async () => {
  const mutation = mutationNamed('no-ledger-wait');
  const gone = [{ file: 'src/errors.ts', search: 'not there', replace: '' }];
  await expect(editedTree(ROOT, mutation, gone)).rejects.toThrow('found 0 times');
});
