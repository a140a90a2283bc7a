import type { Redis } from 'ioredis';
import pg from 'pg';
import { afterEach, describe, expect, test } from 'vitest';
import type { KvServerKind } from '../../src/embedded/kv-server.ts';
import { KvConnection } from '../../src/recovery/kv/connection.ts';
import { readNote } from '../../src/recovery/outbox/outbox-script.ts';
import { startTcpProxy } from '../chaos/tcp-proxy.ts';
import { kvKinds, postgresVersions, startKv, startTestPostgres } from '../support/servers.ts';
import { clientOf, eventually, type Sidecar, startSidecar } from '../support/sidecar.ts';

const sessions = new Set<pg.Client>();
afterEach(async () => {
  for (const session of sessions) await session.end().catch(() => undefined);
  sessions.clear();
});

async function connect(url: string): Promise<pg.Client> {
  const session = new pg.Client({ connectionString: url });
  session.on('error', () => undefined);
  await session.connect();
  sessions.add(session);
  return session;
}

async function setUp(kind: KvServerKind, version?: string) {
  const kv = await startKv(kind);
  const database = await startTestPostgres(version === undefined ? {} : { version });
  const sidecar = await startSidecar({ kvPort: kv.port, databaseUrl: database.url, lookIntervalMs: 100 });
  return {
    kv,
    database,
    sidecar,
    sql: await connect(database.url),
    direct: clientOf(kv.port),
    client: sidecar.client(),
  };
}

async function values(client: Redis, stream: string): Promise<string[]> {
  return (await client.xrange(stream, '-', '+')).map(([, fields]) => fields[1]!);
}

async function waiting(sql: pg.Client): Promise<number> {
  const { rows } = await sql.query<{ count: string }>('SELECT count(*) FROM holdfast.outbox');
  return Number(rows[0]!.count);
}

async function inLedger(sql: pg.Client, stream: string): Promise<number> {
  const { rows } = await sql.query<{ count: string }>(
    'SELECT count(*) FROM holdfast.entry JOIN holdfast.stream USING (stream_id) WHERE name = $1',
    [Buffer.from(stream)],
  );
  return Number(rows[0]!.count);
}

