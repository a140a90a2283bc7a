/** `holdfast delete`. */
import { HoldfastError } from '../../errors.ts';
import type { Subcommand } from '../../subcommand.ts';
import { deleteResource } from '../resources/delete-resource.ts';
import { isStoredKind } from '../resources/kinds.ts';
import { oneResource, withContext } from './command-context.ts';

export const remove: Subcommand = {
  help: () => `Usage: holdfast delete KIND NAME [--org UUID]

Deletes a resource. Exit code 1: there was none.
`,
  async run(invocation) {
    return withContext(invocation, { flags: {}, wordsMax: 2 }, async ({ pool, org, actor, words }) => {
      const { kind, name } = oneResource(words, 'delete');
      if (!isStoredKind(kind)) throw new HoldfastError('CONFIG', `delete: ${kind} is not for you to delete`);
      const deleted = await deleteResource(pool, { org, actor }, kind, name);
      invocation.write(deleted ? `${kind}/${name} deleted\n` : `there is no ${kind}/${name}\n`);
      return deleted ? 0 : 1;
    });
  },
};
