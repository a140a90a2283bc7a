/** Thousands of scopes behind few connections: what the KV store allows is not theirs to use up. */
import { describe, expect, it } from 'vitest';
import { request } from '../../src/resp/encode.ts';
import { startKv } from '../support/servers.ts';
import { asking, startScopedProxy } from './scoped-proxy.ts';

const SCOPES = 2000;
const LANES = 40;
const CLIENTS = 10;

describe.each(['redis', 'valkey'] as const)('thousands of scopes on %s', (server) => {
  it('share their lanes, the least recently used one closed for the next', async () => {
    const kv = await startKv(server, { extraArgs: ['--maxclients', '100'] });
    const users = Object.fromEntries(Array.from({ length: SCOPES }, (_, at) => [`u${at}`, { scope: `scope-${at}:` }]));
    const proxy = await startScopedProxy(kv.port, { users, proxy: { limits: { sharedLanesMax: LANES } } });
    const direct = asking(await proxy.unscoped());
    const clients = await Promise.all(
      Array.from({ length: CLIENTS }, async () => ({
        ask: asking(await proxy.unscoped()),
        blocked: await proxy.login('u0'),
      })),
    );
    // Lanes that clients have to themselves do not count, and are not taken from them.
    for (const [at, { blocked }] of clients.entries()) blocked.socket.write(request(['BLPOP', `wake${at}`, '0']));
    let peak = 0;
    await Promise.all(
      clients.map(async ({ ask }, first) => {
        for (let at = first; at < SCOPES; at += CLIENTS) {
          expect(await ask('AUTH', `u${at}`, `u${at}`)).toBe('OK');
          expect(await ask('SET', 'k', `v${at}`)).toBe('OK');
          if (at % 100 !== 0) continue;
          const connected = /connected_clients:(\d+)/.exec(String(await direct('INFO', 'clients')))![1];
          peak = Math.max(peak, Number(connected));
        }
      }),
    );
    // Lanes, those of blocked clients, and Holdfast's own few.
    expect(peak).toBeGreaterThan(LANES / 2);
    expect(peak).toBeLessThanOrEqual(LANES + CLIENTS + 5);
    expect(String(await direct('INFO', 'stats'))).toContain('rejected_connections:0');
    const { ask } = clients[0]!;
    for (const at of [0, 1, 999, SCOPES - 1]) {
      expect(await ask('AUTH', `u${at}`, `u${at}`)).toBe('OK');
      expect(await ask('GET', 'k')).toBe(`v${at}`);
    }
    expect(await direct('DBSIZE')).toBe(SCOPES);
    for (const at of clients.keys()) await direct('RPUSH', `scope-0:wake${at}`, 'x');
    const woken = await Promise.all(clients.map(({ blocked }) => blocked.next()));
    expect(woken.map((reply) => String(reply.items?.[0]?.bytes))).toEqual([...clients.keys()].map((at) => `wake${at}`));
  });
});
