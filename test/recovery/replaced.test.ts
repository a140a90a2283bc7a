/** A key that a client put in a stream's place is the client's, whatever recovery is doing at that time. */
import type { Redis } from 'ioredis';
import { beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import { startTcpProxy } from '../chaos/tcp-proxy.ts';
import { kvKinds, startKv, startTestPostgres, type TestDatabase } from '../support/servers.ts';
import { clientOf, eventually, type Sidecar, startSidecar } from '../support/sidecar.ts';

const NEVER_MS = 60_000;

describe.each(kvKinds)('a key of another type in a stream’s place, with %s:', (kind) => {
  let kv: KvServer;
  let database: TestDatabase;
  let direct: Redis;

  beforeAll(async () => {
    kv = await startKv(kind);
  });

  beforeEach(async () => {
    direct = clientOf(kv.port);
    await direct.flushall();
    database = await startTestPostgres();
  });

  async function add(client: Redis, count: number): Promise<void> {
    const pipeline = client.pipeline();
    for (let n = 0; n < count; n += 1) pipeline.xadd('s', '*', 'n', String(n));
    for (const [failure] of (await pipeline.exec())!) expect(failure).toBeNull();
  }

  /** Makes it a loss that nobody has looked at since. */
  async function raise(sidecar: Sidecar, mode: 'restoring' | 'outage'): Promise<void> {
    const stream = sidecar.ledger.streams.find(0, Buffer.from('s'))!;
    await sidecar.ledger.pool.query('SELECT holdfast.raise_epoch($1, $2, $3, $4, NULL)', [
      stream.streamId,
      stream.epoch,
      mode,
      'test',
    ]);
  }

  async function ended(sidecar: Sidecar): Promise<void> {
    await eventually('the stream has ended', () => sidecar.ledger.streams.find(0, Buffer.from('s')) === undefined);
  }

  /** The client's key is as it was, nothing of the restore is left, and the stream does not come back without it. */
  async function staysReplaced(sidecar: Sidecar, value = 'the client’s'): Promise<void> {
    await ended(sidecar);
    expect(await direct.get('s')).toBe(value);
    expect(await direct.keys('holdfast:epoch:*')).toEqual([]);
    const { rows } = await sidecar.ledger.pool.query<{ ended_by: string; open: string }>(
      `SELECT ended_by, (SELECT count(*) FROM holdfast.recovery WHERE completed_at IS NULL) AS open FROM holdfast.stream`,
    );
    expect(rows).toEqual([{ ended_by: 'the key holds another type', open: '0' }]);
    await direct.del('s');
    await sidecar.recovery.look();
    await sidecar.recovery.look();
    expect(await direct.exists('s')).toBe(0);
  }

  test('it is there when a restore begins', async () => {
    const sidecar = await startSidecar({ kvPort: kv.port, databaseUrl: database.url, lookIntervalMs: NEVER_MS });
    await add(sidecar.client(), 3);
    await direct.set('s', 'the client’s');
    await raise(sidecar, 'restoring');
    await staysReplaced(sidecar);
  });

  test('it comes between the building of what was lost and its renaming', async () => {
    // So slow that the client's SET is there long before the restore gets an answer.
    const link = await startTcpProxy(() => kv.port);
    const sidecar = await startSidecar({ kvPort: link.port, databaseUrl: database.url, lookIntervalMs: NEVER_MS });
    await add(sidecar.client(), 100);
    await direct.del('s');
    const monitor = await clientOf(kv.port).monitor();
    const set = new Promise<void>((resolve, reject) => {
      monitor.on('monitor', (_time: string, [command, key]: string[]) => {
        if (!/^xsetid$/i.test(command!) || !key!.startsWith('holdfast:epoch:restore:')) return;
        direct.set('s', 'the client’s').then(() => resolve(), reject);
      });
    });
    link.delay(100);
    await raise(sidecar, 'restoring');
    await set;
    await eventually('the restore came to its end', async () => {
      if (sidecar.recovery.status().restoresTotal > 0) await sidecar.recovery.look();
      return sidecar.ledger.streams.find(0, Buffer.from('s')) === undefined;
    });
    monitor.disconnect();
    await staysReplaced(sidecar);
    await sidecar.stop();
    await link.close();
  });

  test('it is there when a backlog is published', async () => {
    const sidecar = await startSidecar({ kvPort: kv.port, databaseUrl: database.url, lookIntervalMs: NEVER_MS });
    const client = sidecar.client();
    await add(client, 3);
    await direct.set('s', 'the client’s');
    const stream = sidecar.ledger.streams.find(0, Buffer.from('s'))!;
    await sidecar.ledger.pool.query(
      `INSERT INTO holdfast.backlog (stream_id, id, kind, fields)
       SELECT $1, int8send(4102444800000) || int8send(n), 'outage', '*2\r\n$1\r\nn\r\n$1\r\n1\r\n'
         FROM generate_series(1, 3) AS n`,
      [stream.streamId],
    );
    await raise(sidecar, 'outage');
    await staysReplaced(sidecar);
  });
});
