/** The cache as a whole: what it counts, leases where there are rules for them, invalidation. One for each process. */
import type { Logger } from 'pino';
import type { KvAddress } from '../control-redis.ts';
import { type CacheReport, CacheStatistics } from './cache-statistics.ts';
import { createInvalidations, type InvalidationEvent, type Invalidations } from './invalidations.ts';
import { keyPattern } from './key-pattern.ts';
import { createLeases, type LeaseCounters, type LeaseLimits, type LeaseRule, type Leases } from './leases.ts';

export interface CacheOptions {
  readonly kv: KvAddress;
  /** The first one that names a key decides. None: no read is looked at, and only get-or-set is counted. */
  readonly rules: readonly LeaseRule[];
  readonly limits?: LeaseLimits;
  readonly log: Logger;
}

/** Plain figures, for metrics and status. */
export interface CacheSnapshot extends CacheReport {
  /** `undefined` where there are no rules. */
  readonly leases: Readonly<LeaseCounters> | undefined;
  readonly invalidations: {
    readonly total: number;
    readonly keysTotal: number;
    readonly recent: readonly InvalidationEvent[];
  };
}

export interface Cache {
  readonly rules: readonly LeaseRule[];
  readonly statistics: CacheStatistics;
  readonly leases: Leases | undefined;
  readonly invalidations: Invalidations;
  snapshot(): CacheSnapshot;
  /** Everybody who waits is told to fetch. */
  stop(): Promise<void>;
}

export function createCache({ kv, rules, limits, log }: CacheOptions): Cache {
  const statistics = new CacheStatistics(rules.map(({ pattern }) => keyPattern(pattern)));
  const leases =
    rules.length === 0 ? undefined : createLeases({ kv, statistics, log, ...(limits === undefined ? {} : { limits }) });
  const invalidations = createInvalidations({ kv, leases, log });
  return {
    rules,
    statistics,
    leases,
    invalidations,
    snapshot: () => ({
      ...statistics.report(),
      leases: leases === undefined ? undefined : { ...leases.counters },
      invalidations: {
        total: invalidations.total,
        keysTotal: invalidations.keysTotal,
        recent: [...invalidations.recent],
      },
    }),
    async stop() {
      statistics.stop();
      await leases?.stop();
    },
  };
}
