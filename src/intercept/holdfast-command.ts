/**
 * HOLDFAST: one container command for everything that clients and operators ask Holdfast itself, with HELP. Each
 * subcommand is one file and one line where the interceptors are composed.
 */
import { HoldfastError } from '../errors.ts';
import * as encode from '../resp/encode.ts';
import type { Exchange, Interceptor } from './interceptor.ts';

export interface HoldfastSubcommand {
  /** Lower case. */
  readonly name: string;
  /** Arguments as HELP shows them, without the name. */
  readonly syntax: string;
  /** One line for HELP. */
  readonly summary: string;
  /** Answers the exchange; `args` are those behind the subcommand's name. */
  run(exchange: Exchange, args: readonly Buffer[]): void | Promise<void>;
}

export function holdfastCommand(subcommands: readonly HoldfastSubcommand[]): Interceptor {
  const byName = new Map(subcommands.map((subcommand) => [subcommand.name, subcommand]));

  function help(): Buffer {
    const lines = ['HOLDFAST <subcommand> [<arg> [value] [opt] ...]. Subcommands are:'];
    for (const { name, syntax, summary } of subcommands) {
      lines.push(`${name.toUpperCase()}${syntax === '' ? '' : ` ${syntax}`}`, `    ${summary}`);
    }
    return encode.array([...lines, 'HELP', '    Print this help.'].map((line) => encode.simple(line)));
  }

  return {
    name: 'holdfast-command',
    handles: (command) => command?.name === 'holdfast' || command?.container?.name === 'holdfast',
    request(exchange) {
      const [, name, ...args] = exchange.args;
      if (name === undefined) throw new HoldfastError('ERR', "wrong number of arguments for 'holdfast' command");
      const word = name.toString('latin1').toLowerCase();
      if (word === 'help') {
        exchange.respond(help());
        return;
      }
      const subcommand = byName.get(word);
      if (subcommand === undefined) {
        exchange.respond(
          encode.errorOfBytes(`ERR unknown subcommand '${name.toString('latin1', 0, 128)}'. Try HOLDFAST HELP.`),
        );
        return;
      }
      return subcommand.run(exchange, args);
    },
  };
}
