/** A KV store, or the network before it, that falls silent in the middle of a restore without closing a connection. */
import type { Redis } from 'ioredis';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import { startTcpProxy, type TcpProxy } from '../chaos/tcp-proxy.ts';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { clientOf, eventually, type Sidecar, startSidecar } from '../support/sidecar.ts';

const ENTRIES = 20_000;
/** Far above the silence after which a connection is given up. */
const PATIENCE_MS = 100_000;

describe.each(kvKinds)('in the middle of a restore, with %s,', (kind) => {
  let kv: KvServer;
  /** Where Holdfast's new connections go. */
  let current: KvServer;
  let link: TcpProxy;
  let sidecar: Sidecar;
  let direct: Redis;
  let ids: string[];

  beforeEach(async () => {
    kv = await startKv(kind);
    current = kv;
    link = await startTcpProxy(() => current.port);
    const database = await startTestPostgres();
    sidecar = await startSidecar({ kvPort: link.port, databaseUrl: database.url, lookIntervalMs: 50 });
    direct = clientOf(kv.port);
    const adding = sidecar.client().pipeline();
    const fields = 'x'.repeat(500);
    for (let n = 0; n < ENTRIES; n += 1) adding.xadd('s', '*', 'n', String(n), 'fields', fields);
    ids = (await adding.exec())!.map(([, id]) => id as string);
    // So that the restore takes many round trips, each of which takes its time.
    link.delay(50);
    await direct.flushall();
    await eventually('the side key is begun', async () => (await sideKeys(direct)).length > 0, PATIENCE_MS);
  });

  afterEach(async () => {
    await sidecar.stop();
    await link.close();
  });

  async function sideKeys(store: Redis): Promise<string[]> {
    return store.keys('holdfast:epoch:restore:*');
  }

  async function expectRestored(store: Redis): Promise<void> {
    await eventually('restored', () => sidecar.recovery.status().restoresTotal >= 1, PATIENCE_MS);
    await eventually('open', () => sidecar.recovery.status().troubled.length === 0);
    expect((await store.xrange('s', '-', '+')).map(([id]) => id)).toEqual(ids);
  }

  test('a server that stands still is given up, and another one in its place is filled', async () => {
    const other = await startKv(kind);
    process.kill(kv.pid!, 'SIGSTOP');
    try {
      current = other;
      await expectRestored(clientOf(other.port));
    } finally {
      process.kill(kv.pid!, 'SIGCONT');
    }
  }, 240_000);

  test('a network that holds everything back is given up, and what it delivers late does no harm', async () => {
    link.hold(['toServer', 'toClient']);
    await eventually('given up', () => /silent/.test(sidecar.recovery.status().lastError ?? ''), PATIENCE_MS);
    link.heal();
    await expectRestored(direct);
    for (const key of await sideKeys(direct)) expect(await direct.pttl(key)).not.toBe(-1);
    expect(await direct.pttl('s')).toBe(-1);
  }, 240_000);
});
