/**
 * What clients did on purpose to streams and groups, written down as the KV store has it afterwards, before they hear. Each
 * rejects with Postgres's errors, or with KVDOWN.
 */
import type { Logger } from 'pino';
import { messageOf } from '../../errors.ts';
import type { EndIntention, LostConnection } from '../../ledger/intention-store.ts';
import type { Ledger } from '../../ledger/ledger.ts';
import { retryContention } from '../../ledger/retry-contention.ts';
import type { Stream } from '../../ledger/stream-registry.ts';
import { readKnownStreams } from '../detect/known-streams.ts';
import { missingEntry } from '../detect/missing-newest.ts';
import { compare, type KnownStream, lostGroup } from '../detect/verdict.ts';
import type { KvConnection } from '../kv/connection.ts';
import { kvTimeMs, readSnapshot, readStream, type StreamSnapshot, type StreamState } from '../kv/snapshot.ts';
import { checkpointOf, floorOf } from '../reconcile/checkpoint.ts';
import { missingEntries } from '../reconcile/uncounted-entries.ts';
import { endStreams, joinStreams, moveStreams } from './end-streams.ts';

/** `lost`: what the ledger knows was not there, and nothing was written down. */
export type TakenIn = 'taken' | 'lost';

/** Of a time to live that a client gave: from `since` on (`performance.now()`), or Unix milliseconds. */
export interface Deadline {
  readonly ms: number;
  readonly relative: boolean;
  readonly since: number;
}

/** Whether it can have passed, by the KV store's own clock. */
async function hasPassed(connection: KvConnection, { ms, relative, since }: Deadline): Promise<boolean> {
  if (relative) return ms <= performance.now() - since;
  return ms <= kvTimeMs(await connection.command(0, ['TIME']));
}

/** After that long the leader settles an intention anyway. */
const DOUBT_MS_MAX = 60_000;

export class ClientChanges {
  readonly #ledger: Ledger;
  readonly #connect: () => Promise<KvConnection>;
  readonly #log: Logger;

  constructor(ledger: Ledger, connect: () => Promise<KvConnection>, log: Logger) {
    this.#ledger = ledger;
    this.#connect = connect;
    this.#log = log;
  }

  /** A group as it is now; `replace` where its present generation is over. */
  async takeInGroup(stream: Stream, name: Buffer, replace: boolean): Promise<void> {
    const connection = await this.#connect();
    const text = name.toString('latin1');
    const actual = await readStream(connection, stream);
    const group = typeof actual === 'string' ? undefined : actual.groups.get(text);
    const checkpointId = group === undefined ? undefined : checkpointOf(group);
    const state =
      group === undefined || checkpointId === undefined
        ? undefined
        : { name, checkpointId, lastDeliveredId: group.lastDeliveredId, entriesRead: group.entriesRead };
    await this.#ledger.groups.settle(stream.streamId, name, state, replace);
    await this.#ledger.streams.refresh(stream.streamId);
  }

