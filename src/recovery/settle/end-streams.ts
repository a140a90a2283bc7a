/**
 * Settles intentions that were carried out: incarnations end, or streams go on in another place. An XADD that the KV store
 * executed after the command, and that committed before it was settled, named what had the place before: under the
 * streams' locks, which stop further commits, what was committed there since the intention opened and is in the KV store still
 * is handed over to what has the place now. Where the KV store cannot be asked, all of it is. Streams to which nothing came since, which
 * is nearly all of them, end many at a time.
 */
import type pg from 'pg';
import { HoldfastError } from '../../errors.ts';
import { boundedPage } from '../../ledger/bounded-page.ts';
import { byteaArray } from '../../ledger/encoding/binary-array.ts';
import { inPooledTransaction } from '../../ledger/in-transaction.ts';
import { type EndIntention, STREAMS_PER_PART } from '../../ledger/intention-store.ts';
import type { Ledger } from '../../ledger/ledger.ts';
import { retryContention } from '../../ledger/retry-contention.ts';
import { sqlState } from '../../ledger/sqlstate.ts';
import { EXPIRED, type KnownStream } from '../detect/verdict.ts';
import type { KvConnection } from '../kv/connection.ts';
import { presentEntries } from '../kv/entries.ts';

/** A stream in its place, and the one that has that place now; null for one that may have to be begun. */
interface Successor {
  readonly stream_id: string;
  readonly heir: string | null;
  readonly since: Date;
  readonly database: number;
  readonly name: Buffer;
}

const PAGE_ROWS = 5000;
const UNIQUE_VIOLATION = '23505';
const MOVE_ATTEMPTS_MAX = 10;

/** The incarnations are over. Rejects with Postgres's errors. */
export async function endStreams(
  ledger: Ledger,
  connection: KvConnection | undefined,
  intentions: readonly EndIntention[],
): Promise<void> {
  for (let from = 0; from < intentions.length; from += STREAMS_PER_PART) {
    const part = intentions.slice(from, from + STREAMS_PER_PART);
    const settled = await ledger.intentions.endQuiet(part);
    await ledger.streams.over(settled.map(({ streamId }) => streamId));
    const quiet = new Set(settled.map(({ intentionId }) => intentionId));
    for (const { intentionId } of part) {
      if (quiet.has(intentionId)) continue;
      const ended = await retryContention(() =>
        inPooledTransaction(ledger.pool, (client) => endStream(client, connection, intentionId)),
      );
      if (ended !== undefined) await ledger.streams.refresh(ended);
    }
  }
}

/** Gives the stream that the intention was about. It may have been another one when the intention was opened. */
async function endStream(
  client: pg.PoolClient,
  connection: KvConnection | undefined,
  intentionId: number,
): Promise<number | undefined> {
  const read = async () => {
    const { rows } = await client.query<Successor & { command: string; ended: boolean }>(
      `SELECT stream_id, NULL AS heir, opened_at AS since, database, name, command, ended_at IS NOT NULL AS ended
         FROM holdfast.intention JOIN holdfast.stream USING (stream_id) WHERE intention_id = $1`,
      [intentionId],
    );
    return rows[0];
  };
  let ending = await read();
  for (let locked: string | undefined; ending !== undefined && locked !== ending.stream_id; ending = await read()) {
    locked = ending.stream_id;
    await client.query('SELECT pg_advisory_xact_lock(holdfast.lock_key($1))', [locked]);
  }
  if (ending === undefined) return undefined;
  if (!ending.ended) {
    const kept = await keptEntries(client, connection, ending);
    await client.query('SELECT holdfast.end_stream($1, $2)', [ending.stream_id, ending.command]);
    const { rows } = await client.query<{ waits: boolean }>(
      'SELECT EXISTS (SELECT FROM holdfast.backlog WHERE stream_id = $1 AND accepted_at >= $2) AS waits',
      [ending.stream_id, ending.since],
    );
    if (kept.length > 0 || rows[0]!.waits) await handOver(client, ending, kept);
  }
  await client.query('DELETE FROM holdfast.intention WHERE intention_id = $1', [intentionId]);
  return Number(ending.stream_id);
}

