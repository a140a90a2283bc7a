/** HOLDFAST COMMANDS: how each command is carried, and what a scope makes of it. */
import type { CommandEntry } from '../../command/command.ts';
import { commandTable } from '../../command/table.ts';
import * as encode from '../../resp/encode.ts';
import { globMatches } from '../../resp/glob.ts';
import { describeRule, scopeRule } from '../../scope/rules.ts';
import type { HoldfastSubcommand } from './command.ts';

/** Each entry: name, servers that have it, how it is carried, what becomes of it in a scope. */
export function holdfastCommands(carriedAs: (command: CommandEntry) => string): HoldfastSubcommand {
  function describe(entry: CommandEntry): Buffer {
    const servers = entry.own ? ['holdfast'] : entry.servers;
    const fields = [
      entry.name,
      servers.join(' and '),
      entry.own ? 'answered here' : carriedAs(entry),
      describeRule(scopeRule(entry)),
    ];
    return encode.array(fields.map((field) => encode.bulk(field)));
  }
  return {
    name: 'commands',
    syntax: '[pattern]',
    summary: 'List commands (those that match a glob): servers, how they are carried, what a scope makes of them.',
    run(exchange, [pattern]) {
      const sought = Buffer.from((pattern?.toString('latin1') ?? '*').toLowerCase(), 'latin1');
      const found = commandTable().entries.filter((entry) => globMatches(sought, Buffer.from(entry.name)));
      exchange.respond(encode.array(found.map(describe)));
    },
  };
}
