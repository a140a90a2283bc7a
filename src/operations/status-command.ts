import { formatAddress } from '../config/address.ts';
import type { Config } from '../config/config.ts';
import { loadConfig } from '../config/load-config.ts';
import { settingsHelp } from '../config/settings.ts';
import { HoldfastError, messageOf } from '../errors.ts';
import type { Subcommand } from '../subcommand.ts';
import { formatStatus, type StatusReport } from './status-report.ts';

const TIMEOUT_MS = 5000;

function isStatusReport(value: unknown): value is StatusReport {
  return typeof value === 'object' && value !== null && 'kv' in value && 'clients' in value;
}

async function fetchStatus(http: Config['http']): Promise<StatusReport> {
  if (http === 'off') throw new HoldfastError('CONFIG', 'http: is off, and status is read over it');
  if ('path' in http) throw new HoldfastError('CONFIG', 'http: status is read over TCP only');
  const host = http.host === '0.0.0.0' || http.host === '::' ? 'localhost' : http.host;
  const url = `http://${formatAddress({ host, port: http.port })}/status`;
  try {
    const response = await fetch(url, { signal: AbortSignal.timeout(TIMEOUT_MS) });
    const value: unknown = await response.json();
    if (response.ok && isStatusReport(value)) return value;
    throw new Error(`it answered ${response.status}`);
  } catch (error) {
    const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
    throw new HoldfastError('CONFIG', `http: no running Holdfast answers at ${url}: ${messageOf(cause)}`, { cause });
  }
}

export const status: Subcommand = {
  help: () => `Usage: holdfast status [--json] [FLAGS]

One look at the running Holdfast whose HTTP address the settings name.

  --json  the report as JSON

${settingsHelp()}
`,
  async run({ args, env, workingDirectory, write }) {
    const { config, flags } = loadConfig({ args, env, workingDirectory, flags: { json: { type: 'boolean' } } });
    const report = await fetchStatus(config.http);
    write(flags.json === true ? `${JSON.stringify(report, undefined, 2)}\n` : formatStatus(report, new Date()));
    return 0;
  },
};
