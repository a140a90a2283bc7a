/** How great the ledger is and how fast it grows. From catalogues and statistics, so that asking is cheap; rows are estimates. */
import type pg from 'pg';

export interface PartitionSize {
  /** 0 holds the survivors of dropped ones. */
  readonly part: number;
  readonly rows: number;
  readonly bytes: number;
  /** ISO 8601. */
  readonly openedAt: string;
  /** Absent for the one that is written to, and for partition 0. */
  readonly closedAt?: string;
}

export interface LedgerSize {
  /** Everything in the ledger's schema, indexes included. */
  readonly bytes: number;
  readonly rows: number;
  /** Rows of partitions that are gone, which something still needs. */
  readonly survivorRows: number;
  readonly partitions: readonly PartitionSize[];
  /** ISO 8601, of a row that was committed first or near it; absent in an empty ledger. */
  readonly oldestRowAt?: string;
  /** Entries committed in the last whole day at least, or since the ledger's oldest partition was opened. */
  readonly rowsPerDay: number;
}

const DAY_MS = 86_400_000;

export async function readLedgerSize(pool: pg.Pool): Promise<LedgerSize> {
  const { rows } = await pool.query<{
    part: number;
    opened_at: Date;
    closed_at: Date | null;
    rows: number;
    bytes: number;
  }>(
    // An insert is in the statistics a moment later; VACUUM's count stands in where they were reset by a crash.
    `SELECT part, opened_at, closed_at,
            GREATEST(pg_stat_get_live_tuples(class.oid), class.reltuples, 0)::float8 AS rows,
            pg_total_relation_size(class.oid)::float8 AS bytes
       FROM holdfast.entry_partition JOIN pg_class AS class ON class.oid = to_regclass('holdfast.entry_' || part)
      ORDER BY part`,
  );
  const { rows: others } = await pool.query<{ bytes: number; oldest: Date | null }>(
    `SELECT (SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::float8 FROM pg_class
              WHERE relnamespace = 'holdfast'::regnamespace AND relkind IN ('r', 'S', 'm')) AS bytes,
            (SELECT min(first.committed_at) FROM holdfast.entry_partition AS p, LATERAL (
               SELECT committed_at FROM holdfast.entry WHERE entry.part = p.part LIMIT 1) AS first) AS oldest`,
  );
  const partitions = rows.map((row) => ({
    part: row.part,
    rows: row.rows,
    bytes: row.bytes,
    openedAt: row.opened_at.toISOString(),
    ...(row.closed_at === null ? {} : { closedAt: row.closed_at.toISOString() }),
  }));
  const { bytes, oldest } = others[0]!;
  return {
    bytes,
    rows: partitions.reduce((sum, each) => sum + each.rows, 0),
    survivorRows: partitions.find(({ part }) => part === 0)?.rows ?? 0,
    partitions,
    ...(oldest === null ? {} : { oldestRowAt: oldest.toISOString() }),
    rowsPerDay: rowsPerDay(partitions),
  };
}

function rowsPerDay(partitions: readonly PartitionSize[]): number {
  const now = Date.now();
  let rows = 0;
  let since = now;
  for (const { part, rows: of, openedAt } of [...partitions].reverse()) {
    if (part === 0 || now - since >= DAY_MS) break;
    rows += of;
    since = Date.parse(openedAt);
  }
  // Of a ledger that is minutes old nothing can be said of a day.
  return since === now ? 0 : Math.round((rows * DAY_MS) / Math.max(now - since, 3_600_000));
}
