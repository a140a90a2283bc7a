/** `holdfast describe`: one resource for a reader, with its conditions and its last events. */
import { HoldfastError } from '../../errors.ts';
import type { Subcommand } from '../../subcommand.ts';
import { formatEvent, listEvents } from '../events/list-events.ts';
import { formatYaml } from '../manifest/format-yaml.ts';
import { field, isList, type JsonValue } from '../manifest/json-value.ts';
import { findResource } from '../resources/query-resources.ts';
import { toDocument } from '../resources/resource.ts';
import { oneResource, withContext } from './command-context.ts';
import { labelsText } from './resource-table.ts';

const EVENTS_SHOWN = 20;

export const describe: Subcommand = {
  help: () => `Usage: holdfast describe KIND NAME [--org UUID]

Shows a resource, its conditions and its last ${EVENTS_SHOWN} events. Secrets are shown as *****.
`,
  async run(invocation) {
    const { write } = invocation;
    return withContext(invocation, { flags: {}, wordsMax: 2 }, async ({ pool, org, words }) => {
      const { kind, name } = oneResource(words, 'describe');
      const resource = await findResource(pool, org, kind, name);
      if (resource === undefined) throw new HoldfastError('CONFIG', `there is no ${kind}/${name}`);
      const { labels, annotations, owner, generation, created_at: createdAt, status } = resource;
      write(`${kind}/${name}\n`);
      write(`owner        ${owner ?? '-'}\n`);
      write(`labels       ${labelsText(labels) || '-'}\n`);
      for (const [key, value] of Object.entries(annotations)) write(`annotation   ${key}=${value}\n`);
      write(`generation   ${generation}, resource version ${resource.resource_version}\n`);
      write(`created at   ${createdAt.toISOString()}\n`);
      if (kind === 'Fleet') write(`devices      ${await countOwned(`Fleet/${name}`)}\n`);
      write(`\nspec\n${indented(formatYaml((field(toDocument(resource), 'spec') ?? {}) as JsonValue))}`);
      write('\nconditions\n');
      const conditions = field(status, 'conditions');
      for (const one of isList(conditions) ? conditions : []) {
        const text = ['status', 'reason', 'message'].map((key) => String(field(one, key) ?? '')).join('  ');
        write(`  ${String(field(one, 'type')).padEnd(16)}  ${text.trimEnd()}\n`);
      }
      write(`\nlast events\n`);
      const events = await listEvents(pool, { org, object: { kind, name }, limit: EVENTS_SHOWN });
      for (const event of events) write(`  ${formatEvent(event)}`);
      return 0;

      async function countOwned(fleet: string): Promise<string> {
        const { rows } = await pool.query<{ count: string }>(
          'SELECT count(*) FROM flight_control.resource WHERE org = $1 AND owner = $2',
          [org, fleet],
        );
        return rows[0]!.count;
      }
    });
  },
};

function indented(text: string): string {
  return text.replace(/^(?=.)/gm, '  ');
}
