/** New clients that come while the KV store is down: who was let in before connects, and XADD goes on. */
import { Redis } from 'ioredis';
import { createClient } from 'redis';
import { describe, expect, test } from 'vitest';
import { asking } from '../scope/scoped-proxy.ts';
import { type Sidecar, serve } from '../support/program.ts';
import { connectRaw } from '../support/raw-client.ts';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';

describe.each(kvKinds)('while %s is down', (kind) => {
  let kv: Awaited<ReturnType<typeof startKv>>;
  let program: Sidecar;

  test('(the servers start, one user and one database are used, the KV store ends)', async () => {
    kv = await startKv(kind);
    const direct = asking(await connectRaw(kv.port));
    await direct('ACL', 'SETUSER', 'producer', 'on', '>right', '+@all', '~*', '&*');
    await direct('ACL', 'SETUSER', 'unseen', 'on', '>right', '+@all', '~*', '&*');
    const { url } = await startTestPostgres();
    program = await serve(['--kv', kv.url, '--database', url]);
    // Known from here on: the user, and database 2.
    const known = asking(await connectRaw(program.port));
    expect(await known('AUTH', 'producer', 'right')).toBe('OK');
    expect(await known('SELECT', '2')).toBe('OK');
    expect(await known('INFO')).toContain('redis_version');
    await kv.kill9();
    await new Promise((resolve) => setTimeout(resolve, 300));
  });

  test.each([2, 3] as const)('ioredis connects with default options and adds, RESP%i', async (protocol) => {
    for (const login of [{}, { username: 'producer', password: 'right', db: 2 }]) {
      const redis = new Redis({ port: program.port, protocol, ...login });
      const failures: unknown[] = [];
      redis.on('error', (error) => failures.push(error));
      expect(await redis.xadd('s', '*', 'client', `ioredis ${protocol}`)).toMatch(/^\d+-\d+$/);
      expect(await redis.ping()).toBe('PONG');
      expect(failures).toEqual([]);
      redis.disconnect();
    }
  });

  test.each([2, 3] as const)('node-redis connects with default options and adds, RESP%i', async (RESP) => {
    for (const login of [{}, { username: 'producer', password: 'right', database: 2 }]) {
      const redis = createClient({ socket: { port: program.port }, RESP, ...login });
      const failures: unknown[] = [];
      redis.on('error', (error) => failures.push(error));
      await redis.connect();
      expect(await redis.xAdd('s', '*', { client: `node-redis ${RESP}` })).toMatch(/^\d+-\d+$/);
      expect(failures).toEqual([]);
      redis.destroy();
    }
  });

  test('INFO is the last that is known, and says so', async () => {
    const ask = asking(await connectRaw(program.port));
    const info = String(await ask('INFO'));
    expect(info).toContain('redis_version');
    expect(info).toMatch(/# Holdfast\r\n.*kv_reachable:0\r\nkv_away_seconds:\d+\r\n.*kv_info_age_seconds:\d+\r\n/s);
    const server = String(await ask('INFO', 'server'));
    expect(server).toMatch(/^# Server\r\n/);
    expect(server).not.toContain('# Clients');
  });

  test('nobody is let in who was not before', async () => {
    for (const args of [
      ['AUTH', 'producer', 'wrong'],
      ['AUTH', 'unseen', 'right'],
      ['HELLO', '3', 'AUTH', 'unseen', 'right'],
      ['ACL', 'WHOAMI'],
    ]) {
      await expect((await connectRaw(program.port)).send(...args)).rejects.toThrow('connection closed');
    }
  });

  test('what was added is in the stream when it is back', async () => {
    await kv.restart();
    const ask = asking(await connectRaw(program.port));
    await expect.poll(() => ask('XLEN', 's'), { timeout: 10_000 }).toBe(4);
    await ask('SELECT', '2');
    await expect.poll(() => ask('XLEN', 's'), { timeout: 10_000 }).toBe(4);
  });
});

test('while a KV store that asks for a password is down, XADD without one is refused', async () => {
  const kv = await startKv(kvKinds[0]!, { extraArgs: ['--requirepass', 'secret'] });
  const { url } = await startTestPostgres();
  const program = await serve(['--kv', kv.url.replace('redis://', 'redis://:secret@'), '--database', url]);
  const before = asking(await connectRaw(program.port));
  expect(await before('XADD', 's', '*', 'a', 'b')).toMatch(/^!NOAUTH/);
  await kv.kill9();
  await new Promise((resolve) => setTimeout(resolve, 300));
  await expect(asking(await connectRaw(program.port))('XADD', 's', '*', 'a', 'b')).rejects.toThrow('connection closed');
  await expect(before('XADD', 's', '*', 'a', 'b')).rejects.toThrow('connection closed');
  expect(program.output.stdout).toMatch(/"reason":"KVDOWN [^"]*cannot be reached/);
}, 30_000);
