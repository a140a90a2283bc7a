/**
 * Brings the backlog of a stream to the KV store, in ID order, fenced like a restore. While many wait, in batches with
 * the stream open to more; the last few under its exclusive lock, after which it is back to normal:
 *
 *   lock ─ read ≤ BATCH ─ full batch? ─ yes ─ unlock ─ publish ─┐
 *     ▲                        │ no                             │
 *     │                        └─ publish, end the outage, unlock
 *     └──────────────────────────────────────────────────────────┘
 *
 * An entry that needs another ID, because the stream has gone past its own, has it committed before it is published, and
 * so have all behind it, so that their order stays and doing it twice changes nothing. Where clients that go past
 * Holdfast write all the time, IDs are chosen so far ahead that theirs do not reach them before.
 * The lock in between is a barrier: whoever got an ID before it has committed, so nothing smaller appears later.
 * An entry in doubt is first looked for among the stream's entries that no row claims.
 */
import type pg from 'pg';
import { HoldfastError } from '../../errors.ts';
import { boundedPage } from '../../ledger/bounded-page.ts';
import { byteaArray } from '../../ledger/encoding/binary-array.ts';
import { ENTRY_ID_MAX, previousEntryId } from '../../ledger/encoding/entry-id.ts';
import type { Stream } from '../../ledger/stream-registry.ts';
import { endWhereReplaced, isWrongType } from '../detect/replaced-key.ts';
import { kvEntries } from '../kv/entries.ts';
import { closeConnections } from '../kv/kill-connections.ts';
import { entryBytes } from '../kv/memory.ts';
import { addWatched, type Placing, type PublishContext, type PublishRow, place, watchFenced } from './append.ts';
import { refillWindow } from './refill-window.ts';
import { asLeader, renumber } from './renumber.ts';
import { roomIn } from './stream-room.ts';

interface BacklogRow extends PublishRow {
  /** By a client, while it waited. */
  readonly deleted: boolean;
  readonly in_doubt: boolean;
  /** `late`: the KV store had taken it, and lost it before the ledger had it. */
  readonly kind: 'outage' | 'late';
  readonly after_id: Buffer | null;
  readonly kv_client_id: string | null;
  readonly kv_run_id: string | null;
}

export interface PublishResult {
  published: number;
  aliases: number;
  claimed: number;
  possibleDuplicates: number;
  /** Some of it must wait until the KV store has room. */
  waiting: boolean;
}

const BATCH_ROWS = 1000;
/** How often clients that go past Holdfast may come between before all IDs are chosen ahead of theirs. */
const ATTEMPTS_MAX = 4;
/** Written by the leader; which counter it uses does not matter. */
const SLOT = 64;

export async function publishBacklog(context: PublishContext, stream: Stream): Promise<PublishResult> {
  const result: PublishResult = {
    published: 0,
    aliases: 0,
    claimed: 0,
    possibleDuplicates: 0,
    waiting: false,
  };
  try {
    if (await refillWindow(context, stream)) await publishAll(context, stream, result);
    else result.waiting = true;
    if (result.waiting) await noteWaiting(context, stream);
  } catch (thrown) {
    const { ledger, connection, log } = context;
    if (!isWrongType(thrown) || !(await endWhereReplaced(ledger, connection, log, stream))) throw thrown;
  }
  return result;
}

async function noteWaiting({ ledger }: PublishContext, { streamId }: Stream): Promise<void> {
  await ledger.pool.query(
    `UPDATE holdfast.stream SET mode_cause = mode_cause || $2
      WHERE stream_id = $1 AND mode = 'outage' AND window_id IS NULL AND position($2 IN mode_cause) = 0`,
    [streamId, ' (the KV store has no room for what was accepted meanwhile)'],
  );
}

