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
import { boundedPage } from '../../ledger/bounded-page.ts';
import { isWanted, readAcknowledged } from '../../ledger/encoding/acknowledged-set.ts';
import { byteaArray } from '../../ledger/encoding/binary-array.ts';
import { ENTRY_ID_MAX, ENTRY_ID_ZERO, maxEntryId, nextEntryId } from '../../ledger/encoding/entry-id.ts';
import type { Ledger } from '../../ledger/ledger.ts';
import type { KvConnection } from '../kv/connection.ts';
import { presentEntries } from '../kv/entries.ts';
import { readStream } from '../kv/snapshot.ts';
import type { KnownStream } from './verdict.ts';

/** Far more than the ledger takes between two looks. */
const ROWS_MAX = 100_000;
const PAGE_ROWS = 1000;

/** The ID of a committed entry that the KV store does not have; `undefined` where it has all that were looked for. */
export async function missingEntry(
  ledger: Ledger,
  connection: KvConnection,
  known: KnownStream,
): Promise<Buffer | undefined> {
  const missing: Buffer[] = [];
  for (let last = await lookedThrough(ledger, known); ; ) {
    const { rows } = await ledger.pool.query<{ id: Buffer; fields: Buffer }>(
      `SELECT id, fields FROM ${boundedPage(`
         SELECT id, fields FROM holdfast.entry
          WHERE stream_id = $1 AND id >= $2 AND id <= $3 ORDER BY id LIMIT ${PAGE_ROWS}`)} AS bounded ORDER BY id`,
      [known.streamId, last, known.windowId ?? ENTRY_ID_MAX],
    );
    const newest = rows.at(-1);
    if (newest === undefined) break;
    const there = await presentEntries(
      connection,
      known,
      rows.map(({ id }) => id),
    );
    for (const { id, fields } of rows) {
      if (there.get(id.toString('latin1'))?.equals(fields) !== true) missing.push(id);
    }
    last = nextEntryId(newest.id);
  }
  if (missing.length === 0) return undefined;

  const actual = await readStream(connection, known);
  if (typeof actual === 'string' || actual.firstId === undefined) return undefined;
  const floor = maxEntryId(actual.firstId, actual.maxDeletedId);
  const candidates = missing.filter((id) => id.compare(floor) > 0);
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

/** Up to reconciledId everything was there at the look before the last: its newest row, and all since, are looked for. */
async function lookedThrough(ledger: Ledger, { streamId, reconciledId, windowId }: KnownStream): Promise<Buffer> {
  const { rows } = await ledger.pool.query<{ first: Buffer | null }>(
    `SELECT GREATEST(
       (SELECT id FROM holdfast.entry WHERE stream_id = $1 AND id <= $2 ORDER BY id DESC LIMIT 1),
       (SELECT id FROM holdfast.entry WHERE stream_id = $1 AND id > $2 AND id <= $3
         ORDER BY id DESC OFFSET ${ROWS_MAX - 1} LIMIT 1)) AS first`,
    [streamId, reconciledId, windowId ?? ENTRY_ID_MAX],
  );
  return rows[0]?.first ?? ENTRY_ID_ZERO;
}
