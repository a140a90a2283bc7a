import { describe, expect, test } from 'vitest';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { clientOf, eventually, startSidecar } from '../support/sidecar.ts';

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
    await client.xreadgroup('GROUP', 'g', 'c', 'COUNT', '2', 'STREAMS', 's', '>');
    await client.xack('s', 'g', ids[0]!, ids[1]!);

    await direct.del('s', 'holdfast:epoch');
    await eventually('the loss is noticed', () => sidecar.recovery.status().lossesTotal === 1);
    const read = await client.xreadgroup('GROUP', 'g', 'c', 'BLOCK', '100', 'STREAMS', 's', '>');
    expect(read).toBeNull();

    await direct.config('SET', 'maxmemory', '0');
    await eventually('restored', () => sidecar.recovery.status().troubled.length === 0);
    const again = (await client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', '>')) as [string, [string, string[]][]][];
    expect(again[0]![1].map(([id]) => id)).toEqual(ids.slice(2));
  });
});
