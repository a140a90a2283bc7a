/**
 * Whether Postgres takes entries: a server that is read-only, or has no room on its disk, answers questions as ever. An entry is
 * written where the next one would be, and taken back.
 */
import type pg from 'pg';

/** Of random bytes, which do not compress, so that it needs a page of its own. */
const ROW_BYTES = 8192;

const PROBE = `
  INSERT INTO holdfast.entry (part, stream_id, id, epoch, fields)
  SELECT max(part), 0, uuid_send(gen_random_uuid()), 0,
         (SELECT string_agg(uuid_send(gen_random_uuid()), '') FROM generate_series(1, ${ROW_BYTES / 16}))
    FROM holdfast.entry_partition`;

/** Rejects with Postgres's errors. */
export async function probeWrite(pool: pg.Pool): Promise<void> {
  const client = await pool.connect();
  let broken: Error | undefined;
  try {
    await client.query('BEGIN');
    await client.query(PROBE);
    await client.query('ROLLBACK');
  } catch (thrown) {
    broken = thrown instanceof Error ? thrown : new Error(String(thrown));
    throw thrown;
  } finally {
    client.release(broken);
  }
}
