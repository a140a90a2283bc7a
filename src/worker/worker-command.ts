/** `holdfast worker`: loads an app and works until a signal; `--app` is a file, or the name of an app that is built in. */
import { resolve } from 'node:path';
import type { Logger } from 'pino';
import { formatAddress } from '../config/address.ts';
import { ledgerDatabaseUrl } from '../config/ledger-database-url.ts';
import { loadConfig } from '../config/load-config.ts';
import { settingsHelp } from '../config/settings.ts';
import { workerUrl } from '../config/worker-url.ts';
import { HoldfastError } from '../errors.ts';
import { createLogger } from '../operations/logger.ts';
import type { Subcommand } from '../subcommand.ts';
import { type LoadedApp, loadApp } from './load-app.ts';
import { startWorker } from './worker.ts';

/** What an app that comes with Holdfast is made from. */
export interface BuiltInContext {
  /** The ledger's database, where there is one. */
  readonly database: string | undefined;
  readonly log: Logger;
}

/** Apps that come with Holdfast, by name. */
export type BuiltInApps = ReadonlyMap<string, (context: BuiltInContext) => Promise<LoadedApp>>;

export function workerCommand(builtIn: BuiltInApps): Subcommand {
  const names = [...builtIn.keys()];
  return {
    help: () => `Usage: holdfast worker --app APP [FLAGS]

Handles the entries of streams until SIGINT or SIGTERM, which let it finish what runs; a second one ends it at once.

  --app APP  a JavaScript or TypeScript module that exports an app${names.map((name) => `, or ${name}`).join('')}

${settingsHelp()}
`,
    async run({ args, env, workingDirectory, terminal, stopRequested }) {
      const { config, flags } = loadConfig({ args, env, workingDirectory, flags: { app: { type: 'string' } } });
      const name = typeof flags.app === 'string' ? flags.app : names[0];
      if (name === undefined) throw new HoldfastError('CONFIG', '--app: is missing');
      const load = builtIn.get(name) ?? (() => loadApp(resolve(workingDirectory, name)));
      const log = createLogger({ level: config.log.level, pretty: terminal });
      const database = await ledgerDatabaseUrl(config);
      const { app, module, close } = await load({ database, log });
      const { http, drainMs } = config.worker;
      try {
        const worker = await startWorker(app, {
          kv: workerUrl(config),
          database,
          module,
          http: http === 'off' ? undefined : formatAddress(http),
          drainMs,
          log,
        });
        await stopRequested;
        await worker.stop();
        return 0;
      } finally {
        await close?.();
      }
    },
  };
}
