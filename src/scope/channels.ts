/**
 * Channels inside a scope. Three kinds reach a scoped subscriber:
 *
 *   kind       physical                          logical
 *   own        prefix + channel                  channel
 *   keyspace   __keyspace@N__: + prefix + key    __keyspace@N__: + key
 *   keyevent   __keyevent@N__:event, of every    the same, where the key in the message is the scope's; it becomes
 *              key on the server                 logical too
 *
 * and `__redis__:invalidate`, which carries lists of tracked keys to RESP2 clients. Everything else is not delivered.
 */
import * as encode from '../resp/encode.ts';
import { aggregate, type Reply } from '../resp/reply.ts';
import { logicalKey, physicalKey, prefixed, type Scope, unprefixed } from './scope.ts';

const KEYSPACE = /^__keyspace@\d+__:/;
const KEYEVENT = /^__keyevent@\d+__:/;
const KEYSPACE_START = '__keyspace@';
const KEYEVENT_START = '__keyevent@';
const INVALIDATE = '__redis__:invalidate';
/** The longest start of a notification that is looked for, with a database number of any length. */
const HEAD_BYTES_MAX = 40;

function headLength(channel: Buffer, head: RegExp): number {
  return head.exec(channel.toString('latin1', 0, HEAD_BYTES_MAX))?.[0].length ?? 0;
}

/** The channel that a scoped SUBSCRIBE means. */
export function physicalChannel(scope: Scope, channel: Buffer): Buffer {
  const keyspace = headLength(channel, KEYSPACE);
  if (keyspace > 0) {
    return Buffer.concat([channel.subarray(0, keyspace), physicalKey(scope, channel.subarray(keyspace))]);
  }
  if (headLength(channel, KEYEVENT) > 0 || channel.toString('latin1') === INVALIDATE) return channel;
  return prefixed(scope, channel);
}

/** The name by which the client knows a physical channel; `undefined` for channels that are none of its own. */
export function logicalChannel(scope: Scope, channel: Buffer): Buffer | undefined {
  const own = unprefixed(scope, channel);
  if (own !== undefined) return own;
  const keyspace = headLength(channel, KEYSPACE);
  if (keyspace > 0) {
    const key = logicalKey(scope, channel.subarray(keyspace));
    return key === undefined ? undefined : Buffer.concat([channel.subarray(0, keyspace), key]);
  }
  return headLength(channel, KEYEVENT) > 0 || channel.toString('latin1') === INVALIDATE ? channel : undefined;
}

/** A message's payload for the client, as a frame; `undefined` where the message is none of its own. */
export function logicalPayload(scope: Scope, channel: Buffer, payload: Reply): Buffer | undefined {
  if (unprefixed(scope, channel) !== undefined) return payload.raw;
  if (headLength(channel, KEYEVENT) > 0) {
    const key = logicalKey(scope, payload.bytes);
    return key === undefined ? undefined : encode.bulk(key);
  }
  if (channel.toString('latin1') === INVALIDATE) return logicalInvalidation(scope, payload);
  return payload.raw;
}

/** The list of keys of an invalidation; null means all. `undefined` where no key of the scope is in it. */
export function logicalInvalidation(scope: Scope, keys: Reply): Buffer | undefined {
  if (keys.items === undefined) return keys.isNull ? keys.raw : undefined;
  const own: Buffer[] = [];
  for (const item of keys.items) {
    const key = logicalKey(scope, item.bytes);
    if (key !== undefined) own.push(encode.bulk(key));
  }
  return own.length === 0 ? undefined : aggregate('*', own);
}

/**
 * The patterns by which the sessions of an identity listen at the KV store. Its ACL user may use these and no other, since
 * a server compares patterns with the ACL letter by letter. What a client's own pattern matches among the messages,
 * Holdfast finds out.
 */
export interface ListeningPatterns {
  readonly own: Buffer;
  readonly keyspace: Buffer;
  readonly keyevent: Buffer;
}

const STAR = Buffer.from('*');

/** `pattern` matches the prefixes of the identity's scopes. */
export function listeningPatterns(pattern: Buffer): ListeningPatterns {
  return {
    own: Buffer.concat([pattern, STAR]),
    keyspace: Buffer.concat([Buffer.from('__keyspace@*__:'), pattern, STAR]),
    keyevent: Buffer.from('__keyevent@*__:*'),
  };
}

/** Which of them are needed for what `pattern`, a client's, may match. */
export function patternsNeeded({ own, keyspace, keyevent }: ListeningPatterns, pattern: Buffer): Buffer[] {
  const literal = /^[^*?[\\]*/.exec(pattern.toString('latin1'))![0];
  const needed: Buffer[] = [];
  if (!literal.startsWith(KEYSPACE_START) && !literal.startsWith(KEYEVENT_START)) needed.push(own);
  if (compatible(literal, KEYSPACE_START)) needed.push(keyspace);
  if (compatible(literal, KEYEVENT_START)) needed.push(keyevent);
  return needed;
}

function compatible(a: string, b: string): boolean {
  return a.startsWith(b) || b.startsWith(a);
}
