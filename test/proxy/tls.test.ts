import tls from 'node:tls';
import { Redis } from 'ioredis';
import { describe, expect, it } from 'vitest';
import { freePort } from '../../src/embedded/free-port.ts';
import { createAuthority } from '../support/certificates.ts';
import { kvKinds, startKv, temporaryDirectory } from '../support/servers.ts';
import { front } from './through-proxy.ts';

describe.each(kvKinds)('TLS in front of %s', async (kind) => {
  const directory = await temporaryDirectory();
  const authority = createAuthority(directory);
  const server = authority.issue('server');
  const client = authority.issue('client');
  const options = { ca: authority.ca, host: '127.0.0.1', retryStrategy: () => null, maxRetriesPerRequest: 0 };

  function connect(port: number, identity: Partial<{ cert: Buffer; key: Buffer }> = {}): Redis {
    const redis = new Redis({ ...options, port, tls: { ca: authority.ca, ...identity }, lazyConnect: true });
    redis.on('error', () => undefined);
    return redis;
  }

  it('serves clients, large values included, and blocks and publishes as without it', async () => {
    const kv = await startKv(kind);
    const { port } = await front(kv.port, { listen: [{ port: 0, tls: { cert: server.cert, key: server.key } }] });
    const redis = connect(port);
    const value = Buffer.alloc(5 * 1024 * 1024, 'x');
    await redis.set('large', value);
    expect((await redis.getBuffer('large'))?.equals(value)).toBe(true);
    const other = connect(port);
    const popped = other.blpop('queue', 5);
    await new Promise((resolve) => setTimeout(resolve, 50));
    await redis.rpush('queue', 'item');
    expect(await popped).toEqual(['queue', 'item']);
    redis.disconnect();
    other.disconnect();
  });

  it('asks clients for a certificate where it is told to', async () => {
    const kv = await startKv(kind);
    const { port } = await front(kv.port, {
      listen: [
        {
          port: 0,
          tls: { cert: server.cert, key: server.key, ca: authority.ca, requestCert: true, rejectUnauthorized: true },
        },
      ],
    });
    const stranger = connect(port);
    await expect(stranger.ping()).rejects.toThrow();
    stranger.disconnect();
    const known = connect(port, client);
    expect(await known.ping()).toBe('PONG');
    known.disconnect();
  });

  it('takes new certificates without dropping the clients that are there', async () => {
    const kv = await startKv(kind);
    const { port, proxy } = await front(kv.port, {
      listen: [{ port: 0, tls: { cert: server.cert, key: server.key } }],
    });
    const before = connect(port);
    expect(await before.ping()).toBe('PONG');
    const renewed = authority.issue('renewed');
    proxy.setCertificates(0, { cert: renewed.cert, key: renewed.key });
    const seen = await new Promise<string>((resolve, reject) => {
      const socket = tls.connect({ port, host: '127.0.0.1', ca: authority.ca }, () => {
        resolve(String(socket.getPeerCertificate().subject.CN));
        socket.destroy();
      });
      socket.on('error', reject);
    });
    expect(seen).toBe('renewed');
    expect(await before.ping()).toBe('PONG');
    before.disconnect();
  });

  it('reaches a KV store that speaks TLS only, and one on a unix socket', async () => {
    const tlsPort = await freePort();
    const guarded = await startKv(kind, {
      extraArgs: [
        '--tls-port',
        String(tlsPort),
        '--tls-cert-file',
        server.certFile,
        '--tls-key-file',
        server.keyFile,
        '--tls-ca-cert-file',
        authority.caFile,
      ],
    });
    expect(guarded.pid).toBeGreaterThan(0);
    const overTls = await front(tlsPort, {
      upstream: { host: '127.0.0.1', port: tlsPort, tls: { ca: authority.ca, cert: client.cert, key: client.key } },
    });
    const one = await overTls.client();
    expect((await one.send('PING')).bytes.toString()).toBe('PONG');

    const path = `${directory}/kv.sock`;
    await startKv(kind, { unixSocket: path });
    const listenPath = `${directory}/holdfast.sock`;
    const overSocket = await front(0, { upstream: { path }, listen: [{ path: listenPath }] });
    expect(overSocket.proxy.addresses).toEqual([{ path: listenPath }]);
    const redis = new Redis({ path: listenPath });
    expect(await redis.ping()).toBe('PONG');
    expect(await redis.client('LIST')).toContain(`addr=${listenPath}:0`);
    redis.disconnect();
  });
});
