/**
 * An intention says what may have happened. A reply settles it, else what is there does, and absence proves an execution only of a command
 * that ends streams, and only while the KV store is the one to which it was sent.
 */
import type { Redis } from 'ioredis';
import { beforeAll, beforeEach, describe, expect, onTestFinished, test } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import { startTcpProxy, type TcpProxy } from '../chaos/tcp-proxy.ts';
import { startLedgerLink } from '../support/ledger-link.ts';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { clientOf, eventually, looks, type Sidecar, startAnew, startSidecar } from '../support/sidecar.ts';

const ENDS: ReadonlySet<string> = new Set(['DEL', 'FLUSHALL', 'EXEC of a DEL']);

/** Nobody looks by himself while a test is at work. */
const SELDOM_MS = 5_000;

async function fill(client: Redis, count = 20, stream = 's'): Promise<string[]> {
  const ids: string[] = [];
  for (let n = 0; n < count; n += 1) ids.push((await client.xadd(stream, '*', 'n', String(n)))!);
  return ids;
}

async function idsOf(client: Redis, stream = 's'): Promise<string[]> {
  return (await client.xrange(stream, '-', '+')).map(([id]) => id);
}

describe.each(kvKinds)('with %s,', (kind) => {
  let kv: KvServer;
  let direct: Redis;

  beforeAll(async () => {
    kv = await startKv(kind);
  });

  describe('a stream that went behind Holdfast’s back, before anybody looked,', () => {
    let sidecar: Sidecar;
    let client: Redis;

    beforeEach(async () => {
      ({ sidecar, client, direct } = await startAnew(kv.port, { lookIntervalMs: SELDOM_MS }));
    });

    async function lose(): Promise<string[]> {
      const ids = await fill(client);
      await client.xgroup('CREATE', 's', 'g', '0');
      await direct.del('s');
      return ids;
    }

    async function isBack(ids: readonly string[]): Promise<void> {
      await eventually('it is back', async () => (await direct.xlen('s')) >= ids.length);
      expect(await idsOf(client)).toEqual(expect.arrayContaining([...ids]));
      const read = await client.xreadgroup('GROUP', 'g', 'c', 'COUNT', 100, 'STREAMS', 's', '>');
      expect((read as [string, [string, string[]][]][])[0]![1].map(([id]) => id)).toEqual(
        expect.arrayContaining([...ids]),
      );
    }

    test('EXPIRE finds it restored, and its time to live counts', async () => {
      const ids = await lose();
      expect(await client.expire('s', 86_400)).toBe(1);
      await isBack(ids);
      expect(await direct.ttl('s')).toBeGreaterThan(86_000);
    });

    test('PERSIST does nothing, and it comes back', async () => {
      const ids = await lose();
      expect(await client.persist('s')).toBe(0);
      await isBack(ids);
    });

    test('a pipeline of XADD and EXPIRE', async () => {
      const ids = await lose();
      const replies = await client.pipeline().xadd('s', '*', 'n', 'new').expire('s', 86_400).exec();
      expect(replies!.map(([error]) => error)).toEqual([null, null]);
      expect(replies![1]![1]).toBe(1);
      await isBack([...ids, replies![0]![1] as string]);
    });

    test.each([
      ['COPY', (to: Redis) => to.call('COPY', 'other', 's')],
      ['RENAMENX', (to: Redis) => to.renamenx('other', 's')],
    ])('%s onto it does what it does where the stream stands: nothing', async (_, command) => {
      const ids = await lose();
      const [other] = await fill(client, 1, 'other');
      expect(await command(client)).toBe(0);
      await isBack(ids);
      expect(await idsOf(direct)).toEqual(ids);
      expect(await idsOf(direct, 'other')).toEqual([other]);
    });

    test('MOVE into another database where it was lost', async () => {
      await client.select(3);
      const ids = await lose().catch(() => []);
      const lost = await fill(client, 3);
      await direct.select(3);
      await direct.del('s');
      await client.select(0);
      await fill(client, 1);
      expect(await client.call('MOVE', 's', 3)).toBe(0);
      await eventually('it is back', async () => (await direct.xlen('s')) >= lost.length);
      expect(await idsOf(direct)).toEqual(expect.arrayContaining([...ids, ...lost]));
    });

    test('RESTORE onto it is refused', async () => {
      const ids = await lose();
      await direct.set('made', 'x');
      const payload = await direct.dumpBuffer('made');
      await expect(client.call('RESTORE', 's', '0', payload as Buffer)).rejects.toThrow('BUSYKEY');
      await isBack(ids);
    });

    test('RENAME of it finds it restored', async () => {
      const ids = await lose();
      expect(await client.rename('s', 't')).toBe('OK');
      expect(await idsOf(direct, 't')).toEqual(ids);
      expect(await direct.exists('s')).toBe(0);
    });

    test('DEL finds it restored, and it stays deleted', async () => {
      await lose();
      expect(await client.del('s')).toBe(1);
      await looks(sidecar, 2);
      expect(await direct.exists('s')).toBe(0);
    });

    test('XSETID does not make another one of what was made anew', async () => {
      const ids = await lose();
      await direct.xadd('s', '*', 'by', 'somebody else');
      await client.call('XSETID', 's', '99999999999999-0', 'ENTRIESADDED', '100', 'MAXDELETEDID', '99999999999998-0');
      await isBack(ids);
    });

    test('XSETID backwards on what was made anew', async () => {
      const ids = await lose();
      await direct.xadd('s', '1-1', 'by', 'somebody else');
      await client.call('XSETID', 's', '1-1').catch(() => undefined);
      await isBack(ids);
    });

    test('a database that is selected behind it, in the same pipeline, changes nothing', async () => {
      const ids = await lose();
      await client.pipeline().expire('s', 86_400).select(3).exec();
      await client.select(0);
      await isBack(ids);
      expect(await direct.ttl('s')).toBeGreaterThan(86_000);
    });

    test('in a transaction they end nothing', async () => {
      const ids = await lose();
      await client.multi().expire('s', 86_400).persist('s').exec();
      await isBack(ids);
    });
  });

  describe('a group that came by', () => {
    test.each([
      ['COPY', async (client: Redis) => expect(await client.call('COPY', 'from', 's')).toBe(1)],
      [
        'RESTORE',
        async (client: Redis) => {
          const payload = (await client.dumpBuffer('from')) as Buffer;
          expect(await client.call('RESTORE', 's', '0', payload)).toBe('OK');
        },
      ],
    ])('%s is known before the reply', async (_, arrive) => {
      const { client, direct: past } = await startAnew(kv.port, { lookIntervalMs: SELDOM_MS });
      await client.xgroup('CREATE', 'from', 'g', '$', 'MKSTREAM');
      await arrive(client);
      const added = await client.xadd('s', '*', 'n', 'behind');
      await past.flushall();
      const read = await client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', '>');
      expect((read as [string, [string, string[]][]][])[0]![1].map(([id]) => id)).toEqual([added]);
    });
  });

  describe('where the reply is lost', () => {
    let sidecar: Sidecar;
    let client: Redis;
    let link: TcpProxy;

    beforeEach(async () => {
      link = await startTcpProxy(() => kv.port);
      onTestFinished(() => link.close());
      ({ sidecar, client } = await startAnew(kv.port, { lookIntervalMs: 100, kvPort: link.port }));
      direct = clientOf(kv.port);
    });

    /** The KV store restarts empty while the command is on its way. Gives the error that the client was told, if it was. */
    async function dieUnder(command: () => Promise<unknown>): Promise<unknown> {
      link.hold(['toServer']);
      const told = command().then(
        () => undefined,
        (thrown: unknown) => thrown,
      );
      await eventually('the intention is open', async () => {
        const { rows } = await sidecar.ledger.pool.query('SELECT FROM holdfast.intention');
        return rows.length > 0;
      });
      await kv.kill9();
      link.reset();
      link.heal();
      await kv.restart();
      direct = clientOf(kv.port);
      return told;
    }

    test.each([
      ['EXPIRE', () => client.expire('s', 86_400)],
      ['PERSIST', () => client.persist('s')],
      ['XSETID', () => client.call('XSETID', 's', '99999999999999-0')],
      ['COPY', () => client.call('COPY', 'other', 's')],
      ['RENAMENX', () => client.renamenx('other', 's')],
      ['DEL', () => client.del('s')],
      ['FLUSHALL', () => client.flushall()],
      ['EXEC of a DEL', () => client.exec()],
      ['XDEL of all', () => client.xdel('s', ...ids)],
    ] as const)('%s under a KV store that dies ends nothing', async (name, command) => {
      ids = await fill(client);
      await client.set('other', 'x');
      if (name === 'EXEC of a DEL') await queueDel();
      const error = await dieUnder(command);
      if (error === undefined && ENDS.has(name)) {
        // It had not been sent, and was executed by the KV store that came back.
        await looks(sidecar, 3);
        expect(await direct.exists('s')).toBe(0);
        return;
      }
      if (name === 'XDEL of all') return void (await eventually('settled', async () => (await intentionsLeft()) === 0));
      await eventually('all are back', async () => (await direct.xlen('s')) === ids.length);
      expect(await idsOf(direct)).toEqual(ids);
    });
    let ids: string[] = [];

    /** A transaction has its connection from the beginning. */
    async function queueDel(): Promise<void> {
      await client.multi({ pipeline: false });
      expect(await client.del('s')).toBe('QUEUED');
    }

    async function intentionsLeft(): Promise<number> {
      return (await sidecar.ledger.pool.query('SELECT FROM holdfast.intention')).rowCount!;
    }

    test('a MULTI with DEL that was executed, its EXEC unheard, is settled by what is there', async () => {
      await fill(client);
      await queueDel();
      link.hold(['toClient']);
      const told = client.exec().catch((thrown: unknown) => thrown);
      await eventually('executed', async () => (await direct.exists('s')) === 0);
      link.reset();
      link.heal();
      expect(await told).toBeInstanceOf(Error);
      await eventually('settled', async () => (await intentionsLeft()) === 0);
      await looks(sidecar, 3);
      expect(await direct.exists('s')).toBe(0);
      expect(sidecar.recovery.status().restoresTotal).toBe(0);
    });

    test('an XDEL of several is judged entry by entry', async () => {
      const [a, b, c, d] = await fill(client, 4);
      // As a sidecar that died half-way leaves it, with one of three executed.
      await direct.xdel('s', a!);
      const { runId, replicationId } = sidecar.recovery.sentUnder;
      const stream = sidecar.ledger.streams.find(0, Buffer.from('s'))!;
      await sidecar.ledger.pool.query(
        `INSERT INTO holdfast.intention (stream_id, kind, command, ids, owner, doubted, ends, sent_run_id, sent_replication_id)
         SELECT $1, 'delete', 'xdel', string_agg(id, '' ORDER BY id), 'nobody', true, false, $2, $3
           FROM holdfast.entry WHERE stream_id = $1 AND id < (SELECT id FROM holdfast.entry WHERE stream_id = $1 ORDER BY id DESC LIMIT 1)`,
        [stream.streamId, runId, replicationId],
      );
      await sidecar.ledger.notify('backlog');
      await eventually('settled', async () => (await intentionsLeft()) === 0);
      await direct.flushall();
      await eventually('back', async () => (await direct.xlen('s')) === 3);
      expect(await idsOf(direct)).toEqual([b, c, d]);
    });
  });

  test('a refused DEL ends nothing, whatever becomes of the KV store', async () => {
    const { client, direct: admin } = await startAnew(kv.port, { lookIntervalMs: 100 });
    const ids = await fill(client);
    await admin.call('ACL', 'SETUSER', 'reader', 'on', '>pw', '~*', '+@read', '+@connection');
    const reader = client.duplicate({ username: 'reader', password: 'pw' });
    onTestFinished(() => reader.disconnect());
    await expect(reader.del('s')).rejects.toThrow('NOPERM');
    await admin.flushall();
    await eventually('back', async () => (await admin.xlen('s')) === ids.length);
    expect(await idsOf(admin)).toEqual(ids);
    await admin.call('ACL', 'DELUSER', 'reader');
  });

  test('an opening whose answer was lost is cancelled by its owner', async () => {
    const { url } = await startTestPostgres();
    const { link, url: databaseUrl } = await startLedgerLink(url);
    onTestFinished(() => link.close());
    await clientOf(kv.port).flushall();
    const sidecar = await startSidecar({ kvPort: kv.port, databaseUrl, lookIntervalMs: 100 });
    const client = sidecar.client();
    const ids = await fill(client);
    link.hold(['toClient']);
    const told = client.del('s').catch((thrown: Error) => thrown.message);
    const watcher = await startSidecarWatch(url);
    await eventually('it is committed', async () => (await watcher()) === 1);
    link.reset();
    link.heal();
    expect(await told).toMatch(/^LEDGERDOWN/);
    await eventually('cancelled', async () => (await watcher()) === 0);
    direct = clientOf(kv.port);
    expect(await idsOf(direct)).toEqual(ids);
    await direct.del('s');
    await eventually('back', async () => (await direct.xlen('s')) === ids.length);
  });

  describe('a time to live', () => {
    test.each([
      ['XADD', async (client: Redis) => (await client.xadd('s', '*', 'n', 'new'))!],
      [
        'XADD in MULTI',
        async (client: Redis) => (await client.multi().xadd('s', '*', 'n', 'new').exec())![0]![1] as string,
      ],
    ])('that has passed takes along what was there, and not what %s brings before anybody looked', async (_, add) => {
      const { sidecar, client, direct: past } = await startAnew(kv.port, { lookIntervalMs: SELDOM_MS });
      await fill(client, 1);
      await client.pexpire('s', 30);
      await eventually('it has passed', async () => (await past.exists('s')) === 0);
      const added = [await add(client), await add(client)];
      await sidecar.recovery.look();
      expect(sidecar.recovery.status().lossesTotal).toBe(0);
      await past.flushall();
      await sidecar.recovery.look();
      await eventually('back', async () => (await past.xlen('s')) === added.length);
      expect(await idsOf(past)).toEqual(added);
    });

    test('that passes during an outage takes along what was there before, not what was acknowledged after it', async () => {
      const own = await startKv(kind);
      const { sidecar, client } = await startAnew(own.port, { lookIntervalMs: 50 });
      await fill(client, 3);
      await client.pexpire('s', 1500);
      await own.kill9();
      await eventually('down', () => sidecar.recovery.gate.state === 'down');
      await eventually('it has passed', async () => {
        const { rows } = await sidecar.ledger.pool.query<{ passed: boolean }>(
          `SELECT expires_at_ms < 1000 * extract(epoch FROM clock_timestamp()) AS passed FROM holdfast.stream`,
        );
        return rows[0]!.passed;
      });
      const after = await fill(client, 2);
      await own.restart();
      const fresh = clientOf(own.port);
      await eventually('published', async () => (await fresh.xlen('s')) === 2);
      expect(await idsOf(fresh)).toEqual(after);
      expect(await fresh.ttl('s')).toBe(-1);
    });
  });
});

/** Counts the intentions in the ledger, past every link. */
async function startSidecarWatch(url: string): Promise<() => Promise<number>> {
  const { default: pg } = await import('pg');
  const session = new pg.Client({ connectionString: url });
  await session.connect();
  onTestFinished(() => session.end());
  return async () => (await session.query('SELECT FROM holdfast.intention')).rowCount!;
}
