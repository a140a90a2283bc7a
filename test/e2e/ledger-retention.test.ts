/** What the ledger drops, and what it never does: real servers, partitions that are old after a moment. */
import pino from 'pino';
import { afterEach, expect, test } from 'vitest';
import { Retention } from '../../src/ledger/retention/retention.ts';
import { startKv, startTestPostgres } from '../support/servers.ts';
import { eventually, type Sidecar, startSidecar } from '../support/sidecar.ts';

const RETENTION_MS = 50;
const running = new Set<Retention>();

afterEach(async () => {
  for (const retention of running) await retention.stop();
  running.clear();
});

function retentionOf(sidecar: Sidecar, leads = true): Retention {
  const retention = new Retention({
    ledger: sidecar.ledger,
    retentionMs: RETENTION_MS,
    leader: () => ({ leads, leaderEpoch: sidecar.recovery.status().leaderEpoch }),
    limits: { partitionAgeMs: 1 },
    log: pino({ level: process.env.HOLDFAST_TEST_LOG ?? 'silent' }),
  });
  running.add(retention);
  return retention;
}

async function stack() {
  const [kv, database] = await Promise.all([startKv('redis'), startTestPostgres()]);
  const sidecar = await startSidecar({ kvPort: kv.port, databaseUrl: database.url });
  await eventually('it leads', () => sidecar.recovery.status().leads);
  return { kv, sidecar, client: sidecar.client(), retention: retentionOf(sidecar) };
}

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

async function rowsOf(sidecar: Sidecar): Promise<{ part: number; id: string }[]> {
  const { rows } = await sidecar.ledger.pool.query<{ part: number; id: Buffer }>(
    'SELECT part, id FROM holdfast.entry ORDER BY id',
  );
  return rows.map(({ part, id }) => ({ part, id: `${id.readBigUInt64BE(0)}-${id.readBigUInt64BE(8)}` }));
}

/** Until all rows of before are looked at by the reconciler, so that none is kept for its sake, and `condition` holds. */
async function settled(sidecar: Sidecar, checkpointed: string): Promise<void> {
  await eventually(`the checkpoint is at ${checkpointed}`, async () => {
    const { rows } = await sidecar.ledger.pool.query<{ checkpoint_id: Buffer; reconciled_id: Buffer }>(
      `SELECT checkpoint_id, reconciled_id FROM holdfast.consumer_group JOIN holdfast.stream USING (stream_id)
        WHERE convert_from(consumer_group.name, 'UTF8') = 'workers'`,
    );
    const wanted = Buffer.alloc(16);
    const [ms, sequence] = checkpointed.split('-');
    wanted.writeBigUInt64BE(BigInt(ms!), 0);
    wanted.writeBigUInt64BE(BigInt(sequence!), 8);
    const row = rows[0];
    return row !== undefined && row.checkpoint_id.compare(wanted) >= 0 && row.reconciled_id.compare(wanted) >= 0;
  });
}

/** Closes the partition that is written to, and drops it once it is old: on a slow machine that may be in the same pass. */
async function age(retention: Retention): Promise<void> {
  const dropped: number[] = [];
  await eventually('the partition is dropped', async () => {
    // A pass that does not get its lock in time is what the next one is for.
    const result = await retention.pass().catch(() => undefined);
    dropped.push(...(result?.dropped ?? []));
    return dropped.length > 0;
  });
  expect(dropped).toEqual([1]);
}

test('what every group has acknowledged goes with its partition, and what one has not comes back after a loss', async () => {
  const { kv, sidecar, client, retention } = await stack();
  await client.xgroup('CREATE', 'task-queue', 'workers', '0', 'MKSTREAM');
  const ids: string[] = [];
  for (let n = 0; n < 20; n += 1) ids.push((await client.xadd('task-queue', '*', 'n', String(n)))!);
  await client.xreadgroup('GROUP', 'workers', 'w', 'COUNT', 15, 'STREAMS', 'task-queue', '>');
  // The eleventh is held back, which holds the checkpoint; the four behind it are acknowledged all the same.
  await client.xack('task-queue', 'workers', ...ids.slice(0, 10), ...ids.slice(11, 15));
  await settled(sidecar, ids[9]!);
  await eventually('the acknowledgements above the checkpoint are recorded', async () => {
    const { rows } = await sidecar.ledger.pool.query(
      'SELECT FROM holdfast.pending_page UNION ALL SELECT FROM holdfast.acknowledgement',
    );
    return rows.length > 0;
  });
  const needed = [ids[10]!, ...ids.slice(15)];

  await age(retention);

  const left = await rowsOf(sidecar);
  for (const id of needed) expect(left).toContainEqual({ part: 0, id });
  for (const id of ids.slice(0, 10)) expect(left.map((row) => row.id)).not.toContain(id);
  expect(retention.status().entriesKeptTotal).toBeGreaterThanOrEqual(needed.length);

  await kv.kill9();
  await kv.restart();
  const again = (await client.xreadgroup('GROUP', 'workers', 'w', 'BLOCK', 20_000, 'STREAMS', 'task-queue', '>')) as [
    string,
    [string, string[]][],
  ][];
  expect(again[0]![1].map(([id]) => id)).toEqual(needed);

  // Once the checkpoint has passed them, the survivors go too.
  await client.xack('task-queue', 'workers', ...needed);
  await settled(sidecar, ids[19]!);
  const later = retentionOf(sidecar);
  await later.pass();
  expect((await rowsOf(sidecar)).filter((row) => row.part === 0)).toEqual([]);
});

