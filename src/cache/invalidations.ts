/**
 * Invalidations of scopes, as events that are kept for a while: which scope, by whom, how many keys, how long it took.
 * What clients fetch for a scope at that moment is out of date too, so their leases end.
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
  /**
   * `remove` removes the keys, and tells of each batch. Gives the number of keys. Rejects as `remove` does: what was
   * removed until then stays so, and is in the event.
   */
  carryOut(request: InvalidationRequest, remove: (removed: (keys: number) => void) => Promise<void>): Promise<number>;
}

export const INVALIDATIONS_KEPT = 100;

export function createInvalidations(leases: Leases | undefined, log: Logger): Invalidations {
  const recent: InvalidationEvent[] = [];
  let total = 0;
  let keysTotal = 0;

  return {
    report: () => ({ total, keysTotal, recent: [...recent] }),
    async carryOut({ prefix, database, by }, remove) {
      const startedAt = performance.now();
      const at = new Date().toISOString();
      let keys = 0;
      let error: string | undefined;
      try {
        await remove((count) => {
          // The first batch has shown that the session may delete there.
          if (keys === 0 && count > 0) leases?.invalidated(database, prefix);
          keys += count;
        });
        leases?.invalidated(database, prefix);
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
