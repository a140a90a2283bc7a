/**
 * Appends what the ledger has to the stream as it is in the KV store, fenced: under WATCH of the fence and, where nobody else
 * may come between, of the stream.
 */
import type { Logger } from 'pino';
import { HoldfastError } from '../../errors.ts';
import { decodeFields } from '../../ledger/encoding/entry-fields.ts';
import { ENTRY_ID_ZERO, entryIdFrom, formatEntryId, maxEntryId, nextEntryId } from '../../ledger/encoding/entry-id.ts';
import type { Ledger } from '../../ledger/ledger.ts';
import type { Stream } from '../../ledger/stream-registry.ts';
import { isWrongType } from '../detect/replaced-key.ts';
import type { KvArgument, KvConnection } from '../kv/connection.ts';
import { entriesAt } from '../kv/entries.ts';
import { watchFence } from '../kv/epoch-key.ts';
import { readPresent } from './stream-room.ts';

export interface PublishContext {
  readonly ledger: Ledger;
  readonly connection: KvConnection;
  readonly leaderEpoch: number;
  readonly log: Logger;
  /** How many streams share the memory that restores may take. */
  readonly sharers: number;
}

export interface PublishRow {
  readonly id: Buffer;
  readonly maxlen: string | null;
  readonly fields: Buffer;
}

/** How far ahead new IDs are chosen when others come between, doubled each time. */
const HEADROOM_MS = 25;
const HEADROOM_MS_MAX = 5000;

export interface Placing {
  /** Not in the KV store yet; their IDs are above all that is there. */
  readonly missing: readonly PublishRow[];
  /** What cannot keep its ID, because the stream has gone past it, and the one it gets, so that the order stays. */
  readonly oldIds: readonly Buffer[];
  readonly newIds: readonly Buffer[];
}

/** `anew`: even an ID that is above the stream's is given up for one that is far above it. */
export async function place(
  context: PublishContext,
  stream: Stream,
  rows: readonly PublishRow[],
  rounds: number,
  anew: boolean,
): Promise<Placing> {
  const { connection } = context;
  let top = (await readPresent(connection, stream))?.lastId ?? ENTRY_ID_ZERO;
  // One round trip: a transaction that rests for long between its statements is ended by Postgres.
  const found = await entriesAt(
    connection,
    stream,
    rows.map((row) => row.id).filter((id) => id.compare(top) <= 0),
  );
  const ahead =
    rounds === 0 && !anew
      ? ENTRY_ID_ZERO
      : entryIdFrom(Date.now() + Math.min(HEADROOM_MS * 2 ** rounds, HEADROOM_MS_MAX), 0);
  const missing: PublishRow[] = [];
  const oldIds: Buffer[] = [];
  const newIds: Buffer[] = [];
  for (const row of rows) {
    if (row.id.compare(top) > 0 && !anew) {
      missing.push(row);
      top = row.id;
      continue;
    }
    if (found.get(row.id.toString('latin1'))?.equals(row.fields) === true) continue;
    top = maxEntryId(nextEntryId(top), ahead);
    oldIds.push(row.id);
    newIds.push(top);
  }
  return { missing, oldIds, newIds };
}

/** Watches the fence, and the stream where one is given. Throws where another one leads. */
export async function watchFenced(context: PublishContext, stream: Stream | undefined): Promise<void> {
  const { ledger, connection, leaderEpoch } = context;
  await watchFence(ledger, connection, leaderEpoch);
  if (stream !== undefined) await connection.command(stream.database, ['WATCH', stream.name]);
}

/**
 * XADDs the entries, then does what `afterwards` says. Gives false where somebody else wrote to the stream meanwhile, so
 * that an ID may be too small for it now. Throws where the KV store refuses an entry for another reason.
 */
export async function addWatched(
  context: PublishContext,
  stream: Stream,
  rows: readonly PublishRow[],
  afterwards: readonly (readonly KvArgument[])[] = [],
): Promise<boolean> {
  const { connection } = context;
  const replies = await connection.transaction(stream.database, [
    ...rows.map((row): KvArgument[] => [
      'XADD',
      stream.name,
      ...(row.maxlen === null ? [] : ['MAXLEN', row.maxlen]),
      formatEntryId(row.id),
      ...decodeFields(row.fields),
    ]),
    ...afterwards,
  ]);
  if (replies === null) return false;
  const refused = replies.filter((reply) => reply instanceof Error);
  const other = refused.find((reply) => !/equal or smaller/.test(reply.message));
  if (other !== undefined) {
    if (isWrongType(other)) throw other;
    throw new HoldfastError('RECOVERING', `publishing was refused: ${other.message}`);
  }
  return refused.length === 0;
}
