/**
 * The worker's store in Postgres, beside the ledger. Tables: `worker_queue` (one row for each stream, group and KV user),
 * `worker_entry` (entries that failed or were taken over and are not settled), `worker_failure` (permanent failures).
 *
 * A report is made in two transactions: the first claims it (a row, unique), the second publishes it holding the row's
 * lock. A crash between the two leaves a row that is begun and not published; the next one to hold the entry finishes it.
 */
import pg from 'pg';
import type { Logger } from 'pino';
import { HoldfastError, messageOf } from '../../errors.ts';
import { migrate } from '../../ledger/migrate.ts';
import type { PermanentFailure } from '../app.ts';
import type { KnownEntry, Reportable, WorkerStore } from './store.ts';

const CONNECT_MS = 3000;
const STATEMENT_MS = 5000;
const CONNECTIONS_MAX = 4;
/** Settled entries are forgotten one by one; what a crash left behind goes after this time. */
const RETENTION = '7 days';
/** A report guards against a second one for as long as the ledger could bring the entry back, and well beyond. */
const REPORT_RETENTION = '90 days';

export interface PostgresStoreOptions {
  readonly databaseUrl: string;
  /** Who the worker is at the KV store, and in which database: the same stream name may mean several streams. */
  readonly kvUser: string;
  readonly kvDatabase: number;
  readonly group: string;
  readonly streams: readonly string[];
  readonly log: Logger;
}

/** Throws `CONFIG` when the database cannot be reached or prepared. */
export async function openPostgresStore(options: PostgresStoreOptions): Promise<WorkerStore> {
  const pool = new pg.Pool({
    connectionString: options.databaseUrl,
    connectionTimeoutMillis: CONNECT_MS,
    statement_timeout: STATEMENT_MS,
    query_timeout: STATEMENT_MS + 1000,
    keepAlive: true,
    application_name: 'holdfast worker',
    max: CONNECTIONS_MAX,
  });
  pool.on('error', (error) => options.log.debug({ error: error.message }, 'idle connection to Postgres lost'));
  const queues = new Map<string, string>();
  try {
    const client = await pool.connect();
    try {
      await migrate(client, new URL('../../ledger/sql/', import.meta.url));
      for (const stream of options.streams) queues.set(stream, await queueId(client, options, stream));
    } finally {
      client.release();
    }
  } catch (error) {
    await pool.end();
    if (error instanceof HoldfastError) throw error;
    throw new HoldfastError('CONFIG', `database: ${messageOf(error)}`, { cause: error });
  }
  const queueOf = (stream: string): string => queues.get(stream)!;

  return {
    async lookUp(stream, ids) {
      const { rows } = await pool.query<KnownRow>({
        name: 'worker-look-up',
        text: `SELECT asked.id, coalesce(entry.failed, 0) AS failed, coalesce(entry.takeovers, 0) AS takeovers,
                      failure.published, failure.task, failure.attempts, failure.error
                 FROM unnest($2::text[]) AS asked (id)
                 LEFT JOIN holdfast.worker_entry AS entry ON entry.queue_id = $1 AND entry.entry_id = asked.id
                 LEFT JOIN holdfast.worker_failure AS failure ON failure.queue_id = $1 AND failure.entry_id = asked.id
                WHERE entry.entry_id IS NOT NULL OR failure.entry_id IS NOT NULL`,
        values: [queueOf(stream), ids],
      });
      return new Map(rows.map((row): [string, KnownEntry] => [row.id, knownEntry(row)]));
    },
    async record(stream, items) {
      // One row per ID and a fixed order: of two workers' batches none waits for the other in a circle.
      const byId = [...new Map(items.map((item) => [item.id, item])).values()].sort((a, b) => (a.id < b.id ? -1 : 1));
      await pool.query({
        name: 'worker-record',
        text: `INSERT INTO holdfast.worker_entry AS known (queue_id, entry_id, failed, takeovers)
               SELECT $1, * FROM unnest($2::text[], $3::int[], $4::int[])
               ON CONFLICT (queue_id, entry_id) DO UPDATE
                  SET failed = greatest(known.failed, excluded.failed),
                      takeovers = greatest(known.takeovers, excluded.takeovers),
                      updated_at = clock_timestamp()`,
        values: [
          queueOf(stream),
          byId.map((item) => item.id),
          byId.map((item) => item.failed),
          byId.map((item) => item.takeovers),
        ],
      });
    },
    async forget(stream, ids) {
      await pool.query({
        name: 'worker-forget',
        text: `DELETE FROM holdfast.worker_entry WHERE queue_id = $1 AND (entry_id = ANY ($2)
                  OR ctid = ANY (ARRAY(SELECT ctid FROM holdfast.worker_entry
                                        WHERE queue_id = $1 AND updated_at < now() - $3::interval LIMIT 100)))`,
        values: [queueOf(stream), ids, RETENTION],
      });
    },
    async report(stream, failures, publish) {
      const queue = queueOf(stream);
      const begun = await begin(pool, queue, failures);
      const client = await pool.connect();
      try {
        await client.query('BEGIN');
        const { rows } = await client.query<{ id: string; at: string }>(
          `SELECT entry_id AS id, floor(extract(epoch FROM begun_at) * 1000) AS at FROM holdfast.worker_failure
            WHERE queue_id = $1 AND entry_id = ANY ($2) AND NOT published ORDER BY entry_id FOR UPDATE`,
          [queue, failures.map((failure) => failure.id)],
        );
        const open = rows.map((row): Reportable => {
          return { id: row.id, doubtful: !begun.has(row.id), begunAtMs: Number(row.at) };
        });
        await publish(open);
        const ids = failures.map((failure) => failure.id);
        await client.query(
          'UPDATE holdfast.worker_failure SET published = true WHERE queue_id = $1 AND entry_id = ANY ($2)',
          [queue, ids],
        );
        await client.query('DELETE FROM holdfast.worker_entry WHERE queue_id = $1 AND entry_id = ANY ($2)', [
          queue,
          ids,
        ]);
        await client.query(
          `DELETE FROM holdfast.worker_failure WHERE ctid = ANY (ARRAY(SELECT ctid FROM holdfast.worker_failure
            WHERE queue_id = $1 AND published AND begun_at < now() - $2::interval LIMIT 100 FOR UPDATE SKIP LOCKED))`,
          [queue, REPORT_RETENTION],
        );
        await client.query('COMMIT');
        client.release();
      } catch (error) {
        // Closing the connection is the one way to end the transaction that needs no answer.
        client.release(true);
        throw error;
      }
    },
    async close() {
      await pool.end();
    },
  };
}

