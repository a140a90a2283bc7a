/**
 * The store as the flow sees it: a Postgres that does not answer never holds up an entry. Attempts live in the pending
 * entries too, so the worker goes on without it, and only a restore would forget them.
 */
import type { Logger } from 'pino';
import { messageOf } from '../errors.ts';
import type { Held } from './held.ts';
import type { WorkerMetrics } from './metrics.ts';
import type { KnownEntry, WorkerStore } from './store.ts';

const DOWN_MS = 1000;
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
  let downUntil = 0;
  let lookUpMs = 0;

  function failed(error: unknown): void {
    metrics.storeErrors.inc();
    if (performance.now() >= downUntil) log.warn({ error: messageOf(error) }, 'Postgres does not answer');
    downUntil = performance.now() + DOWN_MS;
  }

  return {
    get lookUpMs() {
      return lookUpMs;
    },
    async lookUp(entries) {
      if (store === undefined || entries.length === 0 || performance.now() < downUntil) return undefined;
      const startedAt = performance.now();
      try {
        const ids = entries.map((entry) => entry.id);
        const known = await store.lookUp(stream, ids);
        const tookMs = Math.min(LOOK_UP_MS_MAX, performance.now() - startedAt);
        lookUpMs += (tookMs - lookUpMs) * LOOK_UP_WEIGHT;
        return known;
      } catch (error) {
        failed(error);
        return undefined;
      }
    },
    async remember(entries) {
      if (store === undefined || entries.length === 0) return;
      for (const entry of entries) entry.stored = true;
      const items = entries.map(({ id, attempt, takeovers }) => ({ id, failed: attempt - 1, takeovers }));
      await store.record(stream, items).catch(failed);
    },
    async forget(entries) {
      const ids = entries.filter((entry) => entry.stored).map((entry) => entry.id);
      if (store !== undefined && ids.length > 0) await store.forget(stream, ids).catch(failed);
    },
  };
}
