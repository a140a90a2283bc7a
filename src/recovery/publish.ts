/**
 * Brings the backlog of a stream to the KV store, in ID order, fenced like a restore. While many wait, in batches with
 * the stream open to more; the last few under its exclusive lock, after which it is back to normal:
 *
 *   lock ─ read ≤ BATCH ─ full batch? ─ yes ─ unlock ─ publish ─┐
 *     ▲                        │ no                             │
 *     │                        └─ publish, end the outage, unlock
 *     └──────────────────────────────────────────────────────────┘
 *
 * The lock in between is a barrier: whoever got an ID before it has committed, so nothing smaller appears later.
 * An entry in doubt is first looked for among the stream's entries that no row claims.
 */
import type pg from 'pg';
import type { Logger } from 'pino';
import { HoldfastError } from '../errors.ts';
import { byteaArray } from '../ledger/binary-array.ts';
import { decodeFields, encodeFields } from '../ledger/entry-fields.ts';
import { formatEntryId, nextEntryId, parseEntryId } from '../ledger/entry-id.ts';
import type { Ledger } from '../ledger/ledger.ts';
import type { Stream } from '../ledger/stream-registry.ts';
import { byField, type KvArgument, type KvConnection, type KvReply } from './kv-connection.ts';
import { parseServerIdentity } from './kv-snapshot.ts';
import { formatWitness, WITNESS_KEY } from './witness.ts';

export interface PublishContext {
  readonly ledger: Ledger;
  readonly connection: KvConnection;
  readonly leaderEpoch: number;
  readonly log: Logger;
}

interface BacklogRow {
  readonly id: Buffer;
  readonly in_doubt: boolean;
  readonly after_id: Buffer | null;
  readonly kv_client_id: string | null;
  readonly kv_run_id: string | null;
  readonly maxlen: string | null;
  readonly fields: Buffer;
}

export interface PublishResult {
  published: number;
  aliases: number;
  claimed: number;
  possibleDuplicates: number;
}

const BATCH_ROWS = 1000;
/** Written by the leader; which counter it uses does not matter. */
const SLOT = 64;

export async function publishBacklog(context: PublishContext, stream: Stream): Promise<PublishResult> {
  const result: PublishResult = { published: 0, aliases: 0, claimed: 0, possibleDuplicates: 0 };
  const client = await context.ledger.pool.connect();
  let broken: Error | undefined;
  try {
    for (let done = false; !done; ) {
      await client.query('BEGIN');
      try {
        // Lock 0 before the stream's, as everywhere.
        await client.query('SELECT pg_advisory_xact_lock_shared(holdfast.lock_key(0))');
        await client.query('SELECT pg_advisory_xact_lock(holdfast.lock_key($1))', [stream.streamId]);
        const { rows } = await client.query<BacklogRow & { mode: string }>(
          `SELECT id, in_doubt, after_id, kv_client_id, kv_run_id, maxlen, fields, mode
             FROM holdfast.backlog JOIN holdfast.stream USING (stream_id)
            WHERE stream_id = $1 AND ended_at IS NULL AND mode <> 'restoring' AND window_id IS NULL
            ORDER BY id LIMIT ${BATCH_ROWS}`,
          [stream.streamId],
        );
        const last = rows.length < BATCH_ROWS;
        // A match must not be taken by a second sidecar at the same time: under the lock as well.
        if (last || rows.some((row) => row.in_doubt)) {
          await publishRows(context, client, stream, rows, result);
          if (last) {
            await client.query('SELECT holdfast.end_outage($1, $2)', [context.leaderEpoch, stream.streamId]);
            done = true;
          }
          await client.query('COMMIT');
        } else {
          await client.query('COMMIT');
          await publishRows(context, context.ledger.pool, stream, rows, result);
        }
      } catch (thrown) {
        await client.query('ROLLBACK');
        throw thrown;
      }
    }
    return result;
  } catch (thrown) {
    broken = thrown instanceof Error ? thrown : new Error(String(thrown));
    throw thrown;
  } finally {
    client.release(broken);
  }
}

