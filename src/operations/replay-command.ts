/** `holdfast replay`: adds history of a ledgered stream to it again. */
import { loadConfig } from '../config/load-config.ts';
import { settingsHelp } from '../config/settings.ts';
import { workerUrl } from '../config/worker-url.ts';
import { HoldfastError } from '../errors.ts';
import type { Subcommand } from '../subcommand.ts';
import { askSidecar } from './admin-connection.ts';

const FLAGS = {
  since: { type: 'string' },
  from: { type: 'string' },
  to: { type: 'string' },
  'dry-run': { type: 'boolean' },
} as const;

export const replay: Subcommand = {
  help: () => `Usage: holdfast replay STREAM (--since TIME | --from ID) [--to TIME | ID] [--dry-run] [--connect URL] [FLAGS]

Adds entries of a ledgered stream to it again, in their order and under new IDs, for all its groups. TIME is ISO 8601 or Unix
milliseconds, and is compared with the time in an entry's ID.

  --dry-run  says what it would add

${settingsHelp()}
`,
  async run({ args, env, workingDirectory, write }) {
    const { config, flags, words } = loadConfig({ args, env, workingDirectory, flags: FLAGS, wordsMax: 1 });
    const [stream] = words;
    const { since, from, to } = flags;
    if (stream === undefined || (since === undefined) === (from === undefined)) {
      throw new HoldfastError('CONFIG', 'replay: say STREAM and one of --since and --from; see holdfast replay --help');
    }
    const dryRun = flags['dry-run'] === true;
    const reply = await askSidecar(workerUrl(config), [
      'REPLAY',
      stream,
      ...(since === undefined ? ['FROM', String(from)] : ['SINCE', String(since)]),
      ...(to === undefined ? [] : ['TO', String(to)]),
      ...(dryRun ? ['DRYRUN'] : []),
    ]);
    const [, entries, , first, , last] = reply as [string, number, string, string | null, string, string | null];
    const range = first === null ? '' : `, ${first} to ${last}`;
    write(`${entries} entries ${dryRun ? 'would be added again' : 'added again'}${range}\n`);
    return 0;
  },
};
