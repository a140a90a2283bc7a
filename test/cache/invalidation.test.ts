import { expect, it } from 'vitest';
import { mergeCacheSnapshots } from '../../src/cache/cache.ts';
import { replyValue } from '../../src/resp/reply.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { eventually } from '../support/sidecar.ts';
import { rawClient, startCacheSidecar } from './cache-sidecar.ts';

const KEYS = 100_000;

it.each(kvKinds)('invalidates a scope of 100,000 keys on %s while others are served', async (kind) => {
  const kv = await startKv(kind);
  const sidecar = await startCacheSidecar({ kvPort: kv.port });
  const direct = await rawClient(kv.port);
  const fill = `for i=1,tonumber(ARGV[1]) do redis.call('SET','v1/o/f/t1/git-data/'..i,i) end redis.call('SET','v1/o/f/t10/x',1)`;
  await direct.send('EVAL', fill, '0', String(KEYS));
  const client = await sidecar.client();
  const other = await sidecar.client();
  let finished = false;
  const probe = (async () => {
    let served = 0;
    while (!finished) {
      await other.send('PING');
      served += 1;
    }
    return served;
  })();
  const removed = replyValue(await client.send('HOLDFAST', 'SCOPE', 'INVALIDATE', 'o', 'f', 't1'));
  finished = true;
  const served = await probe;
  expect(Number(removed)).toBe(KEYS);
  // Between its batches of a thousand keys others have their turn.
  expect(served).toBeGreaterThan(KEYS / 1000);
  const statistics = String(replyValue(await direct.send('INFO', 'commandstats')));
  const calls = (name: string): number => Number(new RegExp(`cmdstat_${name}:calls=(\\d+)`).exec(statistics)?.[1] ?? 0);
  expect(calls('scan')).toBeGreaterThanOrEqual(KEYS / 2000);
  expect(calls('unlink')).toBeGreaterThanOrEqual(KEYS / 500);
  // The scope beside it, whose name begins alike, stays.
  expect(Number(replyValue(await direct.send('EXISTS', 'v1/o/f/t10/x')))).toBe(1);
  const { invalidations } = sidecar.cache.snapshot();
  expect(invalidations).toMatchObject({ total: 1, keysTotal: KEYS });
  expect(invalidations.recent[0]).toMatchObject({ scope: 'v1/o/f/t1/', database: 0, keys: KEYS });
  expect(invalidations.recent[0]!.by).toMatch(/^user default, client \d+$/);
});

it.each(kvKinds)('ends the leases of an invalidated scope on %s, on other sidecars too', async (kind) => {
  const kv = await startKv(kind);
  const [one, two] = [await startCacheSidecar({ kvPort: kv.port }), await startCacheSidecar({ kvPort: kv.port })];
  const key = 'v1/o/f/t1/git-data/x';
  const holder = await one.client();
  expect(replyValue(await holder.send('GET', key))).toBeNull();
  const next = (await two.client()).send('GET', key);
  await eventually('it waits', () => two.cache.leases!.counters.waiting === 1);
  await (await two.client()).send('HOLDFAST', 'SCOPE', 'INVALIDATE', 'o', 'f', 't1');
  expect(replyValue(await next)).toBeNull();
  await eventually('the holder has lost it', () => one.cache.leases!.counters.voided === 1);
});

