/**
 * Compares ledger, stream and groups, entry by entry, and changes nothing. An entry is looked for where a restore would put it back:
 * above what all groups have acknowledged, not deleted, not trimmed.
 *
 *   look ──▶ suspects ──▶ wait until recovery has looked too ──▶ look again ──▶ what was missing both times
 *
 * So what an acknowledgement or a deletion took away between two reads is no finding, nor is what recovery puts back by itself.
 */
import type { KvAddress } from '../control-redis.ts';
import { type AcknowledgedSet, isWanted, readAcknowledged } from '../ledger/encoding/acknowledged-set.ts';
import { bigintArray } from '../ledger/encoding/binary-array.ts';
import { ENTRY_ID_MAX, formatEntryId } from '../ledger/encoding/entry-id.ts';
import type { Ledger } from '../ledger/ledger.ts';
import { readHorizons } from '../ledger/retention/retention-horizon.ts';
import type { Stream } from '../ledger/stream-registry.ts';
import { undeletedEntries } from '../ledger/undeleted-entries.ts';
import { KvConnection } from './kv/connection.ts';
import { entriesAt } from './kv/entries.ts';
import { readStream } from './kv/snapshot.ts';

export interface Finding {
  readonly database: number;
  readonly stream: string;
  /**
   * `missing`: an acknowledged entry that the stream does not have. `different`: its ID holds other fields there.
   * `group`: a group that the stream does not have.
   */
  readonly kind: 'missing' | 'different' | 'group';
  /** The entry's ID, or the group's name. */
  readonly what: string;
}

export interface VerifyReport {
  readonly streams: number;
  readonly entries: number;
  /** In outage, under restoration, or restored in part for want of memory: these are not judged. */
  readonly unsettled: readonly string[];
  /** At most `FINDINGS_MAX`; `findingsTotal` counts all. */
  readonly findings: readonly Finding[];
  readonly findingsTotal: number;
}

const FINDINGS_MAX = 1000;
const PAGE_ROWS = 1000;
const COMMAND_TIMEOUT_MS = 30_000;

/** Of one stream: what it finds, by a key that is the same when it is found again. */
async function lookAt(
  ledger: Ledger,
  connection: KvConnection,
  stream: Stream,
): Promise<{ readonly entries: number; readonly found: Map<string, Finding> }> {
  const found = new Map<string, Finding>();
  const place = { database: stream.database, stream: stream.name.toString() };
  const note = (kind: Finding['kind'], what: string) =>
    found.set(`${stream.streamId} ${kind} ${what}`, { ...place, kind, what });
  const horizon = (await readHorizons(ledger.pool, [stream.streamId])).get(stream.streamId);
  if (horizon === undefined) return { entries: 0, found };

  const { rows: groups } = await ledger.pool.query<{ group_id: string; name: Buffer }>(
    'SELECT group_id, name FROM holdfast.consumer_group WHERE group_id = ANY ($1::bigint[]) AND NOT changing',
    [bigintArray(horizon.groupIds)],
  );
  const actual = await readStream(connection, stream);
  for (const { name } of groups) {
    if (typeof actual === 'string' || !actual.groups.has(name.toString('latin1'))) note('group', name.toString());
  }

  let acknowledged: AcknowledgedSet[] | undefined;
  let entries = 0;
  for await (const rows of undeletedEntries(ledger.pool, stream.streamId, horizon.id, ENTRY_ID_MAX, PAGE_ROWS)) {
    acknowledged ??= await Promise.all(horizon.groupIds.map((groupId) => readAcknowledged(ledger.pool, groupId)));
    const sets = acknowledged;
    const wanted = rows.filter(({ id }) => isWanted(sets, id));
    entries += wanted.length;
    const there =
      typeof actual === 'string'
        ? new Map<string, Buffer>()
        : await entriesAt(
            connection,
            stream,
            wanted.map(({ id }) => id),
          );
    for (const { id, fields } of wanted) {
      const has = there.get(id.toString('latin1'));
      // What clients that go past Holdfast deleted may be gone.
      const deleted = typeof actual !== 'string' && id.compare(actual.maxDeletedId) <= 0;
      if (has === undefined) {
        if (!deleted) note('missing', formatEntryId(id));
      } else if (!has.equals(fields)) note('different', formatEntryId(id));
    }
  }
  return { entries, found };
}

function settled(stream: Stream): boolean {
  return stream.mode === 'normal';
}

/** `nextLook` resolves when recovery has compared once more. Rejects with KVDOWN, or with Postgres's errors. */
export async function verify(ledger: Ledger, kv: KvAddress, nextLook: () => Promise<void>): Promise<VerifyReport> {
  await ledger.streams.reload();
  const connection = await KvConnection.open(kv, COMMAND_TIMEOUT_MS);
  try {
    const all = [...ledger.streams.all()];
    const unsettled = new Set(all.filter((stream) => !settled(stream)));
    let entries = 0;
    const suspects: { readonly stream: Stream; readonly found: Map<string, Finding> }[] = [];
    for (const stream of all) {
      if (unsettled.has(stream)) continue;
      const look = await lookAt(ledger, connection, stream);
      entries += look.entries;
      if (look.found.size > 0) suspects.push({ stream, found: look.found });
    }
    const findings: Finding[] = [];
    let findingsTotal = 0;
    if (suspects.length > 0) await nextLook();
    for (const { stream, found } of suspects) {
      const current = ledger.streams.find(stream.database, stream.name);
      if (current === undefined || current.streamId !== stream.streamId) continue;
      if (!settled(current)) {
        unsettled.add(current);
        continue;
      }
      const again = await lookAt(ledger, connection, current);
      for (const [key, finding] of found) {
        if (!again.found.has(key)) continue;
        findingsTotal += 1;
        if (findings.length < FINDINGS_MAX) findings.push(finding);
      }
    }
    return {
      streams: all.length,
      entries,
      unsettled: [...unsettled].map((stream) => stream.name.toString()),
      findings,
      findingsTotal,
    };
  } finally {
    connection.close();
  }
}
