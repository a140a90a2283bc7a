/**
 * Finds the names of keys and channels among the arguments of a request, as the server itself would read them.
 *
 * Invariant (fail closed): an argument that a server could take for a key is never left out. Where a request cannot be
 * read, for it is malformed or speaks of an option that Holdfast does not know, everything from there on counts as a key;
 * the server then refuses the request, or it finds the prefix before whatever it takes for a name.
 */
import type { KeyRange } from '../command/command.ts';
import type { CountedKeys, Finder, ScopeRule } from './rules.ts';

export type NameRole =
  | 'key'
  /** A channel of PUBLISH: always prefixed. */
  | 'channel'
  /** A glob pattern of names. */
  | 'pattern'
  /** BY or GET of SORT: a key with a `*` in it. */
  | 'sort-pattern'
  /** Literal start of key names. */
  | 'key-start';

/** Calls `found` for each argument that holds a name, first to last. */
export type NameFinder = (args: readonly Buffer[], found: (at: number, role: NameRole) => void) => void;

/** The rest of the arguments, when they cannot be told apart. */
function everythingFrom(args: readonly Buffer[], from: number, found: (at: number, role: NameRole) => void): void {
  for (let at = from; at < args.length; at += 1) found(at, 'key');
}

export function wordAt(args: readonly Buffer[], at: number): string {
  const arg = args[at];
  // No option of any command is longer.
  return arg === undefined || arg.length > 16 ? '' : arg.toString('latin1').toLowerCase();
}

/** As the servers read numbers (`string2ll`): no sign but `-`, no leading zeros, no blanks. */
export function strictInteger(arg: Buffer | undefined): number | undefined {
  if (arg === undefined || arg.length > 16) return undefined;
  const text = arg.toString('latin1');
  return /^(0|-?[1-9]\d*)$/.test(text) ? Number(text) : undefined;
}

/** How many keys the request counts out, where it does so properly. */
export function countedKeys(args: readonly Buffer[], { count, first }: CountedKeys): number | undefined {
  const number = strictInteger(args[count]);
  return number === undefined || number < 0 || number > args.length - first ? undefined : number;
}

function findRanges(
  args: readonly Buffer[],
  ranges: readonly KeyRange[],
  found: (at: number, role: NameRole) => void,
): void {
  for (const { first, last, step } of ranges) {
    const end = last < 0 ? args.length + last : Math.min(last, args.length - 1);
    for (let at = first; at <= end; at += step) found(at, 'key');
  }
}

export function findCounted(
  args: readonly Buffer[],
  counted: CountedKeys,
  found: (at: number, role: NameRole) => void,
): void {
  const number = countedKeys(args, counted);
  if (number === undefined) everythingFrom(args, counted.first, found);
  else for (let at = counted.first; at < counted.first + number; at += 1) found(at, 'key');
}

/** Options that take no, one or two arguments; `sort.c`, `sortCommandGeneric`. */
const findSort: NameFinder = (args, found) => {
  if (args.length > 1) found(1, 'key');
  for (let at = 2; at < args.length; at += 1) {
    const left = args.length - at - 1;
    const word = wordAt(args, at);
    if (word === 'asc' || word === 'desc' || word === 'alpha') continue;
    if (word === 'limit' && left >= 2) at += 2;
    else if (word === 'store' && left >= 1) found((at += 1), 'key');
    else if ((word === 'by' || word === 'get') && left >= 1) found((at += 1), 'sort-pattern');
    else return everythingFrom(args, at, found);
  }
};

/** `geo.c`, `georadiusGeneric`: options from `optionsAt` on. */
function findGeoRadius(optionsAt: number): NameFinder {
  const flags = new Set(['withdist', 'withhash', 'withcoord', 'any', 'asc', 'desc']);
  return (args, found) => {
    if (args.length > 1) found(1, 'key');
    for (let at = optionsAt; at < args.length; at += 1) {
      const word = wordAt(args, at);
      if (flags.has(word)) continue;
      if (word === 'count' && at + 1 < args.length) at += 1;
      else if ((word === 'store' || word === 'storedist') && at + 1 < args.length) found((at += 1), 'key');
      else return everythingFrom(args, at, found);
    }
  };
}

/** `t_stream.c`, `xreadCommand`: a group or a consumer may be called STREAMS. */
const findStreams: NameFinder = (args, found) => {
  for (let at = 1; at < args.length; at += 1) {
    const left = args.length - at - 1;
    const word = wordAt(args, at);
    if ((word === 'block' || word === 'count') && left >= 1) at += 1;
    else if (word === 'group' && left >= 2) at += 2;
    else if (word === 'noack') continue;
    else if (word === 'streams' && left >= 1) {
      const half = left / 2;
      if (!Number.isInteger(half)) return everythingFrom(args, at + 1, found);
      for (let key = at + 1; key <= at + half; key += 1) found(key, 'key');
      return;
    } else return everythingFrom(args, at, found);
  }
};

/** `cluster.c`, `migrateCommand`: MIGRATE host port key|"" db timeout [options] [KEYS key …]. */
const findMigrate: NameFinder = (args, found) => {
  for (let at = 6; at < args.length; at += 1) {
    const left = args.length - at - 1;
    const word = wordAt(args, at);
    if (word === 'copy' || word === 'replace') continue;
    if (word === 'auth' && left >= 1) at += 1;
    else if (word === 'auth2' && left >= 2) at += 2;
    else if (word === 'keys' && left >= 1 && args[3]!.length === 0) return everythingFrom(args, at + 1, found);
    else {
      found(3, 'key');
      return everythingFrom(args, at, found);
    }
  }
  if (args.length > 3) found(3, 'key');
};

/** `DEBUG OBJECT key [FAST]`, `DEBUG DIGEST-VALUE key …`; others are refused before. */
const findDebug: NameFinder = (args, found) => {
  const end = wordAt(args, 1) === 'object' ? Math.min(3, args.length) : args.length;
  for (let at = 2; at < end; at += 1) found(at, 'key');
};

/** CLIENT TRACKING ON|OFF [REDIRECT id] [PREFIX prefix …] …; `networking.c`, `clientCommand`. */
const findTracking: NameFinder = (args, found) => {
  for (let at = 3; at < args.length; at += 1) {
    const word = wordAt(args, at);
    if (word === 'redirect' && at + 1 < args.length) at += 1;
    else if (word === 'prefix' && at + 1 < args.length) found((at += 1), 'key-start');
  }
};

const FINDERS: Readonly<Record<Finder, NameFinder>> = {
  sort: findSort,
  georadius: findGeoRadius(6),
  georadiusbymember: findGeoRadius(5),
  xread: findStreams,
  migrate: findMigrate,
  debug: findDebug,
  keys: (args, found) => {
    if (args.length > 1) found(1, 'pattern');
  },
  publish: (args, found) => {
    if (args.length > 1) found(1, 'channel');
  },
  'pubsub-pattern': (args, found) => {
    if (args.length > 2) found(2, 'pattern');
  },
  'pubsub-channels': (args, found) => {
    for (let at = 2; at < args.length; at += 1) found(at, 'channel');
  },
  tracking: findTracking,
};

/** Finds the names in a request that `rule` is for. */
export function findNames(rule: ScopeRule, args: readonly Buffer[], found: (at: number, role: NameRole) => void): void {
  if (rule.kind === 'found') FINDERS[rule.finder](args, found);
  else if (rule.kind === 'keys') {
    findRanges(args, rule.ranges, found);
    if (rule.counted !== undefined) findCounted(args, rule.counted, found);
  } else if (rule.kind === 'special' && rule.counted !== undefined) findCounted(args, rule.counted, found);
}
