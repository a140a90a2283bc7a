/**
 * The key `holdfast:epoch` in the KV store's database 0: `<ledger UUID> <epoch>`. It tells that this KV store belongs to
 * this ledger, and fences whoever led before: every write of a leader is conditional on it. Its absence alone proves
 * nothing (it can be evicted). Keys that a restore builds begin with the same word, so that one rule hides all.
 */
import { HoldfastError } from '../../errors.ts';
import type { Ledger } from '../../ledger/ledger.ts';
import { OWN_KEY_START } from '../../own-keys.ts';
import { isOutOfMemory, type KvConnection, type KvReply } from './connection.ts';

export const WITNESS_KEY = OWN_KEY_START;

export interface Witness {
  readonly ledger: string;
  readonly epoch: number;
}

export function formatWitness(witness: Witness): string {
  return `${witness.ledger} ${witness.epoch}`;
}

export function parseWitness(reply: KvReply): Witness | undefined {
  if (!Buffer.isBuffer(reply)) return undefined;
  const match = /^([0-9a-f-]{36}) (\d{1,15})$/.exec(reply.toString('latin1'));
  return match === null ? undefined : { ledger: match[1]!, epoch: Number(match[2]) };
}

/** `foreign`: the key holds what Holdfast never puts there. */
export async function readWitness(connection: KvConnection): Promise<Witness | undefined | 'foreign'> {
  let reply: KvReply;
  try {
    reply = await connection.command(0, ['GET', WITNESS_KEY]);
  } catch (thrown) {
    if (thrown instanceof Error && thrown.message.startsWith('WRONGTYPE')) return 'foreign';
    throw thrown;
  }
  return reply === null ? undefined : (parseWitness(reply) ?? 'foreign');
}

/**
 * Throws where the KV store belongs to another ledger: what is in it is not ours to compare. What is no witness at all is refused at the
 * start; later somebody has written over the witness, which is put back.
 */
export function refuseForeignWitness(
  witness: Witness | undefined | 'foreign',
  identity: string,
  starting: boolean,
): void {
  if (witness === undefined) return;
  if (witness === 'foreign') {
    if (!starting) return;
    throw new HoldfastError(
      'CONFIG',
      `kv.url: the key ${WITNESS_KEY} of the KV store is Holdfast's own, and something else is in it; rename or delete it there`,
    );
  }
  if (witness.ledger === identity) return;
  throw new HoldfastError(
    'CONFIG',
    `kv.url and ledger.database do not belong together: this KV store belongs to the ledger ${witness.ledger}, the database holds ` +
      `${identity}; use the database of that ledger, or delete the key ${WITNESS_KEY} to adopt the KV store as it is`,
  );
}

function isWitness(read: Awaited<ReturnType<typeof readWitness>>): read is Witness {
  return read !== undefined && read !== 'foreign';
}

/** Puts the witness of a leader of `epoch` in place, unless a later one's is there. Rejects where another one leads. */
export async function placeWitness(ledger: Ledger, connection: KvConnection, epoch: number): Promise<void> {
  const ours = { ledger: ledger.identity, epoch };
  const current = await readWitness(connection);
  if (isWitness(current) && current.epoch >= ours.epoch) return;
  await ledger.pool.query('SELECT holdfast.assert_leader($1)', [ours.epoch]);
  await connection.pipeline(0, [['WATCH', WITNESS_KEY]]);
  const again = await readWitness(connection);
  if (isWitness(again) && again.epoch >= ours.epoch) {
    await connection.command(0, ['UNWATCH']);
    return;
  }
  try {
    await connection.transaction(0, [['SET', WITNESS_KEY, formatWitness(ours)]]);
  } catch (thrown) {
    // Without it nothing can be restored, which for want of memory would fail as well; the look goes on.
    if (!isOutOfMemory(thrown)) throw thrown;
    await connection.command(0, ['UNWATCH']);
  }
}

/**
 * Watches the fence of a leader of `epoch`, for the transaction that follows, and gives it. Rejects with RECOVERING, and
 * watches nothing, where another one is there or none.
 */
export async function watchFence(ledger: Ledger, connection: KvConnection, epoch: number): Promise<string> {
  const fence = formatWitness({ ledger: ledger.identity, epoch });
  const [, witness] = await connection.pipeline(0, [
    ['WATCH', WITNESS_KEY],
    ['GET', WITNESS_KEY],
  ]);
  if (Buffer.isBuffer(witness) && witness.toString() === fence) return fence;
  await connection.command(0, ['UNWATCH']);
  throw new HoldfastError('RECOVERING', 'the fence is gone: another one leads, or the KV store lost it');
}

/** Where a leader of `epoch` builds a stream before it takes the name's place. */
export function restoreKey(epoch: number, streamId: number, attempt: number): string {
  return `${WITNESS_KEY}:restore:${epoch}:${streamId}:${attempt}`;
}
