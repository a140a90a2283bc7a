/**
 * What is recorded as acknowledged must not be pending in the KV store: after an outage, in which acknowledgements went to
 * the ledger alone, and after a rollback that took back acknowledgements but no entries, which no watermark shows.
 */
import { type AcknowledgedSet, readAcknowledged } from '../../ledger/encoding/acknowledged-set.ts';
import { formatEntryId, parseEntryId } from '../../ledger/encoding/entry-id.ts';
import type { Ledger } from '../../ledger/ledger.ts';
import type { KvConnection } from '../kv/connection.ts';
import type { Looked } from './checkpoint.ts';

const PAGE_ENTRIES = 2000;

/** Gives how many were acknowledged. */
export async function applyAcknowledgements(
  ledger: Ledger,
  connection: KvConnection,
  looked: readonly Looked[],
): Promise<number> {
  let applied = 0;
  await ledger.acknowledgements.flush();
  for (const { known, actual } of looked) {
    for (const [name, group] of actual.groups) {
      const of = known.groups.get(name);
      if (of === undefined || of.changing || group.pending === 0) continue;
      const set = await readAcknowledged(ledger.pool, of.groupId);
      // The usual case: nothing pending is recorded, and nothing recorded is above the checkpoint.
      if (set.maxId.compare(of.checkpointId) <= 0 && group.minPendingId?.compare(of.checkpointId) === 1) continue;
      applied += await applyTo(connection, known.database, known.name, group.name, set);
    }
  }
  return applied;
}

async function applyTo(
  connection: KvConnection,
  database: number,
  stream: Buffer,
  group: Buffer,
  set: AcknowledgedSet,
): Promise<number> {
  let applied = 0;
  for (let from = '-'; ; ) {
    const page = (await connection.command(database, [
      'XPENDING',
      stream,
      group,
      from,
      formatEntryId(set.maxId),
      PAGE_ENTRIES,
    ])) as [Buffer][];
    const done = page.map(([id]) => id).filter((id) => set.has(parseEntryId(id)!));
    if (done.length > 0) applied += Number(await connection.command(database, ['XACK', stream, group, ...done]));
    if (page.length < PAGE_ENTRIES) return applied;
    from = `(${page.at(-1)![0].toString()}`;
  }
}
