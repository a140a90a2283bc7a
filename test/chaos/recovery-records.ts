/** What Holdfast itself wrote down of its recoveries. */
import { Client } from 'pg';

export interface RecoveryRecord {
  readonly stream: string;
  readonly cause: string;
  /** From noticing the loss until everything was back; `undefined` while it is not. */
  readonly milliseconds: number | undefined;
  readonly attempts: number;
  readonly entriesRestored: number;
  readonly entriesMerged: number;
  readonly aliases: number;
  readonly possibleDuplicates: number;
  readonly windowed: boolean;
  readonly lastError: string | undefined;
}

interface Row {
  readonly name: Buffer;
  readonly cause: string;
  readonly milliseconds: string | null;
  readonly attempts: number;
  readonly entries_restored: string;
  readonly entries_merged: string;
  readonly aliases: string;
  readonly possible_duplicates: string;
  readonly windowed: boolean;
  readonly last_error: string | null;
}

export async function readRecoveryRecords(databaseUrl: string): Promise<RecoveryRecord[]> {
  const client = new Client({ connectionString: databaseUrl });
  await client.connect();
  try {
    const { rows } = await client.query<Row>(
      `SELECT name, cause, extract(epoch FROM completed_at - noticed_at) * 1000 AS milliseconds, attempts,
              entries_restored, entries_merged, aliases, possible_duplicates, windowed, last_error
         FROM holdfast.recovery JOIN holdfast.stream USING (stream_id) ORDER BY recovery_id`,
    );
    return rows.map((row) => ({
      stream: row.name.toString(),
      cause: row.cause,
      milliseconds: row.milliseconds === null ? undefined : Number(row.milliseconds),
      attempts: row.attempts,
      entriesRestored: Number(row.entries_restored),
      entriesMerged: Number(row.entries_merged),
      aliases: Number(row.aliases),
      possibleDuplicates: Number(row.possible_duplicates),
      windowed: row.windowed,
      lastError: row.last_error ?? undefined,
    }));
  } finally {
    await client.end();
  }
}
