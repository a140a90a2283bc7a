/**
 * Streams that the KV store has no memory for are tried again after a pause that grows, so that a restore which cannot
 * succeed does not fill the KV store again and again.
 */
const FIRST_MS = 1000;
const LONGEST_MS = 30_000;
const WAIT_MS = 100;

export class Pauses {
  readonly #byStream = new Map<number, { readonly ms: number; readonly until: number }>();

  /** Gives how long the pause is, in milliseconds. */
  begin(streamId: number): number {
    const ms = Math.min(LONGEST_MS, (this.#byStream.get(streamId)?.ms || FIRST_MS / 2) * 2);
    this.#byStream.set(streamId, { ms, until: performance.now() + ms });
    return ms;
  }

  /** A short one, for a stream that waits for its consumers. */
  wait(streamId: number): void {
    this.#byStream.set(streamId, { ms: 0, until: performance.now() + WAIT_MS });
  }

  end(streamId: number): void {
    this.#byStream.delete(streamId);
  }

  has(streamId: number): boolean {
    const pause = this.#byStream.get(streamId);
    return pause !== undefined && performance.now() < pause.until;
  }
}
