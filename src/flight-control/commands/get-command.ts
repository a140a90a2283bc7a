/** `holdfast get`: resources as a table, YAML, JSON or names. */
import { HoldfastError } from '../../errors.ts';
import type { Subcommand } from '../../subcommand.ts';
import { formatYaml } from '../manifest/format-yaml.ts';
import { isStoredKind } from '../resources/kinds.ts';
import { findResource, parseLabelSelector, queryResources } from '../resources/query-resources.ts';
import { type Resource, toDocument } from '../resources/resource.ts';
import { type CommandContext, countFlag, namedResource, textFlag, withContext } from './command-context.ts';
import { tableHead, tableRow } from './resource-table.ts';

const FLAGS = {
  output: { type: 'string', short: 'o' },
  selector: { type: 'string', short: 'l' },
  limit: { type: 'string' },
  watch: { type: 'boolean', short: 'w' },
} as const;
const FORMATS = ['table', 'yaml', 'json', 'name'] as const;
type Format = (typeof FORMATS)[number];
const WATCH_MS = 1000;

export const get: Subcommand = {
  help: () => `Usage: holdfast get KIND [NAME] [-o table|yaml|json|name] [-l SELECTOR] [--limit N] [--watch] [--org UUID]

Shows resources, by name. Secrets are shown as *****; what -o yaml gives can be applied again and changes nothing.

  -l SELECTOR  such as site=berlin,env!=prod,tier in (a, b),site,!old
  --limit N    the first N
  --watch      goes on with what changes, until it is interrupted
`,
  async run(invocation) {
    const { write, stopRequested } = invocation;
    return withContext(invocation, { flags: FLAGS, wordsMax: 2 }, async (context) => {
      const format = (textFlag(context, 'output') ?? 'table') as Format;
      if (!FORMATS.includes(format)) throw new HoldfastError('CONFIG', `-o: must be one of ${FORMATS.join(', ')}`);
      const { kind, name } = namedResource(context.words, 'get');
      if (!isStoredKind(kind)) {
        const instead = kind === 'Event' ? '; see holdfast events' : '';
        throw new HoldfastError('CONFIG', `get: ${kind} is not shown here${instead}`);
      }
      if (name !== undefined && textFlag(context, 'selector') !== undefined) {
        throw new HoldfastError('CONFIG', 'get: say either a name or -l');
      }
      const print = printer(format, kind, name === undefined, write);
      const seen = new Map<string, string>();
      let found = await showAll(context, kind, name, (resource) => {
        seen.set(resource.name, resource.resource_version);
        print.one(resource);
      });
      print.end();
      if (context.flags.watch === true) {
        let stopped = false;
        const stop = stopRequested.then(() => {
          stopped = true;
        });
        while (!stopped) {
          await Promise.race([stop, new Promise((resolve) => setTimeout(resolve, WATCH_MS))]);
          if (stopped) break;
          await showAll(context, kind, name, (resource) => {
            if (seen.get(resource.name) === resource.resource_version) return;
            seen.set(resource.name, resource.resource_version);
            print.one(resource);
          });
        }
        found = true;
      }
      if (found || name === undefined) return 0;
      throw new HoldfastError('CONFIG', `there is no ${kind}/${name}`);
    });
  },
};

async function showAll(
  context: CommandContext,
  kind: string,
  name: string | undefined,
  show: (resource: Resource) => void,
): Promise<boolean> {
  const { pool, org } = context;
  if (name !== undefined) {
    const resource = await findResource(pool, org, kind, name);
    if (resource !== undefined) show(resource);
    return resource !== undefined;
  }
  const selector = textFlag(context, 'selector');
  const labels = selector === undefined ? [] : parseLabelSelector(selector);
  for await (const page of queryResources(pool, { org, kind, labels, limit: countFlag(context, 'limit') })) {
    for (const resource of page) show(resource);
  }
  return true;
}

function printer(
  format: Format,
  kind: string,
  many: boolean,
  write: (text: string) => void,
): { one(resource: Resource): void; end(): void } {
  let count = 0;
  return {
    one(resource) {
      count += 1;
      switch (format) {
        case 'name':
          return write(`${kind.toLowerCase()}/${resource.name}\n`);
        case 'yaml':
          return write(`${count > 1 ? '---\n' : ''}${formatYaml(toDocument(resource))}`);
        case 'json':
          // A document for each, so that many need not be held.
          return write(`${JSON.stringify(toDocument(resource), null, many ? undefined : 2)}\n`);
        case 'table':
          if (count === 1) write(tableHead(kind));
          return write(tableRow(resource));
      }
    },
    end() {
      if (count === 0 && format === 'table' && many) write(`no ${kind}\n`);
    },
  };
}