/** Ends the statement that waits to record, and the sidecar with it. */
async function stopWhileRecording(sidecar: Sidecar, sql: pg.Client): Promise<void> {
  const end = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE query LIKE '%outbox_record%' AND wait_event_type = 'Lock' AND datname = current_database()`;
  await eventually('it waits to record', async () => {
    const { rows } = await sql.query(end.replace('pg_terminate_backend(pid)', '1'));
    return rows.length > 0;
  });
  const stopping = sidecar.stop();
  await sql.query(end);
  await stopping;
}

describe.each(postgresVersions)('holdfast.xadd in Postgres %s', (version) => {
  test('takes all its forms, and refuses what is no entry', async () => {
    const { sql, client, direct } = await setUp(kvKinds[0]!, version);
    await sql.query(`SELECT holdfast.xadd('a', 'n', '1')`);
    await sql.query(`SELECT holdfast.xadd('a', VARIADIC ARRAY['n', '2'])`);
    await sql.query(`SELECT holdfast.xadd('a', VARIADIC fields => ARRAY['n', '3'])`);
    await sql.query(`SELECT holdfast.xadd('a', maxlen => 2, database => 0, VARIADIC fields => ARRAY['n', '4'])`);
    await sql.query(`SELECT holdfast.xadd('a', database => 3, VARIADIC fields => ARRAY['n', 'other', 'ä', ''])`);
    await sql.query(`SELECT holdfast.xadd($1, VARIADIC $2::text[])`, ['a', ['n', '5']]);
    await eventually('all are there', async () => (await values(client, 'a')).at(-1) === '5');
    expect(await values(client, 'a')).toEqual(['3', '4', '5']);
    await direct.select(3);
    await eventually('the other database', async () => (await direct.xlen('a')) === 1);
    expect((await direct.xrange('a', '-', '+'))[0]![1]).toEqual(['n', 'other', 'ä', '']);
    for (const call of [
      `holdfast.xadd('a', 'n')`,
      `holdfast.xadd('', 'n', '1')`,
      `holdfast.xadd(NULL, 'n', '1')`,
      `holdfast.xadd('a', 'n', NULL)`,
      `holdfast.xadd('a', VARIADIC ARRAY[]::text[])`,
      `holdfast.xadd('a', maxlen => -1, VARIADIC fields => ARRAY['n', '4'])`,
      `holdfast.xadd('a', database => -1, VARIADIC fields => ARRAY['n', '4'])`,
      `holdfast.xadd('a', 'n', repeat('x', 16777217))`,
    ]) {
      await expect(sql.query(`SELECT ${call}`), call).rejects.toThrow(/holdfast\.xadd/);
    }
  });

  test('needs nothing but the right to call it, also from a trigger', async () => {
    const { sql, client } = await setUp(kvKinds[0]!, version);
    const role = `app_${process.pid}`;
    await sql.query(`CREATE ROLE ${role}`);
    await sql.query(`CREATE TABLE public.orders (id int);
      CREATE FUNCTION public.tell() RETURNS trigger LANGUAGE plpgsql AS $$
      BEGIN PERFORM holdfast.xadd('orders', 'id', NEW.id::text); RETURN NULL; END $$;
      CREATE TRIGGER tell AFTER INSERT ON public.orders FOR EACH ROW EXECUTE FUNCTION public.tell();
      GRANT INSERT ON public.orders TO ${role}`);
    await sql.query(`SET ROLE ${role}`);
    await expect(sql.query('INSERT INTO public.orders VALUES (1)')).rejects.toThrow(/permission denied/);
    await sql.query(`RESET ROLE; GRANT USAGE ON SCHEMA holdfast TO ${role};
      GRANT EXECUTE ON FUNCTION holdfast.xadd(text, text[]) TO ${role}; SET ROLE ${role}`);
    await sql.query('INSERT INTO public.orders SELECT generate_series(1, 3)');
    await expect(sql.query('SELECT * FROM holdfast.outbox')).rejects.toThrow(/permission denied/);
    await expect(sql.query(`SELECT holdfast.outbox_remove('{}', '{}')`)).rejects.toThrow(/permission denied/);
    await sql.query('RESET ROLE');
    await eventually('all are there', async () => (await values(client, 'orders')).length === 3);
    expect(await values(client, 'orders')).toEqual(['1', '2', '3']);
    await sql.query(`DROP OWNED BY ${role}; DROP ROLE ${role}`);
  });
});

describe.each(kvKinds)('the outbox, with %s:', (kind) => {
  test('publishes what was committed, in the order of the commits, and nothing else', async () => {
    const { sql, database, client } = await setUp(kind);
    const [first, second, third] = await Promise.all([1, 2, 3].map(() => connect(database.url)));
    await first!.query(`BEGIN; SELECT holdfast.xadd('s', 'n', 'first 1')`);
    await second!.query(`BEGIN; SELECT holdfast.xadd('s', 'n', 'second 1')`);
    await third!.query(`BEGIN; SELECT holdfast.xadd('s', 'n', 'never')`);
    await first!.query(`SAVEPOINT p; SELECT holdfast.xadd('s', 'n', 'taken back'); ROLLBACK TO p`);
    await second!.query(`SELECT holdfast.xadd('s', 'n', 'second 2'); COMMIT`);
    await third!.query('ROLLBACK');
    await first!.query(`SELECT holdfast.xadd('s', 'n', 'first 2'); COMMIT`);
    await sql.query(`SELECT holdfast.xadd('s', 'n', 'last')`);
    await eventually('the last is there', async () => (await values(client, 's')).at(-1) === 'last');
    expect(await values(client, 's')).toEqual(['second 1', 'second 2', 'first 1', 'first 2', 'last']);
    await eventually('the outbox is empty', async () => (await waiting(sql)) === 0);
    expect(await inLedger(sql, 's')).toBe(5);
    const { rows } = await sql.query('SELECT * FROM holdfast.outbox_transaction');
    expect(rows).toEqual([]);
  });

  test('is restored like every entry', async () => {
    const { sql, client, direct } = await setUp(kind);
    await sql.query(`SELECT holdfast.xadd('s', 'n', n::text) FROM generate_series(1, 2500) AS n`);
    await eventually('the outbox is empty', async () => (await waiting(sql)) === 0);
    const before = await client.xrange('s', '-', '+');
    expect(before.length).toBe(2500);
    await direct.flushall();
    await eventually('all is back', async () => (await direct.xlen('s')) === 2500);
    expect(await client.xrange('s', '-', '+')).toEqual(before);
    await sql.query(`SELECT holdfast.xadd('s', 'n', 'behind')`);
    await eventually('it goes on', async () => (await values(client, 's')).at(-1) === 'behind');
  });

  test('waits while the KV store is away, and goes on in order', async () => {
    const kv = await startKv(kind);
    const database = await startTestPostgres();
    const link = await startTcpProxy(() => kv.port);
    const sidecar = await startSidecar({ kvPort: link.port, databaseUrl: database.url, lookIntervalMs: 100 });
    const sql = await connect(database.url);
    const direct = clientOf(kv.port);
    const client = sidecar.client();
    await client.ping();
    await sql.query(`SELECT holdfast.xadd('s', 'n', '1')`);
    await eventually('the first is there', async () => (await direct.xlen('s')) === 1);
    link.cut();
    for (let n = 2; n <= 50; n += 1) await sql.query(`SELECT holdfast.xadd('s', 'n', $1)`, [String(n)]);
    await client.xadd('s', '*', 'n', 'a client');
    link.heal();
    await eventually('all are there', async () => (await direct.xlen('s')) === 51);
    const ours = (await values(direct, 's')).filter((value) => value !== 'a client');
    expect(ours).toEqual(Array.from({ length: 50 }, (_, n) => String(n + 1)));
    await sidecar.stop();
    await link.close();
  });

  test('goes on with other streams where one cannot be written to', async () => {
    const { sql, client, direct } = await setUp(kind);
    await direct.set('taken', 'x');
    await sql.query(`SELECT holdfast.xadd('taken', 'n', n::text) FROM generate_series(1, 1500) AS n`);
    await sql.query(`SELECT holdfast.xadd('free', 'n', '1')`);
    await sql.query(`SELECT holdfast.xadd('nowhere', database => 99, VARIADIC fields => ARRAY['n', '1'])`);
    await sql.query(`SELECT holdfast.xadd('free', 'n', '2') FROM generate_series(1, 2)`);
    await eventually('the free one is there', async () => (await client.xlen('free')) === 3);
    await eventually('only the other one waits', async () => (await waiting(sql)) === 1501);
    await client.del('taken');
    await eventually('the other one too', async () => (await client.xlen('taken')) === 1500);
    expect(await values(client, 'taken')).toEqual(Array.from({ length: 1500 }, (_, n) => String(n + 1)));
  });

  test('adds nothing twice where the publisher died between adding and recording', async () => {
    const { sql, client, direct, kv, sidecar, database } = await setUp(kind);
    await sql.query(`SELECT holdfast.xadd('s', 'n', '0')`);
    await eventually('the outbox is empty', async () => (await waiting(sql)) === 0);
    // The ledger cannot be written to while this session holds the table: what is added stays unrecorded.
    const holder = await connect(database.url);
    await holder.query('BEGIN; LOCK TABLE holdfast.entry IN SHARE MODE');
    await sql.query(`SELECT holdfast.xadd('s', 'n', n::text) FROM generate_series(1, 10) AS n`);
    await eventually('they are in the stream', async () => (await direct.xlen('s')) === 11);
    expect(await waiting(sql)).toBe(10);
    await stopWhileRecording(sidecar, sql);
    await holder.query('ROLLBACK');
    const left = await waiting(sql);
    const next = await startSidecar({ kvPort: kv.port, databaseUrl: database.url, lookIntervalMs: 100 });
    await eventually('the outbox is empty', async () => (await waiting(sql)) === 0);
    expect(left).toBe(10);
    expect(await values(next.client(), 's')).toEqual(Array.from({ length: 11 }, (_, n) => String(n)));
    expect(next.outbox.metrics()).toEqual({ publishedTotal: 0, resumedTotal: 1 });
    expect(await inLedger(sql, 's')).toBe(11);
    client.disconnect();
  });

  test('records them also where the stream is in trouble by then', async () => {
    const { sql, direct, kv, sidecar, database } = await setUp(kind);
    await sql.query(`SELECT holdfast.xadd('s', 'n', '0')`);
    await eventually('the outbox is empty', async () => (await waiting(sql)) === 0);
    const holder = await connect(database.url);
    await holder.query('BEGIN; LOCK TABLE holdfast.entry IN SHARE MODE');
    await sql.query(`SELECT holdfast.xadd('s', 'n', n::text) FROM generate_series(1, 10) AS n`);
    await eventually('they are in the stream', async () => (await direct.xlen('s')) === 11);
    await stopWhileRecording(sidecar, sql);
    await holder.query('ROLLBACK');
    await sql.query(`UPDATE holdfast.stream SET mode = 'outage', mode_since = clock_timestamp(), epoch = epoch + 1`);
    const next = await startSidecar({ kvPort: kv.port, databaseUrl: database.url, lookIntervalMs: 100 });
    await eventually('the outbox is empty', async () => (await waiting(sql)) === 0);
    await eventually('the trouble is over', () => next.recovery.status().troubled.length === 0);
    expect(await values(next.client(), 's')).toEqual(Array.from({ length: 11 }, (_, n) => String(n)));
    await eventually('all are in the ledger', async () => (await inLedger(sql, 's')) === 11);
  });

  test('adds them again where the KV store lost them', async () => {
    const { sql, direct, kv, sidecar, database } = await setUp(kind);
    const holder = await connect(database.url);
    await holder.query('BEGIN; LOCK TABLE holdfast.entry IN SHARE MODE');
    await sql.query(`SELECT holdfast.xadd('s', 'n', n::text) FROM generate_series(1, 10) AS n`);
    await eventually('they are in the stream', async () => (await direct.xlen('s')) === 10);
    await stopWhileRecording(sidecar, sql);
    await direct.flushall();
    await holder.query('ROLLBACK');
    const next = await startSidecar({ kvPort: kv.port, databaseUrl: database.url, lookIntervalMs: 100 });
    await eventually('the outbox is empty', async () => (await waiting(sql)) === 0);
    expect(await values(next.client(), 's')).toEqual(Array.from({ length: 10 }, (_, n) => String(n + 1)));
  });

  test('adds them again where the stream was lost and made anew, and the note was not', async () => {
    const { sql, direct, kv, sidecar, database } = await setUp(kind);
    const holder = await connect(database.url);
    await holder.query('BEGIN; LOCK TABLE holdfast.entry IN SHARE MODE');
    await sql.query(`SELECT holdfast.xadd('s', 'n', n::text) FROM generate_series(1, 10) AS n`);
    await eventually('they are in the stream', async () => (await direct.xlen('s')) === 10);
    await stopWhileRecording(sidecar, sql);
    // As by eviction, and somebody who goes past Holdfast.
    await direct.del('s');
    await direct.xadd('s', '*', 'n', 'other');
    await holder.query('ROLLBACK');
    const next = await startSidecar({ kvPort: kv.port, databaseUrl: database.url, lookIntervalMs: 100 });
    await eventually('the outbox is empty', async () => (await waiting(sql)) === 0);
    const expected = Array.from({ length: 10 }, (_, n) => String(n + 1));
    // Those that the last statements of the sidecar before wrote down come by a restore.
    await eventually('all are there', async () => (await direct.xlen('s')) === 11);
    expect((await values(next.client(), 's')).toSorted()).toEqual(['other', ...expected].toSorted());
  });

  test('is read in one step by many writers, each in its order', async () => {
    const { sql, database, client } = await setUp(kind);
    const writers = await Promise.all(Array.from({ length: 10 }, () => connect(database.url)));
    await Promise.all(
      writers.map(async (writer, w) => {
        for (let n = 0; n < 30; n += 1) {
          await writer.query('BEGIN');
          await writer.query(`SELECT holdfast.xadd('s', 'n', $1)`, [`${w} ${n}`]);
          await writer.query(n % 5 === 4 ? 'ROLLBACK' : 'COMMIT');
        }
      }),
    );
    await eventually('the outbox is empty', async () => (await waiting(sql)) === 0);
    const got = await values(client, 's');
    for (const w of writers.keys()) {
      const own = got.filter((value) => value.startsWith(`${w} `)).map((value) => Number(value.split(' ')[1]));
      expect(own).toEqual(Array.from({ length: 30 }, (_, n) => n).filter((n) => n % 5 !== 4));
    }
  });

  test('lets one of two publishers through', async () => {
    const { kv, database, sql, client } = await setUp(kind);
    const other = await startSidecar({ kvPort: kv.port, databaseUrl: database.url, lookIntervalMs: 100 });
    for (let n = 0; n < 5; n += 1) {
      await sql.query(`SELECT holdfast.xadd('s', 'n', i::text) FROM generate_series(1, 100) AS i`);
      // The lead changes hands under it.
      await sql.query(`SELECT pg_terminate_backend(l.pid) FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
        WHERE l.locktype = 'advisory' AND a.datname = current_database() AND a.pid <> pg_backend_pid()
          AND l.classid = 0 AND l.objid = ${0x4846_0002}`);
    }
    await eventually('the outbox is empty', async () => (await waiting(sql)) === 0);
    expect(await client.xlen('s')).toBe(500);
    const connection = await KvConnection.open({ host: '127.0.0.1', port: kv.port }, 1000);
    expect((await readNote(connection))?.ids.length).toBeGreaterThan(0);
    connection.close();
    await other.stop();
  });
});
