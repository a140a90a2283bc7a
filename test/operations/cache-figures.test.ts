import pino from 'pino';
import { expect, it } from 'vitest';
import { createCache } from '../../src/cache/cache.ts';
import { addCacheMetrics, cacheFigures, cacheInfoFields, cacheText } from '../../src/operations/cache-figures.ts';
import { addFigures, createMetrics } from '../../src/operations/metrics.ts';

it('shows the cache by scope and family in metrics, INFO and status', async () => {
  const cache = createCache({ kv: { port: 1 }, rules: [], log: pino({ level: 'silent' }) });
  const key = Buffer.from('v1/org/fleet/v3/git-data/repository/main/file');
  const mark = cache.statistics.anyMarkOf(key, undefined);
  for (let i = 0; i < 3; i += 1) cache.statistics.hit(mark, 100);
  cache.statistics.count(mark, 'misses');
  cache.statistics.count(mark, 'saved', 7);
  await cache.invalidations.carryOut(
    { prefix: Buffer.from('v1/o/f/t/'), database: 0, by: 'user u, client 1' },
    {
      remove: async () => undefined,
      removeAll: async (removed) => removed(5),
      stored: async () => [],
    },
  );
  const registry = createMetrics();
  addFigures(registry, cacheFigures(cache));
  addCacheMetrics(registry, cache);
  const text = await registry.metrics();
  expect(text).toContain('holdfast_cache_hits_total{scope="v1/org/fleet/v3",family="git-data"} 3');
  expect(text).toContain('holdfast_cache_hit_bytes_total{scope="v1/org/fleet/v3",family="git-data"} 300');
  expect(text).toContain('holdfast_cache_saved_total{scope="v1/org/fleet/v3",family="git-data"} 7');
  expect(text).toContain('holdfast_cache_recent_misses_5m 1');
  expect(text).toContain('holdfast_cache_invalidated_keys_total 5');
  expect(cacheInfoFields(cache)).toMatchObject({
    cache_hits_total: 3,
    cache_hit_ratio_1m: '0.750',
    cache_saved_total: 7,
  });
  const shown = cacheText(cache.snapshot());
  expect(shown.rows[0]).toEqual([
    'Cache',
    '3 hits, 1 misses, hit ratio 0.750 over 1 min, 0.750 over 5 min, 0.750 over 60 min',
  ]);
  expect(shown.families).toEqual([['v1/org/fleet/v3', 'git-data', '3', '1', '300', '0', '0', '0', '7']]);
  expect(shown.invalidations[0]!.slice(1, 4)).toEqual(['v1/o/f/t/', 'user u, client 1', '5']);
  await cache.stop();
});
