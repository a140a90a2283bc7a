/** Scripts of scopes behind several processes: what one loaded the others know, as connections of one server do. */
import { createHash } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { hideOwnKeysInterceptor } from '../../src/intercept/hide-own-keys.ts';
import { until } from '../proxy/through-proxy.ts';
import { startKv } from '../support/servers.ts';
import { asking, startScopedProxy } from './scoped-proxy.ts';

const USERS = { a: { scope: 'a:' }, b: { scope: 'b:', shared: ['common'] } };
const BODY = "return {KEYS[1],redis.call('INCR',KEYS[1])}";
const SHA = createHash('sha1').update(BODY).digest('hex');

describe.each(['redis', 'valkey'] as const)('scripts of scopes behind several processes on %s', (server) => {
  it('are known to all of them, to nobody else, and until they are flushed', async () => {
    const kv = await startKv(server);
    const start = () => startScopedProxy(kv.port, { users: USERS, interceptors: [hideOwnKeysInterceptor()] });
    const [one, two] = [await start(), await start()];
    const a = asking(await one.login('a'));
    const other = asking(await two.login('a', 3));
    const b = asking(await two.login('b'));
    const noScript = await a('EVALSHA', SHA, 1, 'n');
    expect(noScript).toMatch(/^!NOSCRIPT/);
    expect(await a('SCRIPT', 'LOAD', BODY)).toBe(SHA);
    expect(await other('SCRIPT', 'EXISTS', SHA)).toEqual([1]);
    expect(await other('EVALSHA', SHA.toUpperCase(), 1, 'n')).toEqual(['n', 1]);
    await other('MULTI');
    await other('EVALSHA', SHA, 1, 'n');
    expect(await other('EXEC')).toEqual([['n', 2]]);
    expect(await b('EVALSHA', SHA, 1, 'n')).toBe(noScript);
    // One that came later, as after a restart.
    expect(await asking(await (await start()).login('a'))('EVALSHA', SHA, 1, 'n')).toEqual(['n', 3]);
    // Nobody sees where they are kept.
    const direct = asking(await one.unscoped());
    expect(await direct('KEYS', '*')).toEqual(['a:n']);
    expect(await direct('DBSIZE')).toBe(1);
    expect(await a('SCRIPT', 'FLUSH')).toBe('OK');
    expect(await a('EVALSHA', SHA, 1, 'n')).toBe(noScript);
    await until(async () => (await other('EVALSHA', SHA, 1, 'n')) === noScript, 10_000);
    expect(await other('SCRIPT', 'LOAD', BODY)).toBe(SHA);
    expect(await a('EVALSHA', SHA, 1, 'none')).toEqual(['none', 1]);
    // What the server itself has forgotten is unknown, as without Holdfast.
    await direct('SCRIPT', 'FLUSH');
    expect(await a('EVALSHA', SHA, 1, 'n')).toBe(noScript);
    // A KV store that lost the keys still has the scripts that are known here.
    expect(await a('SCRIPT', 'LOAD', BODY)).toBe(SHA);
    await direct('FLUSHALL');
    expect(await a('EVALSHA', SHA, 1, 'n')).toEqual(['n', 1]);
  });
});
