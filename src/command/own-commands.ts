/** The commands that Holdfast itself answers, described in the servers' words. No KV store knows them. */
import type { CommandDescription, KeySpec } from './command.ts';

const FIRST_ARGUMENT: KeySpec = {
  flags: ['RW', 'access', 'insert'],
  beginSearch: { type: 'index', index: 1 },
  findKeys: { type: 'range', lastKey: 0, keyStep: 1, limit: 0 },
};

function subcommand(name: string, arity: number): CommandDescription {
  return {
    name: `holdfast|${name}`,
    arity,
    flags: ['admin', 'noscript', 'no_multi'],
    categories: ['@admin', '@slow'],
    keySpecs: [],
    servers: [],
    subcommands: [],
  };
}

export const OWN_COMMANDS: readonly CommandDescription[] = [
  {
    name: 'getorset',
    arity: -3,
    flags: ['denyoom', 'fast', 'noscript', 'write'],
    categories: ['@fast', '@string', '@write'],
    keySpecs: [FIRST_ARGUMENT],
    servers: [],
    subcommands: [],
  },
  {
    name: 'holdfast',
    arity: -2,
    flags: ['noscript'],
    categories: ['@slow'],
    keySpecs: [],
    servers: [],
    subcommands: [
      subcommand('checkpoint', 3),
      subcommand('commands', -2),
      subcommand('help', 2),
      subcommand('ledger', 3),
      subcommand('reload', 2),
      subcommand('replay', -3),
      subcommand('scope', -3),
      subcommand('status', -2),
      subcommand('with', -3),
    ],
  },
];
