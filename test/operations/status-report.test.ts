import { expect, it } from 'vitest';
import type { CacheSnapshot } from '../../src/cache/cache.ts';
import { CacheStatistics } from '../../src/cache/cache-statistics.ts';
import { formatBytes, formatDuration, formatStatus } from '../../src/operations/status-report.ts';

const statistics = new CacheStatistics([]);
const noCache: CacheSnapshot = {
  ...statistics.report(),
  leases: undefined,
  invalidations: { total: 0, keysTotal: 0, recent: [] },
};
statistics.stop();

it('writes sizes and durations as a person reads them', () => {
  expect([0, 1023, 1024, 1.5 * 2 ** 20, 3 * 2 ** 40, 5000 * 2 ** 40].map(formatBytes)).toEqual([
    '0 B',
    '1023 B',
    '1.0 kB',
    '1.5 MB',
    '3.0 TB',
    '5000.0 TB',
  ]);
  expect([0.4, 59, 61, 3600, 90_000].map(formatDuration)).toEqual(['0 s', '59 s', '1 min 1 s', '1 h 0 min', '1 d 1 h']);
});

it('says at a glance when the KV store is away', () => {
  const report = {
    version: '1.2.3',
    processId: 7,
    startedAt: '2026-01-01T00:00:00.000Z',
    listen: ['127.0.0.1:6380'],
    pooling: 'transaction',
    clients: { connected: 1, connectedTotal: 2, refusedTotal: 0, requestsTotal: 9, lanes: 1 },
    kv: { reachable: false, where: '127.0.0.1:6379', embedded: false },
    ledger: {
      where: 'db/x',
      embedded: false,
      available: true,
      streamsTotal: 1,
      committedTotal: 5,
      waitingRows: 0,
      state: 'down',
      leads: true,
      lossesTotal: 1,
      restoresTotal: 1,
      failing: 0,
      idleGroups: [],
      streams: [
        {
          name: 'task-queue',
          database: 0,
          mode: 'outage',
          entriesAdded: 5,
          lastId: '5-0',
          groups: [{ name: 'workers', checkpointId: '3-0', lastDeliveredId: '5-0', lagEntries: 2, lagMs: 61_000 }],
        },
      ],
      recoveries: [
        {
          stream: 'task-queue',
          cause: 'empty',
          noticedAt: '2026-01-01T00:00:30.000Z',
          tookMs: 12,
          entriesRestored: 3,
          aliases: 0,
          possibleDuplicates: 0,
        },
      ],
    },
    cache: noCache,
    memory: { residentBytes: 2 ** 20, heapUsedBytes: 2 ** 19 },
  };
  const text = formatStatus(report, new Date('2026-01-01T00:01:05.000Z'));
  expect(text).toContain('Holdfast   1.2.3, process 7, up 1 min 5 s\n');
  expect(text).toContain('KV store   NOT REACHABLE at 127.0.0.1:6379\n');
  expect(text).toContain('Recovery   down, leads, 1 losses noticed, 1 streams restored\n');
  expect(text).toMatch(/^task-queue +outage +5 +5-0 +workers +3-0 +2 +1 min 1 s$/m);
  expect(text).toMatch(/^2026-01-01T00:00:30.000Z +task-queue +empty +12 ms +3 +0$/m);
});
