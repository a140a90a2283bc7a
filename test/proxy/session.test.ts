import { describe, expect, it } from 'vitest';
import { request } from '../../src/resp/encode.ts';
import { replyValue } from '../../src/resp/reply.ts';
import { exchange } from '../fuzz/differential.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { exchangeBytes, front, until } from './through-proxy.ts';

const poolings = ['transaction', 'session'] as const;

describe.each(kvKinds)('sessions in front of %s', (kind) => {
  describe.each(poolings)('pooling %s', async (pooling) => {
    const kv = await startKv(kind);
    const { port, client, proxy } = await front(kv.port, { pooling });

    it('answers a pipeline across all kinds of lanes in order, byte for byte as the server does', async () => {
      const pipeline = Buffer.concat(
        [
          ['FLUSHALL'],
          ['SET', 'a', '1'],
          ['RPUSH', 'list', 'x', 'y'],
          ['BLPOP', 'list', '0'],
          ['GET', 'a'],
          ['MULTI'],
          ['INCR', 'a'],
          ['LRANGE', 'list', '0', '-1'],
          ['EXEC'],
          ['WATCH', 'a'],
          ['MULTI'],
          ['MULTI'],
          ['GET', 'a'],
          ['NOSUCH'],
          ['EXEC'],
          ['BLPOP', 'nothing', '0.05'],
          ['SELECT', '3'],
          ['SET', 'in-three', 'v'],
          ['DBSIZE'],
          ['SELECT', '99'],
          ['SELECT', '0'],
          ['EXISTS', 'in-three'],
          ['SUBSCRIBE', 'c1', 'c2'],
          ['PING'],
          ['GET', 'a'],
          ['UNSUBSCRIBE'],
          ['UNSUBSCRIBE'],
          ['GET', 'a'],
          ['EXEC'],
          ['DISCARD'],
          ['WAIT', '0', '10'],
          ['CLIENT', 'SETNAME', 'me'],
          ['CLIENT', 'GETNAME'],
          ['CLIENT', 'REPLY', 'SKIP'],
          ['SET', 'a', 'skipped'],
          ['GET', 'a'],
          ['CLIENT', 'REPLY', 'OFF'],
          ['GET', 'a'],
          ['CLIENT', 'REPLY', 'ON'],
          ['RESET'],
          ['ECHO', 'end'],
          ['QUIT'],
        ].map((args) => request(args)),
      );
      const direct = await exchangeBytes(kv.port, pipeline);
      const through = await exchangeBytes(port, pipeline);
      expect(through.toString()).toBe(direct.toString());
      for (const piece of [1, 13]) expect((await inPieces(port, pipeline, piece)).toString()).toBe(direct.toString());
    });

    it('answers what decides who and where a session is in its turn behind an UNSUBSCRIBE, too', async () => {
      // Valkey 8.0 itself gives no reply to a refused AUTH behind a refused UNSUBSCRIBE in one write.
      const refusedLogin = kind === 'redis' ? [['AUTH', 'nobody', 'wrong']] : [];
      const pipeline = Buffer.concat(
        [
          ...[['SET', 'a', '1'], ['UNSUBSCRIBE'], ...refusedLogin, ['GET', 'a'], ['STRLEN', 'a']],
          ...[
            ['UNSUBSCRIBE', 'c'],
            ['SELECT', '2'],
            ['SET', 'b', '2'],
            ['PUNSUBSCRIBE'],
            ['SELECT', '99'],
            ['GET', 'b'],
          ],
          ...[['UNSUBSCRIBE'], ['SELECT', '0'], ['EXISTS', 'b'], ['UNSUBSCRIBE'], ['RESET'], ['GET', 'a']],
          ...[['UNSUBSCRIBE'], ['CLIENT', 'REPLY', 'SKIP'], ['STRLEN', 'a'], ['GET', 'a'], ['QUIT']],
        ].map((args) => request(args)),
      );
      const direct = await exchangeBytes(kv.port, pipeline);
      expect(direct.toString('latin1')).toMatch(/\+RESET\r\n[\s\S]*\$1\r\n1\r\n\+OK\r\n$/);
      expect((await exchangeBytes(port, pipeline)).toString('latin1')).toBe(direct.toString('latin1'));
      for (const piece of [7, 40, 90]) {
        expect((await inPieces(port, pipeline, piece)).toString('latin1')).toBe(direct.toString('latin1'));
      }
    });

    it('takes inline requests and malformed ones as the server does', async () => {
      for (const text of [
        'PING\r\n',
        'set k "v 1"\r\nget k\r\n',
        '\r\n\r\nPING\r\n',
        '*0\r\nPING\r\n',
        'set "broken\r\n',
        '*1\r\n$4\r\nPING\r\n*x\r\n',
        '*2\r\n$3\r\nGET\r\n$-5\r\n',
        '*1\r\n+PING\r\n',
      ]) {
        const direct = await exchangeBytes(kv.port, text, 100);
        expect((await exchangeBytes(port, text, 100)).toString()).toBe(direct.toString());
      }
    });

    it('gives a blocked client what another pushes', async () => {
      const waiting = await client();
      const pushing = await client();
      const popped = waiting.send('BLPOP', 'wake', '5');
      await new Promise((resolve) => setTimeout(resolve, 50));
      await pushing.send('RPUSH', 'wake', 'up');
      expect(replyValue(await popped)).toEqual(['wake', 'up']);
      expect(replyValue(await waiting.send('PING'))).toBe('PONG');
    });

    it('gives nothing to a blocked client that went away', async () => {
      const waiting = await client();
      const pushing = await client();
      void waiting.send('BLPOP', 'abandoned', '0').catch(() => undefined);
      await new Promise((resolve) => setTimeout(resolve, 50));
      waiting.socket.destroy();
      await new Promise((resolve) => setTimeout(resolve, 100));
      expect(replyValue(await pushing.send('RPUSH', 'abandoned', 'kept'))).toBe(1);
      expect(replyValue(await pushing.send('LPOP', 'abandoned'))).toBe('kept');
    });

    it('notices that a blocked client went away behind megabytes that it had sent', async () => {
      const pushing = await client();
      const waiting = await client();
      const id = replyValue(await waiting.send('CLIENT', 'ID'));
      const behind = Array.from({ length: 400 }, () => request(['SETRANGE', 'behind', '0', Buffer.alloc(8192, 'x')]));
      waiting.socket.write(Buffer.concat([request(['BLPOP', 'abandoned', '0']), request(['RESET']), ...behind]));
      waiting.socket.end();
      await until(async () => {
        const list = String(replyValue(await pushing.send('CLIENT', 'LIST', 'ID', String(id))));
        return !list.includes(`id=${id} `);
      }, 20_000);
      expect(replyValue(await pushing.send('RPUSH', 'abandoned', 'kept'))).toBe(1);
      expect(replyValue(await pushing.send('LPOP', 'abandoned'))).toBe('kept');
    });

    it('answers all that a client asked before it ended its side, a new name and a subscription among it', async () => {
      // The server answers the first in a read of their own. Only when that has come is the name set, by when the server has been
      // told that the client has ended its side; what is behind takes it longer than the name.
      const long = Buffer.alloc(40_000, 'x');
      const loop = 'for i=1,5000000 do end return 1';
      const asked = [
        ['GET', 'none'],
        ['CLIENT', 'SETNAME', 'ending'],
        ['SETRANGE', 'ending', '0', long],
        ['EVAL', loop, '0'],
        ['PSUBSCRIBE', 'ending:*'],
      ];
      const requests = asked.map((args) => request(args));
      const direct = await exchange(kv.port, requests);
      expect(direct.bytes.toString()).toContain('psubscribe');
      expect(await exchange(port, [Buffer.concat(requests)])).toEqual(direct);
    });

    it('tells a client what it published to itself before the answer to its next request', async () => {
      const asked = [
        ['HELLO', '3'],
        ['SUBSCRIBE', 'own'],
        ['PUBLISH', 'own', 'message'],
        ['CLIENT', 'SETNAME', 'ending'],
        ['CLIENT', 'REPLY', 'ON'],
        ['SUNSUBSCRIBE'],
        ['PUBLISH', 'own', 'message'],
        ['CLIENT', 'REPLY', 'ON'],
        ['SUBSCRIBE', 'other'],
        ['ECHO', 'end'],
        ['QUIT'],
      ];
      const requests = Buffer.concat(asked.map((args) => request(args)));
      const told = async (to: number) =>
        (await exchange(to, [requests])).bytes.toString().replace(/\$2\r\nid\r\n:\d+/, '');
      expect(await told(port)).toBe(await told(kv.port));
    });

    it('forgets its subscriptions with RESET, at once for everybody', async () => {
      const one = await client();
      const requests = [
        ['SUBSCRIBE', 'reset:1', 'reset:2'],
        ['RESET'],
        ['PUBLISH', 'reset:1', 'x'],
        ['PUBSUB', 'NUMSUB', 'reset:2'],
      ];
      for (let round = 0; round < 50; round += 1) {
        one.socket.write(Buffer.concat(requests.map((args) => request(args))));
        await one.next();
        await one.next();
        expect(replyValue(await one.next())).toBe('RESET');
        expect(replyValue(await one.next())).toBe(0);
        expect(replyValue(await one.next())).toEqual(['reset:2', 0]);
      }
    });

    it('gives a message that a client publishes to itself before the error that ends it', async () => {
      for (let round = 0; round < 20; round += 1) {
        const text = (
          await exchangeBytes(port, ['HELLO 3', 'SUBSCRIBE own', 'PUBLISH own x', '*1', 'x', ''].join('\r\n'))
        ).toString();
        expect(text.indexOf('$7\r\nmessage')).toBeGreaterThan(0);
        expect(text.indexOf('-ERR Protocol error')).toBeGreaterThan(text.indexOf('$7\r\nmessage'));
      }
    });

    it('leaves no transaction behind when a client vanishes inside one', async () => {
      const first = await client();
      await first.send('MULTI');
      await first.send('SET', 'half', 'done');
      first.socket.destroy();
      const second = await client();
      expect(replyValue(await second.send('SET', 'other', '1'))).toBe('OK');
      expect(replyValue(await second.send('EXISTS', 'half'))).toBe(0);
    });

    it('fails EXEC when a watched key changed', async () => {
      const watching = await client();
      const writing = await client();
      await watching.send('WATCH', 'watched');
      await writing.send('SET', 'watched', 'changed');
      await watching.send('MULTI');
      await watching.send('GET', 'watched');
      expect((await watching.send('EXEC')).isNull).toBe(true);
    });

    it('carries messages and pushes, in RESP2 and RESP3', async () => {
      const two = await client();
      const three = await client();
      const publisher = await client();
      await two.send('SUBSCRIBE', 'news');
      await three.send('HELLO', '3');
      three.socket.write(request(['SUBSCRIBE', 'news']));
      three.socket.write(request(['PSUBSCRIBE', 'n*']));
      await until(() => three.pushes.length === 2);
      expect(replyValue(await publisher.send('PUBLISH', 'news', 'hello'))).toBe(3);
      expect(replyValue(await two.next())).toEqual(['message', 'news', 'hello']);
      await until(() => three.pushes.length === 4);
      expect(replyValue(three.pushes[2]!)).toEqual(['message', 'news', 'hello']);
      expect(replyValue(three.pushes[3]!)).toEqual(['pmessage', 'n*', 'news', 'hello']);
      // A RESP3 subscriber may do everything else besides.
      expect(replyValue(await three.send('SET', 'beside', '1'))).toBe('OK');
    });

    it('invalidates tracked keys, by pushes and by redirection', async () => {
      const caching = await client();
      const writer = await client();
      await caching.send('HELLO', '3');
      expect(replyValue(await caching.send('CLIENT', 'TRACKING', 'ON'))).toBe('OK');
      await caching.send('GET', 'tracked');
      await writer.send('SET', 'tracked', '2');
      await until(() => caching.pushes.length === 1);
      expect(replyValue(caching.pushes[0]!)).toEqual(['invalidate', ['tracked']]);

      const listener = await client();
      const id = replyValue(await listener.send('CLIENT', 'ID'));
      await listener.send('SUBSCRIBE', '__redis__:invalidate');
      const redirecting = await client();
      expect(replyValue(await redirecting.send('CLIENT', 'TRACKING', 'ON', 'REDIRECT', String(id)))).toBe('OK');
      expect(replyValue(await redirecting.send('CLIENT', 'GETREDIR'))).toBe(id);
      await redirecting.send('GET', 'tracked');
      await writer.send('SET', 'tracked', '3');
      expect(replyValue(await listener.next())).toEqual(['message', '__redis__:invalidate', ['tracked']]);
    });

    it('unblocks a client by the ID that Holdfast gave it', async () => {
      const blocked = await client();
      const other = await client();
      const id = replyValue(await blocked.send('CLIENT', 'ID'));
      const reply = blocked.send('BLPOP', 'never', '0');
      await new Promise((resolve) => setTimeout(resolve, 50));
      expect(replyValue(await other.send('CLIENT', 'UNBLOCK', String(id), 'ERROR'))).toBe(1);
      expect((await reply).bytes.toString()).toMatch(/^UNBLOCKED/);
      expect(replyValue(await other.send('CLIENT', 'UNBLOCK', '999999'))).toBe(0);
    });

    it('lists and kills its own clients', async () => {
      const victim = await client();
      const other = await client();
      await victim.send('CLIENT', 'SETNAME', 'victim');
      const id = replyValue(await victim.send('CLIENT', 'ID'));
      const list = String(replyValue(await other.send('CLIENT', 'LIST')));
      expect(list).toMatch(new RegExp(`^id=${id} addr=127\\.0\\.0\\.1:\\d+ .*name=victim `, 'm'));
      expect(replyValue(await other.send('CLIENT', 'KILL', 'ID', String(id)))).toBe(1);
      await until(() => victim.socket.closed);
    });

    it('lets another session hear -BUSY, and kill the script', async () => {
      const running = await client();
      const other = await client();
      await other.send('CONFIG', 'SET', 'busy-reply-threshold', '20');
      const script = running.send('EVAL', 'while true do end', '0');
      await new Promise((resolve) => setTimeout(resolve, 400));
      expect((await other.send('GET', 'a')).bytes.toString()).toMatch(/^BUSY/);
      expect(replyValue(await other.send('SCRIPT', 'KILL'))).toBe('OK');
      expect((await script).bytes.toString()).toContain('killed by user');
      expect((await other.send('GET', 'a')).type).toBe('$');
    });

    it('lets CLIENT UNPAUSE through while everybody is paused', async () => {
      const writer = await client();
      const other = await client();
      await other.send('CLIENT', 'PAUSE', '20000', 'WRITE');
      const written = writer.send('SET', 'paused', '1');
      await new Promise((resolve) => setTimeout(resolve, 300));
      expect(replyValue(await other.send('CLIENT', 'UNPAUSE'))).toBe('OK');
      expect(replyValue(await written)).toBe('OK');
    });

    it('logs in as users that the server knows, and as nobody else', async () => {
      const admin = await client();
      await admin.send('ACL', 'SETUSER', 'reader', 'on', '>secret', '~*', '+get', '+hello', '+client', '+acl|whoami');
      const reader = await client();
      expect((await reader.send('AUTH', 'reader', 'wrong')).bytes.toString()).toMatch(/^WRONGPASS/);
      expect(replyValue(await reader.send('ACL', 'WHOAMI'))).toBe('default');
      expect((await reader.send('HELLO', '3', 'AUTH', 'reader', 'secret')).type).toBe('%');
      expect(replyValue(await reader.send('ACL', 'WHOAMI'))).toBe('reader');
      expect((await reader.send('SET', 'a', '1')).bytes.toString()).toMatch(/^NOPERM/);
      expect(replyValue(await admin.send('ACL', 'WHOAMI'))).toBe('default');
    });

    it('asks for a password where the server does', async () => {
      const guarded = await startKv(kind, { extraArgs: ['--requirepass', 'secret'] });
      const through = await front(guarded.port, { pooling });
      const someone = await through.client();
      expect((await someone.send('GET', 'a')).bytes.toString()).toBe('NOAUTH Authentication required.');
      expect((await someone.send('HELLO', '3')).bytes.toString()).toMatch(/^NOAUTH HELLO must be called/);
      expect(replyValue(await someone.send('AUTH', 'secret'))).toBe('OK');
      expect((await someone.send('GET', 'a')).isNull).toBe(true);
    });

    it('carries a value of 64 MB both ways', async () => {
      const value = Buffer.alloc(64 * 1024 * 1024, 'v');
      const writer = await client();
      expect(replyValue(await writer.send('SET', 'large', value))).toBe('OK');
      const read = await exchangeBytes(port, request(['GET', 'large']), 1000);
      expect(read.equals(Buffer.concat([Buffer.from('$67108864\r\n'), value, Buffer.from('\r\n')]))).toBe(true);
      await writer.send('DEL', 'large');
    });

    it('closes a client that does not read, at its output limit, and nobody else', async () => {
      const limited = await front(kv.port, { pooling, limits: { outputBytesMax: 4 * 1024 * 1024 } });
      const lazy = await limited.client();
      const busy = await limited.client();
      await busy.send('SET', 'chunk', Buffer.alloc(1024 * 1024, 'c'));
      lazy.socket.pause();
      lazy.socket.on('error', () => undefined);
      for (let i = 0; i < 60; i += 1) lazy.socket.write(request(['GET', 'chunk']));
      if (pooling === 'transaction') await until(() => limited.proxy.status().overflows === 1);
      for (let i = 0; i < 20; i += 1) expect(replyValue(await busy.send('PING'))).toBe('PONG');
    });

    it('closes a client whose request is larger than may be held, and counts it', async () => {
      const limited = await front(kv.port, { pooling, limits: { queryBufferBytesMax: 64 * 1024 } });
      const large = await limited.client();
      const closed = new Promise((resolve) => large.socket.once('close', resolve));
      large.socket.on('error', () => undefined);
      large.socket.write(`*2\r\n$3\r\nGET\r\n$900000\r\n${'x'.repeat(200_000)}`);
      await closed;
      expect(limited.proxy.status().overflows).toBe(1);
    });

    it("refuses clients above the limit in the server's words", async () => {
      const limited = await front(kv.port, { pooling, limits: { clientsMax: 1 } });
      const first = await limited.client();
      expect(replyValue(await first.send('PING'))).toBe('PONG');
      expect((await exchangeBytes(limited.port, '', 200)).toString()).toBe('-ERR max number of clients reached\r\n');
    });

    it('keeps no client once they are gone', async () => {
      await until(() => proxy.status().clients < 50);
      const before = proxy.status().clients;
      const some = await Promise.all(Array.from({ length: 20 }, () => client()));
      await Promise.all(some.map((each) => each.send('PING')));
      expect(proxy.status().clients).toBe(before + 20);
      for (const each of some) each.socket.destroy();
      await until(() => proxy.status().clients === before);
    });
  });
});

async function inPieces(port: number, bytes: Buffer, piece: number): Promise<Buffer> {
  const { connect } = await import('node:net');
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    const socket = connect(port, '127.0.0.1');
    socket.setNoDelay(true);
    socket.on('data', (chunk) => chunks.push(chunk));
    socket.on('end', () => resolve(Buffer.concat(chunks)));
    socket.on('error', reject);
    const write = (at: number): void => {
      if (at >= bytes.length) return;
      socket.write(bytes.subarray(at, at + piece), () => setImmediate(write, at + piece));
    };
    write(0);
  });
}
