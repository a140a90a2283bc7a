import { describe, expect, test } from 'vitest';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { clientOf, eventually, startSidecar } from '../support/sidecar.ts';

const ATTEMPTS = `SELECT attempts FROM holdfast.recovery JOIN holdfast.stream USING (stream_id) WHERE name = 'great'`;

describe.each(kvKinds)('a KV store without memory left (%s)', (kind) => {
  test('is still compared, and what it lost comes back when it has some again', async () => {
    const kv = await startKv(kind);
    const database = await startTestPostgres();
    const sidecar = await startSidecar({ kvPort: kv.port, databaseUrl: database.url, lookIntervalMs: 50 });
    const client = sidecar.client();
    const direct = clientOf(kv.port);
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    const ids: string[] = [];
    for (let n = 0; n < 5; n += 1) ids.push((await client.xadd('s', '*', 'n', String(n)))!);

    await direct.config('SET', 'maxmemory', '1');
    const { looksTotal } = sidecar.recovery.status();
    await eventually('looks', () => sidecar.recovery.status().looksTotal > looksTotal + 2);
    await expect(client.xadd('s', '*', 'n', 'refused')).rejects.toThrow(/^OOM/);
    await eventually('it is read', () => client.xreadgroup('GROUP', 'g', 'c', 'COUNT', '2', 'STREAMS', 's', '>'));
    expect(await client.xack('s', 'g', ids[0]!, ids[1]!)).toBe(2);

    await direct.del('s', 'holdfast:epoch');
    await eventually('the loss is noticed', () => sidecar.recovery.status().lossesTotal === 1);
    const read = await client.xreadgroup('GROUP', 'g', 'c', 'BLOCK', '100', 'STREAMS', 's', '>');
    expect(read).toBeNull();

    await direct.config('SET', 'maxmemory', '0');
    await eventually('restored', () => sidecar.recovery.status().troubled.length === 0, 20_000);
    const again = (await client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', '>')) as [string, [string, string[]][]][];
    expect(again[0]![1].map(([id]) => id)).toEqual(ids.slice(2));
  });

  test('is not filled again and again by a restore that it has no memory for, and others get through', async () => {
    const kv = await startKv(kind);
    const database = await startTestPostgres();
    const sidecar = await startSidecar({ kvPort: kv.port, databaseUrl: database.url, lookIntervalMs: 50 });
    const client = sidecar.client();
    const direct = clientOf(kv.port);
    const value = 'x'.repeat(10_000);
    const filling = client.pipeline();
    for (let n = 0; n < 2000; n += 1) filling.xadd('great', '*', 'value', value);
    await filling.exec();
    await client.xadd('small', '*', 'n', '1');
    await client.xgroup('CREATE', 'great', 'g', '0');
    // What is there is copied to bring the group back, for which there is half the room.
    await direct.config('SET', 'maxmemory', '32mb');
    await direct.pipeline().del('small').xgroup('DESTROY', 'great', 'g').exec();
    await eventually('the small one is back', () => direct.exists('small'));
    const trouble = () => sidecar.recovery.status().troubled.find(({ stream }) => stream === 'great')?.cause ?? '';
    await eventually('status says why the great one is not', () => /memory.*next attempt in/.test(trouble()));

    const { rows } = await sidecar.ledger.pool.query<{ attempts: number }>(ATTEMPTS);
    const looksBefore = sidecar.recovery.status().looksTotal;
    await eventually('looks', () => sidecar.recovery.status().looksTotal >= looksBefore + 20, 50_000);
    const { rows: after } = await sidecar.ledger.pool.query<{ attempts: number }>(ATTEMPTS);
    // Each look was an attempt before. Time passes too, so that one or another is due.
    expect(after[0]!.attempts - rows[0]!.attempts).toBeLessThan(10);
    await eventually('nothing half-built is left', async () => (await direct.keys('holdfast:epoch:*')).length === 0);

    await direct.config('SET', 'maxmemory', '0');
    const groups = async () => ((await direct.xinfo('GROUPS', 'great')) as unknown[]).length;
    await eventually('all is back', async () => (await groups()) === 1, 75_000);
    expect(await direct.xlen('great')).toBe(2000);
  }, 180_000);
});
