/** Clients that come and vanish in every state; afterwards nothing of them may be left. */
import { readdirSync, readFileSync } from 'node:fs';
import { connect } from 'node:net';
import { request } from '../../src/resp/encode.ts';
import { connectRaw } from '../support/raw-client.ts';
import { type Random, seededRandom } from './random.ts';

export interface Footprint {
  readonly rssBytes: number;
  readonly descriptors: number;
  /** Connections that the KV server sees, ours among them. */
  readonly upstreamClients: number;
}

export async function footprint(pid: number, kvPort: number): Promise<Footprint> {
  const client = await connectRaw(kvPort);
  const info = (await client.send('INFO', 'clients')).bytes.toString();
  await client.close();
  return {
    rssBytes: residentBytes(pid),
    descriptors: readdirSync(`/proc/${pid}/fd`).length,
    upstreamClients: Number(/connected_clients:(\d+)/.exec(info)?.[1]) - 1,
  };
}

export function residentBytes(pid: number): number {
  return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1]) * 1024;
}

const STATES: readonly ((random: Random) => readonly (readonly string[])[])[] = [
  () => [],
  () => [['PING']],
  () => [
    ['SET', 'lifecycle', 'x'],
    ['GET', 'lifecycle'],
  ],
  () => [['MULTI'], ['SET', 'lifecycle', 'x']],
  () => [['WATCH', 'lifecycle']],
  () => [['BLPOP', 'lifecycle:none', '0']],
  () => [['XREAD', 'BLOCK', '0', 'STREAMS', 'lifecycle:stream', '$']],
  () => [['SUBSCRIBE', 'lifecycle']],
  () => [['PSUBSCRIBE', '*']],
  () => [['MONITOR']],
  () => [
    ['HELLO', '3'],
    ['CLIENT', 'TRACKING', 'ON'],
  ],
  () => [['CLIENT', 'REPLY', 'OFF']],
  () => [['SELECT', '3'], ['PING']],
  () => [['CLIENT', 'NO-EVICT', 'ON']],
  (random) => Array.from({ length: random.below(200) }, () => ['ECHO', 'x'.repeat(100)]),
];

function live(port: number, random: Random): Promise<void> {
  return new Promise((resolve, reject) => {
    const socket = connect(port, '127.0.0.1');
    const departure = random.below(4);
    const bytes = Buffer.concat(
      random
        .pick(STATES)(random)
        .map((args) => request(args)),
    );
    const cut = random.chance(0.2) ? bytes.subarray(0, random.below(bytes.length + 1)) : bytes;
    const waitMs = random.chance(0.5) ? 0 : random.below(20);
    socket.on('data', () => {});
    socket.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'ECONNREFUSED') reject(error);
    });
    socket.on('close', () => resolve());
    socket.once('connect', () => {
      socket.write(cut);
      setTimeout(() => {
        if (departure === 0) socket.end(request(['QUIT']));
        else if (departure === 1) socket.resetAndDestroy();
        else if (departure === 2) socket.destroySoon();
        else socket.destroy();
        // One who half-closes and is never let go would hang here: that is a finding, not patience's matter.
        setTimeout(() => socket.destroy(), 5000).unref();
      }, waitMs);
    });
  });
}

/** Opens and abandons `count` connections, `concurrency` at a time. */
export async function runLifecycles(port: number, count: number, concurrency: number, seed: number): Promise<void> {
  const random = seededRandom(seed);
  let started = 0;
  const lane = async () => {
    while (started < count) {
      started += 1;
      await live(port, random);
    }
  };
  await Promise.all(Array.from({ length: concurrency }, lane));
}
