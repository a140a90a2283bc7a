/**
 * Commands that speak of the whole keyspace, inside a scope: they walk it with SCAN, in batches that hold up nobody, and
 * see what is the scope's. What removes all of it removes the ledger's streams too that SCAN does not find, since the KV
 * store lost them a moment ago: they would come back. In a transaction, where nothing can be walked, what only reads is
 * one KEYS inside a script.
 */
import { HoldfastError } from '../../errors.ts';
import type { Exchange } from '../../interceptor.ts';
import * as encode from '../../resp/encode.ts';
import { errorText, readReply } from '../../resp/reply.ts';
import { physicalPattern, type Scope, unprefixed } from '../../scope/scope.ts';
import type { ScopedExchange } from './interceptors.ts';

const SCAN_COUNT = '1000';
const UNLINK_KEYS_MAX = 500;
const ANYTHING = Buffer.from('*');
const CURSOR_MAX = 2 ** 32;
const COUNT_BY_KEYS = Buffer.from("return #redis.call('KEYS',ARGV[1])");
const RANDOM_BY_KEYS = Buffer.from(
  "local k=redis.call('KEYS',ARGV[1]) if #k==0 then return false end return k[redis.call('TIME')[2]%#k+1]",
);

export function notInTransaction(name: string): HoldfastError {
  return new HoldfastError('ERR', `${name} inside MULTI is not possible in a scope: send it before or after`);
}

/** The KV store's own error, on to the client. */
function passOn(text: string): never {
  const [code, ...words] = text.split(' ');
  throw new HoldfastError(code!, words.join(' '));
}

/** The streams that the ledger knows, of all scopes. */
export type LedgeredStreams = () => Iterable<{
  readonly database: number;
  readonly name: Buffer;
  readonly ended: boolean;
}>;

interface Page {
  readonly cursor: string;
  readonly keys: readonly Buffer[];
}

async function scanPage(exchange: Exchange, pattern: Buffer, cursor: string, database: number): Promise<Page> {
  const args = ['SCAN', cursor, 'MATCH', pattern, 'COUNT', SCAN_COUNT].map((arg) => Buffer.from(arg));
  const reply = readReply(await exchange.run(args, database));
  const failed = errorText(reply);
  if (failed !== undefined) passOn(failed);
  return { cursor: reply.items![0]!.bytes.toString(), keys: reply.items![1]!.items!.map((key) => key.bytes) };
}

/** Removes all keys of a scope from one database, the session's own by default, and tells of each batch. */
export async function removeScope(
  exchange: Exchange,
  scope: Scope,
  ledgered: LedgeredStreams,
  database = exchange.session.database,
  removed: (keys: number) => void = () => undefined,
): Promise<void> {
  const { prefix } = scope;
  const pattern = everything(scope);
  const streams = streamsOf(scope, ledgered).filter((stream) => stream.database === database);
  let cursor = '0';
  do {
    const page = await scanPage(exchange, pattern, cursor, database);
    cursor = page.cursor;
    const own = page.keys.filter((key) => key.subarray(0, prefix.length).equals(prefix));
    await removeKeys(exchange, own, database, removed);
  } while (cursor !== '0' && !exchange.session.closed);
  const lost = streams.filter((stream) => !stream.ended).map((stream) => stream.name);
  await removeKeys(exchange, lost, database, removed);
}

function streamsOf({ prefix }: Scope, ledgered: LedgeredStreams) {
  return [...ledgered()].filter(({ name }) => name.subarray(0, prefix.length).equals(prefix));
}

/** Removes these keys, and tells of each batch. */
export async function removeKeys(
  exchange: Exchange,
  keys: readonly Buffer[],
  database: number,
  removed: (count: number) => void,
): Promise<void> {
  for (let at = 0; at < keys.length; at += UNLINK_KEYS_MAX) {
    const batch = keys.slice(at, at + UNLINK_KEYS_MAX);
    const reply = readReply(await exchange.run([Buffer.from('UNLINK'), ...batch], database));
    const failed = errorText(reply);
    if (failed !== undefined) passOn(failed);
    removed(Number(reply.bytes.toString()));
  }
}

