/** One look at all streams: what the ledger knows of them against what the KV store says of them now. */
import { HoldfastError, messageOf } from '../../errors.ts';
import type { Ledger } from '../../ledger/ledger.ts';
import { isTimeout, type KvConnection } from '../kv/connection.ts';
import { readSnapshot, type ServerIdentity } from '../kv/snapshot.ts';
import type { Looked } from '../reconcile/checkpoint.ts';
import { missingEntry } from './missing-newest.ts';
import type { ReadingOrder } from './reading-order.ts';
import { compare, EXPIRED, type KnownStream } from './verdict.ts';

export interface Comparison {
  readonly ledger: Ledger;
  readonly connection: KvConnection;
  /** Of the server that is looked at: another one's answers are refused with KVDOWN. */
  readonly identity: ServerIdentity;
  /** This KV store was not compared before. */
  readonly isAnother: boolean;
  readonly order: ReadingOrder;
  /** All that is large is read too. */
  readonly whole: boolean;
  lost(stream: KnownStream, cause: string): Promise<void>;
  /** This KV store was not compared before: it may have lost something, or a client may have ended or moved it. */
  unjudged(stream: KnownStream): void;
  /** Its time to live has passed; what is there by now is another stream. */
  expired(stream: KnownStream): Promise<void>;
}

export interface Compared {
  /** What compared well. */
  readonly looked: readonly Looked[];
  /** What is there, and was not read this time. */
  readonly deferred: readonly KnownStream[];
}

/** The script that reads so many streams blocks the KV store for about a millisecond. */
const STREAMS_PER_SNAPSHOT = 64;

/** The KV store did not answer in time when these were read. It may answer others. */
export class UnreadStreams extends HoldfastError {
  readonly streams: readonly KnownStream[];

  constructor(streams: readonly KnownStream[], cause: unknown) {
    super('KVDOWN', messageOf(cause), { cause });
    this.streams = streams;
  }
}

/** Tells of each stream that lost something, ends what is over, and gives what compared well. */
export async function compareStreams(context: Comparison, known: readonly KnownStream[]): Promise<Compared> {
  const { ledger, connection, identity, order } = context;
  order.keep(new Set(known.map(({ streamId }) => streamId)));
  const later = order.deferred(context.whole);
  const looked: Looked[] = [];
  const deferred: KnownStream[] = [];
  for (let from = 0; from < known.length; ) {
    const chunk = known.slice(from, from + order.together(known, from, STREAMS_PER_SNAPSHOT));
    const snapshot = await readSnapshot(
      connection,
      chunk.map(({ streamId, database, name }) => ({ database, name, presence: later.has(streamId) })),
    ).catch((thrown: unknown) => {
      if (!isTimeout(thrown)) throw thrown;
      throw new UnreadStreams(
        chunk.filter(({ streamId }) => !later.has(streamId)),
        thrown,
      );
    });
    if (
      snapshot.runId !== identity.runId ||
      snapshot.replicationId !== identity.replicationId ||
      snapshot.role !== 'master'
    ) {
      throw new HoldfastError('KVDOWN', 'the KV store became another one');
    }
    from += snapshot.streams.length;
    for (const [index, actual] of snapshot.streams.entries()) {
      const stream = chunk[index]!;
      if (actual === 'present') {
        deferred.push(stream);
        continue;
      }
      order.read(stream.streamId, actual);
      if (stream.mode === 'restoring') continue;
      let verdict = compare(stream, actual, snapshot.nowMs);
      // Of one that is about to end or move nothing can be concluded, nor saved.
      if (stream.ending) {
        if (verdict.kind === 'lost' && context.isAnother) context.unjudged(stream);
        continue;
      }
      if (context.isAnother && verdict.kind === 'same' && typeof actual !== 'string') {
        const missing = await missingEntry(ledger, connection, stream);
        if (missing !== undefined) verdict = { kind: 'lost', cause: 'a committed entry is gone' };
      }
      if (verdict.kind === 'lost') {
        await context.lost(stream, verdict.cause);
      } else if (verdict.kind === 'ended') {
        if (verdict.cause === EXPIRED) await context.expired(stream);
        else await ledger.pool.query('SELECT holdfast.end_stream($1, $2)', [stream.streamId, verdict.cause]);
      } else if (typeof actual !== 'string') looked.push({ known: stream, actual, witness: snapshot.witness });
    }
  }
  return { looked, deferred };
}
