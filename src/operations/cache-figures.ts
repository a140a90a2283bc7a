/** What the cache says in metrics, in INFO and in `holdfast status`, of one process or of all. */
import { Counter, type Registry } from 'prom-client';
import type { Cache, CacheSnapshot } from '../cache/cache.ts';
import type { CacheCounters, CacheReport } from '../cache/cache-statistics.ts';
import { type LeaseCounters, noLeaseCounters } from '../cache/lease-counters.ts';
import { type Figure, figuresNamed } from './metrics.ts';

const BY_FAMILY: readonly (readonly [keyof CacheCounters, string, string])[] = [
  ['hits', 'hits_total', 'Lookups that found a value'],
  ['misses', 'misses_total', 'Lookups that found none'],
  ['hitBytes', 'hit_bytes_total', 'Bytes of replies that gave a value'],
  ['stores', 'stores_total', 'Values that get-or-set stored'],
  ['storedBytes', 'stored_bytes_total', 'Bytes of values that get-or-set stored'],
  ['leases', 'leases_total', 'Misses that were told to fetch under a lease'],
  ['waits', 'waits_total', 'Misses that waited for the fetch of another client'],
  ['saved', 'saved_total', 'Fetches saved: clients that waited and got the value'],
];

const LEASE_TOTALS: readonly (readonly [keyof LeaseCounters, string, string])[] = [
  ['waitsExpired', 'waits_expired_total', 'Clients told to fetch because their wait took too long'],
  ['expired', 'expired_total', 'Leases whose holder took too long'],
  ['abandoned', 'abandoned_total', 'Leases whose holder went away'],
  ['voided', 'voided_total', 'Leases that ended because their key was deleted'],
  ['fenced', 'fenced_total', 'Late writes of former holders that were not stored'],
  ['unguarded', 'unguarded_total', 'Misses without a lease: at a limit, or without the KV store'],
];

const MINUTES = [
  [1, 'oneMinute'],
  [5, 'fiveMinutes'],
  [60, 'sixtyMinutes'],
] as const;

/** One series for each scope and family; the statistics bound their number. */
export function addCacheMetrics(registry: Registry, cache: Pick<Cache, 'statistics'>): void {
  for (const [counter, name, help] of BY_FAMILY) {
    new Counter({
      name: `holdfast_cache_${name}`,
      help,
      labelNames: ['scope', 'family'],
      registers: [registry],
      collect() {
        this.reset();
        for (const cell of cache.statistics.report().cells) {
          this.inc({ scope: cell.scope, family: cell.family }, cell[counter]);
        }
      },
    });
  }
}

export function cacheFigures({ statistics, leases, invalidations }: Cache): Figure[] {
  const counters = leases?.counters ?? noLeaseCounters();
  const { current, total } = figuresNamed('holdfast_');
  return [
    ...MINUTES.flatMap(([minutes, span]) => [
      current(
        `cache_recent_hits_${minutes}m`,
        `Hits of the last ${minutes} minutes`,
        () => statistics.report().lookups[span].hits,
      ),
      current(
        `cache_recent_misses_${minutes}m`,
        `Misses of the last ${minutes} minutes`,
        () => statistics.report().lookups[span].misses,
      ),
    ]),
    ...LEASE_TOTALS.map(([counter, name, help]) => total(`lease_${name}`, help, () => counters[counter])),
    total(
      'lease_wait_seconds_total',
      'Time that clients waited for the fetch of another',
      () => counters.waitMsTotal / 1000,
    ),
    current('lease_waiting', 'Clients that wait', () => counters.waiting),
    current('leases_held', 'Clients that hold a lease', () => counters.held),
    total('cache_invalidations_total', 'Scopes invalidated', () => invalidations.report().total),
    total('cache_invalidated_keys_total', 'Keys removed with their scope', () => invalidations.report().keysTotal),
  ];
}

export function cacheInfoFields(cache: Pick<Cache, 'snapshot'>): Record<string, string | number> {
  const { total, lookups, leases, invalidations } = cache.snapshot();
  return {
    cache_hits_total: total.hits,
    cache_misses_total: total.misses,
    cache_hit_ratio_1m: ratioText(lookups.oneMinute),
    cache_hit_ratio_5m: ratioText(lookups.fiveMinutes),
    cache_hit_ratio_60m: ratioText(lookups.sixtyMinutes),
    cache_stores_total: total.stores,
    cache_leases_total: total.leases,
    cache_waits_total: total.waits,
    cache_saved_total: total.saved,
    cache_waiting: leases?.waiting ?? 0,
    cache_invalidations_total: invalidations.total,
  };
}

/** `-` where nothing was looked up. */
function ratioText({ hits, misses }: CacheReport['lookups']['oneMinute']): string {
  return hits + misses === 0 ? '-' : (hits / (hits + misses)).toFixed(3);
}

const FAMILIES_SHOWN = 20;
const INVALIDATIONS_SHOWN = 5;

export interface CacheText {
  readonly rows: readonly (readonly [string, string])[];
  readonly families: readonly (readonly string[])[];
  readonly invalidations: readonly (readonly string[])[];
}

export const FAMILY_HEADING = [
  'CACHE SCOPE',
  'FAMILY',
  'HITS',
  'MISSES',
  'BYTES',
  'STORED',
  'LEASES',
  'WAITS',
  'SAVED',
];
export const INVALIDATION_HEADING = ['INVALIDATED', 'SCOPE', 'BY', 'KEYS', 'TOOK', 'ERROR'];

/** Rows of the summary, and lines of the two tables. */
export function cacheText(cache: CacheSnapshot): CacheText {
  const { total, lookups, leases, invalidations } = cache;
  const ratios = MINUTES.map(([minutes, span]) => `${ratioText(lookups[span])} over ${minutes} min`).join(', ');
  const rows: (readonly [string, string])[] = [
    ['Cache', `${total.hits} hits, ${total.misses} misses, hit ratio ${ratios}`],
  ];
  if (leases !== undefined) {
    rows.push(['Leases', `${leases.held} held, ${leases.waiting} wait, ${total.saved} fetches saved since start`]);
  }
  return {
    rows,
    families: cache.cells
      .slice(0, FAMILIES_SHOWN)
      .map((cell) => [cell.scope || '-', cell.family, ...COLUMNS.map((counter) => String(cell[counter]))]),
    invalidations: invalidations.recent
      .slice(0, INVALIDATIONS_SHOWN)
      .map(({ at, scope, by, keys, tookMs, error }) => [at, scope, by, String(keys), `${tookMs} ms`, error ?? '']),
  };
}

const COLUMNS = ['hits', 'misses', 'hitBytes', 'stores', 'leases', 'waits', 'saved'] as const;
