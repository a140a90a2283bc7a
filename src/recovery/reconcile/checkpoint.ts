/**
 * Saves what a good look saw: watermarks, floors, times to live, and each group's checkpoint. Only of streams that
 * compared well, and only where epoch, incarnation and generation are still those that were compared with; nothing goes
 * backwards. A group's checkpoint is its last-delivered-id with nothing pending, else just below the smallest pending ID,
 * all of one snapshot.
 */
import type pg from 'pg';
import { bigintArray, byteaArray } from '../../ledger/encoding/binary-array.ts';
import { ENTRY_ID_ZERO, minEntryId, nextEntryId, previousEntryId } from '../../ledger/encoding/entry-id.ts';
import type { KnownStream } from '../detect/verdict.ts';
import type { Witness } from '../kv/epoch-key.ts';
import type { GroupSnapshot, StreamSnapshot } from '../kv/snapshot.ts';
import { missingEntries } from './uncounted-entries.ts';

export interface Looked {
  readonly known: KnownStream;
  readonly actual: StreamSnapshot;
  /** Of the same moment: only what is seen beside the leader's own is of the KV store that it leads. */
  readonly witness: Witness | undefined;
}

/** `undefined` where the smallest pending ID was not asked for. */
export function checkpointOf(group: GroupSnapshot): Buffer | undefined {
  if (group.pending === 0) return group.lastDeliveredId;
  return group.minPendingId === undefined ? undefined : previousEntryId(group.minPendingId);
}

/** The first entry, or where it would be; while a window is open not above its edge. */
export function floorOf(actual: StreamSnapshot, windowId?: Buffer): Buffer {
  const floor = firstOf(actual);
  return windowId === undefined ? floor : minEntryId(floor, nextEntryId(windowId));
}

function firstOf(actual: StreamSnapshot): Buffer {
  if (actual.firstId !== undefined) return actual.firstId;
  return actual.entriesAdded > 0 ? nextEntryId(actual.lastId) : ENTRY_ID_ZERO;
}

interface ChangedGroup {
  readonly look: Looked;
  readonly known: KnownStream;
  readonly groupId: number | undefined;
  readonly group: GroupSnapshot;
  readonly checkpoint: Buffer;
}

interface Changed {
  readonly streams: readonly Looked[];
  readonly groups: readonly ChangedGroup[];
}

/**
 * A stream can be lost and made anew between the reading of what the ledger knows and that of the KV store, in which what came in
 * between is not compared. Its first entry and its groups say nothing of what was before: they are left out.
 */
async function whole(client: pg.PoolClient, { streams, groups }: Changed): Promise<Changed> {
  const looks = [...new Set([...streams, ...groups.map(({ look }) => look)])];
  const missing = await missingEntries(
    client,
    looks.map(({ known, actual }) => ({ streamId: known.streamId, ...actual })),
  );
  const kept = new Set(looks.filter((_, at) => missing[at]! >= 0));
  return { streams: streams.filter((look) => kept.has(look)), groups: groups.filter(({ look }) => kept.has(look)) };
}

