/**
 * Goes on with a stream that was restored in part for want of memory. What is in the KV store ends at the window's edge;
 * what the ledger has above it follows in ID order, in batches, as far as there is room:
 *
 *   entries above the edge ─▶ room? ─ yes ─▶ XADD under WATCH of fence and stream ─▶ the edge moves on ─┐
 *      ▲                       │ no                                                                     │
 *      │                       └─▶ trim what all groups have acknowledged ─ still none ─▶ later         │
 *      └────────────────────────────────────────────────────────────────────────────────────────────────┘
 *   none left ─▶ XSETID to the ledger's watermarks ─▶ the window is closed
 *
 * XADDs go to the ledger alone meanwhile and are published behind it. Doing a batch twice changes nothing: what is there
 * with the same fields is passed over.
 */
import { type AcknowledgedSet, isWanted, readAcknowledged } from '../../ledger/encoding/acknowledged-set.ts';
import {
  ENTRY_ID_ZERO,
  entryIdFrom,
  formatEntryId,
  maxEntryId,
  minEntryId,
  previousEntryId,
} from '../../ledger/encoding/entry-id.ts';
import type { Stream } from '../../ledger/stream-registry.ts';
import { readKnownStreams } from '../detect/known-streams.ts';
import { entryBytes } from '../kv/memory.ts';
import { addWatched, type PublishContext, place, watchFenced } from './append.ts';
import { asLeader, renumber } from './renumber.ts';
import { readPresent, roomIn } from './stream-room.ts';

interface Row {
  readonly id: Buffer;
  readonly fields: Buffer;
  readonly maxlen: string | null;
  readonly deleted: boolean;
}

const BATCH_ROWS = 1000;
const BATCH_BYTES = 4 * 1024 * 1024;

/** Gives whether all of the stream is in the KV store by now. */
export async function refillWindow(context: PublishContext, stream: Stream): Promise<boolean> {
  let groups: readonly AcknowledgedSet[] | undefined;
  for (;;) {
    const from = await readEdge(context, stream);
    if (from === undefined) return true;
    const rows = await readRows(context, stream, from);
    if (rows.length === 0) {
      if (!(await close(context, stream, from))) return false;
      continue;
    }
    const acknowledged = (groups ??= await readGroups(context, stream));
    const wanted = rows.filter((row) => !row.deleted && isWanted(acknowledged, row.id));
    const room = wanted.length === 0 ? 0 : await roomIn(context, stream, 'restore', entryBytes(wanted[0]!.fields));
    let bytes = 0;
    const fitting = wanted.findIndex((row) => (bytes += entryBytes(row.fields)) > room);
    if (fitting === 0) return false;
    const batch = fitting < 0 ? wanted : wanted.slice(0, fitting);
    const edge = fitting < 0 ? rows.at(-1)!.id : previousEntryId(wanted[fitting]!.id);
    if (!(await add(context, stream, batch, from, edge))) return false;
  }
}

/** `undefined` where no window is open. */
async function readEdge({ ledger }: PublishContext, { streamId }: Stream): Promise<Buffer | undefined> {
  const { rows } = await ledger.pool.query<{ window_id: Buffer }>(
    `SELECT window_id FROM holdfast.stream
      WHERE stream_id = $1 AND ended_at IS NULL AND mode = 'outage' AND window_id IS NOT NULL`,
    [streamId],
  );
  return rows[0]?.window_id;
}

async function readGroups({ ledger }: PublishContext, { streamId }: Stream): Promise<AcknowledgedSet[]> {
  const { rows } = await ledger.pool.query<{ group_id: string }>(
    'SELECT group_id FROM holdfast.consumer_group WHERE stream_id = $1 AND ended_at IS NULL',
    [streamId],
  );
  return Promise.all(rows.map((row) => readAcknowledged(ledger.pool, Number(row.group_id))));
}

