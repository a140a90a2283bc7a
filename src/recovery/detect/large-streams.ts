/**
 * Streams whose first and last entry are so large that reading them at every look would be most of the KV store's work: XINFO
 * copies both. A look that follows a good one reads them in turn, those first that have waited longest; of the others it asks
 * whether they are there. A look after which something is to be believed anew reads all of them.
 */
import type { StreamState } from '../kv/snapshot.ts';

/** With less a stream is as cheap to read as any. */
const LARGE_BYTES = 64 * 1024;
/** Of large ones are read at one look as many as have so many bytes together, and one more. */
const BYTES_PER_LOOK = 16 * 1024 * 1024;

export class LargeStreams {
  /** In the order in which they were read; by stream ID, how many bytes that was. */
  readonly #bytes = new Map<number, number>();

  /** Those that this look may pass over. */
  deferred(): ReadonlySet<number> {
    const deferred = new Set<number>();
    let bytes = 0;
    for (const [streamId, of] of this.#bytes) {
      if (bytes >= BYTES_PER_LOOK) deferred.add(streamId);
      bytes += of;
    }
    return deferred;
  }

  read(streamId: number, state: StreamState): void {
    this.#bytes.delete(streamId);
    if (typeof state !== 'string' && state.bytes >= LARGE_BYTES) this.#bytes.set(streamId, state.bytes);
  }

  /** Forgets those that are no streams any more. */
  keep(streamIds: ReadonlySet<number>): void {
    for (const streamId of this.#bytes.keys()) if (!streamIds.has(streamId)) this.#bytes.delete(streamId);
  }
}
