/** A change of a group that was under way when something died is settled by what is there, and keeps no restore from beginning. */
import type { Redis } from 'ioredis';
import { beforeAll, beforeEach, describe, expect, onTestFinished, test } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import { startTcpProxy, type TcpProxy } from '../chaos/tcp-proxy.ts';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { clientOf, eventually, looks, type Sidecar, startAnew, startSidecar } from '../support/sidecar.ts';

describe.each(kvKinds)('with %s,', (kind) => {
  let kv: KvServer;
  let sidecar: Sidecar;
  let client: Redis;
  let direct: Redis;
  let link: TcpProxy;
  let ids: string[];

  beforeAll(async () => {
    kv = await startKv(kind);
  });

  beforeEach(async () => {
    link = await startTcpProxy(() => kv.port);
    onTestFinished(() => link.close());
    ({ sidecar, client } = await startAnew(kv.port, { lookIntervalMs: 100, kvPort: link.port, onLost: 'error' }));
    direct = clientOf(kv.port);
    ids = [];
    for (let n = 0; n < 5; n += 1) ids.push((await client.xadd('s', '*', 'n', String(n)))!);
    await client.xgroup('CREATE', 's', 'g', '0');
    await client.xreadgroup('GROUP', 'g', 'c', 'COUNT', 2, 'STREAMS', 's', '>');
    await client.xack('s', 'g', ...ids.slice(0, 2));
    await looks(sidecar);
  });

  async function open(): Promise<number> {
    return (await sidecar.ledger.pool.query('SELECT FROM holdfast.intention')).rowCount!;
  }

  async function unread(reader = client): Promise<string[]> {
    const read = await reader.xreadgroup('GROUP', 'g', 'c', 'COUNT', 100, 'STREAMS', 's', '>');
    return ((read as [string, [string, string[]][]][] | null) ?? []).flatMap(([, entries]) =>
      entries.map(([id]) => id),
    );
  }

  const changes = [
    ['SETID', (by: Redis) => by.xgroup('SETID', 's', 'g', '0')],
    ['DESTROY', (by: Redis) => by.xgroup('DESTROY', 's', 'g')],
  ] as const;

  test.each(changes)('a KV store that dies under XGROUP %s comes back with the group', async (_, change) => {
    link.hold(['toServer']);
    const told = change(client).catch((thrown: unknown) => thrown);
    await eventually('it is open', async () => (await open()) === 1);
    await kv.kill9();
    link.reset();
    link.heal();
    await kv.restart();
    direct = clientOf(kv.port);
    expect(await told).toBeInstanceOf(Error);
    await eventually('all is back', async () => (await direct.exists('s')) === 1 && (await open()) === 0);
    expect(await unread()).toEqual(ids.slice(2));
    expect(await client.xadd('s', '*', 'n', 'new')).toMatch(/-/);
  });

  test.each(changes)('an XGROUP %s that was executed unheard counts', async (name, change) => {
    link.hold(['toClient']);
    const told = change(client).catch((thrown: unknown) => thrown);
    await eventually('executed', async () => {
      const groups = (await direct.xinfo('GROUPS', 's')) as unknown[][];
      return name === 'DESTROY' ? groups.length === 0 : groups[0]!.includes('0-0');
    });
    link.reset();
    link.heal();
    expect(await told).toBeInstanceOf(Error);
    await eventually('settled', async () => (await open()) === 0);
    await looks(sidecar, 3);
    expect(sidecar.recovery.status().restoresTotal).toBe(0);
    if (name === 'SETID') expect(await unread()).toEqual(ids);
    else await expect(unread()).rejects.toThrow('NOGROUP');
  });

  test.each(changes)(
    'XGROUP %s of a group that was lost behind Holdfast’s back finds it restored',
    async (name, change) => {
      await direct.xgroup('DESTROY', 's', 'g');
      expect(await change(client)).toBe(name === 'SETID' ? 'OK' : 1);
      if (name === 'SETID') expect(await unread()).toEqual(ids);
      else await expect(unread()).rejects.toThrow('NOGROUP');
    },
  );

  test('a sidecar that dies under a change leaves it to the others', async () => {
    const { url } = await startTestPostgres();
    await sidecar.stop();
    await direct.flushall();
    const [dying, other] = [
      await startSidecar({ kvPort: link.port, databaseUrl: url, lookIntervalMs: 100, onLost: 'error' }),
      await startSidecar({ kvPort: kv.port, databaseUrl: url, lookIntervalMs: 100 }),
    ];
    const [first, second] = [dying.client(), other.client()];
    const added = (await first.xadd('s', '*', 'n', '1'))!;
    await first.xgroup('CREATE', 's', 'g', '0');
    link.hold(['toServer']);
    first.xgroup('SETID', 's', 'g', '$').catch(() => undefined);
    const count = async () => (await other.ledger.pool.query('SELECT FROM holdfast.intention')).rowCount;
    await eventually('it is open', async () => (await count()) === 1);
    // Its connections end, and it settles nothing any more.
    await dying.stop();
    link.reset();
    await eventually('settled', async () => (await count()) === 0, 15_000);
    await direct.del('s');
    await eventually('back', async () => (await direct.exists('s')) === 1);
    expect(await unread(second)).toEqual([added]);
    link.heal();
  });
});
