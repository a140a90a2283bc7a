/**
 * The store as the flow sees it: a Postgres that does not answer holds up no entry for more than a moment. Attempts live
 * in the pending entries too, so the worker goes on without it, and only a restore would forget them.
 *
 *   up ──(failed, or no answer in time)──▶ down: nobody waits, one question at a time goes out ──(answered)──▶ up
 */
import type { Logger } from 'pino';
import { messageOf } from '../../errors.ts';
import type { Held } from '../entry.ts';
import type { KnownEntry, WorkerStore } from '../group/store.ts';
import type { WorkerMetrics } from '../metrics.ts';

const PATIENCE_MS = 2000;
/** Between questions to a store that is down. */
const DOWN_MS = 500;
const LOOK_UP_WEIGHT = 0.1;
const LOOK_UP_MS_MAX = 200;

export interface AttemptMemory {
  /** Mean time of a look-up, recent ones counting most; 0 without a store. */
  readonly lookUpMs: number;
  /** `undefined` where nothing is remembered or the store does not answer. */
  lookUp(entries: readonly Held[]): Promise<ReadonlyMap<string, KnownEntry> | undefined>;
  /** Attempts and takeovers as they are in the entries. */
  remember(entries: readonly Held[]): Promise<void>;
  /** Entries that are done. */
  forget(entries: readonly Held[]): Promise<void>;
}

export function createAttemptMemory(options: {
  readonly stream: string;
  readonly store: WorkerStore | undefined;
  readonly metrics: WorkerMetrics;
  readonly log: Logger;
}): AttemptMemory {
  const { stream, store, metrics, log } = options;
  let down = false;
  let probing = false;
  let lookUpMs = 0;

  function answered(): void {
    if (down) log.info('Postgres answers again');
    down = false;
  }
  function failed(error: unknown): void {
    metrics.storeErrors.inc();
    if (!down) log.warn({ error: messageOf(error) }, 'Postgres does not answer');
    down = true;
  }
  async function probe(question: () => Promise<unknown>): Promise<void> {
    if (probing) return;
    probing = true;
    await question().then(answered, failed);
    setTimeout(() => {
      probing = false;
    }, DOWN_MS).unref();
  }
  /** `undefined` where the store is down. Never rejects. */
  function ask<T>(question: () => Promise<T>): Promise<T | undefined> {
    if (down) {
      void probe(question);
      return Promise.resolve(undefined);
    }
    return new Promise((resolve) => {
      const timer = setTimeout(() => {
        failed(new Error(`no answer within ${PATIENCE_MS} ms`));
        resolve(undefined);
      }, PATIENCE_MS);
      question()
        .then(
          (answer) => {
            answered();
            resolve(answer);
          },
          (error: unknown) => {
            failed(error);
            resolve(undefined);
          },
        )
        .finally(() => clearTimeout(timer));
    });
  }

  return {
    get lookUpMs() {
      return lookUpMs;
    },
    async lookUp(entries) {
      if (store === undefined || entries.length === 0) return undefined;
      const startedAt = performance.now();
      const ids = entries.map((entry) => entry.id);
      const known = await ask(() => store.lookUp(stream, ids));
      const tookMs = Math.min(LOOK_UP_MS_MAX, performance.now() - startedAt);
      if (known !== undefined) lookUpMs += (tookMs - lookUpMs) * LOOK_UP_WEIGHT;
      return known;
    },
    async remember(entries) {
      if (store === undefined || entries.length === 0) return;
      for (const entry of entries) entry.stored = true;
      const items = entries.map(({ id, attempt, takeovers }) => ({ id, failed: attempt - 1, takeovers }));
      await ask(() => store.record(stream, items));
    },
    async forget(entries) {
      const ids = entries.filter((entry) => entry.stored).map((entry) => entry.id);
      if (store !== undefined && ids.length > 0) await ask(() => store.forget(stream, ids));
    },
  };
}