it.each(kvKinds)('leaves nothing that was fetched before it began, on %s', async (kind) => {
  const kv = await startKv(kind);
  const [one, two] = [await startCacheSidecar({ kvPort: kv.port }), await startCacheSidecar({ kvPort: kv.port })];
  const direct = await rawClient(kv.port);
  const client = await two.client();
  const [key, late] = ['v1/o/f/t1/git-data/x', 'v1/o/f/t1/git-data/late'];
  const holder = await one.client();
  for (const each of [key, late]) expect(replyValue(await holder.send('GET', each))).toBeNull();
  const next = (await two.client()).send('GET', key);
  await eventually('it waits', () => two.cache.leases!.counters.waiting === 1);

  const remove = async (keys: readonly Buffer[], removed: (count: number) => void): Promise<void> => {
    if (keys.length > 0) removed(Number(replyValue(await client.send('UNLINK', ...keys))));
  };
  const keys = await two.cache.invalidations.carryOut(
    { prefix: Buffer.from('v1/o/f/t1/'), database: 0, by: 'a test' },
    {
      remove,
      async removeAll() {
        // Nothing is removed yet, but what was being fetched is out of date already.
        expect(replyValue(await next)).toBeNull();
        await eventually('the holder has lost both', () => one.cache.leases!.counters.voided === 2);
        expect(replyValue(await holder.send('GETORSET', late, 'stale'))).toBe('stale');
        expect(replyValue(await direct.send('EXISTS', late))).toBe(0);
        // As a sidecar does that has not heard of it.
        await direct.send('SET', late, 'stale');
      },
      stored: async (fetched) => {
        const there = await Promise.all(fetched.map((each) => direct.send('EXISTS', each)));
        return fetched.filter((_, i) => replyValue(there[i]!) === 1);
      },
    },
  );
  expect(keys).toBe(1);
  expect(replyValue(await direct.send('EXISTS', late))).toBe(0);
});

it.each(kvKinds)('ends the leases of a scope in which nothing is stored yet, on %s', async (kind) => {
  const kv = await startKv(kind);
  const [one, two] = [await startCacheSidecar({ kvPort: kv.port }), await startCacheSidecar({ kvPort: kv.port })];
  const [key, other] = ['v1/o/f/t1/git-data/x', 'v1/o/f/t2/git-data/x'];
  const holder = await one.client();
  for (const each of [key, other]) expect(replyValue(await holder.send('GET', each))).toBeNull();
  expect(Number(replyValue(await (await two.client()).send('HOLDFAST', 'SCOPE', 'INVALIDATE', 'o', 'f', 't1')))).toBe(
    0,
  );
  await eventually('the holder has lost it', () => one.cache.leases!.counters.voided === 1);
  expect(replyValue(await holder.send('GETORSET', key, 'stale'))).toBe('stale');
  const direct = await rawClient(kv.port);
  expect(replyValue(await direct.send('EXISTS', key))).toBe(0);
  // The scope beside it has kept its lease.
  expect(replyValue(await holder.send('GETORSET', other, 'v'))).toBe('v');
  expect(replyValue(await direct.send('EXISTS', other))).toBe(1);
});

it('counts what was removed before an invalidation failed', async () => {
  const kv = await startKv(kvKinds[0]!);
  const sidecar = await startCacheSidecar({ kvPort: kv.port });
  const client = await sidecar.client();
  await client.send('ACL', 'SETUSER', 'default', '-unlink');
  await client.send('SET', 'v1/o/f/t1/git-data/x', 'v');
  const reply = await client.send('HOLDFAST', 'SCOPE', 'INVALIDATE', 'o', 'f', 't1');
  expect(reply.bytes.toString()).toMatch(/^NOPERM/);
  expect(sidecar.cache.snapshot().invalidations.recent[0]).toMatchObject({
    keys: 0,
    error: expect.stringContaining('unlink'),
  });
});

it('sums the figures of several processes', async () => {
  const kv = await startKv(kvKinds[0]!);
  const sidecars = [await startCacheSidecar({ kvPort: kv.port }), await startCacheSidecar({ kvPort: kv.port })];
  const key = 'v1/o/f/t1/git-data/x';
  for (const sidecar of sidecars) {
    const client = await sidecar.client();
    await client.send('SET', key, 'v');
    await client.send('GET', key);
    await client.send('GET', key);
  }
  const merged = mergeCacheSnapshots(sidecars.map(({ cache }) => cache.snapshot()));
  expect(merged.total).toMatchObject({ hits: 4, misses: 0 });
  expect(merged.lookups.fiveMinutes).toEqual({ hits: 4, misses: 0 });
  expect(merged.cells).toHaveLength(1);
  expect(merged.cells[0]).toMatchObject({ scope: 'v1/o/f/t1', family: 'git-data', hits: 4 });
});
