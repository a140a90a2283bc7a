/**
 * The command table: what both reference servers have (generated), and Holdfast's own commands.
 * Built once from constants; entries are compared by identity and numbered by `index`.
 */
import { type ByteIndex, byteIndex } from './byte-index.ts';
import type { CommandDescription, CommandEntry } from './command.ts';
import { GENERATED_COMMANDS } from './generated/commands.ts';
import { OWN_COMMANDS } from './own-commands.ts';

export interface CommandTable {
  /** All commands and subcommands; `entries[n].index` is n. */
  readonly entries: readonly CommandEntry[];
  /** The command whose name is `buffer[start, end)`, in any letter case; never a subcommand. Allocates nothing. */
  lookupBytes(buffer: Uint8Array, start: number, end: number): CommandEntry | undefined;
  /** By name, in any letter case; a subcommand as `container|subcommand`. */
  lookup(name: string): CommandEntry | undefined;
  /** The subcommand of `entry` whose name is `buffer[start, end)`. Allocates nothing. */
  subcommand(entry: CommandEntry, buffer: Uint8Array, start: number, end: number): CommandEntry | undefined;
}

function buildTable(commands: readonly CommandDescription[], own: readonly CommandDescription[]): CommandTable {
  const entries: CommandEntry[] = [];
  const byName = new Map<string, CommandEntry>();
  const subcommandIndexes: (ByteIndex<CommandEntry> | undefined)[] = [];

  function add(description: CommandDescription, isOwn: boolean, container: CommandEntry | undefined): CommandEntry {
    const subcommands = new Map<string, CommandEntry>();
    const entry: CommandEntry = {
      name: description.name,
      index: entries.length,
      arity: description.arity,
      flags: new Set(description.flags),
      categories: new Set(description.categories),
      keySpecs: description.keySpecs,
      servers: description.servers,
      own: isOwn,
      subcommands: description.subcommands.length > 0 ? subcommands : undefined,
      container,
    };
    entries.push(entry);
    byName.set(entry.name, entry);
    for (const child of description.subcommands) {
      subcommands.set(child.name.slice(description.name.length + 1), add(child, isOwn, entry));
    }
    subcommandIndexes[entry.index] = subcommands.size > 0 ? byteIndex(subcommands) : undefined;
    return entry;
  }

  const top = new Map<string, CommandEntry>();
  for (const description of commands) top.set(description.name, add(description, false, undefined));
  for (const description of own) top.set(description.name, add(description, true, undefined));
  const topIndex = byteIndex(top);

  return {
    entries,
    lookupBytes: topIndex.lookup,
    lookup: (name) => byName.get(name.toLowerCase()),
    subcommand: (entry, buffer, start, end) => subcommandIndexes[entry.index]?.lookup(buffer, start, end),
  };
}

const TABLE = buildTable(GENERATED_COMMANDS, OWN_COMMANDS);

export function commandTable(): CommandTable {
  return TABLE;
}
