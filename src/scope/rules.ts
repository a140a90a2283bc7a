/**
 * How each command is carried inside a scope. One table drives requests, replies, scripts, the KV store's ACL and
 * `HOLDFAST COMMANDS`: the places of keys come from the servers' own key specs, the rest stands in the short supplement
 * below. What neither knows is refused.
 */
import type { CommandEntry, KeyRange, KeySpec } from '../command/command.ts';
import { commandTable } from '../command/table.ts';

/** As many keys as argument `count` says, from `first` on. */
export interface CountedKeys {
  readonly count: number;
  readonly first: number;
}

/** Where names of keys or channels stand in a reply. */
export type ReplyShape =
  | 'none'
  /** An array whose first member is a key: BLPOP, LMPOP. */
  | 'first'
  /** `[[key, entries], …]`, or a map by key in RESP3: XREAD. */
  | 'streams'
  /** An array of keys. */
  | 'keys'
  /** `[cursor, keys]` */
  | 'scan'
  /** An array of channels. */
  | 'channels'
  /** Channels and numbers alternating. */
  | 'channel-counts'
  /** CLIENT TRACKINGINFO: a map with the tracked prefixes in it. */
  | 'tracking-info'
  /** INFO: text with figures of what everybody does in it. */
  | 'info'
  /** ROLE: with an offset that counts what everybody writes, and the addresses of replicas. */
  | 'role';

/** Commands whose names stand where no key spec says, and what finds them (request.ts). */
export type Finder =
  | 'sort'
  | 'georadius'
  | 'georadiusbymember'
  | 'xread'
  | 'migrate'
  | 'debug'
  | 'keys'
  | 'publish'
  | 'pubsub-pattern'
  | 'pubsub-channels'
  | 'tracking';

/** Commands that mean something else inside a scope, and what does it (intercept/scope.ts). */
export type Special =
  | 'script'
  | 'script-load'
  | 'script-exists'
  | 'script-flush'
  | 'script-show'
  | 'function-call'
  | 'function-load'
  | 'function-delete'
  | 'function-list'
  | 'function-flush'
  | 'subscribe'
  | 'numpat'
  | 'flushdb'
  | 'flushall'
  | 'dbsize'
  | 'randomkey'
  | 'scan'
  | 'whoami';

export type ScopeRule =
  | { readonly kind: 'refused'; readonly remark: string }
  /** Names no key and no channel; sent as it is. */
  | { readonly kind: 'plain'; readonly reply: ReplyShape; readonly remark: string }
  | {
      readonly kind: 'keys';
      readonly ranges: readonly KeyRange[];
      readonly counted: CountedKeys | undefined;
      readonly reply: ReplyShape;
    }
  | { readonly kind: 'found'; readonly finder: Finder; readonly reply: ReplyShape; readonly remark: string }
  | {
      readonly kind: 'special';
      readonly special: Special;
      readonly counted: CountedKeys | undefined;
      readonly remark: string;
    };

const SESSION = "Holdfast's own session answers it, or it changes the session only";
const HARMLESS = 'names no key';
const SERVER_WIDE = 'acts on the whole server';
const SHOWS_OTHERS = 'would show what others do';

/** Names, separated by blanks; a container stands for itself and those of its subcommands that are not listed apart. */
const PLAIN: readonly (readonly [names: string, remark: string])[] = [
  ['auth hello select quit reset multi exec discard unwatch readonly readwrite asking', SESSION],
  ['client|id client|getname client|setname client|setinfo client|info client|reply client|caching', SESSION],
  ['client|no-touch client|capa client|getredir client|help', SESSION],
  ['client|list client|kill client|unblock', 'clients of the same scope only'],
  ['ping echo time lastsave lolwut wait waitaof', HARMLESS],
  ['command command|count command|docs command|help command|info command|list', HARMLESS],
  ['command|getkeys command|getkeysandflags', 'speaks of its arguments only: nothing is prefixed'],
  ['object|help xgroup|help xinfo|help memory|help pubsub|help function|help script|help acl|help', HARMLESS],
  ['acl|cat acl|genpass', HARMLESS],
  ['holdfast|help holdfast|commands holdfast|scope holdfast|with', "Holdfast's own"],
];

const REFUSED: readonly (readonly [names: string, remark: string])[] = [
  ['client|pause client|unpause client|no-evict', SERVER_WIDE],
  ['acl|deluser acl|dryrun acl|getuser acl|list acl|load acl|log acl|save acl|setuser acl|users', SHOWS_OTHERS],
  ['bgrewriteaof bgsave save failover shutdown replicaof slaveof swapdb pfselftest', SERVER_WIDE],
  ['cluster config module', SERVER_WIDE],
  ['latency memory|doctor memory|malloc-stats memory|purge memory|stats slowlog monitor', SHOWS_OTHERS],
  ['psync replconf sync', SHOWS_OTHERS],
  ['script|debug script|kill function|kill function|stats', "would reach others' scripts"],
  ['function|dump function|restore', 'libraries of all scopes in one'],
  ['holdfast|checkpoint holdfast|ledger holdfast|reload holdfast|replay holdfast|status', 'for operators'],
  ['acl client function memory object pubsub script xgroup xinfo holdfast', 'unknown subcommand'],
];

