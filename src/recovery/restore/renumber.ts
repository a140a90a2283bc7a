/**
 * New IDs for entries that the stream in the KV store has gone past, because a client that goes past Holdfast has written to it:
 * for all that are still to come, at once, so that their order stays. A millisecond for each, so that what is written past
 * Holdfast from then on does not come between.
 */
import type pg from 'pg';
import { byteaArray } from '../../ledger/encoding/binary-array.ts';
import { ENTRY_ID_ZERO, entryIdMilliseconds, maxEntryId } from '../../ledger/encoding/entry-id.ts';
import { inTransaction } from '../../ledger/in-transaction.ts';
import type { PublishContext } from './append.ts';

/** What a restore left out for want of memory; or what the ledger accepted alone. */
type Table = 'entry' | 'backlog';

/** A transaction that fails where another one leads by now. */
export async function asLeader<T>(
  { ledger, leaderEpoch }: Pick<PublishContext, 'ledger' | 'leaderEpoch'>,
  write: (client: pg.PoolClient) => Promise<T>,
): Promise<T> {
  const client = await ledger.pool.connect();
  let broken: Error | undefined;
  try {
    return await inTransaction(client, async () => {
      await client.query('SELECT holdfast.assert_leader($1)', [leaderEpoch]);
      return write(client);
    });
  } catch (thrown) {
    broken = thrown instanceof Error ? thrown : new Error(String(thrown));
    throw thrown;
  } finally {
    client.release(broken);
  }
}

/**
 * Above `after`, but for `kept`, in a transaction of the caller's. `least`: an ID that the new ones must be greater than. Gives
 * how many there were.
 */
export async function renumber(
  client: pg.PoolClient,
  table: Table,
  streamId: number,
  after: Buffer,
  kept: readonly Buffer[],
  least: Buffer,
): Promise<number> {
  const { rows } = await client.query<{ id: Buffer }>(
    `SELECT id FROM holdfast.${table} WHERE stream_id = $1 ORDER BY id DESC LIMIT 1`,
    [streamId],
  );
  const base = entryIdMilliseconds(maxEntryId(least, rows[0]?.id ?? ENTRY_ID_ZERO));
  const { rowCount } = await client.query(
    `WITH numbered AS MATERIALIZED (
       SELECT id, int8send($3 + row_number() OVER (ORDER BY id)) || int8send(0) AS new_id
         FROM holdfast.${table} AS old
        WHERE stream_id = $1 AND id > $2 AND id <> ALL ($4::bytea[])
          AND NOT EXISTS (SELECT FROM holdfast.deletion AS d WHERE d.stream_id = old.stream_id AND d.id = old.id)
     ), followed AS (
       UPDATE holdfast.alias SET published_id = new_id FROM numbered
        WHERE alias.stream_id = $1 AND alias.published_id = numbered.id
     ), noted AS (
       INSERT INTO holdfast.alias (stream_id, id, published_id, epoch)
       SELECT $1, id, new_id, (SELECT epoch FROM holdfast.stream WHERE stream_id = $1) FROM numbered
       ON CONFLICT (stream_id, id, epoch) DO UPDATE SET published_id = excluded.published_id
     ), seen AS (
       UPDATE holdfast.stream
          SET seen_last_id = GREATEST(seen_last_id, (SELECT new_id FROM numbered ORDER BY new_id DESC LIMIT 1))
        WHERE stream_id = $1 AND '${table}' = 'entry'
     )
     UPDATE holdfast.${table} AS old SET id = new_id FROM numbered WHERE old.stream_id = $1 AND old.id = numbered.id`,
    [streamId, after, base, byteaArray(kept)],
  );
  return rowCount ?? 0;
}
