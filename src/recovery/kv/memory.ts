/**
 * How much of the KV store's memory recovery may take, so that it does not push out what other clients have there, nor
 * leave them none:
 *
 *   a server that refuses writes at maxmemory: at most half of what is free
 *   a restore, on any server with a maxmemory: at most a quarter of it, for all streams together
 *
 * The quarter is for streams with groups, which make room as they are acknowledged. Nothing shrinks one without groups: it comes
 * back whole where keys are evicted, else until an eighth of maxmemory is left.
 */
import { HoldfastError } from '../../errors.ts';
import type { KvConnection } from './connection.ts';
import { infoField } from './snapshot.ts';

/** The KV store has no memory for more of a stream now. */
export class OutOfRoom extends HoldfastError {
  constructor(message: string) {
    super('RECOVERING', message);
  }
}

/** In bytes. `max`: 0 without a limit. */
export interface KvMemory {
  readonly max: number;
  readonly used: number;
  /** At `max` it removes keys of whatever kind, instead of refusing writes. */
  readonly evicts: boolean;
}

export async function readMemory(connection: KvConnection): Promise<KvMemory> {
  const info = String(await connection.command(0, ['INFO', 'memory']));
  return {
    max: Number(infoField(info, 'maxmemory') ?? 0),
    used: Number(infoField(info, 'used_memory') ?? 0),
    evicts: infoField(info, 'maxmemory_policy')?.startsWith('allkeys-') === true,
  };
}

/** About what an entry takes in the KV store; `fields` as the ledger keeps them, whose framing is longer than the store's. */
export function entryBytes(fields: Buffer): number {
  return fields.length + 32;
}

/** For a restore of one of `streams`. `taken`: what is there already, where it is gone on with. */
export function roomForRestore(memory: KvMemory, hasGroups: boolean, streams: number, taken?: number): number {
  if (memory.max === 0) return Number.POSITIVE_INFINITY;
  const free = memory.evicts ? Number.POSITIVE_INFINITY : (memory.max - memory.used) / 2;
  if (hasGroups) return Math.min(free, memory.max / 4 / Math.max(1, streams) - (taken ?? 0));
  return taken === undefined ? free : free - memory.max / 16;
}

/** For entries that the ledger accepted alone, of a stream that takes `taken`: the KV store would have had them by now. */
export function roomForBacklog(memory: KvMemory, hasGroups: boolean, taken: number): number {
  if (memory.max === 0) return Number.POSITIVE_INFINITY;
  const free = (memory.max - memory.used) / 2;
  if (!memory.evicts) return free;
  return hasGroups ? Math.max(free, memory.max / 4 - taken) : Number.POSITIVE_INFINITY;
}
