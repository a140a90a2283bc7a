/** HOLDFAST RELOAD: reads the configuration, its password files and certificates again, in every process. */
import * as encode from '../../resp/encode.ts';
import type { HoldfastSubcommand } from './command.ts';

/** `reload` gives what was done, in lines. Rejects where the configuration has a mistake; nothing is changed then. */
export function holdfastReload(reload: () => Promise<readonly string[]>): HoldfastSubcommand {
  return {
    name: 'reload',
    admin: true,
    syntax: '',
    summary: 'Read users, passwords, certificates and the log level again; says what needs a restart.',
    async run(exchange) {
      const report = await reload();
      exchange.respond(encode.array(report.map((line) => encode.bulk(line))));
    },
  };
}