const FOUND: Readonly<Record<string, readonly [finder: Finder, reply: ReplyShape, remark: string]>> = {
  sort: ['sort', 'none', 'key, STORE, and BY and GET patterns with a *'],
  sort_ro: ['sort', 'none', 'key, and BY and GET patterns with a *'],
  georadius: ['georadius', 'none', 'key, STORE and STOREDIST'],
  georadiusbymember: ['georadiusbymember', 'none', 'key, STORE and STOREDIST'],
  xread: ['xread', 'streams', 'what follows the option STREAMS'],
  xreadgroup: ['xread', 'streams', 'what follows the option STREAMS'],
  migrate: [
    'migrate',
    'none',
    'for users with may: [migrate]; key or KEYS, which arrive at the target with the prefix',
  ],
  debug: ['debug', 'none', 'OBJECT and DIGEST-VALUE only'],
  keys: ['keys', 'keys', 'pattern inside the scope'],
  publish: ['publish', 'none', 'channel'],
  spublish: ['publish', 'none', 'channel'],
  'pubsub|channels': ['pubsub-pattern', 'channels', 'channels of the scope'],
  'pubsub|shardchannels': ['pubsub-pattern', 'channels', 'channels of the scope'],
  'pubsub|numsub': ['pubsub-channels', 'channel-counts', 'channels of the scope'],
  'pubsub|shardnumsub': ['pubsub-channels', 'channel-counts', 'channels of the scope'],
  'client|tracking': ['tracking', 'none', 'PREFIX inside the scope; BCAST without PREFIX means the scope'],
};

const SPECIAL: Readonly<Record<string, readonly [special: Special, remark: string]>> = {
  eval: ['script', 'wrapped: the script sees and names logical keys'],
  eval_ro: ['script', 'wrapped: the script sees and names logical keys'],
  evalsha: ['script', "the scope's own scripts"],
  evalsha_ro: ['script', "the scope's own scripts"],
  'script|load': ['script-load', 'wrapped'],
  'script|exists': ['script-exists', "the scope's own scripts"],
  'script|flush': ['script-flush', "forgets the scope's own scripts"],
  'script|show': ['script-show', "the scope's own scripts"],
  fcall: ['function-call', "the scope's own functions"],
  fcall_ro: ['function-call', "the scope's own functions"],
  'function|load': ['function-load', 'wrapped, under a name of the scope'],
  'function|delete': ['function-delete', "the scope's own libraries"],
  'function|list': ['function-list', "the scope's own libraries"],
  'function|flush': ['function-flush', "the scope's own libraries"],
  subscribe: ['subscribe', 'channels of the scope, and notifications of its keys'],
  unsubscribe: ['subscribe', 'channels of the scope, and notifications of its keys'],
  psubscribe: ['subscribe', 'matched inside the scope'],
  punsubscribe: ['subscribe', 'matched inside the scope'],
  ssubscribe: ['subscribe', 'channels of the scope'],
  sunsubscribe: ['subscribe', 'channels of the scope'],
  'pubsub|numpat': ['numpat', "the scope's patterns in this process"],
  flushdb: ['flushdb', 'SCAN and UNLINK of the scope, in batches'],
  flushall: ['flushall', 'SCAN and UNLINK of the scope in every database, in batches'],
  dbsize: ['dbsize', 'counts the scope, by SCAN'],
  randomkey: ['randomkey', 'from the scope, by SCAN'],
  scan: ['scan', 'MATCH inside the scope, pages filled from it; everything at once in transactions and scripts'],
  'acl|whoami': ['whoami', "Holdfast's name of the user"],
};

const REPLY_SHAPES: Readonly<Record<string, ReplyShape>> = {
  blpop: 'first',
  brpop: 'first',
  bzpopmin: 'first',
  bzpopmax: 'first',
  lmpop: 'first',
  blmpop: 'first',
  zmpop: 'first',
  bzmpop: 'first',
};

const UNKNOWN: ScopeRule = { kind: 'refused', remark: 'Holdfast does not know where its keys are' };

function listed(list: readonly (readonly [string, string])[], name: string): string | undefined {
  for (const [names, remark] of list) if (names.split(' ').includes(name)) return remark;
  return undefined;
}

