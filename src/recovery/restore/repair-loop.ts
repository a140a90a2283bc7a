/**
 * The leader's work: intentions that were left, restores and backlogs, a few streams at a time, again when something came
 * meanwhile. What fails is noted, shown, and tried again when the next look asks for work.
 */
import type { Logger } from 'pino';
import type { KvAddress } from '../../control-redis.ts';
import { HoldfastError, messageOf } from '../../errors.ts';
import type { Ledger } from '../../ledger/ledger.ts';
import { isContention } from '../../ledger/sqlstate.ts';
import { isOutOfMemory, KvConnection } from '../kv/connection.ts';
import { OutOfRoom } from '../kv/memory.ts';
import { settleAbandoned } from '../settle/abandoned-intentions.ts';
import { publishBacklog } from './publish-backlog.ts';
import { restoreStream } from './restore-stream.ts';
import { Pauses } from './stream-backoff.ts';

export interface MendingOptions {
  readonly ledger: Ledger;
  readonly address: KvAddress;
  readonly log: Logger;
  /** Whether this process is to do it now. */
  wanted(): boolean;
  leaderEpoch(): number;
  connect(): Promise<KvConnection>;
  /** Told of each failure, in words for an operator. */
  failed(text: string): void;
  /** The KV store went away under it. */
  kvLost(): void;
}

/** A restore is mostly waiting for the other end. Each holds up to three connections to the KV store and one to Postgres. */
const STREAMS_MENDED_AT_ONCE = 4;
const COMMAND_TIMEOUT_MS = 15_000;

export class Mending {
  readonly #options: MendingOptions;
  readonly #pauses = new Pauses();
  /** By stream ID, why the last attempt failed. */
  readonly #failing = new Map<number, string>();
  readonly #totals = {
    failures: 0,
    restores: 0,
    entriesRestored: 0,
    aliases: 0,
    observed: 0,
    possibleDuplicates: 0,
    lastRestoreMs: 0,
  };
  #working: Promise<void> | undefined;
  #workAgain = false;

  constructor(options: MendingOptions) {
    this.#options = options;
  }

  /** Since the start of this process; `lastRestoreMs` is how long the last restore took. */
  get totals(): Readonly<
    Record<
      'failures' | 'restores' | 'entriesRestored' | 'aliases' | 'observed' | 'possibleDuplicates' | 'lastRestoreMs',
      number
    >
  > {
    return this.#totals;
  }

  /** By stream ID, why it could not be restored or published yet. */
  get failing(): ReadonlyMap<number, string> {
    return this.#failing;
  }

  /** Resolves when what is under way has ended; more is not begun where it is not wanted any more. */
  async ended(): Promise<void> {
    await this.#working;
  }

  /** Begins, unless it is under way; then once more afterwards. */
  work(): void {
    if (this.#working !== undefined) {
      this.#workAgain = true;
      return;
    }
    if (!this.#options.wanted()) return;
    const { ledger, log, failed } = this.#options;
    this.#working = this.#workOnce()
      .catch((thrown: unknown) => {
        failed(messageOf(thrown));
        this.#totals.failures += 1;
        ledger.postgres.failed(thrown);
        log.error({ err: thrown }, 'recovery work failed, it is tried again');
      })
      .finally(() => {
        this.#working = undefined;
        if (!this.#workAgain) return;
        this.#workAgain = false;
        this.work();
      });
  }

  async #workOnce(): Promise<void> {
    const { ledger, connect } = this.#options;
    await settleAbandoned(ledger, await connect());
    const { rows } = await ledger.pool.query<{ stream_id: string; mode: string }>(
      `SELECT stream_id, mode FROM holdfast.stream WHERE ended_at IS NULL AND mode <> 'normal'
       UNION
       SELECT stream_id, mode FROM holdfast.stream
        WHERE ended_at IS NULL AND stream_id IN (SELECT stream_id FROM holdfast.backlog)`,
    );
    const left = new Set(rows.map((row) => Number(row.stream_id)));
    for (const streamId of this.#failing.keys()) if (!left.has(streamId)) this.#failing.delete(streamId);
    if (rows.length === 0) return;
    const streams = rows.map((row) => Number(row.stream_id)).values();
    const mendNext = async (): Promise<void> => {
      for (const streamId of streams) {
        if (!this.#options.wanted()) return;
        if (this.#pauses.has(streamId)) continue;
        try {
          if (await this.#mend(streamId, rows.length)) this.#pauses.wait(streamId);
          else this.#pauses.end(streamId);
          this.#failing.delete(streamId);
        } catch (thrown) {
          await this.#mendFailed(streamId, thrown);
        }
      }
    };
    // All must have ended before the work is over, also where one of them could not even note its failure.
    const ends = await Promise.allSettled(Array.from({ length: STREAMS_MENDED_AT_ONCE }, mendNext));
    for (const end of ends) if (end.status === 'rejected') throw end.reason;
  }

  /** Gives whether it must be gone on with when the KV store has room. `sharers`: streams that are mended now. */
  async #mend(streamId: number, sharers: number): Promise<boolean> {
    const { ledger, address, log } = this.#options;
    const context = { ledger, address, leaderEpoch: this.#options.leaderEpoch(), log, sharers };
    const restored = await restoreStream(context, streamId);
    if (restored !== undefined) {
      this.#totals.restores += 1;
      this.#totals.entriesRestored += restored.entriesRestored;
      this.#totals.aliases += restored.aliases;
      this.#totals.observed += restored.observed;
      this.#totals.lastRestoreMs = restored.milliseconds;
    }
    const stream = await ledger.streams.refresh(streamId);
    if (stream === undefined || stream.ended) return false;
    const connection = await KvConnection.open(address, COMMAND_TIMEOUT_MS);
    let waiting = false;
    try {
      const published = await publishBacklog({ ...context, connection }, stream);
      this.#totals.aliases += published.aliases;
      this.#totals.possibleDuplicates += published.possibleDuplicates;
      waiting = published.waiting;
    } finally {
      connection.close();
    }
    await ledger.streams.refresh(streamId);
    return waiting;
  }

  async #mendFailed(streamId: number, thrown: unknown): Promise<void> {
    const { ledger, log } = this.#options;
    const pauseMs = thrown instanceof OutOfRoom || isOutOfMemory(thrown) ? this.#pauses.begin(streamId) : 0;
    const text = pauseMs === 0 ? messageOf(thrown) : `${messageOf(thrown)}; next attempt in ${pauseMs / 1000} s`;
    this.#options.failed(text);
    this.#totals.failures += 1;
    this.#failing.set(streamId, text);
    log.error({ err: thrown, streamId, pauseMs }, 'a stream could not be restored yet, it is tried again');
    if (ledger.postgres.failed(thrown) && !isContention(thrown)) return;
    await ledger.pool.query(
      `WITH noted AS (
         UPDATE holdfast.recovery SET last_error = $2 WHERE stream_id = $1 AND completed_at IS NULL
       )
       UPDATE holdfast.stream SET mode_cause = split_part(mode_cause, ' (', 1) || ' (' || $2 || ')'
        WHERE stream_id = $1 AND mode <> 'normal'`,
      [streamId, text],
    );
    await ledger.streams.refresh(streamId);
    if (thrown instanceof HoldfastError && thrown.code === 'KVDOWN') this.#options.kvLost();
  }
}
