/**
 * Whether commands on a ledgered stream may go out, and the waiting of those that may not yet. What opens and shuts it
 * is `recovery.ts`, by the state of the KV store, and the ledger, by the mode of the stream.
 */

import { Condition } from '../async/wakeup.ts';
import type { Stream } from '../ledger/stream-registry.ts';

/** See the diagram in `recovery.ts`. */
export type KvState = 'comparing' | 'open' | 'down';

/** `open`: forward. `outage`: only the ledger takes entries. `ended`: the incarnation is over. `timeout`: none of them yet. */
export type Settled = 'open' | 'outage' | 'ended' | 'timeout';

const WAIT_MS_MAX = 5_000;

export class StreamGate {
  #state: KvState = 'comparing';
  #stateSince = Date.now();
  #stopped = false;
  /** Streams that have lost something, which could not be marked in the ledger yet. */
  #unmarked: ReadonlySet<number> = new Set();
  readonly #condition = new Condition();

  get state(): KvState {
    return this.#state;
  }

  /** Milliseconds since 1970. */
  get stateSince(): number {
    return this.#stateSince;
  }

  /** Returns whether that is a change. */
  become(state: KvState): boolean {
    if (this.#state === state) return false;
    this.#state = state;
    this.#stateSince = Date.now();
    this.wake();
    return true;
  }

  /** Until they are marked, or compare well, nothing of them is believed. Whoever looked last says which they are. */
  shut(unmarked: ReadonlySet<number>): void {
    if (unmarked.size === 0 && this.#unmarked.size === 0) return;
    this.#unmarked = unmarked;
    this.wake();
  }

  /** The mode of a stream may have changed. */
  wake(): void {
    this.#condition.wake();
  }

  /** Whoever waits is told `timeout`. */
  stop(): void {
    this.#stopped = true;
    this.wake();
  }

  /**
   * Whether a command on the stream, unless it is an XADD, may go out now and its reply be believed: also while entries
   * of the ledger are still to be published behind what is there. Asked for every command.
   */
  isOpen(stream: Stream): boolean {
    if (this.#unmarked.size > 0 && this.#unmarked.has(stream.streamId)) return false;
    return this.#state === 'open' && stream.mode !== 'restoring' && !stream.ended;
  }

  /** Whether the KV store has all that the ledger has, so that it may take an XADD or reshape the stream. */
  isWhole(stream: Stream): boolean {
    return stream.mode === 'normal' && this.isOpen(stream);
  }

  /** Waits, at most `limitMs`, until it is decided what becomes of commands on the stream. */
  async settled(stream: Stream, limitMs: number): Promise<Settled> {
    const settled = await this.#until(limitMs, () => {
      if (stream.ended) return 'ended';
      if (this.isWhole(stream)) return 'open';
      if (this.#unmarked.has(stream.streamId) && stream.mode === 'normal' && this.#state === 'open') return undefined;
      return this.#state === 'down' || stream.mode !== 'normal' ? 'outage' : undefined;
    });
    return settled ?? 'timeout';
  }

  /** Waits, at most `limitMs` and while `wanted` says so, until the stream is open, or `whole`. */
  async reopened(
    stream: Stream,
    limitMs: number,
    wanted: () => boolean = () => true,
    whole = false,
  ): Promise<'open' | 'ended' | 'timeout'> {
    const settled = await this.#until(limitMs, () => {
      if (stream.ended) return 'ended';
      if (!wanted()) return 'timeout';
      return (whole ? this.isWhole(stream) : this.isOpen(stream)) ? 'open' : undefined;
    });
    return settled ?? 'timeout';
  }

  /** What `look` returns as soon as it returns something; `undefined` after `limitMs` or `stop()`. */
  async #until<Outcome>(limitMs: number, look: () => Outcome | undefined): Promise<Outcome | undefined> {
    const until = Date.now() + limitMs;
    for (;;) {
      const outcome = look();
      if (outcome !== undefined) return outcome;
      const left = until - Date.now();
      if (left <= 0 || this.#stopped) return undefined;
      // Looked at again now and then, as those who wait may have gone.
      await this.#condition.changed(Math.min(left, WAIT_MS_MAX));
    }
  }
}
