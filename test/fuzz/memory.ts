/** What idle clients and slow readers cost the process in front. */
import { connect, type Socket } from 'node:net';
import { request } from '../../src/resp/encode.ts';
import { connectRaw } from '../support/raw-client.ts';
import { residentBytes } from './lifecycles.ts';

const CONNECT_AT_ONCE = 500;

function connected(port: number): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect(port, '127.0.0.1');
    socket.once('error', reject);
    socket.once('connect', () => {
      socket.removeListener('error', reject);
      socket.on('error', () => {});
      resolve(socket);
    });
  });
}

function answer(socket: Socket, bytes: Buffer): Promise<void> {
  return new Promise((resolve, reject) => {
    socket.once('data', () => resolve());
    socket.once('close', () => reject(new Error('closed instead of answering')));
    socket.write(bytes);
  });
}

export interface IdleCost {
  readonly clients: number;
  readonly beforeBytes: number;
  readonly afterBytes: number;
}

/** Connects `clients` clients that each send one PING and then stay, and reads the process's resident memory. */
export async function idleClients(port: number, pid: number, clients: number): Promise<IdleCost> {
  const beforeBytes = residentBytes(pid);
  const sockets: Socket[] = [];
  try {
    while (sockets.length < clients) {
      const count = Math.min(CONNECT_AT_ONCE, clients - sockets.length);
      const batch = await Promise.all(Array.from({ length: count }, () => connected(port)));
      await Promise.all(batch.map((socket) => answer(socket, request(['PING']))));
      sockets.push(...batch);
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
    return { clients, beforeBytes, afterBytes: residentBytes(pid) };
  } finally {
    for (const socket of sockets) socket.destroy();
  }
}

/** Opens `clients` connections at once, each with a PING in its first packet; gives how many were answered. */
export async function openAtOnce(port: number, clients: number): Promise<{ answered: number; milliseconds: number }> {
  const startedAt = performance.now();
  const sockets: Socket[] = [];
  try {
    const answers = await Promise.allSettled(
      Array.from({ length: clients }, async () => {
        const socket = await connected(port);
        sockets.push(socket);
        await answer(socket, request(['PING']));
      }),
    );
    const answered = answers.filter(({ status }) => status === 'fulfilled').length;
    return { answered, milliseconds: performance.now() - startedAt };
  } finally {
    for (const socket of sockets) socket.destroy();
  }
}

export interface StallCost {
  readonly beforeBytes: number;
  readonly peakBytes: number;
  /** Whether others were answered all the while; the slowest PING. */
  readonly slowestPingMs: number;
  readonly closed: boolean;
}

/**
 * One client asks for `times` replies of `valueBytes` and reads nothing, for `seconds`; another one pings meanwhile.
 * The value is written directly to the KV server at `kvPort`.
 */
export async function stalledReader(
  port: number,
  pid: number,
  kvPort: number,
  options: { valueBytes: number; times: number; seconds: number },
): Promise<StallCost> {
  const writer = await connectRaw(kvPort);
  await writer.send('SETRANGE', 'stalled', String(options.valueBytes - 1), 'x');
  const pinger = await connectRaw(port);
  const beforeBytes = residentBytes(pid);
  const stalled = await connected(port);
  await answer(stalled, request(['CLIENT', 'SETNAME', 'stalled']));
  stalled.pause();
  stalled.write(Buffer.concat(Array.from({ length: options.times }, () => request(['GET', 'stalled']))));
  let peakBytes = beforeBytes;
  let slowestPingMs = 0;
  // By a timer of its own: a PING that waits must not hide what its wait costs.
  const sampler = setInterval(() => {
    peakBytes = Math.max(peakBytes, residentBytes(pid));
  }, 20);
  const deadline = performance.now() + options.seconds * 1000;
  while (performance.now() < deadline) {
    const sentAt = performance.now();
    await pinger.send('PING');
    slowestPingMs = Math.max(slowestPingMs, performance.now() - sentAt);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  clearInterval(sampler);
  // A socket that is not read does not tell that it was closed.
  const closed = !String((await pinger.send('CLIENT', 'LIST')) ?? '').includes('name=stalled');
  stalled.destroy();
  await writer.send('DEL', 'stalled');
  await writer.close();
  await pinger.close();
  return { beforeBytes, peakBytes, slowestPingMs, closed };
}
