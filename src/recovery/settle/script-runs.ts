/**
 * What scripts and functions that came through Holdfast did to streams as wholes is a client's will. Nobody knows it before:
 * who runs one says which streams it may touch, sees how they are before and afterwards, and writes down what it ended
 * before its client hears. While it runs, nothing is concluded of these streams:
 *
 *   begin(streams) ──▶ script ──▶ reply ──▶ ended, or as before ──▶ done
 *                         └ no reply ──▶ gone, at the same server with the same data? then it ran ──▶ done
 *          a look that misses one of them waits for those that run, and asks again
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Logger } from 'pino';
import { messageOf } from '../../errors.ts';
import type { SentUnder } from '../../ledger/intention-store.ts';
import type { Ledger } from '../../ledger/ledger.ts';
import { retryContention } from '../../ledger/retry-contention.ts';
import type { Stream } from '../../ledger/stream-registry.ts';
import type { KvConnection } from '../kv/connection.ts';
import { closeConnections } from '../kv/kill-connections.ts';
import { type KvSnapshot, readSnapshot } from '../kv/snapshot.ts';
import type { ClientChanges } from './client-changes.ts';

/** XINFO of so many streams blocks the KV store for well under a millisecond. */
const STREAMS_PER_SNAPSHOT = 64;
/** What a script did is tried to be written down for so long; then a look decides. */
const SETTLE_MS_MAX = 60_000;
const RETRY_MS = 50;
/** A look waits so long for scripts: one that a paused server keeps does not keep the look. */
const WAIT_MS_MAX = 10_000;

interface Run {
  readonly streams: readonly Stream[];
  readonly done: Promise<void>;
  /** Whether its client is gone: it may never have been sent then. */
  isOrphan(): boolean;
}

/** How streams are at one moment, and whose they are. */
export interface StreamStates extends SentUnder {
  /** In the order in which they were asked for. */
  readonly states: KvSnapshot['streams'];
}

export class ScriptRuns {
  readonly #ledger: Ledger;
  readonly #connect: () => Promise<KvConnection>;
  readonly #changes: ClientChanges;
  readonly #log: Logger;
  readonly #running = new Set<Run>();

  constructor(ledger: Ledger, connect: () => Promise<KvConnection>, changes: ClientChanges, log: Logger) {
    this.#ledger = ledger;
    this.#connect = connect;
    this.#changes = changes;
    this.#log = log;
  }

  /** A script goes out that may touch these. Call what is given when it is known what it did. */
  begin(streams: readonly Stream[], isOrphan: () => boolean): () => void {
    let end: () => void = () => undefined;
    const done = new Promise<void>((resolve) => {
      end = resolve;
    });
    const run = { streams, done, isOrphan };
    this.#running.add(run);
    return () => {
      this.#running.delete(run);
      end();
    };
  }

  /** Waits for what runs now and may have touched the stream. Gives whether there was anything. */
  async settled(streamId: number): Promise<boolean> {
    const runs = [...this.#running].filter(({ streams }) => streams.some((stream) => stream.streamId === streamId));
    if (runs.length === 0) return false;
    const waiting = new AbortController();
    await Promise.race([
      Promise.all(runs.map(({ done }) => done)),
      delay(WAIT_MS_MAX, undefined, { signal: waiting.signal }).catch(() => undefined),
    ]);
    waiting.abort();
    for (const run of runs) if (run.isOrphan()) this.#running.delete(run);
    return true;
  }

  /** Which of these are there, or with `whole` how they are. Rejects with KVDOWN. */
  async states(streams: readonly Stream[], whole: boolean): Promise<StreamStates> {
    const connection = await this.#connect();
    const states: StreamStates['states'][number][] = [];
    let last: KvSnapshot | undefined;
    while (states.length < streams.length || last === undefined) {
      const some = streams.slice(states.length, states.length + STREAMS_PER_SNAPSHOT);
      last = await readSnapshot(
        connection,
        some.map(({ database, name }) => ({ database, name, presence: !whole })),
      );
      states.push(...last.streams);
    }
    return { runId: last.runId, replicationId: last.replicationId, states };
  }

  /**
   * A script may have run whose reply nobody will hear: the ones of these that are gone were ended by it, provided that the KV store is
   * the one that it was sent to and has the same data.
   */
  async settleLost(streams: readonly Stream[], sentTo: SentUnder, clientId: number | undefined): Promise<void> {
    await this.#untilDone('what became of a script that was lost is not known', async () => {
      const { runId } = sentTo;
      if (clientId !== undefined) await closeConnections(await this.#connect(), [{ clientId, runId }]);
      const now = await this.states(streams, false);
      if (now.runId !== runId || now.replicationId !== sentTo.replicationId) return;
      await this.#end(
        streams.filter((_, at) => now.states[at] === 'missing'),
        sentTo,
      );
    });
  }

  /** A script ended these. Goes on by itself where the ledger does not answer: `settled` is called in the end; rejects meanwhile. */
  async end(streams: readonly Stream[], sent: SentUnder, settled: () => void): Promise<void> {
    try {
      await this.#end(streams, sent);
      settled();
    } catch (thrown) {
      this.#changes.report(thrown);
      void this.#untilDone('what a script ended could not be written down', () => this.#end(streams, sent)).finally(
        settled,
      );
      throw thrown;
    }
  }

  async #end(streams: readonly Stream[], sent: SentUnder): Promise<void> {
    const current = streams.filter(({ ended }) => !ended).map(({ streamId }) => streamId);
    if (current.length === 0) return;
    const opened = await this.#ledger.intentions.openEnd(current, { command: 'script', ends: true, sent });
    if ('busy' in opened) {
      await this.#ledger.streams.refresh(opened.busy);
      throw new Error('a stream that a script ended is being restored or moved');
    }
    await retryContention(() => this.#changes.endStreams(opened));
  }

  async #untilDone(failure: string, work: () => Promise<void>): Promise<void> {
    for (const until = Date.now() + SETTLE_MS_MAX; ; await delay(RETRY_MS)) {
      try {
        await work();
        return;
      } catch (thrown) {
        this.#ledger.postgres.failed(thrown);
        if (Date.now() < until) continue;
        this.#log.warn({ err: messageOf(thrown) }, failure);
        return;
      }
    }
  }
}
