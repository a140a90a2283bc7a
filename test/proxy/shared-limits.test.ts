/** What one identity may hold of what all share: connections, queued commands, replies that it does not read. */
import { connect } from 'node:net';
import { describe, expect, it } from 'vitest';
import type { Interceptor } from '../../src/interceptor.ts';
import { request } from '../../src/resp/encode.ts';
import { replyValue } from '../../src/resp/reply.ts';
import { connectRaw } from '../support/raw-client.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { front, until } from './through-proxy.ts';

describe.each(kvKinds)('behind %s', async (kind) => {
  const kv = await startKv(kind);
  const direct = await connectRaw(kv.port);
  for (const user of ['a', 'b']) await direct.send('ACL', 'SETUSER', user, 'on', `>${user}`, '~*', '&*', '+@all');

  const figure = async (name: string): Promise<number> => {
    const info = (await direct.send('INFO', 'everything')).bytes.toString();
    return Number(new RegExp(`^${name}:(\\d+)`, 'm').exec(info)?.[1]);
  };

  it('blocked clients of one identity leave connections to the others', async () => {
    const { proxy, client } = await front(kv.port, { limits: { tenantLanesMax: 3, ownLanesMax: 5 } });
    const blocked = async (user: string) => {
      const raw = await client();
      await raw.send('AUTH', user, user);
      const popped = raw.send('BLPOP', 'list', '0');
      popped.catch(() => undefined);
      return { raw, popped };
    };
    const first = await Promise.all([blocked('a'), blocked('a'), blocked('a')]);
    await until(async () => (await figure('blocked_clients')) === 3);
    const fourth = await blocked('a');
    expect((await fourth.popped).bytes.toString()).toMatch(/^LIMIT the clients of user a have 3 .*tenantLanesMax/);
    // Neither what needs no connection of its own nor a neighbour notices.
    expect(replyValue(await fourth.raw.send('PING', 'x'))).toBe('x');
    const neighbours = [await blocked('b'), await blocked('b')];
    await until(async () => (await figure('blocked_clients')) === 5);
    const third = await blocked('b');
    expect((await third.popped).bytes.toString()).toMatch(/^LIMIT 5 clients .*ownLanesMax/);
    third.raw.socket.write(Buffer.concat([['MULTI'], ['SET', 'k', 'v'], ['EXEC']].map((args) => request(args))));
    const transaction = [await third.raw.next(), await third.raw.next(), await third.raw.next()];
    expect(transaction.map(({ bytes }) => bytes.toString())).toEqual([
      'OK',
      expect.stringMatching(/^EXECABORT .*LIMIT/),
      expect.stringMatching(/^EXECABORT .*LIMIT/),
    ]);
    expect(proxy.status()).toMatchObject({ ownLanes: 5, tenantLanesMost: 3, ownLanesRefused: 3 });
    // One is done, the next may.
    await direct.send('RPUSH', 'list', 'e');
    expect(replyValue(await first[0]!.popped)).toEqual(['list', 'e']);
    const fifth = await blocked('a');
    await until(async () => (await figure('blocked_clients')) === 5);
    for (const each of [...first, ...neighbours, fifth]) each.raw.socket.destroy();
    await until(() => proxy.status().ownLanes === 0);
  });

  it('a KV store at its maxclients is no outage', async () => {
    const own = await startKv(kind);
    const admin = await connectRaw(own.port);
    const lost: string[] = [];
    const { proxy, client } = await front(own.port, {
      upstreamListener: { connected: () => undefined, lost: (cause) => void lost.push(cause.message) },
    });
    const [worker, other] = [await client(), await client()];
    await worker.send('SET', 'k', 'v');
    const connected = Number(/^connected_clients:(\d+)/m.exec((await admin.send('INFO')).bytes.toString())?.[1]);
    await admin.send('CONFIG', 'SET', 'maxclients', String(connected));
    expect((await other.send('BLPOP', 'list', '0')).bytes.toString()).toMatch(/^ERR max number of clients reached/);
    expect(replyValue(await worker.send('GET', 'k'))).toBe('v');
    expect(proxy.status().upstreamReachable).toBe(true);
    expect(lost).toEqual([]);
    await admin.send('CONFIG', 'SET', 'maxclients', '1000');
    const blocked = other.send('BLPOP', 'list', '0');
    await admin.send('RPUSH', 'list', 'e');
    expect(replyValue(await blocked)).toEqual(['list', 'e']);
  });

  it.each([false, true])('a transaction holds so much and no more (looked into: %s)', async (lookedInto) => {
    const looker: Interceptor = {
      name: 'looker',
      handles: (command) => command?.name === 'set',
      request: (exchange) => exchange.onReply((reply) => reply),
    };
    const { proxy, client } = await front(kv.port, {
      limits: { transactionBytesMax: 100_000, tenantTransactionBytesMax: 150_000 },
      interceptors: lookedInto ? [looker] : [],
    });
    const large = 'x'.repeat(20_000);
    const [one, other] = [await client(), await client()];
    await one.send('MULTI');
    for (let n = 0; n < 4; n += 1) expect(replyValue(await one.send('SET', `k${n}`, large))).toBe('QUEUED');
    const queued = proxy.status().tenantTransactionBytesMost;
    expect(queued).toBeGreaterThan(80_000);
    await other.send('MULTI');
    for (let n = 0; n < 2; n += 1) await other.send('SET', `o${n}`, large);
    // Both together have what one identity may have.
    const full = await other.send('SET', 'o3', large.repeat(2));
    expect(full.bytes.toString()).toMatch(/^LIMIT .*tenantTransactionBytesMax of user default/);
    expect(proxy.status().tenantTransactionBytesMost).toBe(queued);
    expect((await other.send('SET', 'o4', 'v')).bytes.toString()).toMatch(/^LIMIT/);
    expect((await other.send('EXEC')).bytes.toString()).toMatch(/^EXECABORT/);
    const tooMuch = await one.send('SET', 'k5', large.repeat(2));
    expect(tooMuch.bytes.toString()).toMatch(/^LIMIT .*limits.transactionBytesMax/);
    expect((await one.send('EXEC')).bytes.toString()).toMatch(/^EXECABORT/);
    expect(proxy.status()).toMatchObject({ tenantTransactionBytesMost: 0, transactionsRefused: 2 });
    await one.send('MULTI');
    await one.send('SET', 'k', 'v');
    expect(replyValue(await one.send('EXEC'))).toEqual(['OK']);
    expect(replyValue(await one.send('EXISTS', 'k', 'k1', 'o1'))).toBe(1);
  });

  it('what a client does not read does not pile up in the KV store either', async () => {
    const { port, proxy } = await front(kv.port, { pooling: 'session', limits: { outputStalledMs: 1500 } });
    const megabyte = 1024 * 1024;
    await direct.send('SET', 'large', 'x'.repeat(megabyte));
    const before = await figure('mem_clients_normal');
    let most = 0;
    const reader = connect(port, '127.0.0.1');
    await new Promise((resolve) => reader.once('connect', resolve));
    reader.pause();
    reader.on('error', () => undefined);
    const closed = new Promise<void>((resolve) => reader.once('close', () => resolve()));
    // One after the other, as fast as they are taken, until none is taken any more.
    const { requests } = proxy.status();
    for (let asked = 1; asked <= 300 && proxy.status().overflows === 0; asked += 1) {
      reader.write(request(['GET', 'large']));
      await until(() => proxy.status().requests >= requests + asked || proxy.status().overflows === 1, 20_000);
    }
    await until(async () => {
      most = Math.max(most, (await figure('mem_clients_normal')) - before);
      return proxy.status().overflows === 1;
    }, 20_000);
    // The KV store keeps what was on its way when the client was seen to be slow.
    expect(most).toBeLessThan(150 * megabyte);
    expect(proxy.status().requests - requests).toBeLessThan(300);
    reader.resume();
    await closed;
    await until(() => proxy.status().clients === 0);
  });

  it('readers of one identity together may have so much unread', async () => {
    const { client, proxy } = await front(kv.port, { limits: { tenantOutputBytesMax: 4 * 1024 * 1024 } });
    await direct.send('SET', 'large', 'x'.repeat(3 * 1024 * 1024));
    const readers = [await client(), await client(), await client()];
    for (const { socket } of readers) {
      socket.pause();
      socket.write(Buffer.concat([request(['GET', 'large']), request(['GET', 'large'])]));
    }
    await until(() => proxy.status().overflows >= 1);
    expect(proxy.status().overflows).toBeLessThan(3);
    const neighbour = await client();
    expect(replyValue(await neighbour.send('PING', 'there'))).toBe('there');
  });
});
