/**
 * A throw-away reference server (Redis 7 or Valkey 8 from PATH) on a Unix socket and a free port, without persistence.
 */
import { spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connectRaw } from './raw-client.ts';

export const REFERENCE_SERVERS = ['redis', 'valkey'] as const;
export type ReferenceServerName = (typeof REFERENCE_SERVERS)[number];

export interface ReferenceServer {
  readonly name: ReferenceServerName;
  readonly port: number;
  readonly socketPath: string;
  stop(): Promise<void>;
}

const STARTUP_MS_MAX = 10_000;

export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const probe = createServer();
    probe.once('error', reject);
    probe.listen(0, '127.0.0.1', () => {
      const address = probe.address();
      const port = typeof address === 'object' && address !== null ? address.port : 0;
      probe.close(() => resolve(port));
    });
  });
}

/** Resolves when the server answers PING. `options` are further command line arguments of the server. */
export async function startReferenceServer(
  name: ReferenceServerName,
  options: readonly string[] = [],
): Promise<ReferenceServer> {
  const directory = await mkdtemp(join(tmpdir(), 'holdfast-kv-'));
  const socketPath = join(directory, 'kv.sock');
  const port = await freePort();
  const child = spawn(
    `${name}-server`,
    [
      ...['--port', String(port), '--bind', '127.0.0.1', '--unixsocket', socketPath, '--dir', directory],
      ...['--save', '', '--appendonly', 'no', '--enable-debug-command', 'yes', ...options],
    ],
    { stdio: 'ignore' },
  );
  const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  async function stop(): Promise<void> {
    child.kill('SIGKILL');
    await exited;
    await rm(directory, { recursive: true, force: true });
  }
  const deadline = Date.now() + STARTUP_MS_MAX;
  for (;;) {
    try {
      const client = await connectRaw(socketPath);
      const pong = await client.send('PING');
      await client.close();
      if (pong.bytes.toString() === 'PONG') return { name, port, socketPath, stop };
    } catch (error) {
      if (Date.now() > deadline || child.exitCode !== null) {
        await stop();
        throw error;
      }
    }
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
