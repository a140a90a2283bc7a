/**
 * A request of a scoped session as the KV store gets it: physical names in place of logical ones.
 *
 * Commands that mean something else inside a scope (`special` rules) keep that meaning elsewhere; here only their names
 * are rewritten.
 */
import { HoldfastError } from '../errors.ts';
import { findNames, type NameRole, wordAt } from './find-names.ts';
import type { ScopeRule } from './rules.ts';
import { isShared, physicalKey, physicalPattern, prefixed, type Scope } from './scope.ts';

export interface RewrittenRequest {
  readonly args: readonly Buffer[];
  /** The same with the names that the client said. */
  readonly logical: readonly Buffer[];
  /** Positions of keys, by which errors that name them are made logical again. */
  readonly keysAt: readonly number[];
}

const STAR = 42;
const DEBUG_SUBCOMMANDS = new Set(['object', 'digest-value']);
const ANYTHING = Buffer.from('*');
const PREFIX = Buffer.from('PREFIX');

export function notPermitted(text: string): HoldfastError {
  return new HoldfastError('NOPERM', text);
}

export const NO_SCOPE_CHOSEN =
  'this session has no scope yet, only shared keys can be used: HOLDFAST SCOPE SET or HOLDFAST WITH chooses one';

function physicalName(scope: Scope, name: Buffer, role: NameRole): Buffer {
  if (!scope.chosen && !(role === 'key' && isShared(scope, name))) throw notPermitted(NO_SCOPE_CHOSEN);
  switch (role) {
    case 'key':
      return physicalKey(scope, name);
    case 'channel':
    case 'key-start':
      return prefixed(scope, name);
    case 'pattern':
      return physicalPattern(scope, name);
    case 'sort-pattern':
      // Without a star BY means "do not sort" and GET gives nothing: no key is named.
      if (!name.includes(STAR)) return name;
      if (scope.prefix.includes(STAR)) {
        throw notPermitted('SORT cannot look up patterns in a scope whose name has a * in it');
      }
      return prefixed(scope, name);
  }
}

/** Throws NOPERM where the request cannot be confined to the scope. */
export function rewriteRequest(scope: Scope, rule: ScopeRule, args: readonly Buffer[]): RewrittenRequest {
  const rewritten = [...args];
  const keysAt: number[] = [];
  let names = 0;
  if (rule.kind === 'found' && rule.finder === 'debug' && args.length > 1 && !DEBUG_SUBCOMMANDS.has(wordAt(args, 1))) {
    throw notPermitted('only DEBUG OBJECT and DEBUG DIGEST-VALUE can be used in a scope');
  }
  const groupAt = rule.kind === 'found' && rule.finder === 'xread' ? groupOption(args) : 1;
  if (groupAt > 1) {
    // First where the servers' own key specs look for it: their ACL takes a group called STREAMS for the option else.
    const group = args.slice(groupAt, groupAt + 3);
    return rewriteRequest(scope, rule, [args[0]!, ...group, ...args.toSpliced(groupAt, 3).slice(1)]);
  }
  findNames(rule, args, (at, role) => {
    rewritten[at] = physicalName(scope, args[at]!, role);
    names += 1;
    if (role === 'key') keysAt.push(at);
  });
  if (rule.kind === 'found' && names === 0) addDefaultNames(scope, rule.finder, rewritten);
  return { args: rewritten, logical: args, keysAt };
}

/** Where the option GROUP of XREADGROUP stands; 1 where there is none to be moved. */
function groupOption(args: readonly Buffer[]): number {
  for (let at = 1; at < args.length; at += 1) {
    const word = wordAt(args, at);
    if (word === 'group' && at + 2 < args.length) return at;
    if (word === 'block' || word === 'count') at += 1;
    else if (word !== 'noack') break;
  }
  return 1;
}

/** Where a request names nothing and thereby means everything, it is made to mean the scope. */
function addDefaultNames(scope: Scope, finder: string, args: Buffer[]): void {
  switch (finder) {
    case 'pubsub-pattern':
      args.push(physicalName(scope, ANYTHING, 'pattern'));
      return;
    case 'tracking':
      if (args.some((_, at) => at > 2 && wordAt(args, at) === 'bcast')) {
        args.push(PREFIX, physicalName(scope, Buffer.alloc(0), 'key-start'));
      }
      return;
  }
}
