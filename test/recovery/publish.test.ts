import { describe, expect, test } from 'vitest';
import type { KvServerKind } from '../../src/embedded/kv-server.ts';
import { formatEntryId, parseEntryId } from '../../src/ledger/encoding/entry-id.ts';
import { startTcpProxy } from '../chaos/tcp-proxy.ts';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { clientOf, eventually, startSidecar } from '../support/sidecar.ts';

/** A sidecar whose way to the KV store can be cut, with one entry in the stream `s`; `direct` goes past it. */
async function setUp(kind: KvServerKind) {
  const kv = await startKv(kind);
  const database = await startTestPostgres();
  const link = await startTcpProxy(() => kv.port);
  const sidecar = await startSidecar({ kvPort: link.port, databaseUrl: database.url, lookIntervalMs: 100 });
  const client = sidecar.client();
  await client.xadd('s', '*', 'n', '0');
  return { sidecar, client, direct: clientOf(kv.port), link };
}

describe.each(kvKinds)('what the ledger accepted during an outage, with %s:', (kind) => {
  test('is published in order while clients that go past Holdfast keep writing', async () => {
    const { sidecar, direct, link } = await setUp(kind);
    const producers = Array.from({ length: 10 }, () => sidecar.client());
    await Promise.all(producers.map((producer) => producer.ping()));

    let hammering = true;
    let hammered = 0;
    const hammer = (async () => {
      while (hammering) {
        const batch = direct.pipeline();
        for (let i = 0; i < 5; i += 1) batch.xadd('s', '*', 'direct', String((hammered += 1)));
        await batch.exec();
      }
    })();
    try {
      link.cut();
      const during: Promise<string | null>[] = [];
      for (let n = 1; n <= 50; n += 1) during.push(producers[n % 10]!.xadd('s', '*', 'n', String(n)));
      expect((await Promise.all(during)).every((id) => id !== null)).toBe(true);
      link.heal();
      await eventually('all is published', () => sidecar.recovery.status().troubled.length === 0);
    } finally {
      hammering = false;
      await hammer;
    }
    const entries = await direct.xrange('s', '-', '+');
    const ours = entries.filter(([, fields]) => fields[0] === 'n').map(([, fields]) => Number(fields[1]));
    expect(ours.toSorted((a, b) => a - b)).toEqual(Array.from({ length: 51 }, (_, n) => n));
    expect(entries.filter(([, fields]) => fields[0] === 'direct').length).toBe(hammered);
    await sidecar.stop();
    await link.close();
  });

  test('is published but for what was deleted while it waited', async () => {
    const { sidecar, client, direct, link } = await setUp(kind);
    link.cut();
    const during = await Promise.all(Array.from({ length: 4 }, (_, n) => client.xadd('s', '*', 'n', String(n + 1))));
    await sidecar.ledger.pool.query(
      'INSERT INTO holdfast.deletion (stream_id, id) SELECT stream_id, $1 FROM holdfast.stream',
      [parseEntryId(Buffer.from(during[1]!))],
    );
    // All that wait need another ID.
    await direct.xadd('s', '9000000000000-0', 'n', 'direct');
    link.heal();
    await eventually('all is published', () => sidecar.recovery.status().troubled.length === 0);
    const entries = await direct.xrange('s', '-', '+');
    expect(entries.map(([, [, n]]) => n)).toEqual(['0', 'direct', '1', '3', '4']);
    const { rows } = await sidecar.ledger.pool.query('SELECT FROM holdfast.backlog');
    expect(rows).toHaveLength(0);
    await sidecar.stop();
    await link.close();
  });

  test('is published although the KV store is far away and every entry needs another ID', async () => {
    const { sidecar, client, direct, link } = await setUp(kind);
    link.cut();
    const during = Array.from({ length: 400 }, (_, n) => client.xadd('s', '*', 'n', String(n + 1)));
    expect((await Promise.all(during)).every((id) => id !== null)).toBe(true);
    // One round trip for each entry would last longer than Postgres lets a transaction rest.
    await direct.xadd('s', '9000000000000-0', 'direct', '1');
    link.heal();
    link.delay(10);
    await eventually('all is published', () => sidecar.recovery.status().troubled.length === 0, 30_000);
    const entries = await direct.xrange('s', '-', '+');
    expect(entries.map(([, [, n]]) => Number(n))).toEqual([0, 1, ...Array.from({ length: 400 }, (_, n) => n + 1)]);
    await sidecar.stop();
    await link.close();
  });

  test('is published in order although it is greater than a batch and every entry needs another ID', async () => {
    const { sidecar, client, direct, link } = await setUp(kind);
    link.cut();
    const during = Array.from({ length: 2500 }, (_, n) => client.xadd('s', '*', 'n', String(n + 1)));
    const given = await Promise.all(during);
    await direct.xadd('s', '9000000000000-0', 'direct', '0');
    link.heal();
    await eventually('all is published', () => sidecar.recovery.status().troubled.length === 0, 45_000);
    const entries = await direct.xrange('s', '-', '+');
    expect(entries.map(([, [, n]]) => Number(n)).slice(2)).toEqual(Array.from({ length: 2500 }, (_, n) => n + 1));
    // Under both IDs they are known.
    const { rows } = await sidecar.ledger.pool.query<{ published: Buffer }>(
      'SELECT published_id AS published FROM holdfast.alias ORDER BY id',
    );
    expect(rows.map(({ published }) => formatEntryId(published))).toEqual(entries.slice(2).map(([id]) => id));
    expect(given).toHaveLength(rows.length);
    await sidecar.stop();
    await link.close();
  });
});
