import { describe, expect, it } from 'vitest';
import { bulk, request } from '../../src/resp/encode.ts';
import { replyValue } from '../../src/resp/reply.ts';
import type { RawClient } from '../support/raw-client.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { eventually } from '../support/sidecar.ts';
import { type CacheSidecar, rawClient, startCacheSidecar } from './cache-sidecar.ts';

const KEY = 'v1/org/fleet/v1/git-data/repository/main/file';
let keys = 0;
const newKey = (): string => `${KEY}${(keys += 1)}`;
const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
const get = async (client: RawClient, key: string): Promise<unknown> => replyValue(await client.send('GET', key));
const waiting = (...sidecars: CacheSidecar[]): number =>
  sidecars.reduce((sum, { cache }) => sum + cache.leases!.counters.waiting, 0);

describe.each(kvKinds)('leases on %s', async (kind) => {
  const kv = await startKv(kind);
  const sidecars = (count: number, rules = {}): Promise<CacheSidecar[]> =>
    Promise.all(Array.from({ length: count }, () => startCacheSidecar({ kvPort: kv.port, ...rules })));

  it('answers a hit, an error and keys that no pattern names as they are', async () => {
    const [sidecar] = await sidecars(1);
    const client = await sidecar!.client();
    const key = newKey();
    await client.send('SET', key, 'value');
    await client.send('LPUSH', `${key}-list`, 'x');
    expect(await get(client, key)).toBe('value');
    expect(await get(client, 'elsewhere')).toBeNull();
    expect((await client.send('GET', `${key}-list`)).bytes.toString()).toMatch(/^WRONGTYPE/);
    expect((await client.send('GET')).bytes.toString()).toMatch(/^ERR wrong number/);
    expect(sidecar!.cache.snapshot().total).toMatchObject({ hits: 1, misses: 0 });
  });

  it('lets the first that misses fetch, and gives its value to the others, on any sidecar', async () => {
    const all = await sidecars(3);
    const key = newKey();
    const holder = await all[0]!.client();
    expect(await get(holder, key)).toBeNull();
    const others = await Promise.all([...all, ...all].map((sidecar) => sidecar.client()));
    const replies = others.map((client) => get(client, key));
    await eventually('all wait', () => waiting(...all) === 6);
    await holder.send('SET', key, 'fetched');
    expect(await Promise.all(replies)).toEqual(Array(6).fill('fetched'));
    expect(waiting(...all)).toBe(0);
  });

  it.each([
    ['SETNX', (key: string) => ['SETNX', key, 'v']],
    ['SETEX', (key: string) => ['SETEX', key, '100', 'v']],
    ['MSET', (key: string) => ['MSET', key, 'v', `${key}x`, 'w']],
    ['GETORSET', (key: string) => ['GETORSET', key, 'v']],
    ['a script', (key: string) => ['EVAL', "return redis.call('set', KEYS[1], 'v')", '1', key]],
  ])('takes %s for the value, through any sidecar', async (_, command) => {
    const [one, other] = await sidecars(2);
    const key = newKey();
    await get(await one!.client(), key);
    const waiter = get(await one!.client(), key);
    await eventually('it waits', () => waiting(one!) === 1);
    await (await other!.client()).send(...command(key));
    expect(await waiter).toBe('v');
  });

  it('takes a write directly at the KV store for the value', async () => {
    const [one] = await sidecars(1);
    const key = newKey();
    await get(await one!.client(), key);
    const waiter = get(await one!.client(), key);
    await eventually('it waits', () => waiting(one!) === 1);
    await (await rawClient(kv.port)).send('SET', key, 'direct');
    expect(await waiter).toBe('direct');
  });

  it('makes the next the holder when the holder is gone, on this sidecar or another', async () => {
    const [one, other] = await sidecars(2);
    for (const second of [one!, other!]) {
      const key = newKey();
      const holder = await one!.client();
      await get(holder, key);
      const next = await second.client();
      const reply = get(next, key);
      await eventually('it waits', () => waiting(second) === 1);
      const at = performance.now();
      holder.socket.destroy();
      expect(await reply).toBeNull();
      expect(performance.now() - at).toBeLessThan(500);
      const last = get(await one!.client(), key);
      await eventually('the last one waits', () => waiting(one!) === 1);
      await next.send('SET', key, 'second');
      expect(await last).toBe('second');
    }
  });

  it('makes the next the holder when the lease has expired', async () => {
    const rules = [{ pattern: 'v1/*', waitMs: 5000, leaseMs: 200 }];
    const [one, other] = await sidecars(2, { rules });
    const key = newKey();
    const holder = await one!.client();
    await get(holder, key);
    const next = get(await other!.client(), key);
    expect(await next).toBeNull();
    await eventually('the lease has expired here too', () => one!.cache.leases!.counters.held === 0);
  });

  it('keeps to the time of a lease though the KV store was busy meanwhile', async () => {
    const [one] = await sidecars(1, { rules: [{ pattern: 'v1/*', waitMs: 60_000, leaseMs: 2000 }] });
    const key = newKey();
    const direct = await rawClient(kv.port);
    await direct.send('CONFIG', 'SET', 'busy-reply-threshold', '10');
    await get(await one!.client(), key);
    const waits = get(await one!.client(), key);
    await eventually('it waits', () => waiting(one!) === 1);
    const busy = 'local till=os.clock()+0.5 while os.clock()<till do end';
    // What makes sidecars ask, and nothing that answers them for a while.
    const released = ['SET', 'holdfast:epoch:leases:released', 'x', 'PX', '60000'];
    direct.socket.write(Buffer.concat([request(released), request(['EVAL', busy, '0'])]));
    expect(await waits).toBeNull();
    expect(one!.cache.leases!.counters.expired).toBe(1);
    await direct.send('CONFIG', 'SET', 'busy-reply-threshold', '5000');
  });

  it('makes the next the holder when the key is deleted, through another sidecar too', async () => {
    const [one, other] = await sidecars(2);
    for (const deleter of [one!, other!]) {
      const key = newKey();
      await get(await one!.client(), key);
      const next = get(await one!.client(), key);
      await eventually('it waits', () => waiting(one!) === 1);
      await (await deleter.client()).send('DEL', key);
      expect(await next).toBeNull();
    }
  });

  it('makes the next the holder when the value came and went', async () => {
    const [one] = await sidecars(1);
    const key = newKey();
    await get(await one!.client(), key);
    const next = get(await one!.client(), key);
    await eventually('it waits', () => waiting(one!) === 1);
    const direct = await rawClient(kv.port);
    direct.socket.write(request(['MULTI']));
    direct.socket.write(Buffer.concat([request(['SET', key, 'v']), request(['DEL', key]), request(['EXEC'])]));
    expect(await next).toBeNull();
  });

  it('lets nobody wait longer than waitMs', async () => {
    const rules = [{ pattern: 'v1/*', waitMs: 150, leaseMs: 5000 }];
    const [one, other] = await sidecars(2, { rules });
    const key = newKey();
    await get(await one!.client(), key);
    const at = performance.now();
    expect(await get(await other!.client(), key)).toBeNull();
    expect(performance.now() - at).toBeGreaterThan(140);
    expect(performance.now() - at).toBeLessThan(1000);
  });

  it('never holds the holder, nor what a client sends behind a held reply', async () => {
    const [one] = await sidecars(1);
    const key = newKey();
    const holder = await one!.client();
    expect(await get(holder, key)).toBeNull();
    expect(await get(holder, key)).toBeNull();
    // The waiting client itself writes the value, on the connection on which it waits.
    const other = await one!.client();
    other.socket.write(Buffer.concat([request(['GET', key]), request(['SET', key, 'own']), request(['PING'])]));
    expect([await other.next(), await other.next(), await other.next()].map(replyValue)).toEqual(['own', 'OK', 'PONG']);
  });

  it('breaks circles of clients that wait for each other', async () => {
    const [one] = await sidecars(1);
    const [a, b] = [newKey(), newKey()];
    const [first, second] = [await one!.client(), await one!.client()];
    await get(first, a);
    await get(second, b);
    const waits = get(first, b);
    await eventually('it waits', () => waiting(one!) === 1);
    expect(await get(second, a)).toBeNull();
    await second.send('SET', b, 'v');
    expect(await waits).toBe('v');
  });

  it('serves pipelines and MGET, in order', async () => {
    const [one, other] = await sidecars(2);
    const [a, b, c] = [newKey(), newKey(), newKey()];
    const holder = await one!.client();
    await holder.send('SET', b, 'there');
    expect(replyValue(await holder.send('MGET', a, b, c, 'plain'))).toEqual([null, 'there', null, null]);
    const many = (await other!.client()).send('MGET', a, b, c);
    const pipelined = await other!.client();
    pipelined.socket.write(Buffer.concat([a, b, c, 'plain'].map((key) => request(['GET', key]))));
    await eventually('all wait', () => waiting(other!) === 4);
    await holder.send('MSET', a, '1', c, '3');
    expect(replyValue(await many)).toEqual(['1', 'there', '3']);
    const replies = [];
    for (let i = 0; i < 4; i += 1) replies.push(replyValue(await pipelined.next()));
    expect(replies).toEqual(['1', 'there', '3', null]);
  });

  it('tells reads inside MULTI and of watching or tracking clients what the KV store says', async () => {
    const [one] = await sidecars(1);
    const key = newKey();
    await get(await one!.client(), key);
    const client = await one!.client();
    await client.send('MULTI');
    await client.send('GET', key);
    expect(replyValue(await client.send('EXEC'))).toEqual([null]);
    await client.send('WATCH', key);
    expect(await get(client, key)).toBeNull();
    await client.send('UNWATCH');
    await client.send('HELLO', '3');
    await client.send('CLIENT', 'TRACKING', 'ON');
    expect(await get(client, key)).toBeNull();
    expect(waiting(one!)).toBe(0);
  });

  it('keeps databases apart, and speaks RESP3', async () => {
    const [one] = await sidecars(1);
    const key = newKey();
    await get(await one!.client(), key);
    const client = await one!.client();
    await client.send('HELLO', '3');
    await client.send('SELECT', '3');
    expect((await client.send('GET', key)).type).toBe('_');
    const other = await one!.client();
    await other.send('SELECT', '3');
    const inZero = get(await one!.client(), key);
    const waits = get(other, key);
    await eventually('both wait', () => waiting(one!) === 2);
    await (await rawClient(kv.port)).send('SET', key, 'in 0');
    expect(await inZero).toBe('in 0');
    await sleep(50);
    expect(waiting(one!)).toBe(1);
    await client.send('SET', key, 'in 3');
    expect(await waits).toBe('in 3');
  });

  it('does not store what an expired holder fetched while another one fetches', async () => {
    const rules = [{ pattern: 'v1/*', waitMs: 5000, leaseMs: 700 }];
    const [one, other] = await sidecars(2, { rules });
    const key = newKey();
    const late = await one!.client();
    await get(late, key);
    const second = await other!.client();
    expect(await get(second, key)).toBeNull();
    const answer = late.send('GETORSET', key, 'late');
    await eventually('it waits', () => waiting(one!) === 1);
    expect(replyValue(await second.send('GETORSET', key, 'fresh'))).toBe('fresh');
    expect(replyValue(await answer)).toBe('fresh');
    expect(replyValue(await second.send('GET', key))).toBe('fresh');
  });

  it('does not store what was fetched before the key was deleted', async () => {
    const [one, other] = await sidecars(2);
    const key = newKey();
    const holder = await one!.client();
    await get(holder, key);
    await (await other!.client()).send('DEL', key);
    await eventually('the lease is void', () => one!.cache.leases!.counters.held === 0);
    expect(replyValue(await holder.send('GETORSET', key, 'stale'))).toBe('stale');
    expect(replyValue(await (await rawClient(kv.port)).send('EXISTS', key))).toBe(0);
  });

  it('lets clients fetch where the number of those who wait is at its limit', async () => {
    const [one] = await sidecars(1, { limits: { waitersMax: 1, leasesMax: 1 } });
    const key = newKey();
    await get(await one!.client(), key);
    const waits = get(await one!.client(), key);
    await eventually('one waits', () => waiting(one!) === 1);
    expect(await get(await one!.client(), key)).toBeNull();
    expect(await get(await one!.client(), newKey())).toBeNull();
    await (await rawClient(kv.port)).send('SET', key, 'v');
    expect(await waits).toBe('v');
  });

  it('lets who reads slowly hold up nobody, and keeps a value once for all of them', async () => {
    const [one] = await sidecars(1);
    const key = newKey();
    const value = Buffer.alloc(8 * 1024 * 1024, 'x');
    const holder = await one!.client();
    await get(holder, key);
    const slow = (await Promise.all(Array.from({ length: 20 }, () => one!.client()))).map(({ socket }) => socket);
    for (const socket of slow) {
      socket.removeAllListeners('data').pause();
      socket.write(request(['GET', key]));
    }
    const fast = get(await one!.client(), key);
    await eventually('all wait', () => waiting(one!) === 21);
    const before = process.memoryUsage().arrayBuffers;
    await holder.send('SET', key, value);
    expect(await fast).toHaveLength(value.length);
    expect(waiting(one!)).toBe(0);
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan((slow.length / 2) * value.length);
    const lengths = slow.map(() => 0);
    for (const [i, socket] of slow.entries()) {
      socket.on('data', (bytes) => {
        lengths[i]! += bytes.length;
      });
      socket.resume();
    }
    const replyBytes = bulk(value).length;
    await eventually('they have it', () => lengths.every((length) => length === replyBytes), 30_000);
  });

  it('serves ten thousand that wait on a hundred connections', async () => {
    const [one] = await sidecars(1);
    const key = newKey();
    const holder = await one!.client();
    await get(holder, key);
    const clients = await Promise.all(Array.from({ length: 100 }, () => one!.client()));
    for (const { socket } of clients) socket.write(Buffer.concat(Array(100).fill(request(['GET', key]))));
    await eventually('all wait', () => waiting(one!) === 10_000, 30_000);
    await holder.send('SET', key, 'v');
    for (const client of clients) {
      for (let i = 0; i < 100; i += 1) expect(replyValue(await client.next())).toBe('v');
    }
    expect(waiting(one!)).toBe(0);
  });

  it('forgets clients that go away while they wait', async () => {
    const [one] = await sidecars(1);
    const key = newKey();
    await get(await one!.client(), key);
    const client = await one!.client();
    client.socket.write(request(['GET', key]));
    await eventually('it waits', () => waiting(one!) === 1);
    client.socket.resetAndDestroy();
    await eventually('nobody waits', () => waiting(one!) === 0);
  });

  it('hides what sidecars agree on', async () => {
    const [one] = await sidecars(1);
    const client = await one!.client();
    await client.send('FLUSHALL');
    await get(client, newKey());
    expect(replyValue(await client.send('DBSIZE'))).toBe(0);
    expect(replyValue(await client.send('KEYS', '*'))).toEqual([]);
    expect(replyValue(await client.send('RANDOMKEY'))).toBeNull();
    expect(replyValue(await (await rawClient(kv.port)).send('DBSIZE'))).toBeGreaterThan(0);
  });

  it('leaves nothing behind in the KV store once the value is there', async () => {
    const [one] = await sidecars(1);
    const client = await one!.client();
    const key = newKey();
    await get(client, key);
    await client.send('SET', key, 'v');
    const direct = await rawClient(kv.port);
    await eventually(
      'the lease is gone',
      async () =>
        replyValue(await direct.send('EXISTS', 'holdfast:epoch:leases', 'holdfast:epoch:leases:owners')) === 0,
    );
  });
});
