/**
 * While something old holds a group's checkpoint, what is acknowledged above it is found by paging through the pending
 * entries list: delivered and not pending is acknowledged, by whatever way, scripts and direct clients included. A page
 * is of one snapshot, bounded, and replaces what was recorded of its range; a pass goes from the checkpoint to
 * last-delivered-id, some pages at each look, and begins again when something changed.
 */
import {
  ENTRY_ID_LENGTH,
  formatEntryId,
  maxEntryId,
  minEntryId,
  parseEntryId,
} from '../../ledger/encoding/entry-id.ts';
import type { Ledger } from '../../ledger/ledger.ts';
import { byField, type KvConnection, type KvReply } from '../kv/connection.ts';
import { parseWitness, WITNESS_KEY } from '../kv/epoch-key.ts';
import type { GroupSnapshot } from '../kv/snapshot.ts';
import { checkpointOf, type Looked } from './checkpoint.ts';

const PAGE_ENTRIES = 5000;
/** Pages at one look, of all groups together. */
const PAGES_MAX = 40;

interface Pass {
  /** What the group looked like when the pass began: no other one is needed while it looks the same. */
  readonly seen: string;
  readonly startedAt: Date;
  /** Up to here the pass came; `undefined` once it is done. */
  fromId: Buffer | undefined;
  /** Which page of all it had last. A pass that begins keeps its group's place, so that a busy group does not come first each time. */
  servedAt: number;
}

/** A group whose pass is not done. */
interface Paged {
  readonly look: Looked;
  readonly name: Buffer;
  readonly groupId: number;
  readonly pass: Pass;
}

export class PendingPages {
  readonly #passes = new Map<number, Pass>();
  #served = 0;

  /** `lookedAt` is the ledger's clock before the look's snapshots. */
  async record(
    ledger: Ledger,
    connection: KvConnection,
    leaderEpoch: number,
    lookedAt: Date,
    looked: readonly Looked[],
  ): Promise<void> {
    const unfinished: Paged[] = [];
    for (const look of looked) {
      if (look.known.mode === 'restoring') continue;
      for (const [name, group] of look.actual.groups) {
        const known = look.known.groups.get(name);
        if (known === undefined || known.changing) continue;
        if (group.pending === 0) {
          this.#passes.delete(known.groupId);
          continue;
        }
        const pass = this.#passOf(known.groupId, group, lookedAt);
        if (pass.fromId !== undefined) unfinished.push({ look, name: group.name, groupId: known.groupId, pass });
      }
    }
    // Whoever waits longest comes first, and each has its turn before anybody has a second one.
    let turns = unfinished.sort((one, other) => one.pass.servedAt - other.pass.servedAt);
    for (let pages = 0; turns.length > 0 && pages < PAGES_MAX; ) {
      for (const paged of turns.slice(0, PAGES_MAX - pages)) {
        pages += 1;
        this.#served += 1;
        paged.pass.servedAt = this.#served;
        await page(ledger, connection, leaderEpoch, paged);
      }
      turns = turns.filter(({ pass }) => pass.fromId !== undefined);
    }
  }

  #passOf(groupId: number, group: GroupSnapshot, lookedAt: Date): Pass {
    const seen = `${group.lastDeliveredId.toString('latin1')} ${group.pending} ${group.minPendingId?.toString('latin1')}`;
    const current = this.#passes.get(groupId);
    if (current !== undefined && (current.fromId !== undefined || current.seen === seen)) return current;
    const servedAt = current?.servedAt ?? 0;
    const pass: Pass = { seen, startedAt: lookedAt, fromId: checkpointOf(group), servedAt };
    this.#passes.set(groupId, pass);
    return pass;
  }
}

async function page(
  ledger: Ledger,
  connection: KvConnection,
  leaderEpoch: number,
  { look: { known }, name, groupId, pass }: Paged,
): Promise<void> {
  const fromId = pass.fromId!;
  const replies = await connection.readTogether(0, [
    ['GET', WITNESS_KEY],
    ['SELECT', known.database],
    ['XINFO', 'GROUPS', known.name],
    ['XPENDING', known.name, name, `(${formatEntryId(fromId)}`, '+', PAGE_ENTRIES],
  ]);
  const [witness, , groups, pending] = replies;
  pass.fromId = undefined;
  if (parseWitness(witness!)?.epoch !== leaderEpoch || !Array.isArray(groups) || !Array.isArray(pending)) return;
  const own = (groups as KvReply[]).map(byField).find((fields) => name.equals(fields.get('name') as Buffer));
  const last = own?.get('last-delivered-id');
  if (!Buffer.isBuffer(last)) return;
  const lastDeliveredId = parseEntryId(last, 'min')!;
  const all = (pending as [Buffer][]).map(([id]) => parseEntryId(id)!);
  const full = all.length === PAGE_ENTRIES;
  const endId = full ? all.at(-1)! : maxEntryId(fromId, lastDeliveredId);
  // Of what is above the edge, some was delivered by nobody yet.
  const toId = known.windowId === undefined ? endId : minEntryId(endId, known.windowId);
  const ids = all.filter((id) => id.compare(toId) <= 0);
  if (toId.compare(fromId) <= 0) return;
  await ledger.pool.query('SELECT holdfast.record_pending_page($1, $2, $3, $4, $5, $6, $7, $8)', [
    leaderEpoch,
    known.streamId,
    known.epoch,
    groupId,
    fromId,
    toId,
    Buffer.concat(ids, ids.length * ENTRY_ID_LENGTH),
    pass.startedAt,
  ]);
  if (full && toId === endId) pass.fromId = toId;
}
