/** An entry that cannot be taken is its own sender's trouble: those that came with it, and its connection, go on. */
import type { Redis } from 'ioredis';
import { beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import { encodeFields } from '../../src/ledger/encoding/entry-fields.ts';
import { agreed, ledgerRows } from '../support/ledger-rows.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { eventually, type Sidecar, startAnew } from '../support/sidecar.ts';

/** No look by itself during a test. */
const NEVER_MS = 600_000;
const ENTRY_BYTES_MAX = 100_000;

describe.each(kvKinds)('with %s', (kind) => {
  let kv: KvServer;
  let sidecar: Sidecar;
  let client: Redis;
  let direct: Redis;

  beforeAll(async () => {
    kv = await startKv(kind);
  });

  beforeEach(async () => {
    ({ sidecar, client, direct } = await startAnew(kv.port, {
      lookIntervalMs: NEVER_MS,
      entryBytesMax: ENTRY_BYTES_MAX,
    }));
    await client.xadd('s', '1-1', 'n', 'first');
  });

  /** In one write, so that all of it is one batch; the one of `badAt` is `bad`. */
  async function addTogether(count: number, badAt: number, bad: readonly string[]): Promise<unknown[]> {
    const pipeline = client.pipeline();
    for (let n = 0; n < count; n += 1) pipeline.call('XADD', 's', ...(n === badAt ? bad : ['*', 'n', String(n)]));
    return (await pipeline.exec())!.map(([error, id]) => error ?? id);
  }

  test('a row that Postgres refuses fails alone in its batch, wherever it stands', async () => {
    // Stands for whatever the ledger cannot take of one entry and of no other.
    await sidecar.ledger.pool.query(
      `ALTER TABLE holdfast.entry ADD CHECK (position('\\x706f69736f6e'::bytea IN fields) = 0)`,
    );
    for (const badAt of [0, 37, 99]) {
      const { batchesTotal } = sidecar.ledger.metrics().commit;
      const answers = await addTogether(100, badAt, ['*', 'n', 'poison']);
      expect(String(answers[badAt])).toMatch(/LEDGERERROR .*check constraint/);
      const ids = answers.filter((answer) => typeof answer === 'string');
      expect(ids).toHaveLength(99);
      const rows = (await ledgerRows(sidecar, 's')).map(([id]) => id);
      expect(rows.slice(-99)).toEqual(ids);
      // By halves, not one by one.
      expect(sidecar.ledger.metrics().commit.batchesTotal - batchesTotal).toBeLessThan(30);
    }
    expect(await client.xadd('s', '*', 'n', 'afterwards')).toMatch(/-0$/);
  });

  /** Gives the ledger an entry of which neither the KV store nor the sidecar knows. */
  async function plant(stream: string, ms: number): Promise<void> {
    await sidecar.ledger.pool.query(
      `INSERT INTO holdfast.entry (part, stream_id, epoch, id, fields)
       SELECT (SELECT max(part) FROM holdfast.entry_partition), stream_id, epoch, int8send($2) || int8send(1), $3
         FROM holdfast.stream WHERE name = $1`,
      [Buffer.from(stream), ms, encodeFields([Buffer.from('n'), Buffer.from('ledger')])],
    );
  }

  test('an ID that the ledger has with other fields holds up none of its batch, and neither entry is lost', async () => {
    await plant('s', 101);
    const ids = Array.from({ length: 100 }, (_, n) => `${n + 2}-1`);
    const answered: unknown[] = [];
    const adding = client.pipeline();
    for (const id of ids) adding.xadd('s', id, 'n', id, (error, answer) => answered.push(error ?? answer));
    // The one whose ID is taken cannot be told its outcome before the ledger's entry has another ID.
    const session = await sidecar.ledger.postgres.connect();
    try {
      await session.query('BEGIN; LOCK TABLE holdfast.leader');
      const all = adding.exec();
      await eventually('its batch-mates have their answer', () => answered.length === 99);
      await session.query('COMMIT');
      await all;
    } finally {
      await session.end();
    }
    expect(answered).toEqual(ids);
    expect(sidecar.ledger.metrics().commit.conflictsTotal).toBeGreaterThan(0);
    await agreed(sidecar, direct, 's');
    const rows = await ledgerRows(sidecar, 's');
    expect(rows).toHaveLength(102);
    expect(rows.find(([id]) => id === '101-1')).toEqual(['101-1', ['n', '101-1']]);
    expect(rows.filter(([, [, value]]) => value === 'ledger')).toHaveLength(1);
  });

  test('an entry that is not there any more when its ID proves to be taken: its sender alone hears so', async () => {
    await client.xadd('t', '1-1', 'n', 'first');
    await plant('t', 50);
    const adding = client.pipeline();
    for (let n = 0; n < 50; n += 1) adding.xadd('s', '*', 'n', String(n));
    adding.xadd('t', 'MAXLEN', 0, '50-1', 'n', 'client');
    for (let n = 50; n < 100; n += 1) adding.xadd('s', '*', 'n', String(n));
    const answers = (await adding.exec())!.map(([error, id]) => error ?? id);
    expect(String(answers[50])).toMatch(/LEDGERCONFLICT the ledger has another entry under 50-1/);
    expect(answers.filter((answer) => typeof answer === 'string')).toHaveLength(100);
    await agreed(sidecar, direct, 's');
    expect((await ledgerRows(sidecar, 't')).at(-1)![1]).toEqual(['n', 'ledger']);
  });

  test('an entry above entryBytesMax is refused before it is sent, on a connection that goes on', async () => {
    const exact = ENTRY_BYTES_MAX - 1;
    const answers = await addTogether(20, 10, ['*', 'n', 'x'.repeat(exact + 1)]);
    expect(String(answers[10])).toMatch(/ERR the entry has 100001 bytes, ledger.entryBytesMax is 100000/);
    const ids = answers.filter((answer) => typeof answer === 'string');
    expect(ids).toHaveLength(19);
    // In fields of any number, and where it is as long as may be.
    await expect(client.xadd('s', '*', ...Array.from({ length: 2000 }, () => 'x'.repeat(51)))).rejects.toThrow(
      /102000 bytes/,
    );
    ids.push((await client.xadd('s', '*', 'n', 'x'.repeat(exact)))!);
    // A stream that nobody knows is not begun for it.
    await expect(client.xadd('new', '*', 'n', 'x'.repeat(exact + 1))).rejects.toThrow(/^ERR the entry has/);
    expect(await direct.exists('new')).toBe(0);
    const executed = client
      .multi()
      .set('k', 'v')
      .xadd('s', '*', 'n', 'x'.repeat(exact + 1))
      .exec();
    await expect(executed).rejects.toThrow(/EXECABORT/);
    expect(await direct.get('k')).toBeNull();
    expect((await ledgerRows(sidecar, 's')).map(([id]) => id)).toEqual(['1-1', ...ids]);
    await agreed(sidecar, direct, 's');
  });

  test('an entry too great to be kept whole on its way is refused as clearly', async () => {
    const other = sidecar.client();
    const adding = Array.from({ length: 20 }, (_, n) => other.xadd('s', '*', 'n', String(n)));
    await expect(client.xadd('s', '*', 'n', 'x'.repeat(3 * 1024 * 1024))).rejects.toThrow(/^ERR the entry has 3145729/);
    await Promise.all(adding);
    expect(await client.xadd('s', '*', 'n', 'afterwards')).toBeTruthy();
    expect(await direct.xlen('s')).toBe(22);
    await agreed(sidecar, direct, 's');
  });
});
