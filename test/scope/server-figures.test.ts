/** What servers say of themselves, in a scope: nothing that counts or names what others do. */
import { describe, expect, it } from 'vitest';
import { request } from '../../src/resp/encode.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { type Ask, asking, startScopedProxy } from './scoped-proxy.ts';

const SECTIONS = [
  ...['', 'all', 'everything', 'default', 'server', 'clients', 'memory', 'persistence', 'stats', 'replication', 'cpu'],
  ...['modules', 'errorstats', 'commandstats', 'latencystats', 'cluster', 'keyspace', 'debug', 'holdfast'],
];
/** Moves with nobody's work, or with time alone. */
const CLOCKS = /^(server_time_usec|uptime_in_(seconds|days)|lru_clock|hz):/;

function figures(info: unknown): string[] {
  return String(info)
    .split('\r\n')
    .filter((line) => line !== '' && !CLOCKS.test(line));
}

describe.each(kvKinds)('a scoped client on %s', async (kind) => {
  const kv = await startKv(kind);
  const proxy = await startScopedProxy(kv.port, { users: { a: { scope: 'a:' }, b: { scope: 'b:' } } });

  async function busy(other: Ask): Promise<void> {
    for (let at = 0; at < 20; at += 1) await other('SET', `k${at}`, 'x'.repeat(10_000));
    await other('EVAL', "return redis.error_reply('OTHERSECRET of mine')", 0);
    await other('EVAL', "return redis.call('LPUSH',KEYS[1],1)", 1, 'k1');
    await other('GET', 'none');
    await other('PUBLISH', 'c', 'm');
  }

  it.each([2, 3] as const)('finds the same in INFO whatever others do, in RESP%i', async (protocol) => {
    const a = asking(await proxy.login('a', protocol));
    const b = asking(await proxy.login('b', protocol));
    const direct = asking(await proxy.unscoped());
    await a('GET', 'k');
    const ask = async (section: string): Promise<unknown> => (section === '' ? a('INFO') : a('INFO', section));
    const before = new Map<string, string[]>();
    for (const section of SECTIONS) before.set(section, figures(await ask(section)));
    await busy(b);
    for (const section of SECTIONS) {
      expect(figures(await ask(section)), section).toEqual(before.get(section));
    }
    expect(await direct('INFO', 'errorstats')).toContain('OTHERSECRET');
    expect(await a('MULTI')).toBe('OK');
    await a('INFO', 'errorstats');
    await a('INFO', 'everything');
    const inside = (await a('EXEC')) as string[];
    expect(inside.join()).not.toMatch(/OTHERSECRET|cmdstat|errorstat_|used_memory|total_/);
    // What client libraries choose their ways by is there.
    const whole = String(await a('INFO'));
    for (const field of [
      'redis_version',
      'maxmemory_policy',
      'role',
      'loading',
      'cluster_enabled',
      'uptime_in_seconds',
    ]) {
      expect(whole).toContain(`\r\n${field}:`);
    }
    await direct('CONFIG', 'RESETSTAT');
  });

  it('counts the clients of its scope', async () => {
    const a = asking(await proxy.login('a'));
    const own = async (): Promise<Record<string, string>> =>
      Object.fromEntries(
        [...String(await a('INFO', 'clients')).matchAll(/^(\w+_clients):(\d+)/gm)].map((one) => one.slice(1)),
      );
    const before = await own();
    const blocked = await proxy.login('a');
    const others = await proxy.login('b');
    blocked.socket.write(request(['BLPOP', 'none', '0']));
    others.socket.write(request(['BLPOP', 'none', '0']));
    const direct = asking(await proxy.unscoped());
    await expect.poll(async () => direct('INFO', 'clients')).toContain('blocked_clients:2');
    expect(await own()).toEqual({
      connected_clients: String(Number(before.connected_clients) + 1),
      blocked_clients: '1',
    });
    blocked.socket.destroy();
    others.socket.destroy();
  });

  it('finds its role without offsets and the addresses of others', async () => {
    const replica = await startKv(kind);
    const a = asking(await proxy.login('a'));
    const b = asking(await proxy.login('b'));
    const other = await startScopedProxy(replica.port, { users: { a: { scope: 'a:' } } });
    const onReplica = asking(await other.unscoped());
    await onReplica('REPLICAOF', '127.0.0.1', kv.port);
    const direct = asking(await proxy.unscoped());
    await expect.poll(async () => ((await direct('ROLE')) as unknown[][])[2]!.length, { timeout: 20_000 }).toBe(1);
    await busy(b);
    expect(((await direct('ROLE')) as number[])[1]).toBeGreaterThan(0);
    expect(await a('ROLE')).toEqual(['master', 0, []]);
    expect(await a('EVAL', "return redis.call('ROLE')", 0)).toMatch(/^!NOPERM/);
    const tenant = asking(await other.login('a'));
    const role = (await tenant('ROLE')) as unknown[];
    expect(role.toSpliced(3, 1)).toEqual(['slave', '', 0, 0]);
    await onReplica('REPLICAOF', 'NO', 'ONE');
  });
});
