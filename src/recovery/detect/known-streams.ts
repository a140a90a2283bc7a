/** What the ledger knows of the streams, for comparing; always read before the KV store is asked. */
import type pg from 'pg';
import type { Stream, StreamRegistry } from '../../ledger/stream-registry.ts';
import type { KnownGroup, KnownStream } from './verdict.ts';

interface KnownRow {
  stream_id: string;
  database: number;
  name: Buffer;
  epoch: string;
  restored_epoch: string;
  mode: KnownStream['mode'];
  present: boolean;
  last_id: Buffer;
  added: string;
  max_deleted_id: Buffer;
  floor_id: Buffer;
  reconciled_id: Buffer;
  expires_at_ms: string | null;
  ending: boolean;
  backlog: string;
  window_id: Buffer | null;
}

interface KnownGroupRow {
  stream_id: string;
  group_id: string;
  name: Buffer;
  checkpoint_id: Buffer;
  last_delivered_id: Buffer;
  entries_read: string | null;
  changing: boolean;
}

/** All current streams, or those with the given IDs. */
export async function readKnownStreams(
  pool: pg.Pool | pg.PoolClient,
  streamIds: readonly number[] | undefined,
): Promise<KnownStream[]> {
  const chosen = streamIds === undefined ? null : [...streamIds];
  const { rows } = await pool.query<KnownRow>(
    `SELECT stream_id, database, name, epoch, restored_epoch, mode,
            present OR progress.added > 0 OR EXISTS (
              SELECT FROM holdfast.consumer_group AS g WHERE g.stream_id = stream.stream_id AND g.ended_at IS NULL
            ) AS present,
            GREATEST(seen_last_id, progress.last_id) AS last_id,
            GREATEST(seen_added, added_base + coalesce(progress.added, 0)) AS added,
            max_deleted_id, floor_id, reconciled_id, expires_at_ms,
            EXISTS (SELECT FROM holdfast.intention
                     WHERE intention.stream_id = stream.stream_id AND kind = 'end') AS ending,
            (SELECT count(*) FROM holdfast.backlog WHERE backlog.stream_id = stream.stream_id) AS backlog,
            CASE mode WHEN 'outage' THEN window_id END AS window_id
       FROM holdfast.stream
       LEFT JOIN LATERAL (
         SELECT sum(added) AS added,
                (array_agg(last_id ORDER BY last_id DESC))[1] AS last_id
           FROM holdfast.stream_progress WHERE stream_progress.stream_id = stream.stream_id
       ) AS progress ON true
      WHERE ended_at IS NULL AND ($1::bigint[] IS NULL OR stream_id = ANY ($1))
      ORDER BY stream_id`,
    [chosen],
  );
  const { rows: groupRows } = await pool.query<KnownGroupRow>(
    `SELECT stream_id, group_id, name, checkpoint_id, last_delivered_id, entries_read, changing
       FROM holdfast.consumer_group
      WHERE ended_at IS NULL AND ($1::bigint[] IS NULL OR stream_id = ANY ($1))`,
    [chosen],
  );
  const groups = new Map<string, Map<string, KnownGroup>>();
  for (const row of groupRows) {
    let of = groups.get(row.stream_id);
    if (of === undefined) groups.set(row.stream_id, (of = new Map()));
    of.set(row.name.toString('latin1'), {
      groupId: Number(row.group_id),
      name: row.name,
      checkpointId: row.checkpoint_id,
      lastDeliveredId: row.last_delivered_id,
      entriesRead: row.entries_read === null ? undefined : Number(row.entries_read),
      changing: row.changing,
    });
  }
  return rows.map((row) => ({
    streamId: Number(row.stream_id),
    database: row.database,
    name: row.name,
    epoch: Number(row.epoch),
    restoredEpoch: Number(row.restored_epoch),
    mode: row.mode,
    present: row.present,
    lastId: row.last_id,
    added: Number(row.added),
    maxDeletedId: row.max_deleted_id,
    floorId: row.floor_id,
    reconciledId: row.reconciled_id,
    expiresAtMs: row.expires_at_ms === null ? undefined : Number(row.expires_at_ms),
    ending: row.ending,
    backlog: Number(row.backlog),
    windowId: row.window_id ?? undefined,
    groups: groups.get(row.stream_id) ?? new Map(),
  }));
}

/** Streams of which this process knows less than was read just now: a notice was lost, or is on its way. */
export function outdatedStreams(registry: StreamRegistry, known: readonly KnownStream[]): number[] {
  const outdated: number[] = [];
  const current = new Set<number>();
  for (const read of known) {
    current.add(read.streamId);
    const own = registry.byId(read.streamId);
    if (own === undefined || isOutdated(own, read)) outdated.push(read.streamId);
  }
  for (const { streamId } of registry.all()) if (!current.has(streamId)) outdated.push(streamId);
  return outdated;
}

/**
 * What other sidecars have added, and looks have seen, since this process read the stream: an ID that is not above it, or no stream at
 * all, is a sign of a loss.
 */
export function learnProgress(registry: StreamRegistry, known: readonly KnownStream[]): void {
  for (const { streamId, lastId, present } of known) {
    const own = registry.byId(streamId);
    if (own === undefined) continue;
    own.present ||= present;
    if (own.lastId.compare(lastId) < 0) own.lastId = lastId;
  }
}

function isOutdated(own: Stream, read: KnownStream): boolean {
  if (own.epoch !== read.epoch) return own.epoch < read.epoch;
  if (own.mode !== read.mode || own.restoredEpoch < read.restoredEpoch || own.groups.size !== read.groups.size)
    return true;
  for (const [name, group] of read.groups) {
    const ownGroup = own.groups.get(name);
    if (ownGroup?.groupId !== group.groupId || ownGroup.changing !== group.changing) return true;
  }
  return false;
}
