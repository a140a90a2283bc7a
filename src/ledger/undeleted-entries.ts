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
    const { rows } = await pool.query<LedgerEntry & { deleted: boolean }>(
      // With LIMIT a stream's deletions, which can be millions, are looked up for each row; as a join they would be read for each page.
      `SELECT id, fields, deleted FROM ${boundedPage(`
         SELECT id, deleted, CASE WHEN NOT deleted THEN fields ELSE '' END AS fields
           FROM (SELECT id, fields, coalesce((SELECT true FROM holdfast.deletion AS d
                                               WHERE d.stream_id = $1 AND d.id = entry.id LIMIT 1), false) AS deleted
                   FROM holdfast.entry WHERE stream_id = $1 AND id > $2 AND id <= $3
                  ORDER BY id LIMIT $4) AS page`)} AS bounded ORDER BY id`,
      [streamId, last, until, pageRows],
    );
    if (rows.length === 0) return;
    const entries = rows.filter((row) => !row.deleted);
    if (entries.length > 0) yield entries;
    last = rows.at(-1)!.id;
  }
}
