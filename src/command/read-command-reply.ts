/**
 * Reads a server's reply to `COMMAND` (RESP2 or RESP3) into descriptions: what the generator writes down, and what the
 * tests compare an installed server with.
 */
import { HoldfastError } from '../errors.ts';
import { type Reply, type ReplyValue, replyValue } from '../resp/reply.ts';
import type { CommandDescription, KeySpec } from './command.ts';

function list(value: ReplyValue | undefined): ReplyValue[] {
  if (Array.isArray(value)) return value;
  throw new HoldfastError('ERR', 'unexpected shape of a COMMAND reply');
}

function field(map: ReplyValue | undefined, name: string): ReplyValue | undefined {
  const pairs = list(map);
  for (let i = 0; i + 1 < pairs.length; i += 2) if (pairs[i] === name) return pairs[i + 1];
  return undefined;
}

function readBeginSearch(value: ReplyValue | undefined): KeySpec['beginSearch'] {
  const spec = field(value, 'spec');
  switch (field(value, 'type')) {
    case 'index':
      return { type: 'index', index: Number(field(spec, 'index')) };
    case 'keyword':
      return {
        type: 'keyword',
        keyword: String(field(spec, 'keyword')),
        startFrom: Number(field(spec, 'startfrom')),
      };
    default:
      return { type: 'unknown' };
  }
}

function readFindKeys(value: ReplyValue | undefined): KeySpec['findKeys'] {
  const spec = field(value, 'spec');
  switch (field(value, 'type')) {
    case 'range':
      return {
        type: 'range',
        lastKey: Number(field(spec, 'lastkey')),
        keyStep: Number(field(spec, 'keystep')),
        limit: Number(field(spec, 'limit')),
      };
    case 'keynum':
      return {
        type: 'keynum',
        keyNumIndex: Number(field(spec, 'keynumidx')),
        firstKey: Number(field(spec, 'firstkey')),
        keyStep: Number(field(spec, 'keystep')),
      };
    default:
      return { type: 'unknown' };
  }
}

function readKeySpec(value: ReplyValue): KeySpec {
  return {
    flags: list(field(value, 'flags')).map(String),
    beginSearch: readBeginSearch(field(value, 'begin_search')),
    findKeys: readFindKeys(field(value, 'find_keys')),
  };
}

function readDescription(value: ReplyValue, server: 'redis' | 'valkey'): CommandDescription {
  const [name, arity, flags, , , , categories, , keySpecs, subcommands] = list(value);
  return {
    name: String(name).toLowerCase(),
    arity: Number(arity),
    flags: list(flags).map(String).sort(),
    categories: list(categories).map(String).sort(),
    keySpecs: list(keySpecs).map(readKeySpec),
    servers: [server],
    subcommands: list(subcommands)
      .map((subcommand) => readDescription(subcommand, server))
      .sort(byName),
  };
}

function byName(a: CommandDescription, b: CommandDescription): number {
  return a.name < b.name ? -1 : 1;
}

/** The commands of one server, sorted by name. Throws `ERR` where the reply is not one of `COMMAND`. */
export function readCommandReply(reply: Reply, server: 'redis' | 'valkey'): CommandDescription[] {
  return list(replyValue(reply))
    .map((command) => readDescription(command, server))
    .sort(byName);
}

/**
 * One table of two servers': arity is the looser one, flags and categories are united, key specs are the newer server's.
 * Throws `ERR` where the servers place a command's keys differently: that needs a decision, not a merge.
 */
export function mergeDescriptions(
  older: readonly CommandDescription[],
  newer: readonly CommandDescription[],
): CommandDescription[] {
  const merged = new Map(older.map((command) => [command.name, command]));
  for (const command of newer) {
    const known = merged.get(command.name);
    merged.set(command.name, known === undefined ? command : mergeTwo(known, command));
  }
  return [...merged.values()].sort(byName);
}

function mergeTwo(older: CommandDescription, newer: CommandDescription): CommandDescription {
  if (keyPlaces(older) !== keyPlaces(newer)) {
    throw new HoldfastError('ERR', `the servers disagree on where the keys of ${newer.name} are`);
  }
  return {
    name: newer.name,
    arity: mergeArity(older.arity, newer.arity),
    flags: [...new Set([...older.flags, ...newer.flags])].sort(),
    categories: [...new Set([...older.categories, ...newer.categories])].sort(),
    keySpecs: newer.keySpecs,
    servers: [...older.servers, ...newer.servers],
    subcommands: mergeDescriptions(older.subcommands, newer.subcommands),
  };
}

function mergeArity(a: number, b: number): number {
  return a === b ? a : -Math.min(Math.abs(a), Math.abs(b));
}

/** Where the keys of a command are, without what is done to them: comparable text. */
export function keyPlaces(command: CommandDescription): string {
  return JSON.stringify(command.keySpecs.map((spec) => [spec.beginSearch, spec.findKeys]));
}
