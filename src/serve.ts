import cluster from 'node:cluster';
import type { Logger } from 'pino';
import { composeProcesses, serveAsMember } from './composition/processes.ts';
import { compose, type Holdfast } from './composition/sidecar.ts';
import { stopSteps } from './composition/stop-steps.ts';
import { type Address, formatAddress } from './config/address.ts';
import type { Config } from './config/config.ts';
import { loadConfig } from './config/load-config.ts';
import { settingsHelp } from './config/settings.ts';
import { messageOf } from './errors.ts';
import { createLogger } from './operations/logger.ts';
import type { Subcommand } from './subcommand.ts';

/** Resolves when clients are served. Throws `CONFIG`, `STARTUP` or `INUSE`, having ended what it had started. */
export async function startHoldfast(
  config: Config,
  log: Logger,
  reread: () => Config = () => config,
): Promise<Holdfast> {
  const steps = stopSteps(log);
  try {
    return await (config.processes > 1 ? composeProcesses(config, log, steps) : compose(config, log, steps, reread));
  } catch (error) {
    await steps.stop();
    throw error;
  }
}

/** What a person types to get there. */
function cliHint(address: Address | undefined): string {
  if (address === undefined) return '';
  if ('path' in address) return `redis-cli -s ${address.path}`;
  const host = ['127.0.0.1', '0.0.0.0', '::', 'localhost'].includes(address.host) ? '' : ` -h ${address.host}`;
  return `redis-cli${host} -p ${address.port}`;
}

export const serve: Subcommand = {
  help: () => `Usage: holdfast serve [FLAGS]

Runs the sidecar until SIGINT or SIGTERM, which let it finish what is in flight; a second one ends it at once.
SIGHUP reads users, passwords, certificates and the log level again.
Settings: defaults < configuration file < environment < flags.

${settingsHelp()}
`,
  async run({ args, env, workingDirectory, terminal, stopRequested }) {
    const reread = (): Config => loadConfig({ args, env, workingDirectory }).config;
    const config = reread();
    const log = createLogger({ level: config.log.level, pretty: terminal });
    if (cluster.isWorker) return serveAsMember(config, log, reread, stopRequested);
    // A signal during the start must not leave children behind: it is heeded as soon as there is something to stop.
    const holdfast = await startHoldfast(config, log, reread);
    // Everybody who waits for a promise answers for it; one that is left over concerns a single client, not all of them.
    process.on('unhandledRejection', (thrown) => log.error({ err: thrown }, 'a fault that nobody waited for'));
    process.on('SIGHUP', () => {
      holdfast.reload().catch((error) => log.error({ reason: messageOf(error) }, 'the configuration was not taken'));
    });
    log.info(
      {
        listen: holdfast.addresses.map(formatAddress),
        http: holdfast.http === undefined ? 'off' : formatAddress(holdfast.http),
      },
      `ready: ${cliHint(holdfast.addresses[0])}`,
    );
    await stopRequested;
    log.info('stopping: what is in flight is finished first');
    await holdfast.stop();
    log.info('stopped');
    return 0;
  },
};
