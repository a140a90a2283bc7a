import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { CacheStatistics, NOT_NAMED } from '../../src/cache/cache-statistics.ts';
import { keyPattern } from '../../src/cache/key-pattern.ts';

const MINUTE_MS = 60_000;
let statistics: CacheStatistics;

beforeEach(() => {
  vi.useFakeTimers();
  statistics = new CacheStatistics([keyPattern('v1/*'), keyPattern('user:*')]);
});

afterEach(() => {
  statistics.stop();
  vi.useRealTimers();
});

function mark(key: string, scope?: string): number {
  return statistics.markOf(Buffer.from(key), scope === undefined ? undefined : Buffer.from(scope));
}

it('counts hits and misses over the last 1, 5 and 60 minutes', () => {
  const cell = mark('v1/o/f/t/git-data/x');
  for (let i = 0; i < 10; i += 1) statistics.hit(cell, 100);
  expect(statistics.report().lookups.oneMinute).toEqual({ hits: 10, misses: 0 });
  vi.advanceTimersByTime(2 * MINUTE_MS);
  statistics.count(cell, 'misses', 5);
  expect(statistics.report().lookups).toEqual({
    oneMinute: { hits: 0, misses: 5 },
    fiveMinutes: { hits: 10, misses: 5 },
    sixtyMinutes: { hits: 10, misses: 5 },
  });
  vi.advanceTimersByTime(10 * MINUTE_MS);
  expect(statistics.report().lookups).toMatchObject({
    fiveMinutes: { hits: 0, misses: 0 },
    sixtyMinutes: { hits: 10, misses: 5 },
  });
  vi.advanceTimersByTime(60 * MINUTE_MS);
  expect(statistics.report().lookups.sixtyMinutes).toEqual({ hits: 0, misses: 0 });
  expect(statistics.report().total).toMatchObject({ hits: 10, misses: 5, hitBytes: 1000 });
});

it('tells scopes and families apart, by the key or by the session and the pattern', () => {
  for (const key of ['v1/o/f/t/git-data/x', 'v1/o/f/t/git-data/y', 'v1/o/f/t/http-data/x', 'v1/o/f/t2/git-data/x']) {
    statistics.hit(mark(key), 1);
  }
  statistics.hit(mark('user:1'), 1);
  statistics.hit(statistics.anyMarkOf(Buffer.from('elsewhere'), undefined), 1);
  expect(mark('elsewhere')).toBe(NOT_NAMED);
  // Patterns are over real keys: none names one that a scope's prefix stands before.
  expect(mark('l:user:1', 'l:')).toBe(NOT_NAMED);
  statistics.hit(statistics.anyMarkOf(Buffer.from('l:user:1'), Buffer.from('l:')), 1);
  expect(new Set(statistics.report().cells.map(({ scope, family, hits }) => `${scope} ${family} ${hits}`))).toEqual(
    new Set([
      'v1/o/f/t git-data 2',
      'v1/o/f/t http-data 1',
      'v1/o/f/t2 git-data 1',
      ' user:* 1',
      ' other 1',
      'l: other 1',
    ]),
  );
});

it('counts what is beyond a thousand scopes together', () => {
  for (let i = 0; i < 5000; i += 1) statistics.hit(mark(`v1/o/f/t${i}/git-data/x`), 1);
  const { cells, families, total } = statistics.report();
  expect(total.hits).toBe(5000);
  expect(families).toMatchObject([{ family: 'git-data', hits: 5000 }]);
  expect(cells.length).toBeLessThanOrEqual(1001);
  expect(cells[0]).toMatchObject({ scope: '…', family: 'git-data', hits: 4000 });
});

it('bounds families too, which a client may name as it likes', () => {
  for (let i = 0; i < 5000; i += 1) statistics.hit(mark(`v1/o/f/t/family${i}/x`), 1);
  const { cells, total } = statistics.report();
  expect(total.hits).toBe(5000);
  expect(cells.length).toBeLessThanOrEqual(2001);
});

it('gives the place of a scope that was silent for an hour to another', () => {
  for (let i = 0; i < 1000; i += 1) statistics.hit(mark(`v1/o/f/t${i}/git-data/x`), 1);
  vi.advanceTimersByTime(30 * MINUTE_MS);
  statistics.hit(mark('v1/o/f/t7/git-data/x'), 1);
  vi.advanceTimersByTime(31 * MINUTE_MS);
  statistics.hit(mark('v1/o/f/new/git-data/x'), 1);
  const { cells, total } = statistics.report();
  expect(total.hits).toBe(1002);
  expect(cells.map(({ scope, hits }) => `${scope} ${hits}`).sort()).toEqual(['v1/o/f/new 1', 'v1/o/f/t7 2', '… 999']);
});
