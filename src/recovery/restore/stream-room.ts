/** How much may be added to a stream in the KV store now, and making room by trimming what all its groups have acknowledged. */
import { ENTRY_ID_ZERO, formatEntryId, minEntryId, nextEntryId } from '../../ledger/encoding/entry-id.ts';
import type { Stream } from '../../ledger/stream-registry.ts';
import type { KvConnection } from '../kv/connection.ts';
import { readMemory, roomForBacklog, roomForRestore } from '../kv/memory.ts';
import { readStream, type StreamSnapshot } from '../kv/snapshot.ts';
import type { PublishContext } from './append.ts';

const TRIMS_MAX = 100;
/** For a group that waits for more, whatever the others hold. */
const HUNGRY_BYTES = 256 * 1024;

/**
 * How many bytes may be added to the stream. Where that is less than `needed`, what all groups have acknowledged is
 * trimmed first.
 */
export async function roomIn(
  context: PublishContext,
  stream: Stream,
  purpose: 'restore' | 'backlog',
  needed: number,
): Promise<number> {
  const { connection } = context;
  const hasGroups = stream.groups.size > 0;
  const measure = async (): Promise<number> => {
    const memory = await readMemory(connection);
    if (memory.max === 0) return Number.POSITIVE_INFINITY;
    const usage = await connection.command(stream.database, ['MEMORY', 'USAGE', stream.name]);
    const taken = typeof usage === 'number' ? usage : 0;
    if (purpose === 'backlog') return roomForBacklog(memory, hasGroups, taken);
    return roomForRestore(memory, hasGroups, context.sharers, taken);
  };
  const room = await measure();
  if (room >= needed || !hasGroups) return room;
  const trimmed = (await trimAcknowledged(context, stream)) ? await measure() : room;
  if (trimmed >= needed || !(await isHungry(context, stream))) return trimmed;
  // A group that nobody reads must not keep the others from what they could have.
  const memory = await readMemory(connection);
  return Math.max(trimmed, Math.min(HUNGRY_BYTES, memory.evicts ? HUNGRY_BYTES : (memory.max - memory.used) / 2));
}

/** A group has been given all that is there, and has acknowledged it. */
async function isHungry({ connection }: PublishContext, stream: Stream): Promise<boolean> {
  const state = await readPresent(connection, stream);
  if (state === undefined) return false;
  const top = state.topId ?? ENTRY_ID_ZERO;
  return [...state.groups.values()].some((group) => group.pending === 0 && group.lastDeliveredId.compare(top) >= 0);
}

/** Gives whether something was trimmed. */
async function trimAcknowledged({ ledger, connection }: PublishContext, stream: Stream): Promise<boolean> {
  const { rows } = await ledger.pool.query<{ name: Buffer; checkpoint_id: Buffer }>(
    'SELECT name, checkpoint_id FROM holdfast.consumer_group WHERE stream_id = $1 AND ended_at IS NULL',
    [stream.streamId],
  );
  const checkpoints = new Map(rows.map((row) => [row.name.toString('latin1'), row.checkpoint_id]));
  const state = await readPresent(connection, stream);
  const groups = [...(state?.groups.keys() ?? [])];
  // A group that the ledger does not know yet has acknowledged nothing that could be judged.
  if (groups.length === 0 || groups.some((name) => !checkpoints.has(name))) return false;
  const least = [...checkpoints.values()].reduce(minEntryId);
  const args = ['XTRIM', stream.name, 'MINID', '~', formatEntryId(nextEntryId(least))];
  let trimmed = false;
  for (let round = 0; round < TRIMS_MAX; round += 1) {
    if ((await connection.command(stream.database, args)) === 0) break;
    trimmed = true;
  }
  return trimmed;
}

/** `undefined` where there is no such key. Rejects with WRONGTYPE. */
export async function readPresent(connection: KvConnection, stream: Stream): Promise<StreamSnapshot | undefined> {
  const state = await readStream(connection, stream);
  if (state === 'other') throw new Error('WRONGTYPE a key of another type has the name');
  return state === 'missing' ? undefined : state;
}