async function publishAll(context: PublishContext, stream: Stream, result: PublishResult): Promise<void> {
  const began = new Date();
  const client = await context.ledger.pool.connect();
  let broken: Error | undefined;
  try {
    // Rounds in a row in which clients that go past Holdfast took the place of new IDs before these were committed.
    let rounds = 0;
    // What the first of the backlog takes, once there was no room for it.
    let needed = 0;
    for (let done = false; !done; ) {
      const room = await roomIn(context, stream, 'backlog', needed);
      await client.query('BEGIN');
      try {
        // Lock 0 before the stream's, as everywhere.
        await client.query('SELECT pg_advisory_xact_lock_shared(holdfast.lock_key(0))');
        await client.query('SELECT pg_advisory_xact_lock(holdfast.lock_key($1))', [stream.streamId]);
        const { rows } = await client.query<BacklogRow & { paged: string }>(
          `SELECT *, EXISTS (SELECT FROM holdfast.deletion AS d WHERE d.stream_id = $1 AND d.id = bounded.id) AS deleted
             FROM ${boundedPage(`
               SELECT id, in_doubt, kind, after_id, kv_client_id, kv_run_id, maxlen, fields
                 FROM holdfast.backlog JOIN holdfast.stream USING (stream_id)
                WHERE stream_id = $1 AND ended_at IS NULL AND mode <> 'restoring' AND window_id IS NULL
                ORDER BY id LIMIT ${BATCH_ROWS}`)} AS bounded ORDER BY id`,
          [stream.streamId],
        );
        const fitting = howManyFit(rows, room);
        const paged = Number(rows[0]?.paged ?? 0);
        const last = paged < BATCH_ROWS && rows.length === paged && fitting === rows.length;
        if (fitting === 0 && rows.length > 0) {
          await client.query('COMMIT');
          // Room is made out of the lock, and only where it is wanted.
          result.waiting = done = needed > 0;
          needed = entryBytes(rows[0]!.fields);
          continue;
        }
        needed = 0;
        rows.length = fitting;
        // A match must not be taken by a second sidecar at the same time: under the lock as well.
        if (last || rows.some((row) => row.in_doubt)) {
          const published = await publishRows(context, client, stream, rows, rounds, result);
          rounds = published ? 0 : rounds + 1;
          if (last && published) {
            await recordPublication(client, stream, began, result);
            await client.query('SELECT holdfast.end_outage($1, $2)', [context.leaderEpoch, stream.streamId]);
            done = true;
          }
          await client.query('COMMIT');
        } else {
          await client.query('COMMIT');
          const published = await publishRows(context, context.ledger.pool, stream, rows, rounds, result);
          rounds = published ? 0 : rounds + 1;
        }
      } catch (thrown) {
        await client.query('ROLLBACK');
        throw thrown;
      }
    }
  } catch (thrown) {
    broken = thrown instanceof Error ? thrown : new Error(String(thrown));
    throw thrown;
  } finally {
    client.release(broken);
  }
}

function howManyFit(rows: readonly PublishRow[], room: number): number {
  let bytes = 0;
  const first = rows.findIndex((row) => (bytes += entryBytes(row.fields)) > room);
  return first < 0 ? rows.length : first;
}

/** An outage is a recovery as well: from when it began until nothing waits any more. */
async function recordPublication(
  client: pg.PoolClient,
  stream: Stream,
  began: Date,
  { published, claimed, aliases, possibleDuplicates }: PublishResult,
): Promise<void> {
  if (published + claimed === 0) return;
  await client.query(
    `INSERT INTO holdfast.recovery (stream_id, epoch, cause, noticed_at, began_at, completed_at, attempts,
                                    entries_restored, aliases, possible_duplicates)
     SELECT stream_id, epoch,
            CASE mode WHEN 'normal' THEN 'late commits' ELSE coalesce('accepted meanwhile: ' || mode_cause, 'outage') END,
            CASE mode WHEN 'normal' THEN $2 ELSE LEAST(mode_since, $2) END, $2, clock_timestamp(), 1,
            $3, $4, $5
       FROM holdfast.stream WHERE stream_id = $1`,
    [stream.streamId, began, published, aliases, possibleDuplicates],
  );
}

/** Gives false where nothing was published, but rows have new IDs that must be committed first. */
async function publishRows(
  context: PublishContext,
  database: pg.Pool | pg.PoolClient,
  stream: Stream,
  rows: readonly BacklogRow[],
  rounds: number,
  result: PublishResult,
): Promise<boolean> {
  const { leaderEpoch } = context;
  const unclaimed = await claimInDoubt(context, database, stream, rows, result);
  await dropDeleted(database, stream, unclaimed);
  const left = unclaimed.filter((row) => !row.deleted);
  if (left.length === 0) return true;
  for (let attempt = 1; attempt <= ATTEMPTS_MAX; attempt += 1) {
    await watchFenced(context, rounds === 0 ? stream : undefined);
    const placing = await place(context, stream, left, rounds, attempt === ATTEMPTS_MAX);
    if (placing.oldIds.length > 0) {
      await context.connection.command(0, ['UNWATCH']);
      result.aliases += await renumberFrom(context, database, stream, left, placing);
      return false;
    }
    if (!(await addWatched(context, stream, placing.missing))) continue;
    await database.query('SELECT holdfast.publish_backlog($1, $2::smallint, $3, $4::bytea[])', [
      leaderEpoch,
      SLOT,
      stream.streamId,
      byteaArray(left.map((row) => row.id)),
    ]);
    result.published += left.length;
    // What the KV store had may have been read there, and acknowledged under the ID that it had.
    const added = new Set(placing.missing.map(({ id }) => id.toString('latin1')));
    const hadBefore = ({ id, kind }: BacklogRow): boolean => kind === 'late' && added.has(id.toString('latin1'));
    result.possibleDuplicates += left.filter((row) => row.in_doubt || hadBefore(row)).length;
    return true;
  }
  throw new HoldfastError('RECOVERING', 'the stream kept changing while its backlog was published');
}

