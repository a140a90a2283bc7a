/**
 * A scope: the part of the keyspace and of the channels that one identity sees, as a prefix. Inside a scope names are
 * *logical* (what the client says and hears); the KV store knows *physical* ones.
 *
 *   logical key  ──physicalKey──▶  prefix + key, or the key itself where it is shared
 *   physical key ──logicalKey───▶  what follows the prefix; `undefined` for everything outside the scope
 *
 * Invariants: the mapping is injective; nothing that a client says can name a physical key outside `prefix*` and the
 * shared keys; an empty prefix does not exist.
 */
import { HoldfastError } from '../errors.ts';
import { OWN_KEY_START } from '../own-keys.ts';

export interface Scope {
  readonly prefix: Buffer;
  /** The prefix as a glob pattern that matches nothing but itself. */
  readonly prefixPattern: Buffer;
  /** The prefix as latin1 text: a stable name of the scope, for maps. */
  readonly id: string;
  /** Names of keys that are not prefixed, as latin1 text. */
  readonly shared: ReadonlySet<string>;
  /**
   * False for an identity that chooses its scope and has not done so yet: only shared keys can be named, and `prefix`
   * stands for nothing.
   */
  readonly chosen: boolean;
}

/** What begins so is Holdfast's own, or a channel that the KV store itself publishes on. No scope may reach it. */
const RESERVED_STARTS = [OWN_KEY_START, '__keyspace@', '__keyevent@', '__redis__:'];

/**
 * `prefix` and `shared` are UTF-8 text. Throws `CONFIG` where a prefix is empty, has blanks or control characters (the
 * KV store's ACL cannot express them), could reach Holdfast's own keys, or a shared key lies under it.
 */
export function createScope(prefix: string, shared: readonly string[] = []): Scope {
  if (prefix === '') throw new HoldfastError('CONFIG', 'a scope needs a prefix that is not empty');
  if (Buffer.from(prefix).some((byte) => byte <= 32 || byte === 127)) {
    throw new HoldfastError('CONFIG', `the scope prefix "${prefix}" has blanks or control characters`);
  }
  for (const name of RESERVED_STARTS) {
    if (name.startsWith(prefix) || prefix.startsWith(name)) {
      throw new HoldfastError('CONFIG', `the scope prefix "${prefix}" would reach the reserved name ${name}`);
    }
  }
  for (const key of shared) {
    if (key.startsWith(prefix)) {
      throw new HoldfastError('CONFIG', `the shared key "${key}" lies inside the scope "${prefix}"`);
    }
    if (key.startsWith(OWN_KEY_START)) throw new HoldfastError('CONFIG', `the key "${key}" cannot be shared`);
  }
  return build(Buffer.from(prefix), shared, true);
}

/** What an identity that has yet to choose its scope may see: the shared keys. */
export function unchosenScope(shared: readonly string[]): Scope {
  return build(Buffer.from('holdfast-no-scope:'), shared, false);
}

function build(prefix: Buffer, shared: readonly string[], chosen: boolean): Scope {
  return {
    prefix,
    prefixPattern: escapeGlob(prefix),
    id: prefix.toString('latin1'),
    shared: new Set(shared.map((key) => Buffer.from(key).toString('latin1'))),
    chosen,
  };
}

export function isShared(scope: Scope, key: Buffer): boolean {
  return scope.shared.size > 0 && scope.shared.has(key.toString('latin1'));
}

export function physicalKey(scope: Scope, key: Buffer): Buffer {
  return isShared(scope, key) ? key : prefixed(scope, key);
}

/** The prefix before `name`, shared or not: for channels and patterns. */
export function prefixed(scope: Scope, name: Buffer): Buffer {
  const { prefix } = scope;
  const physical = Buffer.allocUnsafe(prefix.length + name.length);
  prefix.copy(physical, 0);
  name.copy(physical, prefix.length);
  return physical;
}

export function logicalKey(scope: Scope, key: Buffer): Buffer | undefined {
  const logical = unprefixed(scope, key);
  if (logical === undefined) return isShared(scope, key) ? key : undefined;
  // A key that would be called like a shared one cannot be reached by the client: it is none of its keys.
  return isShared(scope, logical) ? undefined : logical;
}

/** What follows the prefix, or `undefined` where `name` does not start with it. */
export function unprefixed(scope: Scope, name: Buffer): Buffer | undefined {
  const { prefix } = scope;
  if (name.length < prefix.length || prefix.compare(name, 0, prefix.length) !== 0) return undefined;
  return name.subarray(prefix.length);
}

const BACKSLASH = 92;
/** `* ? [ ] \ ^ -`: the last two matter inside brackets only, where an escaped prefix never is. */
const GLOB_BYTES = new Set([42, 63, 91, 93, BACKSLASH]);

/** A glob pattern that matches exactly `text`. */
export function escapeGlob(text: Buffer): Buffer {
  const escaped: number[] = [];
  for (const byte of text) {
    if (GLOB_BYTES.has(byte)) escaped.push(BACKSLASH);
    escaped.push(byte);
  }
  return Buffer.from(escaped);
}

/** A glob pattern for physical names, from one for logical names. */
export function physicalPattern(scope: Scope, pattern: Buffer): Buffer {
  return Buffer.concat([scope.prefixPattern, pattern]);
}
