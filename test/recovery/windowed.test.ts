/** [12] A backlog that is greater than what the KV store may hold comes back as it is acknowledged. */
import type { Redis } from 'ioredis';
import { describe, expect, test } from 'vitest';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { clientOf, eventually, type Sidecar, startSidecar } from '../support/sidecar.ts';

type Read = [string, [string, string[]][]][] | null;

const MAXMEMORY = 16 * 1024 * 1024;
const ENTRIES = 8000;
/** 24 MB in all. */
const VALUE = 'x'.repeat(3000);

async function add(client: Redis, from: number, count: number): Promise<string[]> {
  const ids: string[] = [];
  for (let at = from; at < from + count; at += 500) {
    const pipeline = client.pipeline();
    for (let n = at; n < Math.min(at + 500, from + count); n += 1)
      pipeline.xadd('s', '*', 'n', String(n), 'value', VALUE);
    for (const [failure, id] of (await pipeline.exec())!) {
      expect(failure).toBeNull();
      ids.push(id as string);
    }
  }
  return ids;
}

/** Reads, and acknowledges one reply later, until nothing has come for a while. */
async function work(client: Redis, group: string, expected: number, count = 100): Promise<string[]> {
  const numbers: string[] = [];
  for (let idle = 0; numbers.length < expected && idle < 30; ) {
    const read = (await client.xreadgroup(
      'GROUP',
      group,
      'c',
      'COUNT',
      count,
      'BLOCK',
      1000,
      'STREAMS',
      's',
      '>',
    )) as Read;
    const entries = read?.[0]?.[1] ?? [];
    idle = entries.length === 0 ? idle + 1 : 0;
    if (entries.length === 0) continue;
    for (const [, fields] of entries) numbers.push(fields[1]!);
    await client.xack('s', group, ...entries.map(([id]) => id));
  }
  return numbers;
}

/** Numbers that follow one another as `from..to`, so that a failure can be read. */
function ranges(numbers: readonly (number | string)[]): string {
  const parts: string[] = [];
  for (let at = 0; at < numbers.length; ) {
    let end = at;
    while (end + 1 < numbers.length && Number(numbers[end + 1]) === Number(numbers[end]) + 1) end += 1;
    parts.push(end === at ? String(numbers[at]) : `${numbers[at]}..${numbers[end]}`);
    at = end + 1;
  }
  return parts.join(' ');
}

async function memoryOf(direct: Redis): Promise<number> {
  return Number(/used_memory:(\d+)/.exec(await direct.info('memory'))![1]);
}