test('a stream without groups keeps what is untrimmed, and loses what was trimmed', async () => {
  const { kv, sidecar, client, retention } = await stack();
  const ids: string[] = [];
  for (let n = 0; n < 10; n += 1) ids.push((await client.xadd('log', '*', 'n', String(n)))!);
  await client.xtrim('log', 'MINID', ids[4]!);
  await eventually('the floor is known', async () => {
    const { rows } = await sidecar.ledger.pool.query<{ settled: boolean }>(
      `SELECT floor_id > '\\x00000000000000000000000000000000' AND reconciled_id >= floor_id AS settled FROM holdfast.stream`,
    );
    return rows[0]?.settled;
  });
  await age(retention);
  expect((await rowsOf(sidecar)).map((row) => row.id)).toEqual(ids.slice(4));
  await kv.kill9();
  await kv.restart();
  expect((await client.xrange('log', '-', '+')).map(([id]) => id)).toEqual(ids.slice(4));
});

test('an abandoned group keeps its own backlog, and nothing of other streams', async () => {
  const { sidecar, client, retention } = await stack();
  await client.xgroup('CREATE', 'abandoned', 'gone', '0', 'MKSTREAM');
  const kept = await client.xadd('abandoned', '*', 'n', '1');
  await client.xgroup('CREATE', 'task-queue', 'workers', '0', 'MKSTREAM');
  let last = '';
  for (let n = 0; n < 10; n += 1) last = (await client.xadd('task-queue', '*', 'n', String(n)))!;
  await client.xreadgroup('GROUP', 'workers', 'w', 'NOACK', 'STREAMS', 'task-queue', '>');
  await settled(sidecar, last);
  await age(retention);
  expect(await rowsOf(sidecar)).toEqual([{ part: 0, id: kept }]);
  expect(retention.status().idleGroups.map(({ group, stream }) => [group, stream])).toEqual([['gone', 'abandoned']]);
  expect(retention.status().size).toMatchObject({ partitions: [{ part: 0 }, { part: 2 }] });
});

test('XADDs are committed, with none refused, while partitions are opened and dropped', async () => {
  const { sidecar, client, retention } = await stack();
  await client.xgroup('CREATE', 'task-queue', 'workers', '0', 'MKSTREAM');
  let writing = true;
  const ids = new Set<string>();
  const writer = (async () => {
    while (writing)
      for (const id of await Promise.all(Array.from({ length: 20 }, () => client.xadd('task-queue', '*', 'a', 'b'))))
        ids.add(id!);
  })();
  let dropped = 0;
  for (let n = 0; n < 6; n += 1) {
    // A pass that does not get its lock in time is what the next one is for.
    dropped += await retention.pass().then(
      (result) => result.dropped.length,
      () => 0,
    );
    await pause(RETENTION_MS);
  }
  writing = false;
  await writer;
  expect(dropped).toBeGreaterThan(0);
  // Nobody has read any: each is needed, wherever it is by now.
  const rows = await rowsOf(sidecar);
  expect(rows.map((row) => row.id)).toEqual([...ids]);
  expect(new Set(rows.map((row) => row.part)).has(0)).toBe(true);
});

test('who does not lead drops nothing', async () => {
  const { sidecar, client } = await stack();
  await client.xadd('log', '*', 'a', 'b');
  const follower = retentionOf(sidecar, false);
  await pause(RETENTION_MS);
  expect(await follower.pass()).toEqual({ opened: undefined, dropped: [], kept: 0 });
});
