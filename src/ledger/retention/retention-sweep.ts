/**
 * What retention does besides partitions, a bounded part at each sweep: survivors that a checkpoint has passed, and deletions,
 * aliases, generations, incarnations and records that nobody can ask for any more.
 */
import type pg from 'pg';
import { byteaArray } from '../encoding/binary-array.ts';
import { ENTRY_ID_ZERO } from '../encoding/entry-id.ts';
import { streamsIn } from './partition-streams.ts';
import { NOTHING_NEEDED, readHorizons } from './retention-horizon.ts';

const BATCH_ROWS = 2000;
const BATCHES_MAX = 200;
/** Records of recoveries and replays. */
const RECORDS_KEPT = "interval '90 days'";

/** Gives how many rows went. Rejects with Postgres's errors; what is left is found by the next sweep. */
export async function sweepAged(
  client: pg.Client,
  leaderEpoch: number,
  retentionMs: number,
  stopped: () => boolean,
): Promise<number> {
  await client.query('SELECT holdfast.assert_leader($1)', [leaderEpoch]);
  let gone = await sweepSurvivors(client, stopped);
  gone += await sweepDeletions(client, stopped);
  for (const statement of AGED) {
    for (let batch = 0; batch < BATCHES_MAX && !stopped(); batch += 1) {
      const { rowCount } = await client.query(statement, statement.includes('$1') ? [retentionMs] : []);
      gone += rowCount ?? 0;
      if ((rowCount ?? 0) < BATCH_ROWS) break;
    }
  }
  return gone;
}

async function sweepSurvivors(client: pg.Client, stopped: () => boolean): Promise<number> {
  const streamIds = await streamsIn(client, 0);
  const horizons = await readHorizons(client, streamIds);
  let gone = 0;
  for (const streamId of streamIds) {
    const until = horizons.get(streamId)?.id ?? NOTHING_NEEDED;
    for (let batch = 0; batch < BATCHES_MAX && !stopped(); batch += 1) {
      const { rowCount } = await client.query(
        `DELETE FROM holdfast.entry WHERE part = 0 AND stream_id = $1 AND id = ANY (ARRAY(
           SELECT id FROM holdfast.entry WHERE part = 0 AND stream_id = $1 AND id <= $2 ORDER BY id LIMIT ${BATCH_ROWS}))`,
        [streamId, until],
      );
      gone += rowCount ?? 0;
      if ((rowCount ?? 0) < BATCH_ROWS) break;
    }
  }
  return gone;
}

/** A deletion is needed while the row of its entry is there, or may come: above what a restore asks for. */
async function sweepDeletions(client: pg.Client, stopped: () => boolean): Promise<number> {
  let gone = 0;
  let after: { stream_id: string; id: Buffer } = { stream_id: '0', id: ENTRY_ID_ZERO };
  while (!stopped()) {
    const { rows } = await client.query<{ stream_id: string; id: Buffer }>(
      `SELECT stream_id, id FROM holdfast.deletion WHERE (stream_id, id) > ($1, $2) ORDER BY stream_id, id LIMIT ${BATCH_ROWS}`,
      [after.stream_id, after.id],
    );
    const last = rows.at(-1);
    if (last === undefined) return gone;
    after = last;
    const streamIds = [...new Set(rows.map((row) => Number(row.stream_id)))];
    const horizons = await readHorizons(client, streamIds);
    for (const streamId of streamIds) {
      const until = horizons.get(streamId)?.id ?? NOTHING_NEEDED;
      const ids = rows
        .filter((row) => Number(row.stream_id) === streamId && row.id.compare(until) <= 0)
        .map((row) => row.id);
      if (ids.length === 0) continue;
      const { rowCount } = await client.query(
        `DELETE FROM holdfast.deletion AS d WHERE stream_id = $1 AND id = ANY ($2::bytea[])
            AND NOT EXISTS (SELECT FROM holdfast.entry WHERE entry.stream_id = $1 AND entry.id = d.id)`,
        [streamId, byteaArray(ids)],
      );
      gone += rowCount ?? 0;
    }
  }
  return gone;
}

function aged(table: string, key: string, condition: string): string {
  return `DELETE FROM holdfast.${table} WHERE ${key} = ANY (ARRAY(
    SELECT ${key} FROM holdfast.${table} AS old WHERE ${condition} LIMIT ${BATCH_ROWS}))`;
}

const BEFORE_RETENTION = `< clock_timestamp() - $1 * interval '1 millisecond'`;

/** In this order: a stream goes when nothing points to it any more. With a group go its acknowledgements and pages. */
const AGED: readonly string[] = [
  aged(
    'alias',
    'ctid',
    `created_at ${BEFORE_RETENTION}
       AND NOT EXISTS (SELECT FROM holdfast.entry WHERE entry.stream_id = old.stream_id AND entry.id = old.published_id)
       AND NOT EXISTS (SELECT FROM holdfast.backlog WHERE backlog.stream_id = old.stream_id AND backlog.id = old.published_id)`,
  ),
  aged('consumer_group', 'group_id', `ended_at ${BEFORE_RETENTION}`),
  aged('recovery', 'recovery_id', `completed_at < clock_timestamp() - ${RECORDS_KEPT}`),
  aged('replay', 'replay_id', `began_at < clock_timestamp() - ${RECORDS_KEPT}`),
  aged(
    'stream',
    'stream_id',
    `ended_at ${BEFORE_RETENTION}
       AND NOT EXISTS (SELECT FROM holdfast.entry WHERE entry.stream_id = old.stream_id)
       AND NOT EXISTS (SELECT FROM holdfast.recovery WHERE recovery.stream_id = old.stream_id)
       AND NOT EXISTS (SELECT FROM holdfast.intention WHERE intention.stream_id = old.stream_id)`,
  ),
];
