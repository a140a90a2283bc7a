/**
 * Invalidations of scopes, as events that are kept for a while: which scope, by whom, how many keys, how long it took.
 *
 * What clients fetch for a scope when its invalidation begins is out of date too. Those keys are deleted first of all,
 * which ends their leases: who reads them from then on fetches anew, and what was fetched before is not stored. Another
 * sidecar may hear of it a moment later, so what it let be stored meanwhile is deleted at the end.
 */
import type { Logger } from 'pino';
import { messageOf } from '../errors.ts';
import type { Leases } from './leases.ts';

export interface InvalidationEvent {
  /** ISO 8601. */
  readonly at: string;
  /** The prefix of the keys. */
  readonly scope: string;
  readonly database: number;
  readonly by: string;
  readonly keys: number;
  readonly tookMs: number;
  /** Why it did not get through, if it did not. */
  readonly error?: string;
}

export interface InvalidationRequest {
  readonly prefix: Buffer;
  readonly database: number;
  /** A user and client. */
  readonly by: string;
}

export interface InvalidationReport {
  readonly total: number;
  readonly keysTotal: number;
  /** Newest first. */
  readonly recent: readonly InvalidationEvent[];
}

export interface Invalidations {
  report(): InvalidationReport;
  /** Gives the number of keys. Rejects as `removal` does: what was removed until then stays so, and is in the event. */
  carryOut(request: InvalidationRequest, removal: Removal): Promise<number>;
}

/** What is done for an invalidation as the client that asked for it. `removed` is told of each batch. */
export interface Removal {
  remove(keys: readonly Buffer[], removed: (count: number) => void): Promise<void>;
  /** All keys of the scope. */
  removeAll(removed: (count: number) => void): Promise<void>;
  /** Those of the keys that there are. */
  stored(keys: readonly Buffer[]): Promise<readonly Buffer[]>;
}

export const INVALIDATIONS_KEPT = 100;

export function createInvalidations(leases: Leases | undefined, log: Logger): Invalidations {
  const recent: InvalidationEvent[] = [];
  let total = 0;
  let keysTotal = 0;

  return {
    report: () => ({ total, keysTotal, recent: [...recent] }),
    async carryOut({ prefix, database, by }, removal) {
      const startedAt = performance.now();
      const at = new Date().toISOString();
      let keys = 0;
      let error: string | undefined;
      try {
        const count = (removed: number): void => {
          keys += removed;
        };
        const fetched = (await leases?.fetched(database, prefix)) ?? [];
        await removal.remove(fetched, count);
        await removal.removeAll(count);
        await removal.remove(await removal.stored(fetched), count);
      } catch (thrown) {
        error = messageOf(thrown);
        throw thrown;
      } finally {
        const tookMs = Math.round(performance.now() - startedAt);
        const event = { at, scope: prefix.toString(), database, by, keys, tookMs };
        total += 1;
        keysTotal += keys;
        recent.unshift(error === undefined ? event : { ...event, error });
        recent.length = Math.min(recent.length, INVALIDATIONS_KEPT);
        log.info(recent[0], 'a cache scope was invalidated');
      }
      return keys;
    },
  };
}
