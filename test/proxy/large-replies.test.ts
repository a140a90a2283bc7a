import { connect, createServer, type Socket } from 'node:net';
import { afterAll, describe, expect, it } from 'vitest';
import { request } from '../../src/resp/encode.ts';
import { replyValue } from '../../src/resp/reply.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { front, until } from './through-proxy.ts';

const VALUE_BYTES = 4 * 1024 * 1024;
const VALUES = 8;
const cleanups: (() => void)[] = [];

afterAll(() => {
  for (const cleanup of cleanups) cleanup();
});

/** A way to the KV server on which each connection gets what Node reads at once, every 20 ms. */
async function slowLink(kvPort: number): Promise<number> {
  const sockets = new Set<Socket>();
  const server = createServer((near) => {
    const far = connect(kvPort, '127.0.0.1');
    near.pipe(far);
    const timer = setInterval(() => {
      const chunk: Buffer | null = far.read();
      if (chunk !== null) near.write(chunk);
    }, 20);
    far.on('readable', () => undefined);
    for (const socket of [near, far]) {
      sockets.add(socket);
      socket.on('error', () => undefined);
      socket.on('close', () => {
        clearInterval(timer);
        near.destroy();
        far.destroy();
      });
    }
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  cleanups.push(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return (server.address() as { port: number }).port;
}

describe.each(kvKinds)('replies of many megabytes from %s', async (kind) => {
  const kv = await startKv(kind);

  it('are not what others wait for', async () => {
    const { client, port } = await front(await slowLink(kv.port));
    const other = await client();
    await other.send('SETRANGE', 'large', String(VALUE_BYTES - 1), 'x');

    let received = 0;
    const reader = connect(port, '127.0.0.1');
    cleanups.push(() => reader.destroy());
    reader.on('data', (chunk) => {
      received += chunk.length;
    });
    reader.write(Buffer.concat(Array.from({ length: VALUES }, () => request(['GET', 'large']))));
    await until(() => received > 4 * VALUE_BYTES, 30_000);

    expect(replyValue(await other.send('PING'))).toBe('PONG');
    expect(replyValue(await (await client()).send('STRLEN', 'large'))).toBe(VALUE_BYTES);
    expect(received).toBeLessThan((VALUES - 1) * VALUE_BYTES);
    await until(() => received > VALUES * VALUE_BYTES, 30_000);
  });
});
