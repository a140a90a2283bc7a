/** One look at all streams: what the ledger knows of them against what the KV store says of them now. */
import { HoldfastError } from '../../errors.ts';
import type { Ledger } from '../../ledger/ledger.ts';
import type { KvConnection } from '../kv/connection.ts';
import { type KvSnapshot, readSnapshot, type ServerIdentity, type StreamSnapshot } from '../kv/snapshot.ts';
import type { Looked } from '../reconcile/checkpoint.ts';
import { missingEntry } from './missing-newest.ts';
import { compare, type KnownStream } from './verdict.ts';

export interface Comparison {
  readonly ledger: Ledger;
  readonly connection: KvConnection;
  /** Of the server that is looked at: another one's answers are refused with KVDOWN. */
  readonly identity: ServerIdentity;
  /** This KV store was not compared before. */
  readonly isAnother: boolean;
  lost(stream: KnownStream, cause: string): Promise<void>;
}

/** XINFO of so many streams blocks the KV store for well under a millisecond. */
const STREAMS_PER_SNAPSHOT = 64;

/** Tells of each stream that lost something, ends what is over, and gives what compared well. */
export async function compareStreams(context: Comparison, known: readonly KnownStream[]): Promise<Looked[]> {
  const { ledger, connection, identity } = context;
  const looked: Looked[] = [];
  for (let from = 0; from < known.length; from += STREAMS_PER_SNAPSHOT) {
    const chunk = known.slice(from, from + STREAMS_PER_SNAPSHOT);
    const snapshot = await readSnapshot(
      connection,
      chunk.map((stream) => ({ database: stream.database, name: stream.name, groups: stream.groups.keys() })),
    );
    const streams = await withNewGroups(connection, chunk, snapshot);
    if (
      snapshot.runId !== identity.runId ||
      snapshot.replicationId !== identity.replicationId ||
      snapshot.role !== 'master'
    ) {
      throw new HoldfastError('KVDOWN', 'the KV store became another one');
    }
    for (const [index, stream] of chunk.entries()) {
      // Of one that is about to end or move nothing can be concluded, nor saved.
      if (stream.mode === 'restoring' || stream.ending) continue;
      const actual = streams[index]!;
      let verdict = compare(stream, actual, Date.now());
      if (context.isAnother && verdict.kind === 'same' && typeof actual !== 'string') {
        const missing = await missingEntry(ledger, connection, stream);
        if (missing !== undefined) verdict = { kind: 'lost', cause: 'a committed entry is gone' };
      }
      if (verdict.kind === 'lost') {
        await context.lost(stream, verdict.cause);
      } else if (verdict.kind === 'ended') {
        await ledger.pool.query('SELECT holdfast.end_stream($1, $2)', [stream.streamId, verdict.cause]);
      } else if (typeof actual !== 'string') looked.push({ known: stream, actual });
    }
  }
  return looked;
}

/** Groups that the ledger does not know were not asked about by name: once more, where something is pending in one. */
async function withNewGroups(
  connection: KvConnection,
  known: readonly KnownStream[],
  snapshot: KvSnapshot,
): Promise<KvSnapshot['streams']> {
  const again: number[] = [];
  for (const [index, actual] of snapshot.streams.entries()) {
    if (typeof actual === 'string') continue;
    for (const [name, group] of actual.groups) {
      if (group.pending > 0 && !known[index]!.groups.has(name)) {
        again.push(index);
        break;
      }
    }
  }
  if (again.length === 0) return snapshot.streams;
  const second = await readSnapshot(
    connection,
    again.map((index) => {
      const { database, name } = known[index]!;
      return { database, name, groups: (snapshot.streams[index] as StreamSnapshot).groups.keys() };
    }),
  );
  if (second.runId !== snapshot.runId) throw new HoldfastError('KVDOWN', 'the KV store became another one');
  return snapshot.streams.map((actual, index) => {
    const at = again.indexOf(index);
    return at < 0 ? actual : second.streams[at]!;
  });
}
