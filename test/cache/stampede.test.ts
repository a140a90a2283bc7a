/** A thousand clients on three sidecars miss one key at once. Counts only: `npm run bench -- leases` has the times. */
import { expect, it } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import { type Reply, replyValue } from '../../src/resp/reply.ts';
import type { RawClient } from '../support/raw-client.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { eventually } from '../support/sidecar.ts';
import { type CacheSidecar, startCacheSidecar } from './cache-sidecar.ts';

const CLIENTS = 1000;
const KEY = 'v1/org/fleet/v1/git-data/repository/main/file';

interface Stampede {
  readonly sidecars: readonly CacheSidecar[];
  readonly clients: readonly RawClient[];
  /** Who was told to fetch, in that order. */
  readonly fetchers: RawClient[];
  readonly waiting: () => number;
  /** Every client's first reply. */
  readonly replies: Promise<readonly Reply[]>;
}

/** `atOnce`: does not see to it that all wait. */
async function stampede(kv: KvServer, { atOnce = false } = {}): Promise<Stampede> {
  const rules = [{ pattern: 'v1/*', waitMs: 60_000, leaseMs: 60_000 }];
  const sidecars = await Promise.all(Array.from({ length: 3 }, () => startCacheSidecar({ kvPort: kv.port, rules })));
  const clients: RawClient[] = [];
  for (let i = 0; i < CLIENTS; i += 1) clients.push(await sidecars[i % 3]!.client());
  const fetchers: RawClient[] = [];
  const replies = Promise.all(
    clients.map(async (client) => {
      const reply = await client.send('GET', KEY);
      if (replyValue(reply) === null) fetchers.push(client);
      return reply;
    }),
  );
  const waiting = (): number => sidecars.reduce((sum, { cache }) => sum + cache.leases!.counters.waiting, 0);
  if (!atOnce) {
    const settled = (): boolean => fetchers.length === 1 && waiting() === CLIENTS - 1;
    await eventually('one fetches and all others wait', settled, 30_000);
  }
  return { sidecars, clients, fetchers, waiting, replies };
}

function tally(replies: readonly Reply[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const reply of replies) {
    const value = reply.type === '-' ? reply.bytes.toString() : String(replyValue(reply));
    counts[value] = (counts[value] ?? 0) + 1;
  }
  return counts;
}

it.each(kvKinds)('has one fetch, whose value all others get, on %s', { timeout: 60_000 }, async (kind) => {
  const { sidecars, fetchers, replies } = await stampede(await startKv(kind));
  await fetchers[0]!.send('GETORSET', KEY, 'fetched');
  expect(tally(await replies)).toEqual({ null: 1, fetched: CLIENTS - 1 });
  expect(sidecars.reduce((sum, { cache }) => sum + cache.snapshot().total.saved, 0)).toBe(CLIENTS - 1);
  expect(sidecars.reduce((sum, { cache }) => sum + cache.snapshot().total.leases, 0)).toBe(1);
});

it.each(kvKinds)('has two fetches where the holder is gone, on %s', { timeout: 60_000 }, async (kind) => {
  const { fetchers, waiting, replies } = await stampede(await startKv(kind));
  fetchers[0]!.socket.destroy();
  await eventually('the next one fetches', () => fetchers.length === 2, 10_000);
  expect(waiting()).toBe(CLIENTS - 2);
  await fetchers[1]!.send('GETORSET', KEY, 'fetched');
  expect(tally(await replies)).toEqual({ null: 2, fetched: CLIENTS - 2 });
});

it.each(kvKinds)('shows those who wait no restart of the KV store, on %s', { timeout: 60_000 }, async (kind) => {
  const kv = await startKv(kind);
  const { fetchers, replies } = await stampede(kv);
  await kv.restart();
  expect(replyValue(await fetchers[0]!.send('GETORSET', KEY, 'fetched'))).toBe('fetched');
  expect(tally(await replies)).toEqual({ null: 1, fetched: CLIENTS - 1 });
});

it.each(kvKinds)('shows no restart to those whose GET is under way, on %s', { timeout: 60_000 }, async (kind) => {
  const kv = await startKv(kind);
  const { fetchers, replies } = await stampede(kv, { atOnce: true });
  await kv.restart();
  await eventually('one fetches', () => fetchers.length === 1, 10_000);
  expect(replyValue(await fetchers[0]!.send('GETORSET', KEY, 'fetched'))).toBe('fetched');
  expect(tally(await replies)).toEqual({ null: 1, fetched: CLIENTS - 1 });
});
