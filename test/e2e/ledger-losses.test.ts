import { copyFile, stat, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import type { Redis } from 'ioredis';
import { beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import { startTcpProxy } from '../chaos/tcp-proxy.ts';
import { startLedgerLink } from '../support/ledger-link.ts';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { clientOf, eventually, looks, restored, type Sidecar, startSidecar } from '../support/sidecar.ts';

const LOOK_MS = 50;

describe.each(kvKinds)('noticed and put back, with %s:', (kind) => {
  let kv: KvServer;
  let sidecar: Sidecar;
  let client: Redis;
  let direct: Redis;

  beforeAll(async () => {
    kv = await startKv(kind, { extraArgs: ['--appendonly', 'no', '--enable-debug-command', 'yes'] });
  });

  async function begin(lookIntervalMs = LOOK_MS): Promise<void> {
    const database = await startTestPostgres();
    sidecar = await startSidecar({ kvPort: kv.port, databaseUrl: database.url, lookIntervalMs });
    client = sidecar.client();
  }

  beforeEach(async () => {
    direct = clientOf(kv.port);
    await direct.flushall();
  });

  async function fill(stream = 's', count = 5, first = 0): Promise<string[]> {
    const ids: string[] = [];
    for (let n = first; n < first + count; n += 1) ids.push((await client.xadd(stream, '*', 'n', String(n)))!);
    return ids;
  }

  async function idsOf(stream: string, through: Redis = client): Promise<string[]> {
    return (await through.xrange(stream, '-', '+')).map(([id]) => id);
  }

  test('DEL behind our back', async () => {
    await begin();
    const ids = await fill();
    await direct.del('s');
    await restored(sidecar, 1);
    expect(await idsOf('s')).toEqual(ids);
  });

  test('FLUSHALL behind our back, streams in several databases', async () => {
    await begin();
    const ids = await fill();
    await client.select(9);
    const others = await fill('s', 3);
    await direct.flushall();
    await restored(sidecar, 2);
    expect(await idsOf('s')).toEqual(others);
    await client.select(0);
    expect(await idsOf('s')).toEqual(ids);
  });

  test('nothing, when only the witness is gone [12]', async () => {
    await begin();
    await fill();
    await looks(sidecar);
    await direct.del('holdfast:epoch');
    await eventually('the witness is back', () => direct.exists('holdfast:epoch'));
    await looks(sidecar);
    expect(sidecar.recovery.status().lossesTotal).toBe(0);
  });

  test('FLUSHALL while the ledger does not answer is told to nobody', async () => {
    const { link, url } = await startLedgerLink((await startTestPostgres()).url);
    sidecar = await startSidecar({ kvPort: kv.port, databaseUrl: url, lookIntervalMs: 60_000, holdMs: 30_000 });
    client = sidecar.client();
    const claiming = sidecar.client();
    const ids = await fill();
    await client.xgroup('CREATE', 's', 'g', '0');
    await sidecar.recovery.look();
    const { looksTotal } = sidecar.recovery.status();
    link.hold(['toServer', 'toClient']);
    await direct.flushall();
    const read = client.xreadgroup('GROUP', 'g', 'c', 'BLOCK', 30_000, 'STREAMS', 's', '>');
    const claimed = claiming.xautoclaim('s', 'g', 'd', 60_000, '0');
    await new Promise((resolve) => setTimeout(resolve, 300));
    // Now the comparison fails that was to tell what became of the group.
    link.reset();
    link.heal();
    expect(((await read) as [string, [string, string[]][]][])[0]![1].map(([id]) => id)).toEqual(ids);
    expect((await claimed)[0]).toBe('0-0');
    expect(sidecar.recovery.status().looksTotal).toBeGreaterThan(looksTotal);
    await link.close();
  });

  test('several streams at the same time', async () => {
    const database = await startTestPostgres();
    const link = await startTcpProxy(() => kv.port);
    sidecar = await startSidecar({ kvPort: link.port, databaseUrl: database.url, lookIntervalMs: LOOK_MS });
    client = sidecar.client();
    const names = ['a', 'b', 'c', 'd', 'e', 'f'];
    for (const name of names) await fill(name, 3);
    await looks(sidecar);
    // Every step of a restore takes its time.
    link.delay(10);
    await direct.flushall();
    await restored(sidecar, names.length);
    const { rows } = await sidecar.ledger.pool.query<{ overlapping: string }>(
      `SELECT count(*) AS overlapping FROM holdfast.recovery AS one JOIN holdfast.recovery AS other
          ON one.recovery_id < other.recovery_id AND one.began_at < other.completed_at AND other.began_at < one.completed_at`,
    );
    expect(Number(rows[0]!.overlapping)).toBeGreaterThan(0);
    for (const name of names) expect(await idsOf(name, direct)).toHaveLength(3);
    await link.close();
  });

  test('a stream that was evicted and made anew between two looks [7b]', async () => {
    await begin(60_000);
    const ids = await fill('s', 5);
    const future = `${Date.now() + 1000}`;
    await direct
      .multi()
      .del('s')
      .xadd('s', `${future}-1`, 'direct', '1')
      .xadd('s', `${future}-2`, 'direct', '2')
      .exec();
    await sidecar.recovery.look();
    await restored(sidecar, 1);
    expect(await idsOf('s')).toEqual([...ids, `${future}-1`, `${future}-2`]);
  });

  test('a stream that was made anew between two looks, with more entries than it ever had [7b]', async () => {
    await begin(60_000);
    const ids = await fill('s', 3);
    await sidecar.recovery.look();
    // One transaction, so that no look comes between.
    const anew = direct.multi().del('s');
    for (let n = 0; n < 10; n += 1) anew.xadd('s', '*', 'by', 'direct');
    await anew.exec();
    await sidecar.recovery.look();
    await restored(sidecar, 1);
    const all = await idsOf('s');
    expect(all).toHaveLength(13);
    expect(all.slice(0, 3)).toEqual(ids);
  });

  test('a stream that is gone, by the next XADD [7a]', async () => {
    await begin(60_000);
    const ids = await fill();
    await direct.del('s');
    const next = await client.xadd('s', '*', 'n', 'next');
    await restored(sidecar, 1);
    expect(await idsOf('s')).toEqual([...ids, next]);
  });

  test('a group that is gone', async () => {
    await begin(60_000);
    const ids = await fill();
    await client.xgroup('CREATE', 's', 'g', '0');
    await client.xreadgroup('GROUP', 'g', 'c', 'COUNT', 2, 'STREAMS', 's', '>');
    await client.xack('s', 'g', ids[0]!, ids[1]!);
    await sidecar.recovery.look();
    await direct.xgroup('DESTROY', 's', 'g');
    const reply = (await client.xreadgroup('GROUP', 'g', 'c', 'BLOCK', 20_000, 'STREAMS', 's', '>')) as [
      string,
      [string, string[]][],
    ][];
    expect(reply[0]![1].map(([id]) => id)).toEqual(ids.slice(2));
  });

  test('a group that went back', async () => {
    await begin();
    const ids = await fill();
    await client.xgroup('CREATE', 's', 'g', '0');
    await client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', '>');
    await client.xack('s', 'g', ...ids);
    await looks(sidecar);
    await direct.xgroup('SETID', 's', 'g', '0');
    await restored(sidecar, 1);
    expect(await client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', '>')).toBeNull();
  });

  test('an old RDB file', async () => {
    await begin();
    const old = await fill('s', 3);
    await client.xgroup('CREATE', 's', 'g', '0');
    await client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', '>');
    await client.xack('s', 'g', old[0]!);
    await looks(sidecar);
    await direct.save();
    const directory = ((await direct.config('GET', 'dir')) as string[])[1]!;
    const file = ((await direct.config('GET', 'dbfilename')) as string[])[1]!;
    await client.xack('s', 'g', old[1]!);
    const young = await fill('s', 3, 3);
    await looks(sidecar);
    await kv.kill9();
    await kv.restart();
    expect((await stat(join(directory, file))).size).toBeGreaterThan(0);
    await restored(sidecar, 1);
    expect(await idsOf('s')).toEqual([...old, ...young]);
    const reply = (await client.xreadgroup('GROUP', 'g', 'c', 'BLOCK', 20_000, 'STREAMS', 's', '>')) as [
      string,
      [string, string[]][],
    ][];
    expect(reply[0]![1].map(([id]) => id)).toEqual([old[2], ...young]);
  });

  test('an old RDB file, made up for in number by direct clients before anybody looked', async () => {
    const database = await startTestPostgres();
    const link = await startTcpProxy(() => kv.port);
    sidecar = await startSidecar({ kvPort: link.port, databaseUrl: database.url, lookIntervalMs: LOOK_MS });
    client = sidecar.client();
    const old = await fill('s', 3);
    await looks(sidecar);
    await direct.save();
    const young = await fill('s', 3, 3);
    await looks(sidecar);
    link.cut();
    await kv.kill9();
    await kv.restart();
    const straight: (string | null)[] = [];
    const another = clientOf(kv.port);
    for (let n = 0; n < young.length; n += 1) straight.push(await another.xadd('s', '*', 'by', 'direct'));
    link.heal();
    await restored(sidecar, 1);
    expect(await idsOf('s')).toEqual([...old, ...young, ...straight]);
    await link.close();
  });

  test('a stream that went back on a server that stayed, made up for in number by direct clients', async () => {
    await begin(60_000);
    const old = await fill('s', 5);
    const dump = await direct.dumpBuffer('s');
    const young = await fill('s', 3, 5);
    for (let n = 0; n < 3; n += 1) await sidecar.recovery.look();
    await direct.restore('s', 0, dump, 'REPLACE');
    const straight: (string | null)[] = [];
    for (let n = 0; n < 4; n += 1) straight.push(await direct.xadd('s', '*', 'by', 'direct'));
    for (let n = 0; n < 2; n += 1) await sidecar.recovery.look();
    await restored(sidecar, 1);
    expect(await idsOf('s')).toEqual([...old, ...young, ...straight]);
  });

  test('REPLICAOF somewhere else, and back', async () => {
    const other = await startKv(kind, { extraArgs: ['--repl-diskless-sync-delay', '0'] });
    await begin();
    const ids = await fill();
    await looks(sidecar);
    await direct.call('REPLICAOF', '127.0.0.1', String(other.port));
    await eventually('the replica has synchronized', async () =>
      /master_link_status:up/.test(await direct.info('replication')),
    );
    const during = client.xadd('s', '*', 'n', 'during');
    await eventually('noticed', () => sidecar.recovery.gate.state === 'down');
    await direct.call('REPLICAOF', 'NO', 'ONE');
    const id = await during;
    await restored(sidecar, 1);
    expect(await idsOf('s')).toEqual([...ids, id]);
    expect(await direct.keys('*')).toContain('s');
  });

  test('entries that did not pass through Holdfast: scripts and direct clients', async () => {
    await begin();
    const [first] = await fill('s', 1);
    const scripted = (await client.eval("return redis.call('XADD', KEYS[1], '*', 'by', 'script')", 1, 's')) as string;
    const straight = await direct.xadd('s', '*', 'by', 'direct');
    const [last] = await fill('s', 1);
    await eventually('taken in', () => sidecar.recovery.status().observedTotal === 2);
    await direct.flushall();
    await restored(sidecar, 1);
    expect(await idsOf('s')).toEqual([first, scripted, straight, last]);
    const { rows } = await sidecar.ledger.pool.query('SELECT observed FROM holdfast.entry ORDER BY id');
    expect(rows.map((row) => row.observed)).toEqual([false, true, true, false]);
  });

  test('entries written and deleted before anybody looked are counted, not missed', async () => {
    await begin(60_000);
    await fill('s', 2);
    const id = await direct.xadd('s', '*', 'by', 'direct');
    await direct.xdel('s', id!);
    await sidecar.recovery.look();
    await sidecar.recovery.look();
    const { rows } = await sidecar.ledger.pool.query<{ added_base: string }>('SELECT added_base FROM holdfast.stream');
    expect(rows[0]!.added_base).toBe('1');
    await fill('s', 2, 2);
    await sidecar.recovery.look();
    expect(sidecar.recovery.status().lossesTotal).toBe(0);
  });

  test('what an empty ledger finds in a full KV store is adopted', async () => {
    const ids: string[] = [];
    for (let n = 0; n < 2500; n += 1) ids.push((await direct.xadd('old', '*', 'n', String(n)))!);
    await direct.xgroup('CREATE', 'old', 'g', '0');
    await direct.xreadgroup('GROUP', 'g', 'c', 'COUNT', 100, 'STREAMS', 'old', '>');
    await direct.xack('old', 'g', ...ids.slice(0, 50));
    await begin();
    await eventually('taken in', () => sidecar.recovery.status().observedTotal === 2500);
    await looks(sidecar);
    await direct.flushall();
    await restored(sidecar, 1);
    const reply = (await client.xreadgroup('GROUP', 'g', 'c', 'BLOCK', 20_000, 'STREAMS', 'old', '>')) as [
      string,
      [string, string[]][],
    ][];
    expect(reply[0]![1].map(([id]) => id)).toEqual(ids.slice(50));
  });

  test('a KV store of another ledger is refused, with the remedy', async () => {
    await begin();
    await eventually('the witness is there', () => direct.exists('holdfast:epoch'));
    await expect(begin()).rejects.toThrow(/belongs to the ledger .* delete the key holdfast:epoch/);
  });

  test('an ID that now holds another entry: the lost one comes back under a new ID', async () => {
    await begin(60_000);
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    await client.xadd('s', '5-1', 'event', 'lost');
    await client.xadd('s', '6-1', 'event', 'kept');
    await direct.multi().del('s').xadd('s', '5-1', 'event', 'other').exec();
    await sidecar.recovery.look();
    await restored(sidecar, 1);
    const reply = (await client.xreadgroup('GROUP', 'g', 'c', 'BLOCK', 20_000, 'STREAMS', 's', '>')) as [
      string,
      [string, string[]][],
    ][];
    const events = reply[0]![1];
    expect(events.map(([, [, event]]) => event)).toEqual(['other', 'kept', 'lost']);
    expect(events.slice(0, 2).map(([id]) => id)).toEqual(['5-1', '6-1']);
    const { rows } = await sidecar.ledger.pool.query('SELECT 1 FROM holdfast.alias');
    expect(rows).toHaveLength(1);
    await sidecar.recovery.look();
    await sidecar.recovery.look();
    expect(sidecar.recovery.status().observedTotal).toBe(1);
    expect(sidecar.recovery.status().lossesTotal).toBe(1);
  });
});

describe.each(kvKinds)('a truncated AOF, with %s:', (kind) => {
  test('the lost tail comes back', async () => {
    const kv = await startKv(kind, {
      extraArgs: ['--appendonly', 'yes', '--appendfsync', 'always', '--aof-use-rdb-preamble', 'no'],
    });
    const database = await startTestPostgres();
    const sidecar = await startSidecar({ kvPort: kv.port, databaseUrl: database.url, lookIntervalMs: LOOK_MS });
    const client = sidecar.client();
    const direct = clientOf(kv.port);
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    const ids: string[] = [];
    for (let n = 0; n < 20; n += 1) ids.push((await client.xadd('s', '*', 'n', String(n)))!);
    const [, directory] = (await direct.config('GET', 'dir')) as string[];
    const [, sub] = (await direct.config('GET', 'appenddirname')) as string[];
    const [, name] = (await direct.config('GET', 'appendfilename')) as string[];
    const file = join(directory!, sub!, `${name}.1.incr.aof`);
    await kv.kill9();
    await copyFile(file, `${file}.whole`);
    await truncate(file, (await stat(file)).size - 300);
    await kv.restart();
    await eventually('restored', () => sidecar.recovery.status().restoresTotal === 1);
    await eventually('open', () => sidecar.recovery.status().troubled.length === 0);
    expect((await client.xrange('s', '-', '+')).map(([id]) => id)).toEqual(ids);
    expect(sidecar.recovery.status().entriesRestoredTotal).toBeGreaterThan(0);
    expect(sidecar.recovery.status().entriesRestoredTotal).toBeLessThan(20);
  });
});
