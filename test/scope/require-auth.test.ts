/** A listener that asks everybody to log in as a configured user: nothing is done for who has not, or is so no longer. */

import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { request } from '../../src/resp/encode.ts';
import { launch } from '../support/program.ts';
import { connectRaw } from '../support/raw-client.ts';
import { kvKinds, startKv, startTestPostgres, temporaryDirectory } from '../support/servers.ts';
import { type Ask, asking, startScopedProxy } from './scoped-proxy.ts';

const NOAUTH = '!NOAUTH Authentication required.';
const hash = (password: string): string => `sha256:${createHash('sha256').update(password).digest('hex')}`;

describe.each(kvKinds)('a listener that requires a login, on %s', async (kind) => {
  // Its default user needs no password: whoever reaches it may do everything.
  const kv = await startKv(kind);
  const direct = asking(await connectRaw(kv.port));
  const proxy = await startScopedProxy(kv.port, {
    users: { a: { scope: 'a:' }, app: {}, root: { may: ['admin'] } },
    requireAuth: true,
    listenerScopes: [undefined, undefined, 'listener:'],
  });

  async function expectNothing(ask: Ask): Promise<void> {
    for (const args of [
      ['PING'],
      ['GET', 'secret'],
      ['SET', 'k', 'v'],
      ['XADD', 's', '*', 'f', 'v'],
      ['CONFIG', 'GET', '*'],
      ['INFO'],
      ['TIME'],
      ['COMMAND', 'COUNT'],
      ['CLIENT', 'LIST'],
      ['CLIENT', 'ID'],
      ['CLIENT', 'SETNAME', 'x'],
      ['CLIENT', 'REPLY', 'ON'],
      ['SELECT', '1'],
      ['MULTI'],
      ['EXEC'],
      ['WATCH', 'k'],
      ['SUBSCRIBE', 'c'],
      ['PSUBSCRIBE', '*'],
      ['MONITOR'],
      ['SYNC'],
      ['EVAL', 'return 1', '0'],
      ['SCRIPT', 'LOAD', 'return 1'],
      ['FLUSHALL'],
      ['HOLDFAST', 'COMMANDS'],
      ['HOLDFAST', 'STATUS'],
      ['NOSUCHCOMMAND'],
      ['CLIENT', 'NOSUCH'],
      ['SET', 'small', 'x'.repeat(1000)],
    ] as [string, ...string[]][]) {
      expect(await ask(...args), args[0]).toBe(NOAUTH);
    }
    expect(await ask('HELLO')).toMatch(/^!NOAUTH HELLO/);
    expect(await ask('HELLO', 3)).toMatch(/^!NOAUTH HELLO/);
    expect(await ask('HELLO', 3, 'SETNAME', 'x')).toMatch(/^!NOAUTH HELLO/);
    expect(await ask('AUTH', 'any')).toMatch(/^!WRONGPASS/);
    expect(await ask('AUTH', 'default', '')).toMatch(/^!WRONGPASS/);
    expect(await ask('AUTH', 'default', 'any')).toMatch(/^!WRONGPASS/);
    expect(await ask('AUTH', 'a', 'wrong')).toMatch(/^!WRONGPASS/);
    expect(await ask('HELLO', 3, 'AUTH', 'default', 'any')).toMatch(/^!WRONGPASS/);
    expect(await ask('GET', 'secret')).toBe(NOAUTH);
  }

  it('does nothing for a client before its login, and after RESET', async () => {
    await direct('FLUSHALL');
    await direct('SET', 'secret', 'the-secret');
    const ask = asking(await proxy.through(0));
    await expectNothing(ask);
    expect(await ask('AUTH', 'a', 'a')).toBe('OK');
    expect(await ask('SET', 'k', 'v')).toBe('OK');
    expect(await ask('RESET')).toBe('RESET');
    await expectNothing(ask);
    expect(await ask('AUTH', 'root', 'root')).toBe('OK');
    expect(await ask('CONFIG', 'GET', 'maxmemory')).toEqual(['maxmemory', '0']);
    // Nor for what stands behind it in one write.
    const client = await proxy.through(0);
    const replies = client.send('RESET');
    client.socket.write(
      Buffer.concat([request(['GET', 'secret']), request(['AUTH', 'a', 'a']), request(['GET', 'k'])]),
    );
    expect((await replies).bytes.toString()).toBe('RESET');
    expect((await client.next()).bytes.toString()).toBe(NOAUTH.slice(1));
    expect((await client.next()).bytes.toString()).toBe('OK');
    expect((await client.next()).bytes.toString()).toBe('v');
    expect(await direct('KEYS', '*')).toEqual(expect.arrayContaining(['secret', 'a:k']));
    expect(await direct('DBSIZE')).toBe(2);
  });

  it('lets nobody become a user of the KV store, in a transaction either', async () => {
    await direct('SET', 'secret', 'the-secret');
    for (const user of ['a', 'app', 'whoever comes through a listener with a scope']) {
      const begin = async (): Promise<Ask> =>
        asking(user.includes(' ') ? await proxy.through(2) : await proxy.login(user));
      const ask = await begin();
      if (!user.includes(' ')) expect(await ask('AUTH', 'default', 'any')).toMatch(/^!WRONGPASS/);
      for (const login of [
        ['AUTH', 'default', 'any'],
        ['AUTH', 'any'],
        ['HELLO', '2', 'AUTH', 'default', 'any'],
        ['RESET'],
      ] as [string, ...string[]][]) {
        const other = await begin();
        await other('MULTI');
        await other(...login);
        await other('EXEC');
        expect(await other('CONFIG', 'GET', 'maxmemory'), login.join(' ')).toMatch(/^!(NOPERM|NOAUTH)/);
        if (user !== 'app') expect(await other('GET', 'secret')).not.toBe('the-secret');
      }
      await ask('QUIT');
    }
  });

  it('holds no large request for a client before its login, and takes one behind it', async () => {
    for (const begun of ['*2\r\n$3\r\nGET\r\n$100000000\r\nx', `*2\r\n$3\r\nGET\r\n$90000\r\n${'x'.repeat(80_000)}`]) {
      const client = await proxy.through(0);
      const closed = once(client.socket, 'close');
      client.socket.write(begun);
      expect((await client.next()).bytes.toString()).toBe('ERR Protocol error: unauthenticated bulk length');
      await closed;
    }
    const client = await proxy.through(0);
    client.socket.write(Buffer.concat([request(['AUTH', 'a', 'a']), request(['SET', 'large', 'x'.repeat(3_000_000)])]));
    expect((await client.next()).bytes.toString()).toBe('OK');
    expect((await client.next()).bytes.toString()).toBe('OK');
  });

  it('leaves other listeners as they are', async () => {
    const ask = asking(await proxy.through(1));
    expect(await ask('PING')).toBe('PONG');
    expect(await ask('AUTH', 'a', 'a')).toBe('OK');
  });

  it('is asked for by one line at the start, where a client without a login could do everything', async () => {
    const { url } = await startTestPostgres();
    const directory = await temporaryDirectory();
    const line = /clients that do not log in here have the rights/;
    const start = async (listen: string, users: string): Promise<string> => {
      const file = join(directory, 'holdfast.yaml');
      writeFileSync(file, `listen:\n  - ${listen}\nusers:\n  ${users}\n`);
      const program = launch(
        ['serve', '--config', file, '--kv', `redis://127.0.0.1:${kv.port}`, '--http', '127.0.0.1:0'],
        {
          HOLDFAST_DATABASE_URL: url,
        },
      );
      await expect.poll(() => program.output.stdout, { timeout: 20_000 }).toContain('"ready:');
      program.child.kill('SIGTERM');
      await program.exited;
      return program.output.stdout + program.output.stderr;
    };
    const tenant = `a: { password: "${hash('a')}", scope: "a:" }`;
    expect(await start('127.0.0.1:0', tenant)).toMatch(line);
    expect(await start('{ address: 127.0.0.1:0, requireAuth: true }', tenant)).not.toMatch(line);
    expect(await start('127.0.0.1:0', `app: { password: "${hash('a')}" }`)).not.toMatch(line);
  }, 60_000);
});

it('a client that says nothing is not kept from closing', async () => {
  const kv = await startKv('redis');
  const proxy = await startScopedProxy(kv.port, { users: { a: { scope: 'a:' } }, requireAuth: true });
  const socket = connect(proxy.port, '127.0.0.1');
  socket.end(request(['QUIT']));
  await new Promise((resolve) => socket.once('close', resolve).resume());
});