/**
 * The streams of one command are in their new places. What stands there by now in the ledger, because somebody used or
 * found the new name before this, is the same stream and goes into it. Rejects with Postgres's errors.
 */
export async function moveStreams(
  ledger: Ledger,
  connection: KvConnection | undefined,
  intentions: readonly EndIntention[],
): Promise<void> {
  const touched = new Set(intentions.map(({ streamId }) => streamId));
  for (let attempt = 1; ; attempt += 1) {
    try {
      const over = await retryContention(() =>
        inPooledTransaction(ledger.pool, (client) => moveTogether(client, connection, intentions[0]!.intentionId)),
      );
      for (const streamId of over) touched.add(streamId);
      break;
    } catch (thrown) {
      // Another record was begun in one of the places after all had been locked: it is locked the next time.
      if (attempt >= MOVE_ATTEMPTS_MAX || sqlState(thrown) !== UNIQUE_VIOLATION) throw thrown;
    }
  }
  for (const streamId of touched) await ledger.streams.refresh(streamId);
}

/** Gives the streams that are over by it. */
async function moveTogether(
  client: pg.PoolClient,
  connection: KvConnection | undefined,
  intentionId: number,
): Promise<number[]> {
  const { rows } = await client.query<{ change_id: string; command: string }>(
    'SELECT change_id, command FROM holdfast.intention WHERE intention_id = $1',
    [intentionId],
  );
  // Somebody else has settled it.
  if (rows[0] === undefined) return [];
  const { change_id: changeId, command } = rows[0];
  const { rows: over } = await client.query<Successor>(
    'SELECT stream_id, heir, since, database, name FROM holdfast.lock_moving($1) JOIN holdfast.stream USING (stream_id)',
    [changeId],
  );
  // Commits that named a stream which had left its place by then. Where they belong only the KV store knows.
  const { rows: left } = await client.query<Successor>(
    'SELECT stream_id, heir, since, database, name FROM holdfast.places_taken($1) JOIN holdfast.stream USING (stream_id)',
    [changeId],
  );
  for (const leaving of left) await handOver(client, leaving, (await stillThere(client, connection, leaving)) ?? []);
  for (const replaced of over) {
    await client.query('SELECT holdfast.end_stream($1, $2)', [replaced.stream_id, command]);
    await handOver(client, replaced, await keptEntries(client, connection, replaced));
  }
  await client.query('SELECT holdfast.settle_moves($1)', [changeId]);
  return over.map((row) => Number(row.stream_id));
}

/** How far the KV store's clock, by which streams expire, may be ahead of Postgres's. */
const CLOCK_SKEW_MS_MAX = 60_000;

/**
 * The incarnation is over by its time to live, unless that was changed meanwhile. What the ledger accepted alone since then, and what was
 * committed and is in the KV store, belongs to the next one. Rejects with Postgres's errors.
 */
export async function expireStream(
  ledger: Ledger,
  connection: KvConnection,
  { streamId, database, name, expiresAtMs }: KnownStream,
): Promise<void> {
  await retryContention(() =>
    inPooledTransaction(ledger.pool, async (client) => {
      await client.query('SELECT pg_advisory_xact_lock(holdfast.lock_key($1))', [streamId]);
      const { rows } = await client.query<{ waits: boolean }>(
        `SELECT EXISTS (SELECT FROM holdfast.backlog AS b WHERE b.stream_id = s.stream_id AND accepted_at >= $3) AS waits
           FROM holdfast.stream AS s WHERE stream_id = $1 AND ended_at IS NULL AND expires_at_ms = $2`,
        [streamId, expiresAtMs, new Date(expiresAtMs!)],
      );
      if (rows[0] === undefined) return;
      const since = new Date(expiresAtMs!);
      const over = { stream_id: String(streamId), heir: null, since, database, name };
      const committed = { ...over, since: new Date(expiresAtMs! - CLOCK_SKEW_MS_MAX) };
      const kept = await stillThere(client, connection, committed);
      if (kept === undefined)
        throw new HoldfastError('KVDOWN', 'the KV store could not be asked what came after an expiry');
      await client.query('SELECT holdfast.end_stream($1, $2)', [streamId, EXPIRED]);
      if (kept.length > 0 || rows[0].waits) await handOver(client, over, kept);
    }),
  );
  await ledger.streams.refresh(streamId);
}

