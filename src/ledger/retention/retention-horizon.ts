/**
 * Which entries of a stream a restore could still ask for. It asks for what lies above the smallest checkpoint of all its
 * groups and not below its floor; of a stream without groups, for all that is not below the floor. Of the rest no row is needed.
 * A row that the reconciler has not been past is needed too: it would take the missing one for an entry that never had any.
 */
import type pg from 'pg';
import { bigintArray } from '../encoding/binary-array.ts';
import { ENTRY_ID_MAX, previousEntryId } from '../encoding/entry-id.ts';

export interface Horizon {
  readonly streamId: number;
  /** Rows at or below it are not needed; all rows of a stream that ended, or that is not known, are not. */
  readonly id: Buffer;
  /** Current groups: entries that all of them have acknowledged are not needed either. */
  readonly groupIds: readonly number[];
}

interface HorizonRow {
  stream_id: string;
  floor_id: Buffer;
  reconciled_id: Buffer;
  checkpoint_id: Buffer | null;
  group_ids: string[];
}

/** Of those of the streams that have not ended. */
export async function readHorizons(
  client: pg.Pool | pg.ClientBase,
  streamIds: readonly number[],
): Promise<Map<number, Horizon>> {
  const { rows } = await client.query<HorizonRow>(
    `SELECT stream_id, floor_id, reconciled_id,
            (SELECT checkpoint_id FROM holdfast.consumer_group AS g
              WHERE g.stream_id = stream.stream_id AND g.ended_at IS NULL ORDER BY checkpoint_id LIMIT 1) AS checkpoint_id,
            ARRAY(SELECT group_id::text FROM holdfast.consumer_group AS g
                   WHERE g.stream_id = stream.stream_id AND g.ended_at IS NULL) AS group_ids
       FROM holdfast.stream WHERE stream_id = ANY ($1::bigint[]) AND ended_at IS NULL`,
    [bigintArray(streamIds)],
  );
  return new Map(
    rows.map((row): [number, Horizon] => {
      const belowFloor = previousEntryId(row.floor_id);
      const asked =
        row.checkpoint_id !== null && row.checkpoint_id.compare(belowFloor) > 0 ? row.checkpoint_id : belowFloor;
      const streamId = Number(row.stream_id);
      const id = asked.compare(row.reconciled_id) > 0 ? row.reconciled_id : asked;
      return [streamId, { streamId, id, groupIds: row.group_ids.map(Number) }];
    }),
  );
}

/** For streams that `readHorizons` does not give. */
export const NOTHING_NEEDED: Buffer = ENTRY_ID_MAX;
