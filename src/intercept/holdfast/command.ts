/**
 * HOLDFAST: one container command for everything that clients and operators ask Holdfast itself, with HELP. Each
 * subcommand is one file and one line where the interceptors are composed.
 */
import { HoldfastError } from '../../errors.ts';
import type { Exchange, Interceptor } from '../../interceptor.ts';
import * as encode from '../../resp/encode.ts';
import { errorText, readReply } from '../../resp/reply.ts';

export interface HoldfastSubcommand {
  /** Lower case. */
  readonly name: string;
  /** Only for those who may administer. */
  readonly admin?: boolean;
  /** Arguments as HELP shows them, without the name. */
  readonly syntax: string;
  /** One line for HELP. */
  readonly summary: string;
  /** Answers the exchange; `args` are those behind the subcommand's name. */
  run(exchange: Exchange, args: readonly Buffer[]): void | Promise<void>;
}

/** A harmless command that the KV store lets its administrators do. */
const ADMINISTRATIVE = ['CONFIG', 'GET', 'maxmemory'].map((word) => Buffer.from(word));

/**
 * Never in a scope. Of Holdfast's own users those with `may: [admin]`; of the KV store's those whom it lets do CONFIG GET.
 * Throws the refusal.
 */
async function requireAdministrator(exchange: Exchange, name: string): Promise<void> {
  const { session } = exchange;
  const refusal = new HoldfastError('NOPERM', `this user has no permissions to run 'HOLDFAST ${name.toUpperCase()}'`);
  if (session.scope !== undefined) throw refusal;
  if (session.administers !== undefined) {
    if (!session.administers) throw refusal;
    return;
  }
  if (exchange.queued) throw new HoldfastError('ERR', `HOLDFAST ${name.toUpperCase()} inside MULTI is not possible`);
  const judged = errorText(readReply(await exchange.run(ADMINISTRATIVE)));
  if (judged === undefined) return;
  if (judged.startsWith('NOPERM')) throw refusal;
  throw new HoldfastError('REFUSED', judged);
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
      if (subcommand.admin !== true) return subcommand.run(exchange, args);
      return requireAdministrator(exchange, word).then(() => subcommand.run(exchange, args));
    },
  };
}
