/**
 * RENAME, MOVE and SWAPDB carry a stream's record along, whatever comes between the KV store's doing it and the ledger's
 * taking it in: the reply is kept back by a proxy while something else happens.
 */
import type { Redis } from 'ioredis';
import pg from 'pg';
import { afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import { startTcpProxy, type TcpProxy } from '../chaos/tcp-proxy.ts';
import { serve } from '../support/program.ts';
import { kvKinds, startKv, startTestPostgres, type TestDatabase } from '../support/servers.ts';
import {
  clientOf,
  eventually,
  idsIn,
  looks,
  type Sidecar,
  type SidecarOptions,
  startSidecar,
} from '../support/sidecar.ts';

const LOOK_MS = 50;

describe.each(kvKinds)('with %s', (kind) => {
  let kv: KvServer;
  let database: TestDatabase;
  let direct: Redis;
  let cut: TcpProxy;
  /** Leads, and has a way of its own to the KV store. */
  let leader: Sidecar;
  /** Its way to the KV store is `cut`. */
  let far: Sidecar;
  let session: pg.Client;

  beforeAll(async () => {
    kv = await startKv(kind);
  });

  beforeEach(async () => {
    direct = clientOf(kv.port);
    await direct.flushall();
    database = await startTestPostgres();
    cut = await startTcpProxy(() => kv.port);
    leader = await sidecarOf({ kvPort: kv.port });
    far = await sidecarOf({ kvPort: cut.port });
    session = new pg.Client(database.url);
    await session.connect();
  });

  afterEach(async () => {
    await cut.close();
    await session.end();
  });

  function sidecarOf(options: Pick<SidecarOptions, 'kvPort' | 'limits'>): Promise<Sidecar> {
    return startSidecar({ databaseUrl: database.url, lookIntervalMs: LOOK_MS, holdMs: 30_000, ...options });
  }

  async function add(client: Redis, count: number, stream = 's'): Promise<string[]> {
    const ids: string[] = [];
    for (let n = 0; n < count; n += 1) ids.push((await client.xadd(stream, '*', 'n', String(n)))!);
    return ids;
  }

  async function idsOf(stream: string, client = direct): Promise<string[]> {
    return (await client.xrange(stream, '-', '+')).map(([id]) => id);
  }

  async function known(sidecar: Sidecar, stream: string, at = 0): Promise<number> {
    const found = () => sidecar.ledger.streams.find(at, Buffer.from(stream));
    await eventually(`${stream} is known`, found);
    return found()!.streamId;
  }

  /** Current records: where, and whether it is the same as before. */
  async function current(): Promise<{ at: string; stream: number }[]> {
    const { rows } = await session.query<{ database: number; name: Buffer; stream_id: string }>(
      'SELECT database, name, stream_id FROM holdfast.stream WHERE ended_at IS NULL ORDER BY database, name',
    );
    return rows.map((row) => ({ at: `${row.database}:${row.name}`, stream: Number(row.stream_id) }));
  }

  async function settled(): Promise<void> {
    await eventually('no intention is open', async () => {
      const { rows } = await session.query('SELECT FROM holdfast.intention');
      return rows.length === 0;
    });
  }

  /** Renames; once the KV store has done it, and before its reply is here, runs `then`. Gives the reply, or its error. */
  async function whileRenamed(client: Redis, then: () => Promise<unknown>): Promise<unknown> {
    cut.hold(['toClient']);
    const reply = client.rename('s', 't').catch((thrown: unknown) => thrown);
    await eventually('the KV store has executed it', async () => (await direct.exists('s')) === 0);
    await then();
    cut.heal();
    return reply;
  }

  /** After a loss of everything the stream is there again, with what a group has not acknowledged. */
  async function comesBack(stream: string, ids: readonly string[], at = 0): Promise<void> {
    await settled();
    await looks(leader);
    const { rows: losses } = await session.query('SELECT cause, stream_id FROM holdfast.recovery');
    expect(losses).toEqual([]);
    await direct.flushall();
    await direct.select(at);
    await eventually('it is back', () => direct.exists(stream));
    expect(await idsOf(stream)).toEqual(ids);
  }

  test('a look does not take the new name for another stream', async () => {
    const client = far.client();
    const ids = await add(client, 3);
    await client.xgroup('CREATE', 's', 'g', '0');
    const stream = await known(leader, 's');
    expect(await whileRenamed(client, () => looks(leader, 5))).toBe('OK');
    expect(await current()).toEqual([{ at: '0:t', stream }]);
    await comesBack('t', ids);
    expect(idsIn(await leader.client().xreadgroup('GROUP', 'g', 'c', 'BLOCK', 20_000, 'STREAMS', 't', '>'))).toEqual(
      ids,
    );
    expect(await direct.exists('s')).toBe(0);
  });

  test('an XADD to the new name goes into the stream that has it', async () => {
    const client = far.client();
    const ids = await add(client, 3);
    const stream = await known(leader, 's');
    const reply = await whileRenamed(client, async () => {
      ids.push(...(await add(leader.client(), 2, 't')));
      expect(await current()).toHaveLength(2);
    });
    expect(reply).toBe('OK');
    expect(await current()).toEqual([{ at: '0:t', stream }]);
    await comesBack('t', ids);
  });

  test('what clients did under the new name is not forgotten', async () => {
    const client = far.client();
    const ids = await add(client, 4);
    await client.xgroup('CREATE', 's', 'g', '0');
    await client.xgroup('CREATE', 's', 'over', '0');
    await known(leader, 's');
    const near = leader.client();
    const reply = await whileRenamed(client, async () => {
      ids.push(...(await add(near, 1, 't')));
      await near.xgroup('DESTROY', 't', 'over');
      await near.xgroup('CREATE', 't', 'late', ids[2]!);
      await near.xdel('t', ids[0]!);
    });
    expect(reply).toBe('OK');
    await comesBack('t', ids.slice(1));
    expect(idsIn(await near.xreadgroup('GROUP', 'g', 'c', 'BLOCK', 20_000, 'STREAMS', 't', '>'))).toEqual(ids.slice(1));
    expect(idsIn(await near.xreadgroup('GROUP', 'late', 'c', 'BLOCK', 20_000, 'STREAMS', 't', '>'))).toEqual(
      ids.slice(3),
    );
    await expect(near.xreadgroup('GROUP', 'over', 'c', 'STREAMS', 't', '>')).rejects.toThrow(/^NOGROUP/);
  });

  test('onto another stream: what that had is over, what was added since goes on', async () => {
    const client = far.client();
    const ids = await add(client, 3);
    await add(client, 2, 't');
    const stream = await known(leader, 's');
    await known(leader, 't');
    const reply = await whileRenamed(client, async () => ids.push(...(await add(leader.client(), 1, 't'))));
    expect(reply).toBe('OK');
    expect(await current()).toEqual([{ at: '0:t', stream }]);
    await comesBack('t', ids);
  });

  test('DEL of the old name does not end the stream that has left it', async () => {
    const client = far.client();
    const ids = await add(client, 2);
    await known(leader, 's');
    let deleted: Promise<number> | undefined;
    await whileRenamed(client, async () => {
      deleted = leader.client().del('s');
      await looks(leader);
    });
    expect(await deleted).toBe(0);
    await comesBack('t', ids);
  });

  test('a connection that breaks: done is taken in, not done is not', async () => {
    const client = far.client();
    const ids = await add(client, 2);
    const stream = await known(leader, 's');
    expect(await whileRenamed(client, async () => cut.reset())).toBeInstanceOf(Error);
    await settled();
    expect(await current()).toEqual([{ at: '0:t', stream }]);
    await eventually('open', () => far.recovery.gate.state === 'open');
    await eventually('it is known', () => far.ledger.streams.find(0, Buffer.from('t')));

    // Never executed: its bytes are lost.
    const other = far.client();
    expect(await idsOf('t', other)).toEqual(ids);
    cut.hold(['toServer']);
    const renamed = other.rename('t', 'u').catch((thrown: unknown) => thrown);
    await eventually('it is on its way', async () => {
      const { rows } = await session.query('SELECT FROM holdfast.intention');
      return rows.length > 0;
    });
    cut.reset();
    cut.heal();
    expect(await renamed).toBeInstanceOf(Error);
    await settled();
    expect(await current()).toEqual([{ at: '0:t', stream }]);
    await comesBack('t', ids);
    expect(await direct.exists('u')).toBe(0);
  });

  test('a sidecar that is killed between the command and its settlement', async () => {
    await far.stop();
    const program = await serve(['--kv', `redis://127.0.0.1:${cut.port}`, '--database', database.url]);
    const client = clientOf(program.port);
    const ids = await add(client, 3);
    await client.xgroup('CREATE', 's', 'g', '0');
    const stream = await known(leader, 's');
    await whileRenamed(client, async () => {
      program.child.kill('SIGKILL');
      await program.exited;
      ids.push(...(await add(leader.client(), 1, 't')));
    });
    await settled();
    expect(await current()).toEqual([{ at: '0:t', stream }]);
    await comesBack('t', ids);
    expect(idsIn(await leader.client().xreadgroup('GROUP', 'g', 'c', 'BLOCK', 20_000, 'STREAMS', 't', '>'))).toEqual(
      ids,
    );
  });

  test('a ledger that is held up for a while costs a pause', async () => {
    await far.stop();
    far = await sidecarOf({ kvPort: cut.port, limits: { commitTimeoutMs: 3000 } });
    const client = far.client();
    const ids = await add(client, 2);
    const stream = await known(leader, 's');
    const reply = whileRenamed(client, () => session.query('SELECT pg_advisory_lock(holdfast.lock_key($1))', [stream]));
    await eventually('somebody waits for the lock', async () => {
      const { rows } = await session.query('SELECT FROM pg_locks WHERE NOT granted');
      return rows.length > 0;
    });
    await session.query('SELECT pg_advisory_unlock_all()');
    expect(await reply).toBe('OK');
    expect(await current()).toEqual([{ at: '0:t', stream }]);
    await comesBack('t', ids);
  });

  test('a ledger that is held up for too long: the client hears so, and the stream is not lost', async () => {
    await far.stop();
    far = await sidecarOf({ kvPort: cut.port, limits: { commitTimeoutMs: 100 } });
    const client = far.client();
    const ids = await add(client, 2);
    const stream = await known(leader, 's');
    const reply = await whileRenamed(client, () =>
      session.query('SELECT pg_advisory_lock(holdfast.lock_key($1))', [stream]),
    );
    expect(String(reply)).toMatch(/LEDGERDOWN the command was executed/);
    await session.query('SELECT pg_advisory_unlock_all()');
    await settled();
    expect(await current()).toEqual([{ at: '0:t', stream }]);
    await comesBack('t', ids);
  });

  test('MOVE', async () => {
    const client = far.client();
    const ids = await add(client, 2);
    const stream = await known(leader, 's');
    const near = clientOf(leader.port);
    await near.select(9);
    cut.hold(['toClient']);
    const moved = client.move('s', 9);
    await eventually('the KV store has executed it', async () => (await direct.exists('s')) === 0);
    ids.push(...(await add(near, 1)));
    cut.heal();
    expect(await moved).toBe(1);
    expect(await current()).toEqual([{ at: '9:s', stream }]);
    await comesBack('s', ids, 9);
  });

  test('SWAPDB, where both have streams of one name', async () => {
    const client = far.client();
    const [ids, others] = [await add(client, 2), await add(client, 1, 'only')];
    await client.select(9);
    const nines = await add(client, 3);
    await client.select(0);
    const [zero, nine, only] = [await known(leader, 's'), await known(leader, 's', 9), await known(leader, 'only')];
    cut.hold(['toClient']);
    const swapped = client.call('SWAPDB', 0, 9);
    await eventually('the KV store has executed it', async () => (await direct.exists('only')) === 0);
    await looks(leader);
    nines.push(...(await add(leader.client(), 1)));
    cut.heal();
    expect(await swapped).toBe('OK');
    expect(await current()).toEqual([
      { at: '0:s', stream: nine },
      { at: '9:only', stream: only },
      { at: '9:s', stream: zero },
    ]);
    await comesBack('s', nines);
    await direct.select(9);
    await eventually('all are back', () => direct.exists('s', 'only').then((count) => count === 2));
    expect([await idsOf('s'), await idsOf('only')]).toEqual([ids, others]);
  });

  test('RENAMENX, which is done or not', async () => {
    const client = far.client();
    const [ids, others] = [await add(client, 2), await add(client, 1, 'u')];
    const [stream, other] = [await known(leader, 's'), await known(leader, 'u')];
    expect(await client.renamenx('s', 'u')).toBe(0);
    expect(await client.renamenx('s', 't')).toBe(1);
    expect(await current()).toEqual([
      { at: '0:t', stream },
      { at: '0:u', stream: other },
    ]);
    await comesBack('t', ids);
    await eventually('the other is back', () => direct.exists('u'));
    expect(await idsOf('u')).toEqual(others);
  });

  test('COPY REPLACE: what it replaces is over, what it copies stays', async () => {
    const client = far.client();
    const ids = await add(client, 2);
    await add(client, 3, 't');
    await known(leader, 't');
    expect(await client.copy('s', 't', 'REPLACE')).toBe(1);
    await eventually('the copy is known with its entries', async () => {
      const { rows } = await session.query<{ entries: string }>(
        `SELECT count(*) AS entries FROM holdfast.entry JOIN holdfast.stream USING (stream_id)
          WHERE ended_at IS NULL AND convert_from(name, 'UTF8') = 't'`,
      );
      return rows[0]!.entries === '2';
    });
    await comesBack('t', ids);
    await eventually('the other is back', () => direct.exists('s'));
    expect(await idsOf('s')).toEqual(ids);
  });

  test('what was accepted for a name while its DEL was in doubt is published behind what comes back', async () => {
    const [client, near] = [far.client(), leader.client()];
    const before = await add(client, 2);
    expect(await near.xlen('s')).toBe(2);
    cut.hold(['toClient']);
    const deleted = client.del('s').catch((thrown: unknown) => thrown);
    await eventually('the KV store has executed it', async () => (await direct.exists('s')) === 0);
    await session.query(`SELECT pg_advisory_lock(holdfast.lock_key(0))`);
    const port = kv.port;
    await kv.kill9();
    await eventually('down', () => leader.recovery.gate.state === 'down');
    const id = await near.xadd('s', '*', 'n', 'new');
    // The reply never comes.
    cut.reset();
    cut.heal();
    expect(await deleted).toBeInstanceOf(Error);
    await session.query('SELECT pg_advisory_unlock_all()');
    await kv.restart();
    direct = clientOf(port);
    // The client was told nothing of the DEL, and the KV store that executed it is no more: that the stream is gone proves nothing.
    await eventually('it is published', async () => (await idsOf('s')).length === 3);
    expect(await idsOf('s')).toEqual([...before, id]);
  });
});