/** All that the ledger has of `source` belongs to `target` now, which is in its place, and `source` is over. Rejects with Postgres's errors. */
export async function joinStreams(ledger: Ledger, source: number, target: number): Promise<void> {
  await retryContention(() =>
    inPooledTransaction(ledger.pool, async (client) => {
      for (const locked of [source, target].sort((a, b) => a - b)) {
        await client.query('SELECT pg_advisory_xact_lock(holdfast.lock_key($1))', [locked]);
      }
      const { rows } = await client.query<Successor>(
        `SELECT stream_id, $2::bigint AS heir, '-infinity'::timestamptz AS since, database, name
           FROM holdfast.stream WHERE stream_id = $1 AND ended_at IS NULL`,
        [source, target],
      );
      const [joined] = rows;
      if (joined === undefined) return;
      await handOver(client, joined, await keptEntries(client, undefined, joined));
      await client.query('SELECT holdfast.end_stream($1, $2)', [source, 'renamenx']);
    }),
  );
  for (const streamId of [source, target]) await ledger.streams.refresh(streamId);
}

async function handOver(client: pg.PoolClient, { stream_id, heir, since }: Successor, ids: Buffer[]): Promise<void> {
  await client.query('SELECT holdfast.hand_over($1, $2, $3::bytea[], $4)', [stream_id, heir, byteaArray(ids), since]);
}

/** What is to be handed over; all that was committed since, where that cannot be found out. */
async function keptEntries(
  client: pg.PoolClient,
  connection: KvConnection | undefined,
  successor: Successor,
): Promise<Buffer[]> {
  const there = await stillThere(client, connection, successor);
  if (there !== undefined) return there;
  const kept: Buffer[] = [];
  for await (const page of committedSince(client, successor)) kept.push(...page.map(({ id }) => id));
  return kept;
}

/** Of what was committed to a stream since `since`, what its place has now; `undefined` where the KV store cannot be asked. */
async function stillThere(
  client: pg.PoolClient,
  connection: KvConnection | undefined,
  successor: Successor,
): Promise<Buffer[] | undefined> {
  if (connection === undefined) return undefined;
  const kept: Buffer[] = [];
  for await (const page of committedSince(client, successor)) {
    try {
      const there = await presentEntries(
        connection,
        successor,
        page.map(({ id }) => id),
      );
      for (const { id, fields } of page) {
        if (there.get(id.toString('latin1'))?.equals(fields) === true) kept.push(id);
      }
    } catch {
      return undefined;
    }
  }
  return kept;
}

/** But for what the heir has rows of. */
async function* committedSince(
  client: pg.PoolClient,
  { stream_id, heir, since }: Successor,
): AsyncGenerator<{ readonly id: Buffer; readonly fields: Buffer }[]> {
  for (let last: Buffer = Buffer.alloc(0); ; ) {
    const { rows } = await client.query<{ id: Buffer; fields: Buffer }>(
      `SELECT id, fields FROM ${boundedPage(`
         SELECT id, fields FROM holdfast.entry
          WHERE stream_id = $1 AND id > $2 AND committed_at >= $3
            AND NOT EXISTS (SELECT FROM holdfast.entry AS same WHERE same.stream_id = $4 AND same.id = entry.id)
          ORDER BY id LIMIT ${PAGE_ROWS}`)} AS bounded ORDER BY id`,
      [stream_id, last, since, heir],
    );
    if (rows.length === 0) return;
    yield rows;
    last = rows.at(-1)!.id;
  }
}
