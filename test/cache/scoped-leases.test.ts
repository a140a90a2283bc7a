import pino from 'pino';
import { describe, expect, it } from 'vitest';
import { createCache } from '../../src/cache/cache.ts';
import { cacheInterceptors } from '../../src/intercept/cache/interceptors.ts';
import { hideOwnKeysInterceptor } from '../../src/intercept/hide-own-keys.ts';
import { replyValue } from '../../src/resp/reply.ts';
import { startScopedProxy } from '../scope/scoped-proxy.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { eventually } from '../support/sidecar.ts';

describe.each(kvKinds)('leases in scopes on %s', async (kind) => {
  const kv = await startKv(kind);
  const cache = createCache({
    kv: { port: kv.port },
    rules: ['a:*', 'b:*', 'l:*', 'm:*', 'v1/*'].map((pattern) => ({ pattern, waitMs: 10_000, leaseMs: 30_000 })),
    log: pino({ level: 'silent' }),
  });
  const { login, through } = await startScopedProxy(kv.port, {
    listenerScopes: [undefined, 'l:', 'm:'],
    users: {
      a: { scope: 'a:' },
      b: { scope: 'b:' },
      worker: { scope: 'v1/{orgId}/{fleet}/{templateVersion}/', may: ['set-scope'] },
    },
    interceptors: [hideOwnKeysInterceptor(), ...cacheInterceptors(cache)],
  });
  const { counters } = cache.leases!;

  it.each([2, 3] as const)('keeps those of two scopes apart, under RESP%i', async (protocol) => {
    const key = `key${protocol}`;
    const holder = await login('a', protocol);
    expect(replyValue(await holder.send('GET', key))).toBeNull();
    // The same name in another scope is another key.
    expect(replyValue(await (await login('b', protocol)).send('GET', key))).toBeNull();
    const waits = (await login('a', protocol)).send('GET', key);
    const many = (await login('a', protocol)).send('MGET', key, `${key}-other`);
    await eventually('two wait', () => counters.waiting === 2);
    expect(replyValue(await holder.send('GETORSET', key, 'of a'))).toBe('of a');
    expect(replyValue(await waits)).toBe('of a');
    expect(replyValue(await many)).toEqual(['of a', null]);
  });

  it('keeps those of two listeners apart', async () => {
    const [holder, elsewhere, waiter] = [await through(1), await through(2), await through(1)];
    expect(replyValue(await holder.send('GET', 'key'))).toBeNull();
    expect(replyValue(await elsewhere.send('GET', 'key'))).toBeNull();
    const waits = waiter.send('MGET', 'key', 'other');
    await eventually('it waits', () => counters.waiting === 1);
    // Another scope's value of that name is not what it waits for.
    expect(replyValue(await elsewhere.send('GETORSET', 'key', 'of m'))).toBe('of m');
    expect(counters.waiting).toBe(1);
    expect(replyValue(await holder.send('GETORSET', 'key', 'of l'))).toBe('of l');
    expect(replyValue(await waits)).toEqual(['of l', null]);
    const cells = cache.snapshot().cells.filter(({ scope }) => scope === 'l:');
    expect(cells).toMatchObject([{ family: 'l:*', leases: 2, waits: 1, saved: 1, stores: 1 }]);
  });

  it('follows the scope that a session chooses', async () => {
    const [holder, other, elsewhere] = [await login('worker'), await login('worker'), await login('worker')];
    await holder.send('HOLDFAST', 'SCOPE', 'SET', 'org', 'fleet', 'v1');
    await other.send('HOLDFAST', 'SCOPE', 'SET', 'org', 'fleet', 'v1');
    await elsewhere.send('HOLDFAST', 'SCOPE', 'SET', 'org', 'fleet', 'v2');
    expect(replyValue(await holder.send('GET', 'git-data/x'))).toBeNull();
    expect(replyValue(await elsewhere.send('GET', 'git-data/x'))).toBeNull();
    const waits = other.send('GET', 'git-data/x');
    await eventually('it waits', () => counters.waiting === 1);
    await holder.send('SET', 'git-data/x', 'v', 'EX', '100');
    expect(replyValue(await waits)).toBe('v');
    const cells = cache.snapshot().cells.filter(({ family }) => family === 'git-data');
    expect(cells.map(({ scope }) => scope).sort()).toEqual(['v1/org/fleet/v1', 'v1/org/fleet/v2']);
    expect(cells.find(({ scope }) => scope === 'v1/org/fleet/v1')).toMatchObject({ leases: 1, waits: 1, saved: 1 });
  });

  it('makes the next the holder where a scope deletes the key', async () => {
    const holder = await login('a');
    await holder.send('GET', 'deleted');
    const waits = (await login('a')).send('GET', 'deleted');
    await eventually('it waits', () => counters.waiting === 1);
    await (await login('a')).send('DEL', 'deleted');
    expect(replyValue(await waits)).toBeNull();
  });
});
