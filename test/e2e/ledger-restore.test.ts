import { describe, expect, test } from 'vitest';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { eventually, startSidecar } from '../support/sidecar.ts';

type Entries = [string, [string, string[]][]][];

describe.each(kvKinds)('a ledgered stream in %s', (kind) => {
  async function stack() {
    const [kv, database] = await Promise.all([startKv(kind), startTestPostgres()]);
    return { kv, database, sidecar: await startSidecar({ kvPort: kv.port, databaseUrl: database.url }) };
  }

  test('is in Postgres before the reply of XADD', async () => {
    const { sidecar } = await stack();
    const client = sidecar.client();
    const id = await client.xadd('task-queue', '*', 'body', 'x');
    const { rows } = await sidecar.ledger.pool.query<{ fields: Buffer }>('SELECT fields FROM holdfast.entry');
    expect(rows.map((row) => row.fields.toString())).toEqual(['*2\r\n$4\r\nbody\r\n$1\r\nx\r\n']);
    expect(id).toMatch(/^\d+-0$/);
  });

  test('commits XADDs of a transaction with the reply of EXEC', async () => {
    const { sidecar } = await stack();
    const client = sidecar.client();
    const replies = await client.multi().xadd('a', '*', 'f', '1').set('k', 'v').xadd('b', '*', 'f', '2').exec();
    expect(replies!.map(([failure]) => failure)).toEqual([null, null, null]);
    const { rows } = await sidecar.ledger.pool.query('SELECT 1 FROM holdfast.entry');
    expect(rows).toHaveLength(2);
  });

  test('comes back after an empty restart with its IDs and groups, and a blocked worker only waits', async () => {
    const { kv, sidecar } = await stack();
    const producer = sidecar.client();
    const worker = sidecar.client();
    await producer.xgroup('CREATE', 'task-queue', 'workers', '0', 'MKSTREAM');
    const first = await producer.xadd('task-queue', '*', 'n', '1');
    await worker.xreadgroup('GROUP', 'workers', 'w', 'STREAMS', 'task-queue', '>');
    await worker.xack('task-queue', 'workers', first!);
    await eventually('the checkpoint passes the first', async () => {
      const { rows } = await sidecar.ledger.pool.query(
        'SELECT 1 FROM holdfast.consumer_group WHERE checkpoint_id = last_delivered_id AND entries_read = 1',
      );
      return rows.length === 1;
    });

    const blocked = worker.xreadgroup(
      'GROUP',
      'workers',
      'w',
      'BLOCK',
      10_000,
      'STREAMS',
      'other',
      'task-queue',
      '>',
      '>',
    );
    const refused = await blocked.catch((thrown: Error) => thrown.message);
    expect(refused).toMatch(/^NOGROUP/);

    const waiting = worker.xreadgroup('GROUP', 'workers', 'w', 'BLOCK', 0, 'STREAMS', 'task-queue', '>');
    await kv.kill9();
    const during = await producer.xadd('task-queue', '*', 'n', '2');
    await kv.restart();
    const entries = (await waiting) as Entries;
    expect(entries).toEqual([['task-queue', [[during, ['n', '2']]]]]);
    const after = await producer.xadd('task-queue', '*', 'n', '3');
    expect(await worker.xreadgroup('GROUP', 'workers', 'w', 'BLOCK', 20_000, 'STREAMS', 'task-queue', '>')).toEqual([
      ['task-queue', [[after, ['n', '3']]]],
    ]);
    expect(sidecar.recovery.status().restoresTotal).toBe(1);
  });

  test('that has no groups comes back whole', async () => {
    const { kv, sidecar } = await stack();
    const client = sidecar.client();
    const ids: string[] = [];
    for (let n = 0; n < 50; n += 1) ids.push((await client.xadd('log', '*', 'n', String(n)))!);
    await kv.kill9();
    await kv.restart();
    const entries = await client.xrange('log', '-', '+');
    expect(entries.map(([id]) => id)).toEqual(ids);
  });

  test('never shows NOGROUP for a group that it knows', async () => {
    const { kv, sidecar } = await stack();
    const client = sidecar.client();
    await client.xgroup('CREATE', 'task-queue', 'workers', '$', 'MKSTREAM');
    await kv.kill9();
    await kv.restart();
    expect(await client.xreadgroup('GROUP', 'workers', 'w', 'STREAMS', 'task-queue', '>')).toBeNull();
    const id = await client.xadd('task-queue', '*', 'n', '1');
    expect(await client.xreadgroup('GROUP', 'workers', 'w', 'BLOCK', 20_000, 'STREAMS', 'task-queue', '>')).toEqual([
      ['task-queue', [[id, ['n', '1']]]],
    ]);
  });
});
