/** The cache as a whole: what it counts, leases where there are rules for them, invalidation. One for each process. */
import type { Logger } from 'pino';
import type { KvAddress } from '../control-redis.ts';
import { type CacheReport, CacheStatistics, mergeCacheReports } from './cache-statistics.ts';
import {
  createInvalidations,
  INVALIDATIONS_KEPT,
  type InvalidationReport,
  type Invalidations,
} from './invalidations.ts';
import { keyPattern } from './key-pattern.ts';
import { type LeaseCounters, noLeaseCounters } from './lease-counters.ts';
import { createLeases, type LeaseLimits, type LeaseRule, type Leases } from './leases.ts';

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
  readonly invalidations: InvalidationReport;
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
  const invalidations = createInvalidations(leases, log);
  return {
    rules,
    statistics,
    leases,
    invalidations,
    snapshot: () => ({
      ...statistics.report(),
      leases: leases === undefined ? undefined : { ...leases.counters },
      invalidations: invalidations.report(),
    }),
    async stop() {
      statistics.stop();
      await leases?.stop();
    },
  };
}

/** Several processes' figures as one. */
export function mergeCacheSnapshots(snapshots: readonly CacheSnapshot[]): CacheSnapshot {
  const leases = snapshots.flatMap((snapshot) => snapshot.leases ?? []);
  return {
    ...mergeCacheReports(snapshots),
    leases: leases.length === 0 ? undefined : leases.reduce(sumOfLeases, noLeaseCounters()),
    invalidations: {
      total: snapshots.reduce((sum, { invalidations }) => sum + invalidations.total, 0),
      keysTotal: snapshots.reduce((sum, { invalidations }) => sum + invalidations.keysTotal, 0),
      recent: snapshots
        .flatMap(({ invalidations }) => invalidations.recent)
        .sort((a, b) => (a.at < b.at ? 1 : -1))
        .slice(0, INVALIDATIONS_KEPT),
    },
  };
}

function sumOfLeases(sum: LeaseCounters, counters: Readonly<LeaseCounters>): LeaseCounters {
  for (const counter of Object.keys(sum) as (keyof LeaseCounters)[]) sum[counter] += counters[counter];
  return sum;
}