/** The key specs as ranges and a count; `undefined` where they do not say everything. */
function placesOf(specs: readonly KeySpec[]): { ranges: KeyRange[]; counted: CountedKeys | undefined } | undefined {
  const ranges: KeyRange[] = [];
  let counted: CountedKeys | undefined;
  for (const { beginSearch, findKeys, flags } of specs) {
    if (beginSearch.type !== 'index' || flags.includes('incomplete') || flags.includes('not_key')) return undefined;
    const first = beginSearch.index;
    if (findKeys.type === 'range' && findKeys.limit === 0) {
      const { lastKey, keyStep } = findKeys;
      ranges.push({ first, last: lastKey < 0 ? lastKey : first + lastKey, step: keyStep });
    } else if (findKeys.type === 'keynum' && findKeys.keyStep === 1 && counted === undefined) {
      counted = { count: first + findKeys.keyNumIndex, first: first + findKeys.firstKey };
    } else return undefined;
  }
  return { ranges, counted };
}

function decide(entry: CommandEntry): ScopeRule {
  const { name } = entry;
  const found = FOUND[name];
  if (found !== undefined) return { kind: 'found', finder: found[0], reply: found[1], remark: found[2] };
  const places = placesOf(entry.keySpecs);
  const special = SPECIAL[name];
  if (special !== undefined) {
    return { kind: 'special', special: special[0], counted: places?.counted, remark: special[1] };
  }
  const plain = listed(PLAIN, name);
  if (plain !== undefined) return { kind: 'plain', reply: 'none', remark: plain };
  if (name === 'client|trackinginfo') return { kind: 'plain', reply: 'tracking-info', remark: 'prefixes of the scope' };
  if (name === 'info') return { kind: 'plain', reply: 'info', remark: 'what tells nothing of others' };
  if (name === 'role') return { kind: 'plain', reply: 'role', remark: 'without offsets and addresses' };
  const refused = listed(REFUSED, name);
  if (refused !== undefined) return { kind: 'refused', remark: refused };
  if (places !== undefined && entry.keySpecs.length > 0) {
    return { kind: 'keys', ...places, reply: REPLY_SHAPES[name] ?? 'none' };
  }
  const containers = entry.container === undefined ? undefined : listed(REFUSED, entry.container.name);
  return containers === undefined || entry.keySpecs.length > 0 ? UNKNOWN : { kind: 'refused', remark: containers };
}

const RULES: readonly ScopeRule[] = commandTable().entries.map(decide);

/** The rule of a command or subcommand; of a container, the one for subcommands that the table does not know. */
export function scopeRule(command: CommandEntry | undefined): ScopeRule {
  return command === undefined ? UNKNOWN : RULES[command.index]!;
}

/** Whether the supplement leaves the command out: refused for want of knowledge, not on purpose. */
export function isUnknownToScopes(command: CommandEntry): boolean {
  return RULES[command.index] === UNKNOWN;
}

/** A rule in a few words, for people. */
export function describeRule(rule: ScopeRule): string {
  switch (rule.kind) {
    case 'refused':
      return `refused: ${rule.remark}`;
    case 'keys': {
      const places = rule.ranges.map(({ first, last, step }) =>
        first === last
          ? `${first}`
          : `${first} to ${last < 0 ? `end${last + 1 === 0 ? '' : last + 1}` : last}${step > 1 ? ` by ${step}` : ''}`,
      );
      if (rule.counted !== undefined) places.push(`${rule.counted.first} on, as many as ${rule.counted.count} says`);
      const keys = `keys prefixed: argument ${places.join(', ')}`;
      return rule.reply === 'none' ? keys : `${keys}; the reply names keys`;
    }
    default:
      return rule.remark;
  }
}

/** Errors of these name a key: `NOGROUP No such key '…'`. */
const NAMES_KEYS_IN_ERRORS = new Set(['xpending', 'xclaim', 'xautoclaim', 'xack']);

/**
 * Where all that a command needs is a prefix before its keys, since neither its replies nor its errors name any, and the
 * keys are one range: that range.
 */
export function prefixedKeys(command: CommandEntry): KeyRange | undefined {
  const rule = scopeRule(command);
  if (rule.kind !== 'keys' || rule.reply !== 'none' || rule.counted !== undefined) return undefined;
  if (command.container !== undefined || NAMES_KEYS_IN_ERRORS.has(command.name)) return undefined;
  const [one, two] = rule.ranges;
  if (rule.ranges.length === 1) return one;
  // A destination and its sources side by side are one range.
  if (rule.ranges.length === 2 && one!.first === one!.last && two!.first === one!.first + 1 && two!.step === 1) {
    return { first: one!.first, last: two!.last, step: 1 };
  }
  return undefined;
}
