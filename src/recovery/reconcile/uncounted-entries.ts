import type pg from 'pg';
import { bigintArray, byteaArray } from '../../ledger/encoding/binary-array.ts';

export interface Count {
  readonly streamId: number;
  /** What the KV store said at one moment. */
  readonly lastId: Buffer;
  readonly entriesAdded: number;
}

/**
 * How many of the entries that a stream had counted have no row: were not taken in yet, or are on their way. Less than none:
 * rows up to that last ID are not among what it counted, so that it is not the stream that they were added to.
 */
export async function missingEntries(
  database: pg.Pool | pg.PoolClient,
  counts: readonly Count[],
): Promise<readonly number[]> {
  // One statement, so that counters and rows are of one moment.
  const { rows } = await database.query<{ missing: string }>(
    `SELECT given.entries_added - stream.added_base - coalesce(
              (SELECT sum(added) FROM holdfast.stream_progress AS progress WHERE progress.stream_id = given.stream_id), 0
            ) + (SELECT count(*) FROM holdfast.entry
                  WHERE entry.stream_id = given.stream_id AND entry.id > given.last_id) AS missing
       FROM unnest($1::bigint[], $2::bytea[], $3::bigint[]) WITH ORDINALITY
            AS given (stream_id, last_id, entries_added, position)
       JOIN holdfast.stream USING (stream_id)
      ORDER BY position`,
    [
      bigintArray(counts.map(({ streamId }) => streamId)),
      byteaArray(counts.map(({ lastId }) => lastId)),
      bigintArray(counts.map(({ entriesAdded }) => entriesAdded)),
    ],
  );
  return rows.map((row) => Number(row.missing));
}