  /** After COPY or RESTORE: the stream that came to that place, and its groups. */
  async takeInArrival({ database, name }: { readonly database: number; readonly name: Buffer }): Promise<void> {
    const actual = await readStream(await this.#connect(), { database, name });
    if (typeof actual === 'string') return;
    const stream = await this.#ledger.streams.resolve(database, name);
    for (const group of actual.groups.values()) await this.takeInGroup(stream, group.name, false);
  }

  /** Whether the KV store has a stream that the ledger knows, and nothing of it lost. Rejects with KVDOWN. */
  async isWhole(stream: Stream): Promise<boolean> {
    const connection = await this.#connect();
    const [known] = await readKnownStreams(this.#ledger.pool, [stream.streamId]);
    if (known === undefined) return true;
    const { streams, nowMs } = await readSnapshot(connection, [stream]);
    return compare(known, streams[0] as StreamState, nowMs).kind !== 'lost';
  }

  /** After XTRIM: what is below the first entry now stays away. */
  async takeInFloor(stream: Stream): Promise<void> {
    const actual = await this.#actual(stream);
    if (typeof actual === 'string') return;
    const { streamId } = stream;
    // Lost and made anew, before anybody looked: its first entry is no floor.
    if ((await missingEntries(this.#ledger.pool, [{ streamId, ...actual }]))[0]! < 0) return;
    await this.#ledger.pool.query(
      `UPDATE holdfast.stream SET floor_id = GREATEST(floor_id, $2)
        WHERE stream_id = $1 AND epoch = $3 AND ended_at IS NULL`,
      [streamId, floorOf(actual), stream.epoch],
    );
  }

  /** What clients took away is gone, and the incarnations are over. */
  async endStreams(intentions: readonly EndIntention[]): Promise<void> {
    await endStreams(this.#ledger, await this.#connect().catch(() => undefined), intentions);
  }

  /** The streams of one command go on in other places; what was there is over. */
  async moveStreams(intentions: readonly EndIntention[]): Promise<void> {
    await moveStreams(this.#ledger, await this.#connect().catch(() => undefined), intentions);
  }

  /**
   * The place that `source` took was that of `target`, which the KV store has lost: the two are one stream now. The caller has the target
   * restored, which brings together what is there and what was lost.
   */
  async join(source: Stream, target: Stream, intentions: readonly EndIntention[]): Promise<void> {
    await this.cancel(intentions);
    await joinStreams(this.#ledger, source.streamId, target.streamId);
  }

  /** They were certainly not carried out. Never rejects. */
  async cancelSurely(intentions: readonly EndIntention[]): Promise<void> {
    await this.#ledger.intentions.cancelSurely(intentions);
  }

  /** They were not carried out. */
  async cancel(intentions: readonly EndIntention[]): Promise<void> {
    await retryContention(() => this.#ledger.intentions.cancel(intentions));
  }

  /**
   * After XSETID: the watermarks are what it made them. Where the IDs went back it is another stream: what the ledger knows of an ID
   * says nothing of the entry that gets it now. A stream that has lost entries or groups before is none of that.
   */
  async takeInWatermarks(stream: Stream, intentions: readonly EndIntention[], counted: boolean): Promise<TakenIn> {
    const connection = await this.#connect();
    const [known] = await readKnownStreams(this.#ledger.pool, [stream.streamId]);
    const actual = await readStream(connection, stream);
    if (
      known !== undefined &&
      (typeof actual === 'string' || (await this.#hasLost(connection, known, actual, counted)))
    ) {
      await this.cancel(intentions);
      return 'lost';
    }
    if (typeof actual === 'string') await this.cancel(intentions);
    else if (known !== undefined && actual.lastId.compare(known.lastId) < 0) {
      await this.endStreams(intentions);
      await this.#ledger.streams.discover(stream.database, [stream.name]);
    } else {
      await retryContention(() => this.#ledger.intentions.settleXsetid(intentions, stream.streamId, actual));
      await this.#ledger.streams.refresh(stream.streamId);
    }
    return 'taken';
  }

  /** By what XSETID does not change; `counted`: it has changed the count of entries, too. */
  async #hasLost(
    connection: KvConnection,
    known: KnownStream,
    actual: StreamSnapshot,
    counted: boolean,
  ): Promise<boolean> {
    if (lostGroup(known, actual) !== undefined || (!counted && actual.entriesAdded < known.added)) return true;
    return (await missingEntry(this.#ledger, connection, known)) !== undefined;
  }

  /**
   * After EXPIRE or PERSIST: the time to live as it is now. A stream that is not there has expired where that `deadline` can have passed, and
   * was lost where it cannot.
   */
  async takeInExpiry(
    stream: Stream,
    intentions: readonly EndIntention[],
    deadline: Deadline | undefined,
  ): Promise<TakenIn> {
    const connection = await this.#connect();
    const actual = await readStream(connection, stream);
    if (typeof actual === 'string') {
      if (deadline === undefined || !(await hasPassed(connection, deadline))) {
        await this.cancel(intentions);
        return 'lost';
      }
      await this.endStreams(intentions);
      return 'taken';
    }
    await this.#ledger.pool.query('UPDATE holdfast.stream SET expires_at_ms = $2 WHERE stream_id = $1', [
      stream.streamId,
      actual.expiresAtMs ?? null,
    ]);
    await this.cancel(intentions);
    return 'taken';
  }

  /** Takes note of why a change could not be written down. */
  report(thrown: unknown): void {
    if (this.#ledger.postgres.failed(thrown)) return;
    this.#log.error({ err: thrown }, 'what a client did could not be written down');
  }

  /**
   * What became of them is not known, or could not be written down: the leader will see, by what is there. Until then nobody
   * takes it for a loss. Told to the ledger as soon as it answers.
   */
  leaveToLeader(intentions: readonly EndIntention[], cause: unknown, connection?: LostConnection): void {
    this.#log.warn(
      { err: cause, streamIds: intentions.slice(0, 100).map(({ streamId }) => streamId) },
      'what a command did to streams could not be settled, the leader will',
    );
    this.#doubt(intentions, connection).catch((thrown: unknown) =>
      this.#log.warn({ err: messageOf(thrown) }, 'the ledger could not be told of an intention in doubt'),
    );
  }

  async #doubt(intentions: readonly EndIntention[], connection: LostConnection | undefined): Promise<void> {
    const { postgres } = this.#ledger;
    for (const until = Date.now() + DOUBT_MS_MAX; ; ) {
      try {
        await this.#ledger.intentions.doubt(intentions, connection);
        break;
      } catch (thrown) {
        if (!postgres.failed(thrown) || Date.now() > until) throw thrown;
      }
      await new Promise((resolve) => setTimeout(resolve, 100));
      await postgres.whenAvailable(Math.max(0, until - Date.now()));
    }
    await this.#ledger.notify('backlog');
  }

  async #actual(stream: Stream): Promise<StreamState> {
    return readStream(await this.#connect(), stream);
  }
}