async function publishRows(
  context: PublishContext,
  database: pg.Pool | pg.PoolClient,
  stream: Stream,
  rows: readonly BacklogRow[],
  result: PublishResult,
): Promise<void> {
  const { connection, leaderEpoch } = context;
  const left = await claimInDoubt(context, database, stream, rows, result);
  if (left.length === 0) return;

  const info = await connection.command(stream.database, ['XINFO', 'STREAM', stream.name]).catch((thrown: Error) => {
    if (/no such key/i.test(thrown.message)) return null;
    throw thrown;
  });
  let top = info === null ? Buffer.alloc(16) : parseEntryId(byField(info).get('last-generated-id') as Buffer)!;

  // What cannot keep its ID, because the stream has gone past it, gets the next one, so that the order stays.
  const present: Buffer[] = [];
  const oldIds: Buffer[] = [];
  const newIds: Buffer[] = [];
  const placed: { id: Buffer; row: BacklogRow }[] = [];
  for (const row of left) {
    if (row.id.compare(top) > 0) {
      placed.push({ id: row.id, row });
      top = row.id;
      continue;
    }
    const found = await entryAt(connection, stream, row.id);
    if (found?.equals(row.fields) === true) {
      present.push(row.id);
      continue;
    }
    top = nextEntryId(top);
    oldIds.push(row.id);
    newIds.push(top);
    placed.push({ id: top, row });
  }
  if (oldIds.length > 0) {
    await database.query('SELECT holdfast.alias_backlog($1, $2, $3::bytea[], $4::bytea[])', [
      leaderEpoch,
      stream.streamId,
      byteaArray(oldIds),
      byteaArray(newIds),
    ]);
    result.aliases += oldIds.length;
  }
  await addFenced(context, stream, placed);
  const published = [...present, ...placed.map((entry) => entry.id)];
  if (published.length > 0) {
    await database.query('SELECT holdfast.publish_backlog($1, $2::smallint, $3, $4::bytea[])', [
      leaderEpoch,
      SLOT,
      stream.streamId,
      byteaArray(published),
    ]);
  }
  result.published += published.length;
  result.possibleDuplicates += left.filter((row) => row.in_doubt).length;
}

/** XADDs the entries where this leader still leads. Throws otherwise, and where the KV store refuses one. */
async function addFenced(
  context: PublishContext,
  stream: Stream,
  entries: readonly { readonly id: Buffer; readonly row: BacklogRow }[],
): Promise<void> {
  if (entries.length === 0) return;
  const { connection } = context;
  const fence = formatWitness({ ledger: context.ledger.identity, epoch: context.leaderEpoch });
  const [, witness] = await connection.pipeline(0, [
    ['WATCH', WITNESS_KEY],
    ['GET', WITNESS_KEY],
  ]);
  if (!Buffer.isBuffer(witness) || witness.toString() !== fence) {
    await connection.command(0, ['UNWATCH']);
    throw new HoldfastError('RECOVERING', 'the fence is gone: another leader publishes, or the KV store lost it');
  }
  const replies = await connection.transaction(
    stream.database,
    entries.map(({ id, row }): KvArgument[] => [
      'XADD',
      stream.name,
      ...(row.maxlen === null ? [] : ['MAXLEN', row.maxlen]),
      formatEntryId(id),
      ...decodeFields(row.fields),
    ]),
  );
  if (replies === null) throw new HoldfastError('RECOVERING', 'the fence changed while publishing');
  const refused = replies.find((reply) => reply instanceof Error);
  if (refused instanceof Error) throw new HoldfastError('RECOVERING', `publishing was refused: ${refused.message}`);
}

async function entryAt(connection: KvConnection, stream: Stream, id: Buffer): Promise<Buffer | undefined> {
  const text = formatEntryId(id);
  const reply = (await connection.command(stream.database, ['XRANGE', stream.name, text, text])) as KvReply[];
  const member = reply[0] as [Buffer, Buffer[]] | undefined;
  return member === undefined ? undefined : encodeFields(member[1]);
}

