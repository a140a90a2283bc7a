import { describe, expect, it } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import { HoldfastError } from '../../src/errors.ts';
import type { Interceptor } from '../../src/interceptor.ts';
import { request } from '../../src/resp/encode.ts';
import { type Reply, replyValue } from '../../src/resp/reply.ts';
import type { RawClient } from '../support/raw-client.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { front, until } from './through-proxy.ts';

/** A request that the server has not read when it is killed. */
async function inFlightAtTheEnd(kv: KvServer, client: RawClient, ...args: string[]): Promise<Reply> {
  process.kill(kv.pid!, 'SIGSTOP');
  const reply = client.send(...args);
  reply.catch(() => undefined);
  await new Promise((resolve) => setTimeout(resolve, 50));
  await kv.kill9();
  return reply;
}

describe.each(kvKinds)('the KV store (%s) goes away', (kind) => {
  describe.each(['transaction', 'session'] as const)('pooling %s', (pooling) => {
    it('answers what is in flight with a clear error, and goes on when the server is back', async () => {
      const kv = await startKv(kind);
      const { client, proxy } = await front(kv.port, { pooling, limits: { onLost: 'error' } });
      const busy = await client();
      const idle = await client();
      expect(replyValue(await busy.send('PING'))).toBe('PONG');
      expect(replyValue(await idle.send('PING'))).toBe('PONG');
      const lost = inFlightAtTheEnd(kv, busy, 'INCR', 'n');
      expect((await lost).bytes.toString()).toMatch(/^KVDOWN .*connection to the KV store was lost/);
      const during = idle.send('SET', 'a', '1');
      await kv.restart();
      expect(replyValue(await during)).toBe('OK');
      expect(replyValue(await busy.send('GET', 'a'))).toBe('1');
      expect(proxy.status().upstreamReachable).toBe(true);
    });

    it('closes who waits for a reply that will not come, behind those that came, and nobody else', async () => {
      const kv = await startKv(kind);
      const { client, proxy } = await front(kv.port, { pooling });
      const busy = await client();
      const idle = await client();
      expect(replyValue(await busy.send('PING'))).toBe('PONG');
      expect(replyValue(await idle.send('PING'))).toBe('PONG');
      const answered = busy.send('GET', 'none');
      await answered;
      await expect(inFlightAtTheEnd(kv, busy, 'INCR', 'n')).rejects.toThrow('connection closed');
      const during = idle.send('SET', 'a', '1');
      await kv.restart();
      expect(replyValue(await during)).toBe('OK');
      expect(proxy.status().unserved).toBe(1);
    });

    it('closes who has a transaction open', async () => {
      const kv = await startKv(kind);
      const { client } = await front(kv.port, { pooling });
      const someone = await client();
      await someone.send('MULTI');
      await someone.send('SET', 'a', '1');
      await kv.kill9();
      await expect(someone.next()).rejects.toThrow('connection closed');
    });

    it.each(['error', 'close'] as const)(
      'gives every request up once it has been away for holdMs, without a wait for each, by %s',
      async (onLost) => {
        const kv = await startKv(kind);
        const { client } = await front(kv.port, { pooling, limits: { holdMs: 300, onLost } });
        const someone = await client();
        await someone.send('PING');
        await kv.kill9();
        await new Promise((resolve) => setTimeout(resolve, 50));
        const started = Date.now();
        someone.socket.write(Buffer.concat(Array.from({ length: 50 }, () => request(['GET', 'a']))));
        if (onLost === 'close') await expect(someone.next()).rejects.toThrow('connection closed');
        else for (let i = 0; i < 50; i += 1) expect((await someone.next()).bytes.toString()).toMatch(/^KVDOWN/);
        expect(Date.now() - started).toBeLessThan(3_000);
        await kv.restart();
        await until(async () => (await (await client()).send('GET', 'a').catch(() => undefined))?.type === '$');
      },
    );

    it('subscribes again on its own', async () => {
      const kv = await startKv(kind);
      const { client } = await front(kv.port, { pooling });
      const subscriber = await client();
      await subscriber.send('SUBSCRIBE', 'news');
      await kv.kill9();
      await kv.restart();
      const publisher = await client();
      await until(async () => replyValue(await publisher.send('PUBLISH', 'news', 'again')) === 1);
      expect(replyValue(await subscriber.next())).toEqual(['message', 'news', 'again']);
    });

    it('aborts a transaction that was open', async () => {
      const kv = await startKv(kind);
      const { client } = await front(kv.port, { pooling, limits: { onLost: 'error' } });
      const someone = await client();
      await someone.send('MULTI');
      await someone.send('SET', 'a', '1');
      await kv.kill9();
      await kv.restart();
      expect((await someone.send('SET', 'b', '1')).bytes.toString()).toMatch(/^EXECABORT/);
      expect((await someone.send('EXEC')).bytes.toString()).toMatch(/^EXECABORT/);
      expect(replyValue(await someone.send('EXISTS', 'a', 'b'))).toBe(0);
    });

    it('executes nothing of a transaction whose MULTI found no connection', async () => {
      const kv = await startKv(kind);
      const { client } = await front(kv.port, { pooling, limits: { holdMs: 200, onLost: 'error' } });
      const someone = await client();
      await someone.send('PING');
      await kv.kill9();
      expect(replyValue(await someone.send('MULTI'))).toBe('OK');
      await kv.restart();
      const other = await client();
      await until(async () => (await other.send('DBSIZE')).type === ':');
      expect((await someone.send('SET', 'a', '1')).bytes.toString()).toMatch(/^EXECABORT/);
      expect((await someone.send('EXEC')).bytes.toString()).toMatch(/^EXECABORT/);
      expect(replyValue(await someone.send('EXISTS', 'a'))).toBe(0);
      await someone.send('MULTI');
      await someone.send('SET', 'a', '1');
      expect(replyValue(await someone.send('EXEC'))).toEqual(['OK']);
    });

    it('executes nothing of a transaction whose connection broke under MULTI', async () => {
      const kv = await startKv(kind);
      const { client } = await front(kv.port, { pooling, limits: { onLost: 'error' } });
      const someone = await client();
      // So that a connection for transactions is there.
      for (const args of [['MULTI'], ['DISCARD']]) expect(replyValue(await someone.send(...args))).toBe('OK');
      process.kill(kv.pid!, 'SIGSTOP');
      const started = someone.send('MULTI');
      await new Promise((resolve) => setTimeout(resolve, 50));
      await kv.kill9();
      await kv.restart();
      expect(replyValue(await started)).toBe('OK');
      expect((await someone.send('SET', 'a', '1')).bytes.toString()).toMatch(/^EXECABORT/);
      expect((await someone.send('EXEC')).bytes.toString()).toMatch(/^EXECABORT/);
      expect(replyValue(await someone.send('EXISTS', 'a'))).toBe(0);
    });

    it.each(['set', 'exec'])('executes nothing of a transaction that broke while %s was held', async (held) => {
      const kv = await startKv(kind);
      let release = (): void => undefined;
      let refusal: Error | undefined;
      const holding: Interceptor = {
        name: 'holding',
        handles: (command) => command?.name === held,
        request: () =>
          new Promise((resolve, reject) => {
            release = () => (refusal === undefined ? resolve() : reject(refusal));
          }),
      };
      const { client } = await front(kv.port, { pooling, interceptors: [holding], limits: { onLost: 'error' } });
      const someone = await client();
      for (const fails of [false, true]) {
        refusal = fails ? new HoldfastError('LEDGERDOWN', 'not now') : undefined;
        for (const args of [['MULTI'], ['SET', 'a', '1'], ['EXEC']]) someone.socket.write(request(args));
        expect(replyValue(await someone.next())).toBe('OK');
        if (held === 'exec') expect(replyValue(await someone.next())).toBe('QUEUED');
        await new Promise((resolve) => setTimeout(resolve, 50));
        await kv.kill9();
        await kv.restart();
        release();
        if (held === 'set') expect((await someone.next()).bytes.toString()).toMatch(/^EXECABORT/);
        expect((await someone.next()).bytes.toString()).toMatch(/^(EXECABORT|KVDOWN|LEDGERDOWN)/);
        expect(replyValue(await someone.send('EXISTS', 'a'))).toBe(0);
      }
    });

    it('fails EXEC when the connection that watched was lost', async () => {
      const kv = await startKv(kind);
      const { client } = await front(kv.port, { pooling });
      const someone = await client();
      await someone.send('WATCH', 'a');
      await kv.kill9();
      await kv.restart();
      await until(async () => (await someone.send('SET', 'b', '1')).type === '+');
      await someone.send('MULTI');
      await someone.send('SET', 'a', '1');
      expect((await someone.send('EXEC')).isNull).toBe(true);
      await someone.send('MULTI');
      await someone.send('SET', 'a', '1');
      expect(replyValue(await someone.send('EXEC'))).toEqual(['OK']);
    });

    it('tells a caching client to forget everything', async () => {
      const kv = await startKv(kind);
      const { client } = await front(kv.port, { pooling });
      const caching = await client();
      await caching.send('HELLO', '3');
      await caching.send('CLIENT', 'TRACKING', 'ON', 'BCAST');
      await kv.kill9();
      await kv.restart();
      await until(() => caching.pushes.length > 0);
      expect(replyValue(caching.pushes[0]!)).toEqual(['invalidate', null]);
      const writer = await client();
      await until(async () => {
        await writer.send('SET', 'k', String(Math.random()));
        return caching.pushes.length > 1;
      });
      expect(replyValue(caching.pushes[1]!)).toEqual(['invalidate', ['k']]);
    });
  });
});