/** Those of the keys that there are. */
export async function storedKeys(exchange: Exchange, keys: readonly Buffer[], database: number): Promise<Buffer[]> {
  const stored: Buffer[] = [];
  for (const key of keys) {
    const reply = readReply(await exchange.run([Buffer.from('EXISTS'), key], database));
    const failed = errorText(reply);
    if (failed !== undefined) passOn(failed);
    if (reply.bytes.toString() === '1') stored.push(key);
  }
  return stored;
}

function everything(scope: Scope): Buffer {
  return physicalPattern(scope, ANYTHING);
}

function checkFlush({ exchange }: ScopedExchange, name: string): void {
  const [, mode, ...more] = exchange.args;
  if (more.length > 0 || (mode !== undefined && !/^a?sync$/i.test(mode.toString('latin1')))) {
    throw new HoldfastError('ERR', 'syntax error');
  }
  if (exchange.queued) throw notInTransaction(name);
}

export async function flushDatabase(scoped: ScopedExchange): Promise<void> {
  checkFlush(scoped, 'FLUSHDB');
  const { exchange, scope } = scoped;
  await removeScope(exchange, scope, scoped.ledgered);
  exchange.respond(encode.OK);
}

export async function flushDatabases(scoped: ScopedExchange): Promise<void> {
  checkFlush(scoped, 'FLUSHALL');
  const { exchange, scope, ledgered } = scoped;
  const info = readReply(await exchange.run([Buffer.from('INFO'), Buffer.from('keyspace')]));
  const failed = errorText(info);
  if (failed !== undefined) passOn(failed);
  const databases = new Set(streamsOf(scope, ledgered).map(({ database }) => database));
  for (const [, database] of info.bytes.toString('latin1').matchAll(/^db(\d+):/gm)) databases.add(Number(database));
  for (const database of databases) await removeScope(exchange, scope, ledgered, database);
  exchange.respond(encode.OK);
}

function asScript(script: Buffer, scope: Scope): Buffer[] {
  return [Buffer.from('EVAL'), script, Buffer.from('0'), everything(scope)];
}

export async function countKeys({ exchange, scope }: ScopedExchange): Promise<void> {
  if (exchange.args.length > 1) return;
  if (exchange.queued) {
    exchange.args = asScript(COUNT_BY_KEYS, scope);
    return;
  }
  let count = 0;
  let cursor = '0';
  do {
    const page = await scanPage(exchange, everything(scope), cursor, exchange.session.database);
    cursor = page.cursor;
    count += page.keys.length;
  } while (cursor !== '0' && !exchange.session.closed);
  exchange.respond(encode.integer(count));
}

/** From the first page with a key behind a random place; all of it is walked before there is none. */
export async function randomKey({ exchange, scope }: ScopedExchange): Promise<void> {
  if (exchange.args.length > 1) return;
  const show = (key: Buffer): Buffer => encode.bulk(unprefixed(scope, key) ?? key);
  if (exchange.queued) {
    exchange.args = asScript(RANDOM_BY_KEYS, scope);
    exchange.onReply((frame) => {
      const reply = readReply(frame);
      return reply.type === '$' && !reply.isNull ? show(reply.bytes) : frame;
    });
    return;
  }
  let cursor = String(Math.floor(Math.random() * CURSOR_MAX));
  for (let walks = 0; walks < 2 && !exchange.session.closed; ) {
    const page = await scanPage(exchange, everything(scope), cursor, exchange.session.database);
    if (page.keys.length > 0) {
      exchange.respond(show(page.keys[Math.floor(Math.random() * page.keys.length)]!));
      return;
    }
    cursor = page.cursor;
    if (cursor === '0') walks += 1;
  }
  exchange.respond(encode.nullBulk(exchange.session.protocol));
}