async function readRows({ ledger }: PublishContext, { streamId }: Stream, edge: Buffer): Promise<Row[]> {
  const { rows } = await ledger.pool.query<Row>({
    name: 'holdfast-refill-rows',
    text: `SELECT id, fields, maxlen, EXISTS (
             SELECT FROM holdfast.deletion AS d WHERE d.stream_id = $1 AND d.id = measured.id
           ) AS deleted
             FROM (SELECT *, sum(octet_length(fields)) OVER (ORDER BY id) - octet_length(fields) AS before
                     FROM (SELECT id, fields, maxlen FROM holdfast.entry
                            WHERE stream_id = $1 AND id > $2 ORDER BY id LIMIT ${BATCH_ROWS}) AS page) AS measured
            WHERE before < ${BATCH_BYTES} ORDER BY id`,
    values: [streamId, edge],
  });
  return rows;
}

/** Gives false where the stream must be compared first. */
async function add(
  context: PublishContext,
  stream: Stream,
  rows: readonly Row[],
  from: Buffer,
  to: Buffer,
): Promise<boolean> {
  await watchFenced(context, stream);
  const state = await readPresent(context.connection, stream);
  if (state === undefined) return false;
  const placing = await place(context, stream, rows, 0, false);
  if (placing.oldIds.length > 0) {
    await context.connection.command(0, ['UNWATCH']);
    const least = maxEntryId(state.lastId, entryIdFrom(Date.now(), 0));
    await asLeader(context, (client) => renumber(client, 'entry', stream.streamId, from, [], least));
    return true;
  }
  const last = formatEntryId(maxEntryId(maxEntryId(state.lastId, to), placing.missing.at(-1)?.id ?? ENTRY_ID_ZERO));
  // They were counted when they were added for the first time. Where none is wanted any more the KV store's last ID moves on all
  // the same: it is never below the edge.
  const added = Math.max(state.entriesAdded, state.length + placing.missing.length);
  const mark = ['XSETID', stream.name, last, 'ENTRIESADDED', added, 'MAXDELETEDID', formatEntryId(state.maxDeletedId)];
  if (!(await addWatched(context, stream, placing.missing, [mark]))) return true;
  await asLeader(context, async (client) => {
    await client.query(
      `UPDATE holdfast.stream SET window_id = $3
        WHERE stream_id = $1 AND window_id = $2 AND mode = 'outage' AND ended_at IS NULL`,
      [stream.streamId, from, to],
    );
  });
  return true;
}

/** Nothing is left above the edge. Gives false where the stream must be compared first. */
async function close(context: PublishContext, stream: Stream, edge: Buffer): Promise<boolean> {
  const { ledger } = context;
  const [known] = await readKnownStreams(ledger.pool, [stream.streamId]);
  if (known === undefined) return false;
  await watchFenced(context, stream);
  const state = await readPresent(context.connection, stream);
  if (state === undefined) return false;
  const last = maxEntryId(state.lastId, known.lastId);
  const deleted = minEntryId(maxEntryId(state.maxDeletedId, known.maxDeletedId), last);
  const added = Math.max(state.entriesAdded, known.added);
  const mark = [
    'XSETID',
    stream.name,
    formatEntryId(last),
    'ENTRIESADDED',
    added,
    'MAXDELETEDID',
    formatEntryId(deleted),
  ];
  if (!(await addWatched(context, stream, [], [mark]))) return true;
  await asLeader(context, async (client) => {
    await client.query('SELECT pg_advisory_xact_lock(holdfast.lock_key($1))', [stream.streamId]);
    await client.query(
      `UPDATE holdfast.stream SET window_id = NULL
        WHERE stream_id = $1 AND window_id = $2 AND mode = 'outage' AND ended_at IS NULL
          AND NOT EXISTS (SELECT FROM holdfast.entry WHERE entry.stream_id = $1 AND entry.id > $2)`,
      [stream.streamId, edge],
    );
  });
  return true;
}
