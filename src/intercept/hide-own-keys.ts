/**
 * The keys that Holdfast keeps in the KV store (the witness, streams under restoration, the outbox's note, leases, scripts) are hidden from KEYS, SCAN,
 * DBSIZE and RANDOMKEY, and from notifications and invalidations, so that a client that walks the keyspace finds its own keys only.
 */
import { LEASES_KEY, OWNERS_KEY, RELEASED_KEY } from '../cache/lease-scripts.ts';
import type { Exchange, Interceptor } from '../interceptor.ts';
import { OWN_KEY_START } from '../own-keys.ts';
import { WITNESS_KEY } from '../recovery/kv/epoch-key.ts';
import { OUTBOX_KEY } from '../recovery/outbox/outbox-script.ts';
import { array, integer, nullBulk } from '../resp/encode.ts';
import { isLongList, rewriteNameList } from '../resp/name-list.ts';
import { type Reply, readReply } from '../resp/reply.ts';
import { SCRIPTS_KEY } from '../scope/lua/script-store.ts';

const OWN_PREFIX = Buffer.from(OWN_KEY_START);
const EXISTS_OWN = ['EXISTS', WITNESS_KEY, OUTBOX_KEY, LEASES_KEY, OWNERS_KEY, RELEASED_KEY, SCRIPTS_KEY].map((word) =>
  Buffer.from(word),
);
/** How often RANDOMKEY is asked again before the keyspace counts as holding nothing but Holdfast's keys. */
const RANDOM_TRIES = 100;

type See = (exchange: Exchange, frame: Buffer) => Buffer | Promise<Buffer>;

const SEES: Readonly<Record<string, See>> = {
  keys: (_, frame) => {
    if (!frame.includes(OWN_PREFIX)) return frame;
    if (isLongList(frame)) return rewriteNameList(frame, (key) => (startsAsOwn(key) ? undefined : key));
    return withoutOwn(readReply(frame));
  },
  scan: (_, frame) => {
    const [cursor, keys] = readReply(frame).items ?? [];
    return cursor === undefined || keys === undefined ? frame : array([cursor.raw, withoutOwn(keys)]);
  },
  randomkey: randomKey,
  dbsize: databaseSize,
};

export function hideOwnKeysInterceptor(): Interceptor {
  return {
    name: 'hide-own-keys',
    handles: (command) => command !== undefined && command.name in SEES,
    request(exchange) {
      // Inside a scope there are none of them.
      if (exchange.session.scope !== undefined) return;
      exchange.onReply((frame) => SEES[exchange.command!.name]!(exchange, frame));
    },
  };
}

/** Whether a push tells of nothing but keys of Holdfast's: a keyspace notification, or an invalidation. */
export function isOwnPush(frame: Buffer): boolean {
  if (!frame.includes(OWN_PREFIX)) return false;
  const items = readReply(frame).items ?? [];
  const payload = items.at(-1);
  const channel = items.at(-2)?.bytes.toString() ?? '';
  if (payload?.items !== undefined) return channel.includes('invalidate') && payload.items.every(isOwn);
  if (payload === undefined || !channel.startsWith('__key')) return false;
  return channel.startsWith('__keyevent@') ? isOwn(payload) : channel.includes(`:${OWN_KEY_START}`);
}

function isOwn(key: Reply): boolean {
  return startsAsOwn(key.bytes);
}

function startsAsOwn(key: Buffer): boolean {
  return key.subarray(0, OWN_PREFIX.length).equals(OWN_PREFIX);
}

function withoutOwn(keys: Reply): Buffer {
  const items = keys.items ?? [];
  return items.some(isOwn) ? array(items.filter((key) => !isOwn(key)).map((key) => key.raw)) : keys.raw;
}

async function randomKey(exchange: Exchange, first: Buffer): Promise<Buffer> {
  let frame = first;
  for (let i = 0; i < RANDOM_TRIES; i += 1) {
    const reply = readReply(frame);
    if (reply.type !== '$' || reply.isNull || !isOwn(reply)) return frame;
    frame = await exchange.resend();
  }
  return nullBulk(exchange.session.protocol);
}

/** Own keys are looked for behind the count; a client cannot tell, for nobody else sees them come and go. */
async function databaseSize(exchange: Exchange, frame: Buffer): Promise<Buffer> {
  const size = readReply(frame);
  if (size.type !== ':') return frame;
  const exists = readReply(await exchange.resend(EXISTS_OWN));
  const own = exists.type === ':' ? Number(exists.bytes.toString()) : 0;
  return own === 0 ? frame : integer(Math.max(0, Number(size.bytes.toString()) - own));
}