describe.each(kvKinds)('a backlog greater than maxmemory, with %s,', (kind) => {
  async function stack(policy: string) {
    const kv = await startKv(kind);
    const database = await startTestPostgres();
    const sidecar = await startSidecar({ kvPort: kv.port, databaseUrl: database.url, lookIntervalMs: 50 });
    const direct = clientOf(kv.port);
    await direct.config('SET', 'maxmemory-policy', policy);
    return { kv, sidecar, client: sidecar.client(), direct };
  }

  function causeOf(sidecar: Sidecar): string {
    return sidecar.recovery.status().troubled.find(({ stream }) => stream === 's')?.cause ?? '';
  }

  test('is delivered in order and once while a worker reads, and others have memory all the time', async () => {
    const { sidecar, client, direct } = await stack('noeviction');
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    await add(client, 0, ENTRIES);
    // Acknowledged before the loss: does not come back.
    expect(ranges(await work(client, 'g', 1000))).toBe('0..999');
    await sidecar.ledger.acknowledgements.flush();
    await direct.flushall();
    await direct.config('SET', 'maxmemory', MAXMEMORY);
    await eventually('status says that it is restored in part', () => /in part/.test(causeOf(sidecar)), 30_000);
    expect(await memoryOf(direct)).toBeLessThan(MAXMEMORY * 0.75);

    let watching = true;
    let greatest = 0;
    const other = (async () => {
      for (let n = 0; watching; n += 1) {
        expect(await direct.set(`other:${n % 10}`, VALUE)).toBe('OK');
        greatest = Math.max(greatest, await memoryOf(direct));
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    })();
    // Accepted meanwhile, behind all that is still to come.
    await add(sidecar.client(), ENTRIES, 100);
    expect(await client.xgroup('CREATE', 's', 'late', '$')).toBe('OK');
    expect(ranges(await work(client, 'g', ENTRIES + 100 - 1000))).toBe('1000..8099');
    watching = false;
    await other;
    expect(greatest).toBeLessThan(MAXMEMORY * 0.9);
    await eventually('all is well', () => sidecar.recovery.status().troubled.length === 0, 30_000);
    const status = sidecar.recovery.status();
    expect(status.lossesTotal).toBe(1);

    // It is an ordinary stream again.
    await direct.config('SET', 'maxmemory', '0');
    await add(client, ENTRIES + 100, 5);
    expect(ranges(await work(client, 'g', 5))).toBe('8100..8104');
    const { rows } = await sidecar.ledger.pool.query<{ windowed: boolean; aliases: string }>(
      'SELECT windowed, aliases FROM holdfast.recovery ORDER BY recovery_id LIMIT 1',
    );
    expect(rows).toEqual([{ windowed: true, aliases: '0' }]);
    // Let the KV store be compared with the ledger a few times more.
    const { looksTotal } = sidecar.recovery.status();
    await eventually('looks', () => sidecar.recovery.status().looksTotal > looksTotal + 3);
    expect(sidecar.recovery.status().lossesTotal).toBe(1);
  }, 180_000);

  test('survives a second loss half-way, deletions and a group that nobody reads', async () => {
    const { sidecar, client, direct } = await stack('noeviction');
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    await client.xgroup('CREATE', 's', 'abandoned', '0');
    const ids = await add(client, 0, ENTRIES);
    await direct.flushall();
    await direct.config('SET', 'maxmemory', MAXMEMORY);
    await eventually('restored in part', () => /in part/.test(causeOf(sidecar)), 30_000);
    expect(ranges(await work(client, 'g', 500))).toBe('0..499');
    // One that is there, and one that the ledger alone has.
    expect(await client.xdel('s', ids[600]!)).toBe(1);
    await expect(client.xdel('s', ids[ENTRIES - 1]!)).rejects.toThrow(/RECOVERING/);
    await sidecar.ledger.acknowledgements.flush();
    await direct.flushall();
    await eventually('noticed', () => sidecar.recovery.status().lossesTotal === 2, 30_000);
    await eventually('restored in part', () => /in part/.test(causeOf(sidecar)), 30_000);
    await direct.config('SET', 'maxmemory', MAXMEMORY * 4);
    expect(ranges(await work(client, 'g', ENTRIES - 501))).toBe('500..599 601..7999');
    await eventually('all is well', () => sidecar.recovery.status().troubled.length === 0, 30_000);
    await direct.config('SET', 'maxmemory', '0');
    expect(ranges(await work(client, 'abandoned', ENTRIES - 1))).toBe('0..599 601..7999');
  }, 180_000);

  test('takes a quarter where keys are evicted, also when a client that goes past Holdfast writes to it', async () => {
    const { sidecar, client, direct } = await stack('allkeys-lru');
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    await add(client, 0, ENTRIES);
    await direct.flushall();
    await direct.config('SET', 'maxmemory', MAXMEMORY);
    await eventually('restored in part', () => /in part/.test(causeOf(sidecar)), 30_000);
    expect(Number(await direct.memory('USAGE', 's'))).toBeLessThan(MAXMEMORY * 0.4);
    await direct.xadd('s', '*', 'n', 'direct');
    const read = await work(client, 'g', ENTRIES + 1);
    expect(ranges(read.filter((n) => n !== 'direct'))).toBe('0..7999');
    expect(read.filter((n) => n === 'direct')).toHaveLength(1);
    await eventually('all is well', () => sidecar.recovery.status().troubled.length === 0, 30_000);
    const { looksTotal } = sidecar.recovery.status();
    await eventually('looks', () => sidecar.recovery.status().looksTotal > looksTotal + 3);
    expect(sidecar.recovery.status().lossesTotal).toBe(1);
  }, 180_000);

  test('comes back without what was acknowledged behind it, and is no second loss', async () => {
    const { sidecar, client, direct } = await stack('noeviction');
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    const ids = await add(client, 0, ENTRIES);
    for (let read = 0; read < ENTRIES; read += 1000) {
      await client.xreadgroup('GROUP', 'g', 'c', 'COUNT', 1000, 'STREAMS', 's', '>');
    }
    for (let at = 3000; at < ENTRIES; at += 1000) await client.xack('s', 'g', ...ids.slice(at, at + 1000));
    await sidecar.ledger.acknowledgements.flush();
    await direct.flushall();
    await direct.config('SET', 'maxmemory', MAXMEMORY);
    await eventually('restored in part', () => /in part/.test(causeOf(sidecar)), 30_000);
    expect(ranges(await work(client, 'g', 3000))).toBe('0..2999');
    await eventually('all is well', () => sidecar.recovery.status().troubled.length === 0, 30_000);
    const { looksTotal } = sidecar.recovery.status();
    await eventually('looks', () => sidecar.recovery.status().looksTotal > looksTotal + 3);
    expect(sidecar.recovery.status().lossesTotal).toBe(1);
  }, 180_000);
});
