/**
 * Which streams a look reads, and how. XINFO copies a stream's first and last entry: streams in which these are so large that reading them
 * at every look would be most of the KV store's work are read in turn by looks that follow a good one, those first that have waited longest.
 * A look after which something is to be believed anew reads all of them. One at which the KV store gave no answer, though it gave others,
 * is left out for a while, by itself. Of what is not read a look asks whether it is there.
 */
import type { StreamState } from '../kv/snapshot.ts';

/** With less a stream is as cheap to read as any. */
const LARGE_BYTES = 64 * 1024;
/** Of large ones are read at one look as many as have so many bytes together, and one more. */
const BYTES_PER_LOOK = 16 * 1024 * 1024;
const FIRST_PAUSE_MS = 10_000;
const LONGEST_PAUSE_MS = 300_000;

interface Unanswered {
  readonly pauseMs: number;
  readonly until: number;
}

export class ReadingOrder {
  /** In the order in which they were read; by stream ID, how many bytes that was. */
  readonly #large = new Map<number, number>();
  /** One of them got no answer: they are read one by one, which shows which. */
  readonly #suspects = new Set<number>();
  readonly #unanswered = new Map<number, Unanswered>();
  #server = '';

  /** What one server does not answer another one may, and what it has must be seen before it is believed. */
  begin(server: string): void {
    if (server === this.#server) return;
    this.#server = server;
    this.#unanswered.clear();
  }

  /** Those that a look passes over; `whole`: of the large ones none. */
  deferred(whole: boolean): ReadonlySet<number> {
    const deferred = new Set<number>();
    for (const [streamId, { until }] of this.#unanswered) if (performance.now() < until) deferred.add(streamId);
    let bytes = 0;
    for (const [streamId, of] of whole ? [] : this.#large) {
      if (bytes >= BYTES_PER_LOOK) deferred.add(streamId);
      bytes += of;
    }
    return deferred;
  }

  get unanswered(): Iterable<number> {
    return this.#unanswered.keys();
  }

  /** How many of the streams from `from` on are to be read together, at most `most`. */
  together(streams: readonly { readonly streamId: number }[], from: number, most: number): number {
    for (let count = 0; count < most; count += 1) {
      const stream = streams[from + count];
      if (stream === undefined) return count;
      if (this.#suspects.has(stream.streamId)) return Math.max(1, count);
    }
    return most;
  }

  read(streamId: number, state: StreamState): void {
    this.#suspects.delete(streamId);
    this.#unanswered.delete(streamId);
    this.#large.delete(streamId);
    if (typeof state !== 'string' && state.bytes >= LARGE_BYTES) this.#large.set(streamId, state.bytes);
  }

  /** For these, and no others, there was no answer. Gives for how many milliseconds the stream is left out, where it is one. */
  unread(streamIds: readonly number[]): number | undefined {
    const [streamId] = streamIds;
    if (streamId === undefined || streamIds.length > 1) {
      for (const suspect of streamIds) this.#suspects.add(suspect);
      return undefined;
    }
    const before = this.#unanswered.get(streamId)?.pauseMs ?? FIRST_PAUSE_MS / 2;
    const pauseMs = Math.min(LONGEST_PAUSE_MS, before * 2);
    this.#unanswered.set(streamId, { pauseMs, until: performance.now() + pauseMs });
    return pauseMs;
  }

  /** Forgets those that are no streams any more. */
  keep(streamIds: ReadonlySet<number>): void {
    for (const of of [this.#large, this.#suspects, this.#unanswered]) {
      for (const streamId of of.keys()) if (!streamIds.has(streamId)) of.delete(streamId);
    }
  }
}
