import type pg from 'pg';
import { boundedPage } from './bounded-page.ts';

export interface LedgerEntry {
  readonly id: Buffer;
  /** As `encodeFields` gives them. */
  readonly fields: Buffer;
}

/** A stream's entries above `after` up to `until` in their order, but for those that clients deleted, in pages of bounded bytes. */
export async function* undeletedEntries(
  pool: pg.Pool,
  streamId: number,
  after: Buffer,
  until: Buffer,
  pageRows: number,
): AsyncGenerator<LedgerEntry[]> {
  for (let last = after; ; ) {
    const { rows } = await pool.query<LedgerEntry>(
      `SELECT id, fields FROM ${boundedPage(`
         SELECT id, fields FROM holdfast.entry
          WHERE stream_id = $1 AND id > $2 AND id <= $3
            AND NOT EXISTS (SELECT FROM holdfast.deletion AS d WHERE d.stream_id = entry.stream_id AND d.id = entry.id)
          ORDER BY id LIMIT $4`)} AS bounded ORDER BY id`,
      [streamId, last, until, pageRows],
    );
    if (rows.length === 0) return;
    yield rows;
    last = rows.at(-1)!.id;
  }
}
