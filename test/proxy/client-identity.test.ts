/** What clients hear of themselves and of the server: byte for byte as the server says it. */
import { once } from 'node:events';
import { connect } from 'node:net';
import { describe, expect, it, test } from 'vitest';
import { request } from '../../src/resp/encode.ts';
import { replyValue } from '../../src/resp/reply.ts';
import { connectRaw } from '../support/raw-client.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { exchangeBytes, front } from './through-proxy.ts';

/** Numbers of clients differ. */
function withoutIds(bytes: Buffer): string {
  return bytes.toString('latin1').replace(/\$2\r\nid\r\n:\d+/g, '$2\r\nid\r\n:N');
}

const BEFORE_AUTH: readonly (readonly string[])[] = [
  ['CLIENT', 'SETNAME', 'a'],
  ['CLIENT', 'SETINFO', 'LIB-NAME', 'a'],
  ['HELLO'],
  ['HELLO', '3'],
  ['HELLO', '3', 'AUTH', 'default', 'secret'],
  ['HELLO', '3', 'AUTH', 'default', 'wrong'],
  ['HELLO', '2', 'AUTH', 'default', 'secret', 'SETNAME', 'b'],
];

describe.each(kvKinds)('on %s', (kind) => {
  test.each(BEFORE_AUTH.map((args) => [args]))(
    'the first to come before a password is given is told what the server says: %j',
    async (args) => {
      const kv = await startKv(kind, { extraArgs: ['--requirepass', 'secret'] });
      const { port } = await front(kv.port);
      const bytes = request(args);
      expect(withoutIds(await exchangeBytes(port, bytes))).toBe(withoutIds(await exchangeBytes(kv.port, bytes)));
    },
  );

  it('refuses SETNAME and SETINFO to those who may not, and answers them to others', async () => {
    const kv = await startKv(kind);
    const { port } = await front(kv.port);
    const admin = await connectRaw(kv.port);
    await admin.send('ACL', 'SETUSER', 'few', 'on', '>pw', '~*', '+@all', '-client|setname', '-client|setinfo');
    await admin.close();
    const bytes = Buffer.concat(
      [
        ['CLIENT', 'SETNAME', 'a'],
        ['CLIENT', 'GETNAME'],
        ['AUTH', 'few', 'pw'],
        ['CLIENT', 'SETNAME', 'b'],
        ['CLIENT', 'GETNAME'],
        ['CLIENT', 'SETINFO', 'LIB-NAME', 'x'],
      ].map((args) => request(args)),
    );
    const direct = await exchangeBytes(kv.port, bytes);
    expect((await exchangeBytes(port, bytes)).toString()).toBe(direct.toString());
  });

  it('gives DEBUG PROTOCOL its push and its reply', async () => {
    const kv = await startKv(kind, { extraArgs: ['--enable-debug-command', 'yes'] });
    const { port } = await front(kv.port);
    for (const version of ['2', '3']) {
      const bytes = Buffer.concat(
        [
          ['HELLO', version],
          ['DEBUG', 'PROTOCOL', 'push'],
          ['ECHO', 'end'],
        ].map((args) => request(args)),
      );
      const direct = withoutIds(await exchangeBytes(kv.port, bytes));
      expect(withoutIds(await exchangeBytes(port, bytes))).toBe(direct);
    }
  });

  it('sends the reply to a write and what it invalidates in one write', async () => {
    const kv = await startKv(kind);
    const { port } = await front(kv.port);
    const socket = connect(port, '127.0.0.1');
    await once(socket, 'connect');
    const ask = async (...args: string[]): Promise<string> => {
      socket.write(request(args));
      const [chunk] = (await once(socket, 'data')) as [Buffer];
      return chunk.toString();
    };
    await ask('HELLO', '3');
    await ask('CLIENT', 'TRACKING', 'ON');
    for (let round = 0; round < 200; round += 1) {
      await ask('GET', 'k');
      const chunk = await ask('SET', 'k', String(round));
      expect(chunk).toContain('+OK');
      expect(chunk).toContain('invalidate');
    }
    socket.destroy();
  });
});

if (kvKinds.includes('valkey')) {
  it('says it is Redis where Valkey does, and goes on as with Valkey', async () => {
    const kv = await startKv('valkey');
    const { port } = await front(kv.port);
    const admin = await connectRaw(kv.port);
    const hello = request(['HELLO', '3']);
    for (const setting of ['yes', 'no']) {
      await admin.send('CONFIG', 'SET', 'extended-redis-compatibility', setting);
      expect(withoutIds(await exchangeBytes(port, hello))).toBe(withoutIds(await exchangeBytes(kv.port, hello)));
    }
    const client = await connectRaw(port);
    expect(String(replyValue(await client.send('CLIENT', 'LIST', 'TYPE', 'primary')))).toBe('');
    expect(replyValue(await client.send('CLIENT', 'KILL', 'TYPE', 'primary'))).toBe(0);
    await client.close();
    await admin.close();
  });
}