/** `lookedAt` is the ledger's clock before the KV store was asked: a group that ended later is not adopted again. */
export async function saveCheckpoints(
  pool: pg.Pool,
  leaderEpoch: number,
  lookedAt: Date,
  seen: readonly Looked[],
): Promise<void> {
  const looked = seen.filter(({ witness }) => witness?.epoch === leaderEpoch);
  const changedStreams = looked.filter(
    ({ known, actual }) =>
      known.mode !== 'restoring' &&
      (actual.lastId.compare(known.lastId) > 0 ||
        actual.entriesAdded > known.added ||
        !actual.maxDeletedId.equals(known.maxDeletedId) ||
        floorOf(actual, known.windowId).compare(known.floorId) > 0 ||
        actual.expiresAtMs !== known.expiresAtMs),
  );
  const changedGroups: ChangedGroup[] = [];
  for (const look of looked) {
    const { known, actual } = look;
    if (known.mode === 'restoring') continue;
    for (const [name, group] of actual.groups) {
      const before = known.groups.get(name);
      const whole = checkpointOf(group);
      if (whole === undefined || before?.changing === true) continue;
      // What is still to come belongs before what a client that goes past Holdfast has written behind the edge.
      const checkpoint = known.windowId === undefined ? whole : minEntryId(whole, known.windowId);
      if (
        before !== undefined &&
        checkpoint.compare(before.checkpointId) <= 0 &&
        group.lastDeliveredId.equals(before.lastDeliveredId)
      ) {
        continue;
      }
      changedGroups.push({ look, known, groupId: before?.groupId, group, checkpoint });
    }
  }
  if (changedStreams.length === 0 && changedGroups.length === 0) return;
  const changed = { streams: changedStreams, groups: changedGroups };

  const client = await pool.connect();
  let broken: Error | undefined;
  try {
    await client.query('BEGIN');
    await client.query('SELECT holdfast.assert_leader($1)', [leaderEpoch]);
    const { streams, groups } = await whole(client, changed);
    if (streams.length > 0) {
      await client.query(
        `UPDATE holdfast.stream
            SET present = true,
                seen_last_id = GREATEST(seen_last_id, given.last_id), seen_added = GREATEST(seen_added, given.added),
                max_deleted_id = GREATEST(stream.max_deleted_id, given.max_deleted_id),
                floor_id = GREATEST(stream.floor_id, given.floor_id),
                -- What a client has made of it since, and its sidecar written down, is newer than what was looked at.
                expires_at_ms = CASE WHEN stream.expires_at_ms IS NOT DISTINCT FROM given.known_expires_at_ms
                                     THEN given.expires_at_ms ELSE stream.expires_at_ms END
           FROM unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::bigint[], $5::bytea[], $6::bytea[], $7::bigint[], $8::bigint[])
             AS given (stream_id, epoch, last_id, added, max_deleted_id, floor_id, expires_at_ms, known_expires_at_ms)
          WHERE stream.stream_id = given.stream_id AND stream.epoch = given.epoch
            AND stream.ended_at IS NULL AND stream.mode <> 'restoring'`,
        [
          bigintArray(streams.map(({ known }) => known.streamId)),
          bigintArray(streams.map(({ known }) => known.epoch)),
          byteaArray(streams.map(({ actual }) => actual.lastId)),
          bigintArray(streams.map(({ actual }) => actual.entriesAdded)),
          byteaArray(streams.map(({ actual }) => actual.maxDeletedId)),
          byteaArray(streams.map(({ known, actual }) => floorOf(actual, known.windowId))),
          bigintArray(streams.map(({ actual }) => actual.expiresAtMs)),
          bigintArray(streams.map(({ known }) => known.expiresAtMs)),
        ],
      );
    }
    const old = groups.filter(({ groupId }) => groupId !== undefined);
    if (old.length > 0) {
      await client.query(
        `UPDATE holdfast.consumer_group AS saved
            SET progressed_at = CASE WHEN given.checkpoint_id > saved.checkpoint_id
                                     THEN clock_timestamp() ELSE saved.progressed_at END,
                checkpointed_at = clock_timestamp(),
                checkpoint_id = GREATEST(saved.checkpoint_id, given.checkpoint_id),
                last_delivered_id = GREATEST(saved.last_delivered_id, given.last_delivered_id),
                entries_read = given.entries_read
           FROM unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::bytea[], $5::bigint[])
             AS given (group_id, epoch, checkpoint_id, last_delivered_id, entries_read),
                holdfast.stream
          WHERE saved.group_id = given.group_id AND saved.ended_at IS NULL AND NOT saved.changing
            AND stream.stream_id = saved.stream_id AND stream.epoch = given.epoch AND stream.ended_at IS NULL`,
        [
          bigintArray(old.map(({ groupId }) => groupId)),
          bigintArray(old.map(({ known }) => known.epoch)),
          byteaArray(old.map(({ checkpoint }) => checkpoint)),
          byteaArray(old.map(({ group }) => group.lastDeliveredId)),
          bigintArray(old.map(({ group }) => group.entriesRead)),
        ],
      );
      await client.query(
        `DELETE FROM holdfast.acknowledgement USING holdfast.consumer_group AS saved
          WHERE acknowledgement.group_id = saved.group_id AND saved.group_id = ANY ($1::bigint[])
            AND acknowledgement.max_id <= saved.checkpoint_id`,
        [bigintArray(old.map(({ groupId }) => groupId))],
      );
      await client.query(
        `DELETE FROM holdfast.pending_page USING holdfast.consumer_group AS saved
          WHERE pending_page.group_id = saved.group_id AND saved.group_id = ANY ($1::bigint[])
            AND pending_page.to_id <= saved.checkpoint_id`,
        [bigintArray(old.map(({ groupId }) => groupId))],
      );
    }
    for (const { known, group, checkpoint } of groups.filter(({ groupId }) => groupId === undefined)) {
      const { rowCount } = await client.query(
        `INSERT INTO holdfast.consumer_group (stream_id, name, generation, checkpoint_id, last_delivered_id, entries_read)
         SELECT $1, $2, 1 + coalesce((SELECT max(generation) FROM holdfast.consumer_group AS old
                                       WHERE old.stream_id = $1 AND old.name = $2), 0), $3, $4, $5
           FROM holdfast.stream
          WHERE stream_id = $1 AND epoch = $6 AND ended_at IS NULL
            AND NOT EXISTS (SELECT FROM holdfast.consumer_group AS old
                             WHERE old.stream_id = $1 AND old.name = $2 AND old.ended_at > $7)
         ON CONFLICT DO NOTHING`,
        [
          known.streamId,
          group.name,
          checkpoint,
          group.lastDeliveredId,
          group.entriesRead ?? null,
          known.epoch,
          lookedAt,
        ],
      );
      if (rowCount === 1) await client.query(`SELECT pg_notify('holdfast', $1)`, [`stream ${known.streamId}`]);
    }
    await client.query('COMMIT');
  } catch (thrown) {
    broken = thrown instanceof Error ? thrown : new Error(String(thrown));
    await client.query('ROLLBACK').catch(() => undefined);
    throw thrown;
  } finally {
    client.release(broken);
  }
}