/**
 * What a client has deleted while it waited is over. It would never be placed: no deleted entry gets another ID, and its own
 * may be too small by now.
 */
async function dropDeleted(
  database: pg.Pool | pg.PoolClient,
  { streamId }: Stream,
  rows: readonly BacklogRow[],
): Promise<void> {
  const deleted = rows.filter((row) => row.deleted).map((row) => row.id);
  if (deleted.length === 0) return;
  await database.query('DELETE FROM holdfast.backlog WHERE stream_id = $1 AND id = ANY ($2::bytea[])', [
    streamId,
    byteaArray(deleted),
  ]);
}

/** From the first on that needs another ID, the rows behind this batch too. Gives how many there were. */
async function renumberFrom(
  context: PublishContext,
  database: pg.Pool | pg.PoolClient,
  stream: Stream,
  rows: readonly BacklogRow[],
  { missing, oldIds, newIds }: Placing,
): Promise<number> {
  const { ledger, leaderEpoch } = context;
  const { streamId } = stream;
  const toCome = new Set([...missing.map(({ id }) => id), ...oldIds]);
  const kept = rows.map(({ id }) => id).filter((id) => !toCome.has(id));
  const write = (client: pg.PoolClient): Promise<number> =>
    renumber(client, 'backlog', streamId, previousEntryId(oldIds[0]!), kept, newIds[0]!);
  if (database !== ledger.pool) {
    await database.query('SELECT holdfast.assert_leader($1)', [leaderEpoch]);
    return write(database as pg.PoolClient);
  }
  return asLeader(context, async (client) => {
    // Whoever got an ID before has committed, whoever gets one afterwards gets a greater one.
    await client.query('SELECT pg_advisory_xact_lock(holdfast.lock_key($1))', [streamId]);
    return write(client);
  });
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

  await closeConnections(
    connection,
    inDoubt.flatMap(({ kv_client_id: clientId, kv_run_id: runId }) =>
      clientId === null || runId === null ? [] : [{ clientId: Number(clientId), runId }],
    ),
  );
  const after = inDoubt.reduce(
    (least, row) => (row.after_id!.compare(least) < 0 ? row.after_id! : least),
    inDoubt[0]!.after_id!,
  );
  const byFields = new Map<string, Buffer[]>();
  const wanted = new Set(inDoubt.map((row) => row.fields.toString('latin1')));
  for await (const page of kvEntries(connection, stream, after, ENTRY_ID_MAX)) {
    for (const { id, fields } of page) {
      const text = fields.toString('latin1');
      if (!wanted.has(text)) continue;
      const ids = byFields.get(text);
      if (ids === undefined) byFields.set(text, [id]);
      else ids.push(id);
    }
  }
  const candidates = [...byFields.values()].flat();
  const { rows: claimed } = await database.query<{ id: Buffer }>(
    `SELECT id FROM holdfast.entry WHERE stream_id = $1 AND id = ANY ($2::bytea[]) AND NOT observed`,
    [stream.streamId, byteaArray(candidates)],
  );
  const taken = new Set(claimed.map((row) => row.id.toString('latin1')));
  const left: BacklogRow[] = [];
  const claims: { readonly id: Buffer; readonly found: Buffer }[] = [];
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
    claims.push({ id: row.id, found: free });
  }
  if (claims.length > 0) {
    await database.query('SELECT holdfast.claim_backlog($1, $2::smallint, $3, $4::bytea[], $5::bytea[])', [
      leaderEpoch,
      SLOT,
      stream.streamId,
      byteaArray(claims.map(({ id }) => id)),
      byteaArray(claims.map(({ found }) => found)),
    ]);
    result.claimed += claims.length;
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
