/** A KV store that answers XADD with an error of its own state: an outage, or the client's to see; ledger and stream agree afterwards. */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { Redis } from 'ioredis';
import { beforeEach, describe, expect, test } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import { agreed, ledgerRows } from '../support/ledger-rows.ts';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { clientOf, eventually, type Sidecar, startSidecar } from '../support/sidecar.ts';

/** No look by itself: it is the answer to XADD that tells. */
const NEVER_MS = 600_000;

describe.each(kvKinds)('with %s', (kind) => {
  let kv: KvServer;
  let sidecar: Sidecar;
  let client: Redis;
  let direct: Redis;

  beforeEach(async () => {
    const database = await startTestPostgres();
    kv = await startKv(kind, { extraArgs: ['--enable-debug-command', 'yes'] });
    direct = clientOf(kv.port);
    sidecar = await startSidecar({ kvPort: kv.port, databaseUrl: database.url, lookIntervalMs: NEVER_MS });
    client = sidecar.client();
    await add(0);
  });

  const add = (n: number | string) => client.xadd('s', '*', 'n', String(n));
  const values = async () => (await direct.xrange('s', '-', '+')).map(([, [, value]]) => value);

  /** What the KV store answers stays the client's: in the same words, inside a transaction too, and nothing is in the ledger. */
  async function isTheClients(error: RegExp): Promise<void> {
    await expect(add('refused')).rejects.toThrow(error);
    const refused = await client
      .multi()
      .xadd('s', '*', 'n', 'refused in EXEC')
      .exec()
      .catch((thrown: Error) => thrown);
    expect(refused).toBeInstanceOf(Error);
    await expect(client.xadd('new', '*', 'n', 'refused')).rejects.toThrow(error);
    expect(sidecar.recovery.gate.state).toBe('open');
    expect(sidecar.ledger.metrics().outage.acceptedTotal).toBe(0);
    expect(await ledgerRows(sidecar, 's')).toHaveLength(1);
    expect(await values()).toEqual(['0']);
  }

  async function goesOn(): Promise<void> {
    await add(1);
    expect(await values()).toEqual(['0', '1']);
    await agreed(sidecar, direct, 's');
    expect(await ledgerRows(sidecar, 'new')).toEqual([]);
    expect(sidecar.recovery.status().lossesTotal).toBe(0);
  }

  test('NOREPLICAS, for min-replicas-to-write, is the client’s to see', async () => {
    await direct.config('SET', 'min-replicas-to-write', '1');
    await isTheClients(/^NOREPLICAS /);
    await direct.config('SET', 'min-replicas-to-write', '0');
    await goesOn();
  });

  test('OOM, with maxmemory and noeviction, is the client’s to see', async () => {
    await direct.config('SET', 'maxmemory', '1');
    await isTheClients(/^OOM /);
    await direct.config('SET', 'maxmemory', '0');
    await goesOn();
  });

  test('MISCONF, for a snapshot that failed, is the client’s to see', async () => {
    const directory = ((await direct.config('GET', 'dir')) as string[])[1]!;
    const status = async () => /rdb_last_bgsave_status:(\w+)/.exec(await direct.info('persistence'))![1];
    // A directory in the place of the file that it would write.
    await mkdir(join(directory, 'dump.rdb', 'inside'), { recursive: true });
    await direct.config('SET', 'save', '3600 1000000');
    await direct.bgsave();
    await eventually('saving failed', async () => (await status()) === 'err');
    await isTheClients(/^MISCONF /);
    await direct.config('SET', 'stop-writes-on-bgsave-error', 'no');
    await goesOn();
  });

  /** All that was added is in both, once and in the order of the producer, under the IDs that it was told. */
  async function tookAll(ids: readonly (string | null)[]): Promise<void> {
    await agreed(sidecar, direct, 's');
    expect(await values()).toEqual(['0', ...ids.map((_, n) => String(n + 1))]);
    expect((await direct.xrange('s', '-', '+')).map(([id]) => id).slice(1)).toEqual(ids);
  }

  test('READONLY, of a primary that became a replica, is an outage', async () => {
    // Nobody is there.
    await direct.replicaof('127.0.0.1', 1);
    const ids = await Promise.all(Array.from({ length: 20 }, (_, n) => add(n + 1)));
    const { acceptedTotal } = sidecar.ledger.metrics().outage;
    expect(acceptedTotal).toBe(20);
    expect(await values()).toEqual(['0']);
    await direct.replicaof('NO', 'ONE');
    await tookAll(ids);
    expect(sidecar.recovery.status().possibleDuplicatesTotal).toBe(0);
  });

  test('READONLY in a transaction is the client’s to see, and nothing is written', async () => {
    await direct.replicaof('127.0.0.1', 1);
    const refused = client.multi().xadd('s', '*', 'n', 'refused').set('k', 'v').exec();
    await expect(refused).rejects.toThrow(/EXECABORT.*/);
    await direct.replicaof('NO', 'ONE');
    await eventually('open', () => sidecar.recovery.gate.state === 'open');
    await goesOn();
    expect(await direct.get('k')).toBeNull();
  });

  test('LOADING, on connections that stay, is an outage', async () => {
    // Connected before: a client that connects to a server that loads waits for it.
    const watcher = clientOf(kv.port);
    await watcher.ping();
    const filling = direct.pipeline();
    for (let n = 0; n < 1500; n += 1) filling.set(`filler:${n}`, 'x'.repeat(100));
    await filling.exec();
    await direct.config('SET', 'loading-process-events-interval-bytes', '1024');
    await direct.config('SET', 'key-load-delay', '1000');
    const reloading = direct.call('DEBUG', 'RELOAD');
    await eventually('it loads', () =>
      watcher.ping().then(
        () => false,
        (thrown: Error) => /^LOADING/.test(thrown.message),
      ),
    );
    const ids: (string | null)[] = [];
    for (let n = 1; n <= 20; n += 1) ids.push(await add(n));
    expect(sidecar.ledger.metrics().outage.acceptedTotal).toBe(20);
    await expect(watcher.ping()).rejects.toThrow(/^LOADING/);
    await reloading;
    await tookAll(ids);
    expect(sidecar.recovery.status().possibleDuplicatesTotal).toBe(0);
  });
});
