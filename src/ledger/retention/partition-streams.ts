import type pg from 'pg';

/** The streams with rows in a partition, by as many probes of its index. */
export async function streamsIn(client: pg.Client, part: number): Promise<number[]> {
  const table = `holdfast.entry_${part}`;
  const { rows } = await client.query<{ stream_id: string }>(
    `WITH RECURSIVE found (stream_id) AS (
       (SELECT stream_id FROM ${table} ORDER BY stream_id LIMIT 1)
       UNION ALL
       SELECT (SELECT stream_id FROM ${table} AS next WHERE next.stream_id > found.stream_id ORDER BY stream_id LIMIT 1)
         FROM found WHERE found.stream_id IS NOT NULL
     ) SELECT stream_id FROM found WHERE stream_id IS NOT NULL`,
  );
  return rows.map((row) => Number(row.stream_id));
}
