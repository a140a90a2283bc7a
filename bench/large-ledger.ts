/**
 * A ledger of very many rows, for `ledger-size.ts`: built in bulk, with an index made when a partition is full, in a Postgres of
 * its own that forgets what a power cut would lose. What is in it could have come about: partitions of `partitionRows` in order of
 * ingest, half of the rows in one busy stream and the rest in `STREAMS - 1` others, each with a group that has acknowledged
 * all but its last `UNACKNOWLEDGED` entries; one has a second group that was abandoned at its first entry.
 */
import pg from 'pg';
import { migrate } from '../src/ledger/migrate.ts';

export const STREAMS = 200;
export const UNACKNOWLEDGED = 500;
/** Each row's fields: `body` and 100 bytes. */
const FIELDS = `'\\x${Buffer.from(`*2\r\n$4\r\nbody\r\n$100\r\n${'x'.repeat(100)}\r\n`).toString('hex')}'::bytea`;

export interface LargeLedger {
  readonly rows: number;
  readonly partitionRows: number;
}

/** Entry number n belongs to the busy stream where n is even; its ID is (1.7e12 + n)-0. */
const STREAM_OF = `CASE WHEN n % 2 = 0 THEN 1 ELSE 2 + (n / 2) % ${STREAMS - 1} END`;
const ID_OF = `int8send(1700000000000 + n) || int8send(0)`;

export async function buildLargeLedger(
  databaseUrl: string,
  size: LargeLedger,
  progress: (line: string) => void,
): Promise<void> {
  const client = new pg.Client(databaseUrl);
  await client.connect();
  try {
    await migrate(client, new URL('../src/ledger/sql/', import.meta.url));
    await client.query('SET synchronous_commit = off');
    await client.query(
      `INSERT INTO holdfast.stream (database, name, present) SELECT 0, convert_to('stream-' || n, 'UTF8'), true
         FROM generate_series(1, ${STREAMS}) AS n`,
    );
    const parts = Math.ceil(size.rows / size.partitionRows);
    for (let part = 1; part <= parts; part += 1) {
      if (part > 1) await client.query('SELECT holdfast.open_partition()');
      const from = (part - 1) * size.partitionRows;
      const to = Math.min(size.rows, part * size.partitionRows) - 1;
      await client.query(`DROP INDEX holdfast.entry_${part}_id`);
      await client.query(
        `INSERT INTO holdfast.entry_${part} (stream_id, epoch, part, id, fields)
         SELECT ${STREAM_OF}, 1, ${part}, ${ID_OF}, ${FIELDS} FROM generate_series(${from}::bigint, ${to}::bigint) AS n`,
      );
      await client.query(`CREATE UNIQUE INDEX entry_${part}_id ON holdfast.entry_${part} (stream_id, id)`);
      // Or the statistics would count the rows once more when this session reports them later.
      await client.query('SELECT pg_stat_force_next_flush()');
      await client.query(`VACUUM (ANALYZE) holdfast.entry_${part}`);
      progress(`${to + 1} of ${size.rows} rows`);
    }
    await client.query(
      `INSERT INTO holdfast.stream_progress (stream_id, slot, added, last_id)
       SELECT stream_id, 0, added, last_id FROM holdfast.stream AS s, LATERAL (
         SELECT CASE WHEN stream_id = 1 THEN ${size.rows} / 2
                     ELSE ${size.rows} / 2 / ${STREAMS - 1} + CASE WHEN stream_id - 2 < (${size.rows} / 2) % ${STREAMS - 1} THEN 1 ELSE 0 END
                END AS added,
                (SELECT id FROM holdfast.entry WHERE entry.stream_id = s.stream_id ORDER BY id DESC LIMIT 1) AS last_id
       ) AS counted`,
    );
    await client.query(
      `UPDATE holdfast.stream AS s SET seen_last_id = p.last_id, seen_added = p.added, reconciled_id = p.last_id,
              floor_id = int8send(0) || int8send(0)
         FROM holdfast.stream_progress AS p WHERE p.stream_id = s.stream_id`,
    );
    await client.query(
      `INSERT INTO holdfast.consumer_group (stream_id, name, checkpoint_id, last_delivered_id)
       SELECT stream_id, 'group', last.id, last.id FROM holdfast.stream AS s, LATERAL (
         SELECT id FROM holdfast.entry WHERE entry.stream_id = s.stream_id ORDER BY id DESC LIMIT 1 OFFSET ${UNACKNOWLEDGED}
       ) AS last`,
    );
    await client.query(
      `INSERT INTO holdfast.consumer_group (stream_id, name, checkpoint_id, last_delivered_id)
       SELECT 2, 'abandoned', zero, zero FROM (SELECT int8send(0) || int8send(0) AS zero) AS never`,
    );
  } finally {
    await client.end();
  }
}
