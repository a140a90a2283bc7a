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
import type { KvConnection } from '../kv/connection.ts';
import { readStream, type StreamState } from '../kv/snapshot.ts';
import { checkpointOf, floorOf } from '../reconcile/checkpoint.ts';
import { missingEntries } from '../reconcile/uncounted-entries.ts';
import { endStreams, moveStreams } from './end-streams.ts';

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

  /** They were not carried out. */
  async cancel(intentions: readonly EndIntention[]): Promise<void> {
    await retryContention(() => this.#ledger.intentions.cancel(intentions));
  }

  /**
   * After XSETID: the watermarks are what it made them. Where the IDs went back it is another stream: what the ledger knows of an ID
   * says nothing of the entry that gets it now.
   */
  async takeInWatermarks(stream: Stream, intentions: readonly EndIntention[]): Promise<void> {
    const actual = await this.#actual(stream);
    const [known] = await readKnownStreams(this.#ledger.pool, [stream.streamId]);
    if (typeof actual === 'string') await this.cancel(intentions);
    else if (known !== undefined && actual.lastId.compare(known.lastId) < 0) {
      await this.endStreams(intentions);
      await this.#ledger.streams.discover(stream.database, [stream.name]);
    } else {
      await retryContention(() => this.#ledger.intentions.settleXsetid(intentions, stream.streamId, actual));
      await this.#ledger.streams.refresh(stream.streamId);
    }
  }

  /** After EXPIRE or PERSIST: the time to live as it is now, or the end, where it was in the past. */
  async takeInExpiry(stream: Stream, intentions: readonly EndIntention[]): Promise<void> {
    const actual = await this.#actual(stream);
    if (typeof actual === 'string') {
      await this.endStreams(intentions);
      return;
    }
    await this.#ledger.pool.query('UPDATE holdfast.stream SET expires_at_ms = $2 WHERE stream_id = $1', [
      stream.streamId,
      actual.expiresAtMs ?? null,
    ]);
    await this.cancel(intentions);
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
