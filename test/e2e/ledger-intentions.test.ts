import { setTimeout as delay } from 'node:timers/promises';
import type { Redis } from 'ioredis';
import { beforeAll, beforeEach, describe, expect, onTestFinished, test } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import { startTcpProxy } from '../chaos/tcp-proxy.ts';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { eventually, looks, type Sidecar, startAnew, startSidecar } from '../support/sidecar.ts';

const LOOK_MS = 50;

describe.each(kvKinds)('what a client does on purpose is no loss, with %s:', (kind) => {
  let kv: KvServer;
  let sidecar: Sidecar;
  let client: Redis;
  let direct: Redis;

  beforeAll(async () => {
    kv = await startKv(kind);
  });

  beforeEach(async () => {
    ({ sidecar, client, direct } = await startAnew(kv.port, { lookIntervalMs: LOOK_MS }));
  });

  async function fill(stream = 's', count = 3): Promise<string[]> {
    const ids: string[] = [];
    for (let n = 0; n < count; n += 1) ids.push((await client.xadd(stream, '*', 'n', String(n)))!);
    return ids;
  }

  /** The stream is in the KV store as the client left it, also after it died and was restored. */
  async function staysGone(stream = 's'): Promise<void> {
    await looks(sidecar);
    expect(await direct.exists(stream)).toBe(0);
    expect(sidecar.recovery.status().lossesTotal).toBe(0);
    await direct.flushall();
    await looks(sidecar);
    expect(await direct.exists(stream)).toBe(0);
  }

  test('DEL', async () => {
    await fill();
    expect(await client.del('s')).toBe(1);
    await staysGone();
  });

  test('UNLINK of several', async () => {
    await fill('s');
    await fill('t');
    expect(await client.unlink('s', 'other', 't')).toBe(2);
    await staysGone('s');
    expect(await direct.exists('t')).toBe(0);
  });

  test('DEL, and then the next incarnation is its own', async () => {
    await fill();
    await client.del('s');
    const [id] = await fill('s', 1);
    await direct.flushall();
    await eventually('the stream is back', () => direct.exists('s'));
    await eventually('it is open', async () => (await client.xlen('s')) === 1);
    expect((await client.xrange('s', '-', '+')).map(([at]) => at)).toEqual([id]);
  });

  test('DEL inside a transaction, with an XADD behind it', async () => {
    await fill();
    const replies = await client.multi().del('s').xadd('s', '*', 'n', 'new').exec();
    expect(replies![0]).toEqual([null, 1]);
    const id = replies![1]![1] as string;
    await looks(sidecar);
    expect((await direct.xrange('s', '-', '+')).map(([at]) => at)).toEqual([id]);
    await direct.flushall();
    await eventually('the stream is back', () => direct.exists('s'));
    expect((await client.xrange('s', '-', '+')).map(([at]) => at)).toEqual([id]);
  });

  test('a transaction that is discarded', async () => {
    const ids = await fill();
    await client.multi({ pipeline: false });
    await client.del('s');
    await client.discard();
    await direct.del('s');
    await eventually('it is back', () => direct.exists('s'));
    expect((await client.xrange('s', '-', '+')).map(([at]) => at)).toEqual(ids);
  });

  test('FLUSHDB and FLUSHALL', async () => {
    await fill();
    await client.flushdb();
    await staysGone();
    await fill('u');
    await client.flushall();
    await staysGone('u');
  });

  test('RENAME, which keeps entries, groups and durability', async () => {
    const ids = await fill();
    await client.xgroup('CREATE', 's', 'g', '0');
    await client.rename('s', 't');
    await staysGone('s');
    await eventually('it is back under its new name', () => direct.exists('t'));
    expect(await client.xreadgroup('GROUP', 'g', 'c', 'BLOCK', 20_000, 'STREAMS', 't', '>')).toEqual([
      ['t', ids.map((id, n) => [id, ['n', String(n)]])],
    ]);
    expect(await client.xadd('s', '*', 'f', 'v')).toMatch(/-0$/);
  });

  test('RENAME onto another stream', async () => {
    const ids = await fill('s');
    await fill('t', 5);
    await client.rename('s', 't');
    await staysGone('s');
    await eventually('it is back', () => direct.exists('t'));
    await eventually('it is open', async () => (await client.xlen('t')) === 3);
    expect((await client.xrange('t', '-', '+')).map(([at]) => at)).toEqual(ids);
  });

  test('MOVE and SWAPDB', async () => {
    const ids = await fill('s');
    await client.move('s', 9);
    await looks(sidecar);
    expect(sidecar.recovery.status().lossesTotal).toBe(0);
    await client.call('SWAPDB', '9', '0');
    await looks(sidecar);
    expect(sidecar.recovery.status().lossesTotal).toBe(0);
    await direct.flushall();
    await eventually('it is back in database 0', () => direct.exists('s'));
    expect((await client.xrange('s', '-', '+')).map(([at]) => at)).toEqual(ids);
  });

  test('a time to live that passes', async () => {
    await fill();
    await client.pexpire('s', 150);
    await eventually('it expires', async () => (await direct.exists('s')) === 0);
    await staysGone();
  });

  test('a time to live that is given and passes while another sidecar looks', async () => {
    await sidecar.stop();
    await direct.flushall();
    const { url: databaseUrl } = await startTestPostgres();
    const link = await startTcpProxy(() => kv.port);
    onTestFinished(() => link.close());
    const slow = await startSidecar({ kvPort: link.port, databaseUrl, lookIntervalMs: 600_000 });
    sidecar = await startSidecar({ kvPort: kv.port, databaseUrl, lookIntervalMs: 600_000 });
    client = sidecar.client();
    await fill();
    await slow.recovery.look();
    // What the server is, whose it is, then, behind what the ledger knows of the stream, what it has of it.
    link.delay(300);
    const looking = slow.recovery.look();
    await delay(1400);
    await client.pexpire('s', 50);
    await looking;
    link.heal();
    await eventually('it is over', async () => {
      await slow.recovery.look();
      return slow.ledger.streams.find(0, Buffer.from('s')) === undefined;
    });
    expect(await direct.exists('s')).toBe(0);
    expect(slow.recovery.status().lossesTotal).toBe(0);
  });

  test('a time to live is restored with the stream', async () => {
    await fill();
    await client.expire('s', 1000);
    const at = await direct.call('PEXPIRETIME', 's');
    await direct.del('s');
    await eventually('it is back', () => direct.exists('s'));
    expect(await direct.call('PEXPIRETIME', 's')).toBe(at);
    await client.persist('s');
    await direct.del('s');
    await eventually('it is back', () => direct.exists('s'));
    expect(await direct.ttl('s')).toBe(-1);
  });

  test('EXPIRE in the past', async () => {
    await fill();
    await client.expire('s', -1);
    await staysGone();
  });

  test('SET and a *STORE in its place', async () => {
    await fill();
    await client.set('s', 'text');
    await looks(sidecar);
    expect(await direct.get('s')).toBe('text');
    await fill('z');
    await client.sunionstore('z', 'nothing');
    await staysGone('z');
  });

  test('XDEL: what was deleted does not come back', async () => {
    const ids = await fill('s', 5);
    expect(await client.xdel('s', ids[1]!, ids[3]!)).toBe(2);
    await direct.del('s');
    await eventually('it is back', () => direct.exists('s'));
    expect((await client.xrange('s', '-', '+')).map(([at]) => at)).toEqual([ids[0], ids[2], ids[4]]);
  });

  test('XTRIM and MAXLEN: what was trimmed does not come back', async () => {
    const ids = await fill('s', 5);
    await client.xtrim('s', 'MAXLEN', 3);
    await direct.del('s');
    await eventually('it is back', () => direct.exists('s'));
    expect((await client.xrange('s', '-', '+')).map(([at]) => at)).toEqual(ids.slice(2));
    const last = await client.xadd('s', 'MAXLEN', '=', 2, '*', 'n', 'last');
    await direct.del('s');
    await eventually('it is back', () => direct.exists('s'));
    expect((await client.xrange('s', '-', '+')).map(([at]) => at)).toEqual([ids[4], last]);
  });

  test('XSETID, also backwards', async () => {
    const ids = await fill();
    await client.call('XSETID', 's', '99999999999999-1');
    await looks(sidecar);
    await client.call('XSETID', 's', ids[2]!);
    await looks(sidecar);
    expect(sidecar.recovery.status().lossesTotal).toBe(0);
  });

  test('XGROUP SETID backwards and DESTROY', async () => {
    const ids = await fill();
    await client.xgroup('CREATE', 's', 'g', '0');
    await client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', '>');
    await client.xack('s', 'g', ...ids);
    await looks(sidecar);
    await client.xgroup('SETID', 's', 'g', '0');
    await looks(sidecar);
    expect(sidecar.recovery.status().lossesTotal).toBe(0);
    expect(await client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', '>')).toHaveLength(1);
    await client.xgroup('DESTROY', 's', 'g');
    await looks(sidecar);
    expect(sidecar.recovery.status().lossesTotal).toBe(0);
    expect(await direct.xinfo('GROUPS', 's')).toEqual([]);
    await delay(2 * LOOK_MS);
    await expect(client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', '>')).rejects.toThrow(/^NOGROUP/);
  });
});