interface KnownRow {
  readonly id: string;
  readonly failed: number;
  readonly takeovers: number;
  /** Null, with what follows, where the entry has not failed for good. */
  readonly published: boolean | null;
  readonly task: string;
  readonly attempts: number;
  readonly error: string;
}

function knownEntry({ failed, takeovers, published, task, attempts, error }: KnownRow): KnownEntry {
  const failure = published === null ? undefined : { published, task, attempts, errorMessage: error };
  return { failed, takeovers, failure };
}

/** Gives the IDs whose report did not exist before. */
async function begin(pool: pg.Pool, queue: string, failures: readonly PermanentFailure[]): Promise<Set<string>> {
  const sorted = [...failures].sort((a, b) => (a.id < b.id ? -1 : 1));
  const { rows } = await pool.query<{ id: string }>({
    name: 'worker-begin-report',
    text: `INSERT INTO holdfast.worker_failure (queue_id, entry_id, task, attempts, takeovers, error)
           SELECT $1, * FROM unnest($2::text[], $3::text[], $4::int[], $5::int[], $6::text[])
           ON CONFLICT DO NOTHING RETURNING entry_id AS id`,
    values: [
      queue,
      sorted.map((failure) => failure.id),
      sorted.map((failure) => failure.task.replaceAll('\0', '')),
      sorted.map((failure) => failure.attempts),
      sorted.map((failure) => failure.takeovers),
      // Postgres's text has no NUL.
      sorted.map((failure) => failure.errorMessage.replaceAll('\0', '')),
    ],
  });
  return new Set(rows.map((row) => row.id));
}

async function queueId(client: pg.PoolClient, options: PostgresStoreOptions, stream: string): Promise<string> {
  const { rows } = await client.query<{ queue_id: string }>(
    `INSERT INTO holdfast.worker_queue AS queue (kv_user, database, stream, group_name) VALUES ($1, $2, $3, $4)
     ON CONFLICT (sha256(stream), sha256(group_name), database, kv_user) DO UPDATE SET group_name = queue.group_name
     RETURNING queue_id`,
    [options.kvUser, options.kvDatabase, Buffer.from(stream), Buffer.from(options.group)],
  );
  return rows[0]!.queue_id;
}