/** Gives the rows that must still be published. */
async function claimInDoubt(
  context: PublishContext,
  database: pg.Pool | pg.PoolClient,
  stream: Stream,
  rows: readonly BacklogRow[],
  result: PublishResult,
): Promise<BacklogRow[]> {
  const { connection, leaderEpoch } = context;
  const inDoubt = rows.filter((row) => row.in_doubt);
  if (inDoubt.length === 0) return [...rows];

  // Bytes of a broken connection can still land after we looked: not once it is closed at the other end.
  // Another run of the server has closed it by itself, and has given its ID to somebody else.
  const runId = parseServerIdentity(String(await connection.command(0, ['INFO', 'server']))).runId;
  for (const client of new Set(inDoubt.filter((row) => row.kv_run_id === runId).map((row) => row.kv_client_id))) {
    if (client === null) continue;
    await connection.command(0, ['CLIENT', 'KILL', 'ID', client]).catch((thrown: Error) => {
      if (thrown instanceof HoldfastError) throw thrown;
    });
  }
  const after = inDoubt.reduce(
    (least, row) => (row.after_id!.compare(least) < 0 ? row.after_id! : least),
    inDoubt[0]!.after_id!,
  );
  const byFields = new Map<string, Buffer[]>();
  const wanted = new Set(inDoubt.map((row) => row.fields.toString('latin1')));
  for (let last = after; ; ) {
    const page = (await connection.command(stream.database, [
      'XRANGE',
      stream.name,
      `(${formatEntryId(last)}`,
      '+',
      'COUNT',
      BATCH_ROWS,
    ])) as [Buffer, Buffer[]][];
    for (const [idText, members] of page) {
      const fields = encodeFields(members).toString('latin1');
      last = parseEntryId(idText)!;
      if (!wanted.has(fields)) continue;
      const ids = byFields.get(fields);
      if (ids === undefined) byFields.set(fields, [last]);
      else ids.push(last);
    }
    if (page.length < BATCH_ROWS) break;
  }
  const candidates = [...byFields.values()].flat();
  const { rows: claimed } = await database.query<{ id: Buffer }>(
    `SELECT id FROM holdfast.entry WHERE stream_id = $1 AND id = ANY ($2::bytea[]) AND NOT observed`,
    [stream.streamId, byteaArray(candidates)],
  );
  const taken = new Set(claimed.map((row) => row.id.toString('latin1')));
  const left: BacklogRow[] = [];
  for (const row of rows) {
    const free = row.in_doubt
      ? byFields
          .get(row.fields.toString('latin1'))
          ?.find((id) => !taken.has(id.toString('latin1')) && id.compare(row.after_id!) > 0)
      : undefined;
    if (free === undefined) {
      left.push(row);
      continue;
    }
    taken.add(free.toString('latin1'));
    await database.query('SELECT holdfast.claim_backlog($1, $2::smallint, $3, $4, $5)', [
      leaderEpoch,
      SLOT,
      stream.streamId,
      row.id,
      free,
    ]);
    result.claimed += 1;
  }
  return left;
}

/** The IDs under which backlog rows are known now: `undefined` for one that still waits. */
export async function publishedIds(
  pool: pg.Pool,
  streamId: number,
  ids: readonly Buffer[],
): Promise<(Buffer | undefined)[]> {
  const { rows } = await pool.query<{ waits: boolean; published_id: Buffer | null }>(
    `SELECT EXISTS (
              SELECT FROM holdfast.backlog
               WHERE backlog.stream_id = $1 AND backlog.id = coalesce(alias.published_id, given.id)
            ) AS waits, alias.published_id
       FROM unnest($2::bytea[]) WITH ORDINALITY AS given (id, position)
       LEFT JOIN LATERAL (
         SELECT published_id FROM holdfast.alias
          WHERE alias.stream_id = $1 AND alias.id = given.id ORDER BY epoch DESC LIMIT 1
       ) AS alias ON true
      ORDER BY position`,
    [streamId, byteaArray(ids)],
  );
  return rows.map((row, index) => (row.waits ? undefined : (row.published_id ?? ids[index]!)));
}
