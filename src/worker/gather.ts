/**
 * Group commit for anything: while one batch is on its way, the next one gathers.
 *
 *   add ──▶ [ waiting ] ──(nothing in flight)──▶ flush(batch) ──▶ done
 *
 * Invariants: at most one flush at a time; `flush` handles its own failures and never rejects. The caller bounds what it
 * adds by `size`.
 */
export interface Gatherer<Item> {
  /** Waiting and in flight. */
  readonly size: number;
  add(item: Item): void;
  /** Resolves when everything added so far has been flushed. */
  idle(): Promise<void>;
}

export function createGatherer<Item>(batchMax: number, flush: (batch: Item[]) => Promise<void>): Gatherer<Item> {
  let waiting: Item[] = [];
  let inFlight = 0;
  let flushing: Promise<void> | undefined;

  async function run(): Promise<void> {
    // The end of the current tick: what one batch of replies brought goes out as one command.
    await new Promise<void>((resolve) => setImmediate(resolve));
    while (waiting.length > 0) {
      const batch = waiting.length <= batchMax ? waiting : waiting.slice(0, batchMax);
      waiting = waiting.length <= batchMax ? [] : waiting.slice(batchMax);
      inFlight = batch.length;
      await flush(batch);
      inFlight = 0;
    }
    flushing = undefined;
  }
  return {
    get size() {
      return waiting.length + inFlight;
    },
    add(item) {
      waiting.push(item);
      flushing ??= run();
    },
    async idle() {
      while (flushing !== undefined) await flushing;
    },
  };
}
