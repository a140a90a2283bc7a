/** The interleavings behind the numbered rules, each forced by hand. */
import type { Redis } from 'ioredis';
import pg from 'pg';
import { afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import { readKnownStreams } from '../../src/recovery/detect/known-streams.ts';
import { KvConnection } from '../../src/recovery/kv/connection.ts';
import { readSnapshot, type StreamSnapshot } from '../../src/recovery/kv/snapshot.ts';
import { checkpointOf, saveCheckpoints } from '../../src/recovery/reconcile/checkpoint.ts';
import { restoreStream } from '../../src/recovery/restore/restore-stream.ts';
import { startTcpProxy, type TcpProxy } from '../chaos/tcp-proxy.ts';
import { kvKinds, startKv, startTestPostgres, type TestDatabase } from '../support/servers.ts';
import {
  clientOf,
  eventually,
  idsIn,
  restored,
  type Sidecar,
  type SidecarOptions,
  startSidecar,
} from '../support/sidecar.ts';

const LOOK_MS = 50;
/** No look by itself during a test. */
const NEVER_MS = 60_000;

describe.each(kvKinds)('with %s', (kind) => {
  let kv: KvServer;
  let database: TestDatabase;
  let direct: Redis;
  const links: TcpProxy[] = [];
  const sessions: pg.Client[] = [];

  beforeAll(async () => {
    kv = await startKv(kind);
  });

  beforeEach(async () => {
    direct = clientOf(kv.port);
    await direct.flushall();
    database = await startTestPostgres();
  });

  afterEach(async () => {
    for (const link of links.splice(0)) await link.close();
    for (const session of sessions.splice(0)) await session.end();
  });

  function sidecarOf(options: Partial<SidecarOptions> = {}): Promise<Sidecar> {
    return startSidecar({ kvPort: kv.port, databaseUrl: database.url, lookIntervalMs: LOOK_MS, ...options });
  }

  async function link(): Promise<TcpProxy> {
    const proxy = await startTcpProxy(() => kv.port);
    links.push(proxy);
    return proxy;
  }

  async function session(): Promise<pg.Client> {
    const client = new pg.Client(database.url);
    await client.connect();
    sessions.push(client);
    return client;
  }

  async function add(client: Redis, count: number, stream = 's'): Promise<string[]> {
    const adding = Array.from({ length: count }, (_, n) => client.xadd(stream, '*', 'n', String(n)));
    return (await Promise.all(adding)) as string[];
  }

  async function idsOf(stream = 's'): Promise<string[]> {
    return (await direct.xrange(stream, '-', '+')).map(([id]) => id);
  }

  test('[1] a commit that comes after the restore is published before its client hears', async () => {
    const sidecar = await sidecarOf();
    const client = sidecar.client();
    const before = await add(client, 2);
    const blocker = await session();
    await blocker.query('SELECT pg_advisory_lock(holdfast.lock_key(0))');
    const late = client.xadd('s', '*', 'n', 'late');
    await eventually('the KV store has it', async () => (await idsOf()).length === 3);
    const lost = (await idsOf())[2]!;
    await direct.flushall();
    await eventually('restored', () => sidecar.recovery.status().restoresTotal === 1);
    expect(await idsOf()).toEqual(before);
    await blocker.query('SELECT pg_advisory_unlock_all()');
    const id = await late;
    expect(await idsOf()).toEqual([...before, id]);
    expect((await direct.xrange('s', id!, id!))[0]![1]).toEqual(['n', 'late']);
    expect([lost, id]).toContain(id);
    await eventually('open', () => sidecar.recovery.status().troubled.length === 0);
    // It may have been read before the loss, under the ID that it had then.
    expect(sidecar.recovery.status().possibleDuplicatesTotal).toBe(1);
  });

  test('[2] a checkpoint of before the restore is not written after it', async () => {
    const sidecar = await sidecarOf({ lookIntervalMs: NEVER_MS });
    const client = sidecar.client();
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    const ids = await add(client, 3);
    await client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', '>');
    await direct.xack('s', 'g', ...ids);
    const connection = await KvConnection.open({ port: kv.port }, 2000);
    const [known] = await readKnownStreams(sidecar.ledger.pool, undefined);
    const snapshot = await readSnapshot(connection, [{ database: 0, name: known!.name }]);
    const looked = [{ known: known!, actual: snapshot.streams[0] as StreamSnapshot, witness: snapshot.witness }];
    await direct.flushall();
    await sidecar.recovery.look();
    await restored(sidecar);
    await saveCheckpoints(sidecar.ledger.pool, sidecar.recovery.status().leaderEpoch, new Date(), looked);
    const { rows } = await sidecar.ledger.pool.query<{ last_delivered_id: Buffer }>(
      'SELECT last_delivered_id FROM holdfast.consumer_group',
    );
    expect(rows[0]!.last_delivered_id.equals(Buffer.alloc(16))).toBe(true);
    const ousted = looked.map((look) => ({ ...look, witness: { ledger: sidecar.ledger.identity, epoch: 999 } }));
    await expect(saveCheckpoints(sidecar.ledger.pool, 999, new Date(), ousted)).rejects.toThrow(
      /another sidecar leads/,
    );
    connection.close();
  });

  test.each([
    ['PERSIST', (client: Redis) => client.persist('s'), -1],
    ['EXPIRE', (client: Redis) => client.expireat('s', 9_000_000_000), 9_000_000_000_000],
  ])('[2] a look that began before %s does not undo it', async (_, change, expiresAtMs) => {
    const sidecar = await sidecarOf({ lookIntervalMs: NEVER_MS });
    const client = sidecar.client();
    await add(client, 1);
    await client.expire('s', 1000);
    await direct.xadd('s', '*', 'by', 'direct');
    const connection = await KvConnection.open({ port: kv.port }, 2000);
    const [known] = await readKnownStreams(sidecar.ledger.pool, undefined);
    const snapshot = await readSnapshot(connection, [{ database: 0, name: known!.name }]);
    connection.close();
    await change(client);
    const looked = [{ known: known!, actual: snapshot.streams[0] as StreamSnapshot, witness: snapshot.witness }];
    await saveCheckpoints(sidecar.ledger.pool, sidecar.recovery.status().leaderEpoch, new Date(), looked);
    await direct.del('s');
    await sidecar.recovery.look();
    await restored(sidecar);
    expect(await direct.call('PEXPIRETIME', 's')).toBe(expiresAtMs);
  });

  test('[2] of a snapshot without the witness no checkpoint is saved', async () => {
    const sidecar = await sidecarOf({ lookIntervalMs: NEVER_MS });
    const client = sidecar.client();
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    const ids = await add(client, 3);
    await client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', '>');
    await direct.xack('s', 'g', ...ids);
    const connection = await KvConnection.open({ port: kv.port }, 2000);
    const [known] = await readKnownStreams(sidecar.ledger.pool, undefined);
    const { leaderEpoch } = sidecar.recovery.status();
    const savedWith = async (witness: Buffer | undefined): Promise<boolean> => {
      if (witness === undefined) await direct.del('holdfast:epoch');
      else await direct.set('holdfast:epoch', witness);
      const snapshot = await readSnapshot(connection, [{ database: 0, name: known!.name }]);
      const actual = snapshot.streams[0] as StreamSnapshot;
      const looked = [{ known: known!, actual, witness: snapshot.witness }];
      await saveCheckpoints(sidecar.ledger.pool, leaderEpoch, new Date(), looked);
      const { rows } = await sidecar.ledger.pool.query<{ checkpoint_id: Buffer }>(
        'SELECT checkpoint_id FROM holdfast.consumer_group',
      );
      return !rows[0]!.checkpoint_id.equals(Buffer.alloc(16));
    };
    const witness = (await direct.getBuffer('holdfast:epoch'))!;
    expect(await savedWith(undefined)).toBe(false);
    expect(await savedWith(witness)).toBe(true);
    connection.close();
  });

  test('[2] what was lost and made anew between the two readings of a look is no floor', async () => {
    const sidecar = await sidecarOf({ lookIntervalMs: NEVER_MS });
    const client = sidecar.client();
    await add(client, 1);
    await client.xgroup('CREATE', 's', 'g', '0');
    const connection = await KvConnection.open({ port: kv.port }, 2000);
    const [known] = await readKnownStreams(sidecar.ledger.pool, undefined);
    await add(client, 5);
    const ids = await idsOf();
    await direct.flushall();
    for (let n = 0; n < 3; n += 1) await direct.xadd('s', '*', 'by', 'direct');
    await direct.xgroup('CREATE', 's', 'g', '$');
    const snapshot = await readSnapshot(connection, [{ database: 0, name: known!.name }]);
    // As where the leader had put its witness back already.
    const witness = { ledger: sidecar.ledger.identity, epoch: sidecar.recovery.status().leaderEpoch };
    const looked = [{ known: known!, actual: snapshot.streams[0] as StreamSnapshot, witness }];
    await saveCheckpoints(sidecar.ledger.pool, sidecar.recovery.status().leaderEpoch, new Date(), looked);
    await sidecar.recovery.look();
    await restored(sidecar);
    expect((await idsOf()).filter((id) => ids.includes(id))).toEqual(ids);
    const read = idsIn(await client.xreadgroup('GROUP', 'g', 'c', 'BLOCK', 20_000, 'STREAMS', 's', '>'));
    expect(read.filter((id) => ids.includes(id))).toEqual(ids);
    connection.close();
  });

  test('[3] the next incarnation may have smaller IDs', async () => {
    const sidecar = await sidecarOf();
    const client = sidecar.client();
    await client.xadd('s', '100-1', 'n', 'old');
    await client.xgroup('CREATE', 's', 'g', '$');
    await sidecar.recovery.look();
    await client.del('s');
    await client.xadd('s', '1-1', 'n', 'new');
    await client.xgroup('CREATE', 's', 'g', '0');
    await sidecar.recovery.look();
    await direct.flushall();
    await restored(sidecar);
    expect(idsIn(await client.xreadgroup('GROUP', 'g', 'c', 'BLOCK', 20_000, 'STREAMS', 's', '>'))).toEqual(['1-1']);
  });

  test('[3] an ID that the ledger has with other fields is told, not ignored', async () => {
    const sidecar = await sidecarOf({ lookIntervalMs: NEVER_MS });
    const other = await sidecarOf({ lookIntervalMs: NEVER_MS });
    const client = sidecar.client();
    await client.xadd('s', '3-1', 'n', 'before');
    // Of which this sidecar has not heard.
    await other.client().xadd('s', '5-1', 'n', 'first');
    await direct.del('s');
    await direct.xadd('s', '1-1', 'n', 'direct');
    // The KV store takes it, since it forgot the first one; the ledger must not.
    expect(await client.xadd('s', '5-1', 'n', 'second')).toBe('5-1');
    await restored(sidecar);
    const values = (await direct.xrange('s', '-', '+')).map(([, [, value]]) => value);
    expect(values).toEqual(['direct', 'before', 'second', 'first']);
    const { rows } = await sidecar.ledger.pool.query('SELECT 1 FROM holdfast.entry');
    expect(rows.length).toBeGreaterThanOrEqual(3);
  });

  test('[4] an outage that one sidecar sees is one for all, until the backlog is published in order', async () => {
    const cut = await link();
    const near = await sidecarOf();
    const far = await sidecarOf({ kvPort: cut.port });
    const [nearClient, farClient] = [near.client(), far.client()];
    const first = await add(nearClient, 1);
    await add(farClient, 1);
    const second = (await idsOf())[1]!;
    cut.cut();
    await eventually('down', () => far.recovery.gate.state === 'down');
    // Nobody can publish meanwhile.
    const blocker = await session();
    await blocker.query('SELECT pg_advisory_lock(holdfast.lock_key(0))');
    const mixed = [await farClient.xadd('s', '*', 'far', '0')];
    await eventually('the near one knows', () => near.recovery.status().troubled.length === 1);
    for (let n = 1; n < 5; n += 1) {
      mixed.push(await nearClient.xadd('s', '*', 'near', String(n)));
      mixed.push(await farClient.xadd('s', '*', 'far', String(n)));
    }
    expect(await idsOf()).toHaveLength(2);
    await blocker.query('SELECT pg_advisory_unlock_all()');
    await eventually('all published', async () => (await idsOf()).length === 11);
    expect(await idsOf()).toEqual([...first, second, ...mixed]);
    cut.heal();
    await eventually('open', () => far.recovery.gate.state === 'open' && far.recovery.status().troubled.length === 0);
    await add(farClient, 1);
  });

  test('[5] a checkpoint never passes an entry that is not acknowledged', async () => {
    const sidecar = await sidecarOf({ lookIntervalMs: NEVER_MS });
    const client = sidecar.client();
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    await add(client, 400);
    const connection = await KvConnection.open({ port: kv.port }, 2000);
    let reading = true;
    const consume = async (): Promise<void> => {
      const own = sidecar.client();
      for (;;) {
        const ids = idsIn(await own.xreadgroup('GROUP', 'g', 'c', 'COUNT', 3, 'STREAMS', 's', '>'));
        if (ids.length === 0) break;
        // The later ones first, so that something old is pending most of the time.
        for (const id of ids.reverse()) await own.xack('s', 'g', id);
      }
      reading = false;
    };
    const consuming = consume();
    let looks = 0;
    while (reading) {
      const snapshot = await readSnapshot(connection, [{ database: 0, name: Buffer.from('s') }]);
      const group = (snapshot.streams[0] as StreamSnapshot).groups.get('g')!;
      const checkpoint = checkpointOf(group)!;
      const ms = checkpoint.readBigUInt64BE(0);
      const below = (await direct.xpending('s', 'g', '-', `${ms}-${checkpoint.readBigUInt64BE(8)}`, 10)) as unknown[];
      expect(below).toEqual([]);
      looks += 1;
    }
    await consuming;
    expect(looks).toBeGreaterThan(20);
    connection.close();
  });

  test('[6] a leader whose fence is gone changes nothing', async () => {
    const sidecar = await sidecarOf({ lookIntervalMs: NEVER_MS });
    const client = sidecar.client();
    await add(client, 3);
    const [known] = await readKnownStreams(sidecar.ledger.pool, undefined);
    const stale = sidecar.recovery.status().leaderEpoch;
    await sidecar.recovery.stop();
    await sidecar.ledger.pool.query(`SELECT holdfast.raise_epoch($1, $2, 'restoring', 'test', NULL)`, [
      known!.streamId,
      known!.epoch,
    ]);
    await direct.del('s');
    const context = {
      ledger: sidecar.ledger,
      address: { port: kv.port },
      log: { warn: () => undefined } as never,
      sharers: 1,
    };
    // Another one leads, and says so in the KV store, before the old one takes the name.
    await direct.set('holdfast:epoch', `${sidecar.ledger.identity} ${stale + 1}`);
    await expect(restoreStream({ ...context, leaderEpoch: stale }, known!.streamId)).rejects.toThrow(/fence is gone/);
    expect(await direct.exists('s')).toBe(0);
    await sidecar.ledger.pool.query('SELECT holdfast.lead($1)', ['another']);
    await expect(restoreStream({ ...context, leaderEpoch: stale }, known!.streamId)).rejects.toThrow(
      /another sidecar leads/,
    );
    const result = await restoreStream({ ...context, leaderEpoch: stale + 1 }, known!.streamId);
    expect(result?.entriesRestored).toBe(3);
    // Doing it once more changes nothing.
    expect(await restoreStream({ ...context, leaderEpoch: stale + 1 }, known!.streamId)).toBeUndefined();
  });

  test('[6] what direct clients write during a restore is in the stream', async () => {
    const sidecar = await sidecarOf();
    const client = sidecar.client();
    const ids = await add(client, 2000);
    const straight: string[] = [];
    let writing = true;
    const write = async (): Promise<void> => {
      while (writing) straight.push((await direct.xadd('s', '*', 'by', 'direct'))!);
    };
    const other = clientOf(kv.port);
    await other.flushall();
    const writer = write();
    await restored(sidecar);
    writing = false;
    await writer;
    const all = await idsOf();
    expect(all.filter((id) => ids.includes(id))).toEqual(ids);
    expect(straight.filter((id) => !all.includes(id))).toEqual([]);
  });

  test('[8] what one sidecar deletes another does not bring back', async () => {
    const one = await sidecarOf();
    const two = await sidecarOf();
    const client = one.client();
    const ids = await add(client, 4);
    await eventually('the other knows', () => two.ledger.streams.find(0, Buffer.from('s')));
    await two.client().xdel('s', ids[1]!);
    await direct.del('s');
    await eventually('back', () => direct.exists('s'));
    expect(await idsOf()).toEqual([ids[0], ids[2], ids[3]]);
    await two.client().del('s');
    await one.recovery.look();
    await one.recovery.look();
    expect(await direct.exists('s')).toBe(0);
  });

  test('[9] an XADD whose connection broke after it was executed is found, not repeated', async () => {
    const cut = await link();
    const sidecar = await sidecarOf({ kvPort: cut.port, lookIntervalMs: 200 });
    const client = sidecar.client();
    await add(client, 1);
    cut.hold(['toClient']);
    const pending = client.xadd('s', '*', 'n', 'in flight');
    await eventually('executed', async () => (await idsOf()).length === 2);
    const executed = (await idsOf())[1]!;
    cut.heal();
    cut.reset();
    const id = await pending;
    await eventually('open', () => sidecar.recovery.status().troubled.length === 0);
    expect(await idsOf()).toHaveLength(2);
    // Either it heard the reply before the reset, or it found the entry.
    expect([executed, id]).toContain(executed);
    expect(id).toBe(executed);
  });

  test('[9] an XADD under an ID of its own, taken in by comparison before its connection broke, is no smaller ID', async () => {
    const cut = await link();
    const leader = await sidecarOf();
    const sidecar = await sidecarOf({ kvPort: cut.port });
    const client = sidecar.client();
    await client.xadd('s', '5-1', 'n', 'first');
    cut.hold(['toClient']);
    const pending = client.xadd('s', '7-1', 'n', 'in flight');
    await eventually('executed', async () => (await idsOf()).length === 2);
    await eventually('taken in', () => leader.recovery.status().observedTotal === 1);
    cut.reset();
    cut.heal();
    expect(await pending).toBe('7-1');
    expect(await idsOf()).toEqual(['5-1', '7-1']);
    await expect(client.xadd('s', '7-1', 'n', 'in flight')).rejects.toThrow('equal or smaller');
  });

  test('[9] an XADD whose bytes land late is not there twice', async () => {
    const cut = await link();
    const sidecar = await sidecarOf({ kvPort: cut.port });
    const client = sidecar.client();
    await add(client, 1);
    cut.hold(['toServer']);
    const pending = client.xadd('s', '*', 'n', 'late bytes');
    await new Promise((resolve) => setTimeout(resolve, 100));
    cut.deliverLate(400);
    cut.heal();
    await pending;
    await new Promise((resolve) => setTimeout(resolve, 600));
    expect(await idsOf()).toHaveLength(2);
    await eventually('open', () => sidecar.recovery.status().troubled.length === 0);
    await direct.flushall();
    await restored(sidecar);
    expect(await idsOf()).toHaveLength(2);
  });

  test('[10] acknowledgements in scripts and by direct clients count, while something old is pending', async () => {
    const sidecar = await sidecarOf();
    const client = sidecar.client();
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    const ids = await add(client, 6);
    await client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', '>');
    await client.eval("return redis.call('XACK', KEYS[1], 'g', ARGV[1])", 1, 's', ids[2]!);
    await direct.xack('s', 'g', ids[4]!);
    expect(await client.xack('s', 'g', ids[1]!, '1-1', ids[5]!)).toBe(2);
    await new Promise((resolve) => setTimeout(resolve, 300));
    await sidecar.recovery.look();
    await direct.flushall();
    await restored(sidecar);
    expect(idsIn(await client.xreadgroup('GROUP', 'g', 'c', 'BLOCK', 20_000, 'STREAMS', 's', '>'))).toEqual([
      ids[0],
      ids[3],
    ]);
  });

  test('[10] an acknowledgement that one sidecar took alone reaches the KV store, which the leader never lost', async () => {
    const cut = await link();
    const leader = await sidecarOf();
    const far = await sidecarOf({ kvPort: cut.port });
    const client = far.client();
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    const ids = await add(client, 3);
    expect(idsIn(await client.xreadgroup('GROUP', 'g', 'c', 'BLOCK', 20_000, 'STREAMS', 's', '>'))).toEqual(ids);
    cut.cut();
    await eventually('down', () => far.recovery.gate.state === 'down');
    expect(await client.xack('s', 'g', ids[0]!, ids[1]!)).toBe(2);
    expect(leader.recovery.gate.state).toBe('open');
    cut.heal();
    await eventually('open', () => far.recovery.gate.state === 'open');
    expect((await direct.xpending('s', 'g', '-', '+', 10)).map((entry) => (entry as [string])[0])).toEqual([ids[2]]);
  });

  test('[10] an acknowledgement of what was not delivered yet is none', async () => {
    const sidecar = await sidecarOf({ lookIntervalMs: NEVER_MS });
    const client = sidecar.client();
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    const ids = await add(client, 2);
    expect(await client.xack('s', 'g', ...ids)).toBe(0);
    await new Promise((resolve) => setTimeout(resolve, 300));
    await direct.flushall();
    expect(idsIn(await client.xreadgroup('GROUP', 'g', 'c', 'BLOCK', 20_000, 'STREAMS', 's', '>'))).toEqual(ids);
  });

  test("[11] a second group's backlog costs the first no duplicates", async () => {
    const sidecar = await sidecarOf();
    const client = sidecar.client();
    await client.xgroup('CREATE', 's', 'quick', '0', 'MKSTREAM');
    await client.xgroup('CREATE', 's', 'slow', '0');
    const ids = await add(client, 30);
    const read = idsIn(await client.xreadgroup('GROUP', 'quick', 'c', 'COUNT', 20, 'STREAMS', 's', '>'));
    // The first stays pending and holds the checkpoint.
    await client.xack('s', 'quick', ...read.slice(1));
    await new Promise((resolve) => setTimeout(resolve, 300));
    await direct.flushall();
    await restored(sidecar);
    expect(await idsOf()).toEqual(ids);
    const again: string[] = [];
    for (let n = 0; n < 30; n += 1) {
      const reply = idsIn(await client.xreadgroup('GROUP', 'quick', 'c', 'COUNT', 2, 'STREAMS', 's', '>'));
      if (reply.length === 0) break;
      again.push(...reply);
    }
    expect(again).toEqual([ids[0], ...ids.slice(20)]);
    expect((await direct.xpending('s', 'quick'))[0]).toBe(11);
    expect(idsIn(await client.xreadgroup('GROUP', 'slow', 'c', 'BLOCK', 20_000, 'STREAMS', 's', '>'))).toEqual(ids);
  });

  test('[15] a group is in the ledger before its client hears', async () => {
    const sidecar = await sidecarOf({ lookIntervalMs: NEVER_MS });
    const client = sidecar.client();
    const ids = await add(client, 2);
    await client.xgroup('CREATE', 's', 'g', ids[0]!);
    await direct.flushall();
    expect(idsIn(await client.xreadgroup('GROUP', 'g', 'c', 'BLOCK', 20_000, 'STREAMS', 's', '>'))).toEqual([ids[1]]);
  });

  test('the KV store dies twice during a restore', async () => {
    const sidecar = await sidecarOf();
    const client = sidecar.client();
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    const pipeline = client.pipeline();
    for (let n = 0; n < 20_000; n += 1) pipeline.xadd('s', '*', 'n', String(n));
    const ids = (await pipeline.exec())!.map(([, id]) => id as string);
    for (let round = 0; round < 2; round += 1) {
      await kv.kill9();
      await kv.restart();
      await eventually('restoring', async () => (await clientOf(kv.port).dbsize()) > 0);
    }
    await kv.kill9();
    await kv.restart();
    const delivered: string[] = [];
    while (delivered.length < ids.length) {
      delivered.push(
        ...idsIn(await client.xreadgroup('GROUP', 'g', 'c', 'COUNT', 5000, 'BLOCK', 1000, 'STREAMS', 's', '>')),
      );
    }
    expect(delivered).toEqual(ids);
  });

  test('XACK while the KV store is down is taken, and applied when it is back', async () => {
    const cut = await link();
    const sidecar = await sidecarOf({ kvPort: cut.port });
    const client = sidecar.client();
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    const ids = await add(client, 3);
    await client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', '>');
    cut.cut();
    await eventually('down', () => sidecar.recovery.gate.state === 'down');
    expect(await client.xack('s', 'g', ids[0]!, ids[2]!)).toBe(2);
    cut.heal();
    await eventually('applied', async () => (await direct.xpending('s', 'g'))[0] === 1);
    expect((await direct.xpending('s', 'g'))[1]).toBe(ids[1]);
  });

  test('XACK of what was delivered before the loss counts, and it is not delivered again', async () => {
    const sidecar = await sidecarOf();
    const client = sidecar.client();
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    const ids = await add(client, 3);
    await client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', '>');
    await sidecar.recovery.look();
    await sidecar.recovery.look();
    await direct.flushall();
    await restored(sidecar);
    expect(await client.xack('s', 'g', ids[0]!, ids[1]!)).toBe(2);
    expect(idsIn(await client.xreadgroup('GROUP', 'g', 'c', 'BLOCK', 20_000, 'STREAMS', 's', '>'))).toEqual([ids[2]]);
  });

  test('an outage: explicit, partial and forbidden XADDs are judged as the KV store would', async () => {
    const cut = await link();
    const sidecar = await sidecarOf({ kvPort: cut.port });
    const client = sidecar.client();
    await client.xadd('s', '100-5', 'n', '0');
    cut.cut();
    await eventually('down', () => sidecar.recovery.gate.state === 'down');
    await expect(client.xadd('s', '100-5', 'n', '1')).rejects.toThrow(/equal or smaller/);
    await expect(client.xadd('s', '99-*', 'n', '1')).rejects.toThrow(/equal or smaller/);
    expect(await client.xadd('s', '200-7', 'n', '2')).toBe('200-7');
    expect(await client.xadd('s', '200-*', 'n', '3')).toMatch(/^200-\d+$/);
    expect(await client.xadd('never', 'NOMKSTREAM', '*', 'n', '4')).toBeNull();
    const last = await client.xadd('s', '*', 'n', '5');
    const fresh = await client.xadd('fresh', '*', 'n', '6');
    cut.heal();
    await eventually('published', () => direct.exists('fresh'));
    await eventually(
      'open',
      () => sidecar.recovery.gate.state === 'open' && sidecar.recovery.status().troubled.length === 0,
    );
    const ids = await idsOf();
    expect(ids[0]).toBe('100-5');
    expect(ids[1]).toBe('200-7');
    expect(ids).toHaveLength(4);
    expect(ids[3]).toBe(last);
    expect(await idsOf('fresh')).toEqual([fresh]);
  });

  test('XREAD BLOCK 0 $ means the end of the stream when it was asked, also across an outage', async () => {
    const sidecar = await sidecarOf();
    const client = sidecar.client();
    await add(client, 3);
    const reader = sidecar.client();
    const waiting = reader.xread('BLOCK', 0, 'STREAMS', 's', '$');
    await eventually('it blocks', async () => /flags=b/.test(String(await direct.client('LIST'))));
    await kv.kill9();
    const id = await client.xadd('s', '*', 'n', 'after');
    await kv.restart();
    expect(idsIn(await waiting)).toEqual([id]);
  });

  test('DEL under a blocked XREADGROUP shows what the KV store shows', async () => {
    const sidecar = await sidecarOf();
    const client = sidecar.client();
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    const reader = sidecar.client();
    const waiting = reader
      .xreadgroup('GROUP', 'g', 'c', 'BLOCK', 5000, 'STREAMS', 's', '>')
      .catch((thrown: Error) => thrown);
    await eventually('it blocks', async () => /flags=b/.test(String(await direct.client('LIST'))));
    await client.del('s');
    expect(String(await waiting)).toMatch(/UNBLOCKED|NOGROUP/);
    expect(await direct.exists('s')).toBe(0);
  });
});
