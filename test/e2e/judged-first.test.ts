/** Nobody gets work done in the ledger before the KV store has judged who they are and what they may do. */
import { beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import { request } from '../../src/resp/encode.ts';
import { exchangeBytes } from '../proxy/through-proxy.ts';
import { connectRaw, type RawClient } from '../support/raw-client.ts';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { eventually, type Sidecar, startSidecar } from '../support/sidecar.ts';

const HOLDFAST = { username: 'holdfast', password: 'holdfast' };

describe.each(kvKinds)('with %s,', (kind) => {
  let kv: KvServer;
  let direct: RawClient;
  let sidecar: Sidecar;
  /** May do everything. */
  let owner: RawClient;

  beforeAll(async () => {
    kv = await startKv(kind);
    direct = await connectRaw(kv.port);
    await direct.send('ACL', 'SETUSER', 'holdfast', 'on', '>holdfast', '~*', '&*', '+@all');
    await direct.send('AUTH', 'holdfast', 'holdfast');
    await direct.send('ACL', 'SETUSER', 'default', 'resetpass');
  });

  beforeEach(async () => {
    await direct.send('FLUSHALL');
    await direct.send('ACL', 'SETUSER', 'tenant', 'reset', 'on', '>tenant', '~own:*', '&*', '+@all', '-flushdb');
    const { url: databaseUrl } = await startTestPostgres();
    sidecar = await startSidecar({ kvPort: kv.port, databaseUrl, kvUser: HOLDFAST });
    owner = await login('holdfast');
    await owner.send('XADD', 'known', '*', 'f', 'v');
    await owner.send('XGROUP', 'CREATE', 'known', 'group', '0');
  });

  async function login(user: string): Promise<RawClient> {
    const client = await connectRaw(sidecar.port);
    expect((await client.send('AUTH', user, user)).bytes.toString()).toBe('OK');
    return client;
  }

  async function work(): Promise<{ streams: number; intentions: boolean; changing: number }> {
    const { rows } = await sidecar.ledger.pool.query<{ streams: number; intentions: boolean; changing: number }>(
      `SELECT (SELECT count(*)::int FROM holdfast.stream) AS streams,
              (SELECT is_called FROM holdfast.intention_intention_id_seq) AS intentions,
              (SELECT count(*)::int FROM holdfast.consumer_group WHERE changing) AS changing`,
    );
    return rows[0]!;
  }

  const NOTHING_DONE = { streams: 1, intentions: false, changing: 0 };
  const COMMANDS: readonly (readonly string[])[] = [
    ['XADD', 'new', '*', 'f', 'v'],
    ['XADD', 'known', '*', 'f', 'v'],
    ['XGROUP', 'CREATE', 'fresh', 'g', '$', 'MKSTREAM'],
    ['XGROUP', 'SETID', 'known', 'group', '0'],
    ['XGROUP', 'DESTROY', 'known', 'group'],
    ['XDEL', 'known', '1-1'],
    ['DEL', 'known'],
    ['EXPIRE', 'known', '100'],
    ['RENAME', 'known', 'other'],
    ['FLUSHDB'],
  ];

  test('3,000 XADDs that are answered NOAUTH make no streams', async () => {
    const adds = Array.from({ length: 3_000 }, (_, n) => request(['XADD', `unknown:${n}`, '*', 'f', 'v']));
    const said = await exchangeBytes(sidecar.port, Buffer.concat([...adds, request(['QUIT'])]), 10_000);
    expect(said.toString().match(/-NOAUTH/g)?.length).toBe(3_000);
    expect(await work()).toEqual(NOTHING_DONE);
  });

  test('what a client without AUTH asks, alone or in MULTI, is refused and opens nothing', async () => {
    const client = await connectRaw(sidecar.port);
    for (const command of [...COMMANDS, ['FLUSHALL'], ['SWAPDB', '0', '1']]) {
      expect((await client.send(...command)).bytes.toString(), command.join(' ')).toMatch(/^NOAUTH/);
      client.socket.write(Buffer.concat([['MULTI'], command, ['EXEC']].map((args) => request(args))));
      for (let i = 0; i < 3; i += 1) expect((await client.next()).bytes.toString()).toMatch(/^NOAUTH|^EXECABORT/);
    }
    expect(await work()).toEqual(NOTHING_DONE);
  });

  test('what a user may not do, alone or in MULTI, is refused and opens nothing', async () => {
    const client = await login('tenant');
    for (const command of COMMANDS) {
      expect((await client.send(...command)).bytes.toString(), command.join(' ')).toMatch(/^NOPERM/);
      client.socket.write(Buffer.concat([['MULTI'], command, ['EXEC']].map((args) => request(args))));
      const replies = [await client.next(), await client.next(), await client.next()].map(({ bytes }) => String(bytes));
      expect(replies[2], command.join(' ')).toMatch(/^EXECABORT/);
    }
    expect(await work()).toEqual(NOTHING_DONE);
  });

  test('what a user may do is done, in MULTI too, and what it may not any more is taken back', async () => {
    const client = await login('tenant');
    expect((await client.send('XADD', 'own:a', '*', 'f', 'v')).type).toBe('$');
    await client.send('MULTI');
    await client.send('XADD', 'own:b', '*', 'f', 'v');
    await client.send('XGROUP', 'CREATE', 'own:b', 'g', '0');
    const executed = await client.send('EXEC');
    expect(executed.items?.map(({ type }) => type)).toEqual(['$', '+']);
    expect((await work()).streams).toBe(3);
    expect((await client.send('DEL', 'own:a')).bytes.toString()).toBe('1');
    expect((await client.send('XADD', 'own:a', '*', 'f', 'v')).type).toBe('$');
    await owner.send('ACL', 'SETUSER', 'tenant', '-del');
    expect((await client.send('DEL', 'own:a')).bytes.toString()).toMatch(/^NOPERM/);
    expect((await client.send('XADD', 'own:a', '*', 'f', 'v')).type).toBe('$');
    await eventually('nothing is open', async () => {
      const { rows } = await sidecar.ledger.pool.query('SELECT FROM holdfast.intention');
      return rows.length === 0;
    });
    expect((await owner.send('XLEN', 'own:a')).bytes.toString()).toBe('2');
  });
});
