/** A proxy in front of a real KV server, and clients through it. */
import { connect } from 'node:net';
import { pino } from 'pino';
import { afterAll } from 'vitest';
import { type ProxyOptions, type RunningProxy, startProxy } from '../../src/proxy/proxy.ts';
import { connectRaw, type RawClient } from '../support/raw-client.ts';

const cleanups: (() => Promise<void> | void)[] = [];

afterAll(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

export const silent = pino({ level: 'silent' });

export interface Fronted {
  readonly proxy: RunningProxy;
  readonly port: number;
  client(): Promise<RawClient>;
}

export async function front(kvPort: number, options: Partial<ProxyOptions> = {}): Promise<Fronted> {
  const proxy = await startProxy({ listen: [{ port: 0 }], upstream: { port: kvPort }, log: silent, ...options });
  cleanups.push(() => proxy.stop(0));
  const port = proxy.addresses[0]!.port!;
  const client = async (): Promise<RawClient> => {
    const raw = await connectRaw(port);
    cleanups.push(() => {
      raw.socket.destroy();
    });
    return raw;
  };
  return { proxy, port, client };
}

/** Sends bytes and gives everything that comes until the peer closes or `quietMs` pass without a byte. */
export function exchangeBytes(port: number, bytes: Buffer | string, quietMs = 300): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const socket = connect(port, '127.0.0.1', () => socket.write(bytes));
    const chunks: Buffer[] = [];
    const finish = (): void => {
      clearTimeout(timer);
      socket.destroy();
      resolve(Buffer.concat(chunks));
    };
    let timer = setTimeout(finish, 5_000);
    socket.on('data', (chunk) => {
      chunks.push(chunk);
      clearTimeout(timer);
      timer = setTimeout(finish, quietMs);
    });
    socket.on('end', finish);
    socket.on('error', reject);
  });
}

/** Waits until `condition` holds; fails after `timeoutMs`. */
export async function until(condition: () => boolean | Promise<boolean>, timeoutMs = 5_000): Promise<void> {
  const deadline = Date.now() + timeoutMs;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`not so after ${timeoutMs} ms: ${condition}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
