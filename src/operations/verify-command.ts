/** `holdfast verify`: is everything that somebody still needs both in the ledger and in the KV store? */
import { loadConfig } from '../config/load-config.ts';
import { settingsHelp } from '../config/settings.ts';
import { workerUrl } from '../config/worker-url.ts';
import type { VerifyReport } from '../recovery/verify.ts';
import type { Subcommand } from '../subcommand.ts';
import { askSidecar } from './admin-connection.ts';

const KINDS = {
  missing: 'entry is in the ledger, not acknowledged, and not in the stream',
  different: 'entry has other fields in the stream',
  group: 'group is in the ledger and not in the stream',
} as const;

function format({ streams, entries, unsettled, findings, findingsTotal }: VerifyReport): string {
  const lines = findings.map(
    ({ database, stream, kind, what }) => `${stream} (database ${database})  ${what}  ${KINDS[kind]}`,
  );
  for (const stream of unsettled) lines.push(`${stream}  is being restored: not judged`);
  if (findingsTotal > findings.length) lines.push(`and ${findingsTotal - findings.length} more`);
  lines.push(`${streams} streams, ${entries} unacknowledged entries compared, ${findingsTotal} findings`);
  return `${lines.join('\n')}\n`;
}

export const verify: Subcommand = {
  help: () => `Usage: holdfast verify [--json] [--connect URL] [FLAGS]

Asks the running sidecar to compare ledger, streams and groups, entry by entry. What is found is looked at again after recovery has
looked too. Exit code 1 where something is missing.

  --json  the report as JSON

${settingsHelp()}
`,
  async run({ args, env, workingDirectory, write }) {
    const { config, flags } = loadConfig({ args, env, workingDirectory, flags: { json: { type: 'boolean' } } });
    const text = String(await askSidecar(workerUrl(config), ['LEDGER', 'VERIFY']));
    const report = JSON.parse(text) as VerifyReport;
    write(flags.json === true ? `${JSON.stringify(report, undefined, 2)}\n` : format(report));
    return report.findingsTotal === 0 ? 0 : 1;
  },
};
