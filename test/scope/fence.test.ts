/** Case 11: the users of the KV store's ACL behind scopes. */
import { describe, expect, it } from 'vitest';
import { buildFence } from '../../src/scope/fence.ts';
import { connectScopeAdmin } from '../../src/scope/scope-admin.ts';
import { silent, until } from '../proxy/through-proxy.ts';
import { connectRaw } from '../support/raw-client.ts';
import { startKv } from '../support/servers.ts';
import { type Ask, asking, startScopedProxy } from './scoped-proxy.ts';

const USERS = {
  a: { scope: 'a:' },
  b: { scope: 'b:', shared: ['common'] },
  worker: { scope: 'v1/{orgId}/{fleet}/{templateVersion}/', may: ['set-scope'] as const, shared: ['task-queue'] },
};

describe.each(['redis', 'valkey'] as const)('the second fence on %s', (server) => {
  it('is a user of the KV store for each identity, limited to its scopes', async () => {
    const kv = await startKv(server, { extraArgs: ['--enable-debug-command', 'yes'] });
    const admin = connectScopeAdmin({ port: kv.port });
    const fence = (await buildFence(admin, silent))!;
    const direct = asking(await connectRaw(kv.port));
    await direct('MSET', 'secret', 1, 'ax', 1, 'common', 1);
    await direct('RPUSH', 'a:l', 1);
    const { username, password, prepare } = fence.credentials('a', Buffer.from('a:'), ['common']);
    expect(await direct('AUTH', username, password)).toMatch(/^!WRONGPASS/);
    await prepare(false);
    const fenced = asking(await connectRaw(kv.port));
    expect(await fenced('AUTH', username, password)).toBe('OK');
    const granted: [string, ...string[]][] = [
      ['SET', 'a:k', 'v'],
      ['GET', 'common'],
      ['MGET', 'a:k', 'common'],
      ['PUBLISH', 'a:c', 'm'],
      ['SORT', 'a:l', 'BY', 'a:w_*', 'GET', 'a:v_*', 'STORE', 'a:d'],
      ['SCAN', '0', 'MATCH', 'a:*'],
      ['EVAL', "return redis.call('GET',KEYS[1])", '1', 'a:k'],
      ['OBJECT', 'ENCODING', 'a:k'],
      ['CLIENT', 'SETNAME', 'x'],
      ['INFO', 'server'],
      ['SELECT', '0'],
      ['COMMAND', 'COUNT'],
      ['PSUBSCRIBE', 'a:*'],
      ['PUNSUBSCRIBE', 'a:*'],
      ['SUBSCRIBE', '__keyspace@0__:a:k', '__keyevent@0__:set', '__redis__:invalidate'],
    ];
    for (const args of granted) expect(String(await fenced(...args)), args.join(' ')).not.toMatch(/^!/);
    const other = asking(await connectRaw(kv.port));
    await other('AUTH', username, password);
    const refused: [string, ...string[]][] = [
      ['GET', 'secret'],
      ['GET', 'ax'],
      ['SET', 'holdfast:epoch', '1'],
      ['COPY', 'a:k', 'secret'],
      ['COPY', 'secret', 'a:k'],
      ['SORT', 'a:l', 'STORE', 'secret'],
      ['EVAL', "return redis.call('GET',KEYS[1])", '1', 'secret'],
      ['PUBLISH', 'c', 'm'],
      ['SUBSCRIBE', 'c'],
      ['PSUBSCRIBE', '*'],
      ['SUBSCRIBE', '__keyspace@0__:secret'],
      ['FLUSHALL'],
      ['FLUSHDB'],
      ['SWAPDB', '0', '1'],
      ['CONFIG', 'GET', '*'],
      ['ACL', 'LIST'],
      ['DEBUG', 'SLEEP', '0'],
      ['SCRIPT', 'FLUSH'],
      ['RANDOMKEY'],
      ['DBSIZE'],
      ['CLIENT', 'KILL', 'ID', '1'],
      ['CLIENT', 'LIST'],
      ['SHUTDOWN'],
      ['MONITOR'],
      ['REPLICAOF', 'NO', 'ONE'],
      ['CLUSTER', 'INFO'],
      ['MODULE', 'LIST'],
      ['SLOWLOG', 'GET'],
      ['FUNCTION', 'DUMP'],
    ];
    for (const args of refused) {
      const reply = String(await other(...args));
      expect(reply, args.join(' ')).toMatch(/^!(NOPERM|ERR (The user executing the script|ACL failure))/);
    }
    expect(await other('EVAL', "return redis.call('GET','secret')", 0)).toMatch(/^!/);
    await fence.close();
    admin.close();
  });

  it('is made again after the KV store forgot it, under clients that notice nothing', async () => {
    const kv = await startKv(server);
    const proxy = await startScopedProxy(kv.port, { users: USERS });
    const a = asking(await proxy.login('a'));
    const worker = asking(await proxy.login('worker'));
    const whole: Ask = asking(await proxy.unscoped());
    expect(await a('SET', 'k', 1)).toBe('OK');
    expect(await worker('HOLDFAST', 'SCOPE', 'SET', 'o', 'f', '1')).toBe('OK');
    expect(await worker('SET', 'k', 1)).toBe('OK');
    await kv.kill9();
    await kv.restart();
    await until(async () => (await whole('PING')) === 'PONG');
    expect(await a('SET', 'k', 2)).toBe('OK');
    expect(await a('EVAL', "return redis.call('GET',KEYS[1])", 1, 'k')).toBe('2');
    expect(await worker('SET', 'k', 2)).toBe('OK');
    const users = ((await whole('ACL', 'USERS')) as string[]).filter((name) => name.startsWith('holdfast-'));
    expect(users).toHaveLength(2);
    // Removed behind Holdfast's back: the server closes its connections, and the next one makes it again.
    await whole('ACL', 'DELUSER', ...users);
    await until(async () => (await a('GET', 'k')) === '2');
    await kv.stop();
  });

  it('removes its users at the end, and those that a killed run left behind', async () => {
    const kv = await startKv(server);
    const direct = asking(await connectRaw(kv.port));
    const admin = connectScopeAdmin({ port: kv.port });
    const killed = (await buildFence(admin, silent))!;
    await killed.credentials('a', Buffer.from('a:'), []).prepare(false);
    const living = (await buildFence(connectScopeAdmin({ port: kv.port }), silent))!;
    const credentials = living.credentials('b', Buffer.from('b:'), []);
    await credentials.prepare(false);
    const held = asking(await connectRaw(kv.port));
    await held('AUTH', credentials.username, credentials.password);
    const next = (await buildFence(admin, silent))!;
    const users = async (): Promise<string[]> => ((await direct('ACL', 'USERS')) as string[]).sort();
    expect(await users()).toEqual(['default', credentials.username]);
    await next.credentials('c', Buffer.from('c:'), []).prepare(false);
    await next.close();
    expect(await users()).toEqual(['default', credentials.username]);
    admin.close();
  });

  it('is not there where the upstream user may not manage users', async () => {
    const kv = await startKv(server);
    const direct = asking(await connectRaw(kv.port));
    await direct('ACL', 'SETUSER', 'plain', 'on', '>plain', '~*', '&*', '+@all', '-acl');
    const admin = connectScopeAdmin({ port: kv.port, username: 'plain', password: 'plain' });
    expect(await buildFence(admin, silent)).toBeUndefined();
    admin.close();
  });
});

describe('the users of the second fence', () => {
  it('are the same after a reload, so that sessions of before can still log in', async () => {
    const kv = await startKv('redis');
    const admin = connectScopeAdmin({ port: kv.port });
    const fence = (await buildFence(admin, silent))!;
    const before = fence.credentials('a', Buffer.from('a:'), []);
    const after = fence.credentials('a', Buffer.from('a:'), []);
    await after.prepare(false);
    const client = asking(await connectRaw(kv.port));
    expect(await client('AUTH', before.username, before.password)).toBe('OK');
    expect(fence.credentials('a', Buffer.from('a:'), [], ['migrate']).username).not.toBe(before.username);
    admin.close();
  });
});
