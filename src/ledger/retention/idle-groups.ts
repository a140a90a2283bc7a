/** Groups that have entries before them and have not acknowledged any for a long time: abandoned, or stuck on one entry. */
import type pg from 'pg';
import { formatEntryId } from '../encoding/entry-id.ts';

export interface IdleGroup {
  readonly groupId: number;
  readonly stream: string;
  readonly database: number;
  readonly group: string;
  readonly checkpointId: string;
  /** ISO 8601: when its checkpoint moved last. */
  readonly idleSince: string;
}

const GROUPS_MAX = 1000;

/** The longest idle first. */
export async function readIdleGroups(pool: pg.Pool, idleMs: number): Promise<IdleGroup[]> {
  const { rows } = await pool.query<{
    group_id: string;
    name: Buffer;
    database: number;
    group_name: Buffer;
    checkpoint_id: Buffer;
    progressed_at: Date;
  }>(
    `SELECT g.group_id, stream.name, stream.database, g.name AS group_name, g.checkpoint_id, g.progressed_at
       FROM holdfast.consumer_group AS g JOIN holdfast.stream USING (stream_id)
      WHERE g.ended_at IS NULL AND stream.ended_at IS NULL
        AND g.progressed_at < clock_timestamp() - $1 * interval '1 millisecond'
        AND EXISTS (SELECT FROM holdfast.entry WHERE entry.stream_id = g.stream_id AND entry.id > g.checkpoint_id)
      ORDER BY g.progressed_at LIMIT ${GROUPS_MAX}`,
    [idleMs],
  );
  return rows.map((row) => ({
    groupId: Number(row.group_id),
    stream: row.name.toString(),
    database: row.database,
    group: row.group_name.toString(),
    checkpointId: formatEntryId(row.checkpoint_id),
    idleSince: row.progressed_at.toISOString(),
  }));
}
