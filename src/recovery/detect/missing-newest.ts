/**
 * Looks whether committed entries are in the KV store. Counting alone cannot tell after the KV store went back to an older state:
 * clients that write to it directly may have made up in number for what is missing, and its last ID is theirs. So when the KV
 * store has become another one (restarted, failed over, promoted), the newest rows are looked for themselves: whatever was
 * lost then came last.
 *
 *   rows in the ledger ──▶ the same IDs in the KV store ──▶ its first ID and max-deleted-entry-id ──▶ deletions
 *
 * Read in this order, so that what moves meanwhile is no loss: a row is committed after its entry is there, and goes by an
 * intention. What is below the stream's first entry was trimmed, what is not above max-deleted-entry-id may have been deleted by
 * a client that went past Holdfast, and what every group has acknowledged may have been left out by a restore.
 */
import { isWanted, readAcknowledged } from '../../ledger/encoding/acknowledged-set.ts';
import { byteaArray } from '../../ledger/encoding/binary-array.ts';
import { ENTRY_ID_MAX, maxEntryId, previousEntryId } from '../../ledger/encoding/entry-id.ts';
import type { Ledger } from '../../ledger/ledger.ts';
import type { KvConnection } from '../kv/connection.ts';
import { kvEntries } from '../kv/entries.ts';
import { readStream } from '../kv/snapshot.ts';
import type { KnownStream } from './verdict.ts';

/** Far more than the ledger takes between two looks. */
const ROWS_MAX = 100_000;

/** The ID of a committed entry that the KV store does not have; `undefined` where it has all that were looked for. */
export async function missingEntry(
  ledger: Ledger,
  connection: KvConnection,
  known: KnownStream,
): Promise<Buffer | undefined> {
  // Up to reconciledId everything was there at the look before the last: its newest row, and all since.
  const { rows } = await ledger.pool.query<{ id: Buffer; fields: Buffer }>(
    `(SELECT id, fields FROM holdfast.entry
       WHERE stream_id = $1 AND id > $2 AND id <= $3 ORDER BY id DESC LIMIT ${ROWS_MAX})
     UNION ALL
     (SELECT id, fields FROM holdfast.entry WHERE stream_id = $1 AND id <= $2 ORDER BY id DESC LIMIT 1)
     ORDER BY id`,
    [known.streamId, known.reconciledId, known.windowId ?? ENTRY_ID_MAX],
  );
  const missing = new Map(rows.map((row) => [row.id.toString('latin1'), row]));
  if (rows[0] === undefined) return undefined;
  for await (const page of kvEntries(connection, known, previousEntryId(rows[0].id), ENTRY_ID_MAX)) {
    for (const { id, fields } of page) {
      const key = id.toString('latin1');
      if (missing.get(key)?.fields.equals(fields) === true) missing.delete(key);
    }
    if (missing.size === 0) break;
  }
  if (missing.size === 0) return undefined;

  const actual = await readStream(connection, known);
  if (typeof actual === 'string' || actual.firstId === undefined) return undefined;
  const floor = maxEntryId(actual.firstId, actual.maxDeletedId);
  const candidates = [...missing.values()].map((row) => row.id).filter((id) => id.compare(floor) > 0);
  if (candidates.length === 0) return undefined;
  const { rows: deleted } = await ledger.pool.query<{ id: Buffer }>(
    `SELECT id FROM holdfast.deletion WHERE stream_id = $1 AND id = ANY ($2::bytea[])`,
    [known.streamId, byteaArray(candidates)],
  );
  const gone = new Set(deleted.map(({ id }) => id.toString('latin1')));
  const left = candidates.filter((id) => !gone.has(id.toString('latin1')));
  if (left.length === 0) return undefined;
  // What every group has acknowledged a restore does not bring back: who did not see the restore must not miss it.
  const acknowledged = await Promise.all(
    [...known.groups.values()].map(({ groupId }) => readAcknowledged(ledger.pool, groupId)),
  );
  return left.find((id) => isWanted(acknowledged, id));
}
