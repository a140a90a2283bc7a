/** As many waits as one sidecar takes, for one key: what each costs in memory, and how long it takes to serve them all. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { request } from '../src/resp/encode.ts';
import type { RunningProcess } from './processes.ts';

/** Together the limit of a process. */
const CONNECTIONS = 100;
const WAITS_EACH = 200;
const POLL_MS = 50;
const TIMEOUT_MS = 60_000;
const KEY = 'v1/org/fleet/v1/git-data/waiters';
const VALUE = 'fetched';

function residentBytes(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, 'latin1');
  return Number(/^VmRSS:\s+(\d+) kB/m.exec(status)![1]) * 1024;
}

function waitsAt(port: number): number {
  const info = execFileSync('redis-cli', ['-p', String(port), 'INFO', 'holdfast'], { encoding: 'utf8' });
  return Number(/^cache_waiting:(\d+)/m.exec(info)![1]);
}

async function until(what: string, condition: () => boolean): Promise<void> {
  for (const end = Date.now() + TIMEOUT_MS; !condition(); ) {
    if (Date.now() > end) throw new Error(`never came true: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

async function open(port: number): Promise<Socket> {
  const socket = connect(port, '127.0.0.1');
  await new Promise((resolve, reject) => socket.once('connect', resolve).once('error', reject));
  return socket;
}

/** Says a line of figures. */
export async function measureWaiters({ port, pid }: RunningProcess, say: (line: string) => void): Promise<void> {
  const sockets: Socket[] = [];
  try {
    for (let i = 0; i <= CONNECTIONS; i += 1) sockets.push(await open(port));
    const [holder, ...waiting] = sockets;
    holder!.write(request(['GET', KEY]));
    await new Promise((resolve) => holder!.once('data', resolve));
    holder!.resume();
    let bytes = 0;
    const before = residentBytes(pid);
    for (const socket of waiting) {
      socket.on('data', (chunk) => {
        bytes += chunk.length;
      });
      socket.write(Buffer.concat(Array<Buffer>(WAITS_EACH).fill(request(['GET', KEY]))));
    }
    const waits = CONNECTIONS * WAITS_EACH;
    await until('all wait', () => waitsAt(port) === waits);
    const each = (residentBytes(pid) - before) / waits / 1024;
    const expected = waits * `$${VALUE.length}\r\n${VALUE}\r\n`.length;
    const from = performance.now();
    holder!.write(request(['SET', KEY, VALUE]));
    await until('all are served', () => bytes === expected);
    const tookMs = performance.now() - from;
    say(`\n${waits} waits on one sidecar: ${each.toFixed(1)} KB of memory each, all served in ${tookMs.toFixed(0)} ms`);
  } finally {
    for (const socket of sockets) socket.destroy();
  }
}
