/** XADD while Postgres is down: with `ledger.onFailure: refuse` nothing is written, with `degrade` it is repaired afterwards. */
import type { Redis } from 'ioredis';
import { afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import type { EmbeddedServer } from '../../src/embedded/server-process.ts';
import { agreed, ledgerRows } from '../support/ledger-rows.ts';
import { kvKinds, startKv, startOwnPostgres } from '../support/servers.ts';
import { clientOf, eventually, restored, type Sidecar, startSidecar } from '../support/sidecar.ts';

describe.each(kvKinds)('with %s', (kind) => {
  let kv: KvServer;
  let postgres: EmbeddedServer;
  let sidecar: Sidecar;
  let client: Redis;
  let direct: Redis;

  beforeAll(async () => {
    [kv, postgres] = await Promise.all([startKv(kind), startOwnPostgres()]);
  });

  beforeEach(async () => {
    direct = clientOf(kv.port);
    await direct.flushall();
  });

  // Closing it waits for what Postgres owes.
  afterEach(async () => {
    if (postgres.pid === undefined) await postgres.restart();
    // A look of the sidecar may hold it for longer than one statement may wait.
    await eventually('the ledger is dropped', () =>
      sidecar.ledger.pool.query('DROP SCHEMA holdfast CASCADE').then(
        () => true,
        () => false,
      ),
    );
  });

  async function begin(onFailure: 'refuse' | 'degrade'): Promise<void> {
    sidecar = await startSidecar({
      kvPort: kv.port,
      databaseUrl: postgres.url,
      lookIntervalMs: 50,
      onFailure,
      limits: { commitTimeoutMs: 1000 },
    });
    client = sidecar.client();
  }

  const add = (n: number | string, stream = 's') => client.xadd(stream, '*', 'n', String(n));
  const values = async (stream = 's') => (await direct.xrange(stream, '-', '+')).map(([, [, value]]) => value);

  /** Kills Postgres; resolves when the sidecar knows. */
  async function killPostgres(): Promise<void> {
    await postgres.kill9();
    await eventually('the sidecar knows', () => !sidecar.ledger.postgres.available);
  }

  test('refuse: XADD is answered LEDGERDOWN and never reaches the KV store, all else goes on', async () => {
    await begin('refuse');
    await add(0);
    await killPostgres();
    await expect(add(1)).rejects.toThrow(/^LEDGERDOWN .*nothing was written/);
    await expect(add(2, 'new')).rejects.toThrow(/^LEDGERDOWN .*nothing was written/);
    await expect(client.multi().set('k', 'in EXEC').xadd('s', '*', 'n', '3').exec()).rejects.toThrow(/EXECABORT/);
    expect(await direct.get('k')).toBeNull();
    expect(await client.set('k', 'v')).toBe('OK');
    expect(await client.xlen('s')).toBe(1);
    expect(await direct.exists('new')).toBe(0);

    await postgres.restart();
    await eventually('the sidecar knows', () => sidecar.ledger.writer.accepting);
    await add(4);
    expect(await values()).toEqual(['0', '4']);
    await agreed(sidecar, direct, 's');
  });

  test('refuse: an XADD that the KV store had when Postgres went is told as unknown, and taken in afterwards', async () => {
    await begin('refuse');
    await add(0);
    await postgres.kill9();
    await expect(add(1)).rejects.toThrow(/^LEDGERDOWN .*outcome is unknown/);
    expect(await values()).toEqual(['0', '1']);
    await postgres.restart();
    await agreed(sidecar, direct, 's');
    await add(2);
    expect(await values()).toEqual(['0', '1', '2']);
    await agreed(sidecar, direct, 's');
  });

  test('degrade: XADD is accepted and counted, and what the KV store has is in the ledger afterwards', async () => {
    await begin('degrade');
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    const ids = [await add(0)];
    await postgres.kill9();
    // The sidecar does not know yet: one is on its way to the ledger, the other needs its stream begun there.
    const [first, other] = await Promise.all([add(1), add(0, 'new')]);
    ids.push(first);
    const others = [other];
    await eventually('the sidecar knows', () => !sidecar.ledger.postgres.available);
    for (let n = 2; n < 20; n += 1) ids.push(await add(n));
    for (let n = 1; n < 5; n += 1) others.push(await add(n, 'new'));
    const executed = await client.multi().xadd('s', '*', 'n', '20').set('k', 'v').exec();
    ids.push(executed![0]![1] as string);
    expect(await client.xadd('s', 'NOMKSTREAM', '1-1', 'n', 'small').catch(String)).toMatch(/equal or smaller/);
    expect(await values()).toEqual(Array.from({ length: 21 }, (_, n) => String(n)));

    expect(sidecar.ledger.metrics().commit.degradedTotal).toBe(ids.length - 1 + others.length);

    await postgres.restart();
    await agreed(sidecar, direct, 's');
    await agreed(sidecar, direct, 'new');
    expect((await ledgerRows(sidecar, 's')).map(([id]) => id)).toEqual(ids);
    expect((await ledgerRows(sidecar, 'new')).map(([id]) => id)).toEqual(others);
    expect(sidecar.recovery.status().lossesTotal).toBe(0);

    // As durable as any from here on.
    await direct.flushall();
    await restored(sidecar, 2);
    expect((await direct.xrange('s', '-', '+')).map(([id]) => id)).toEqual(ids);
    expect((await direct.xrange('new', '-', '+')).map(([id]) => id)).toEqual(others);
  });
});
