/**
 * Loss is noticed by comparison: what the ledger knows of a stream, read first, against what the KV store says, read
 * afterwards. Everything here only grows within an incarnation, so what is smaller than it was is a loss, whatever caused
 * it. A shorter stream, a higher first ID or an evicted witness are none.
 */
import { minEntryId } from '../../ledger/encoding/entry-id.ts';
import type { StreamSnapshot, StreamState } from '../kv/snapshot.ts';

export interface KnownGroup {
  readonly groupId: number;
  readonly name: Buffer;
  readonly checkpointId: Buffer;
  readonly lastDeliveredId: Buffer;
  readonly entriesRead: number | undefined;
  /** XGROUP SETID or DESTROY is on its way: nothing to conclude from this group. */
  readonly changing: boolean;
}

export interface KnownStream {
  readonly streamId: number;
  readonly database: number;
  readonly name: Buffer;
  readonly epoch: number;
  readonly restoredEpoch: number;
  readonly mode: 'normal' | 'outage' | 'restoring';
  /** The KV store had it at some time of this incarnation. */
  readonly present: boolean;
  /** The greatest ID committed or seen. */
  readonly lastId: Buffer;
  /** How many entries this incarnation has had, by the ledger's own count; at least as many must be in entries-added. */
  readonly added: number;
  readonly maxDeletedId: Buffer;
  readonly floorId: Buffer;
  readonly reconciledId: Buffer;
  readonly expiresAtMs: number | undefined;
  /** A client's will to end this incarnation is on its way or was given up half-way. */
  readonly ending: boolean;
  readonly backlog: number;
  /** Restored in part for want of memory: of the ledger's entries above it some are not in the KV store yet. */
  readonly windowId: Buffer | undefined;
  readonly groups: ReadonlyMap<string, KnownGroup>;
}

/** `ended`: the incarnation is over by expiry or because a client put another key there. */
export type Verdict =
  | { readonly kind: 'same' }
  | { readonly kind: 'lost'; readonly cause: string }
  | { readonly kind: 'ended'; readonly cause: string };

const SAME: Verdict = { kind: 'same' };
export const EXPIRED = 'expired';
export const REPLACED = 'the key holds another type';

function lost(cause: string): Verdict {
  return { kind: 'lost', cause };
}

/** `nowMs` by the KV store's own clock, for whether a time to live has passed: no sidecar's clock decides that. */
export function compare(known: KnownStream, actual: StreamState, nowMs: number): Verdict {
  const verdict = compareState(known, actual);
  const expired = known.expiresAtMs !== undefined && known.expiresAtMs <= nowMs;
  return verdict.kind === 'lost' && expired ? { kind: 'ended', cause: EXPIRED } : verdict;
}

function compareState(known: KnownStream, actual: StreamState): Verdict {
  if (actual === 'other') return { kind: 'ended', cause: REPLACED };
  if (actual === 'missing') return known.present ? lost('the stream is gone') : SAME;
  if (actual.lastId.compare(known.windowId ?? known.lastId) < 0) return lost('its last ID went back');
  if (actual.entriesAdded < known.added) return lost('it counts fewer entries than were committed');
  // All that was added up to the last known ID is gone, and what came since is more than was counted since.
  if (
    known.added > 0 &&
    actual.firstId !== undefined &&
    actual.firstId.compare(known.lastId) > 0 &&
    actual.length > actual.entriesAdded - known.added
  ) {
    return lost('it was made anew');
  }
  const deletedId = known.windowId === undefined ? known.maxDeletedId : minEntryId(known.maxDeletedId, known.windowId);
  if (actual.maxDeletedId.compare(deletedId) < 0) return lost('its greatest deleted ID went back');
  const cause = lostGroup(known, actual);
  return cause === undefined ? SAME : lost(cause);
}

/** What a group of the stream has lost. */
export function lostGroup(known: KnownStream, actual: StreamSnapshot): string | undefined {
  for (const group of known.groups.values()) {
    if (group.changing) continue;
    const found = actual.groups.get(group.name.toString('latin1'));
    if (found === undefined) return 'a consumer group is gone';
    if (found.lastDeliveredId.compare(group.lastDeliveredId) < 0) return 'a consumer group went back';
  }
  return undefined;
}
