/**
 * Writes `src/command/generated/commands.ts` from the `COMMAND` replies of the reference servers on PATH.
 * Run with `npm run generate:commands` when a reference server changes, and review the difference.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { CommandDescription } from '../src/command/command.ts';
import { mergeDescriptions, readCommandReply } from '../src/command/read-command-reply.ts';
import { request } from '../src/resp/encode.ts';
import { type Reply, readReply } from '../src/resp/reply.ts';

const TARGET = fileURLToPath(new URL('../src/command/generated/commands.ts', import.meta.url));
const STARTUP_MS_MAX = 10_000;

/** Sends one command to a server on a Unix socket and gives the reply. */
function ask(socketPath: string, args: readonly string[]): Promise<Reply> {
  return new Promise((resolve, reject) => {
    const socket = connect(socketPath);
    let received = Buffer.alloc(0);
    socket.on('error', reject);
    socket.on('data', (chunk) => {
      received = Buffer.concat([received, chunk]);
      try {
        resolve(readReply(received));
        socket.destroy();
      } catch {
        // The frame is not complete yet.
      }
    });
    socket.write(request(args));
  });
}

async function untilReady(socketPath: string): Promise<void> {
  const deadline = Date.now() + STARTUP_MS_MAX;
  for (;;) {
    try {
      await ask(socketPath, ['PING']);
      return;
    } catch (error) {
      if (Date.now() > deadline) throw error;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }
}

function ended(child: ChildProcess): Promise<void> {
  return new Promise((resolve) => (child.exitCode === null ? child.once('exit', () => resolve()) : resolve()));
}

async function describe(executable: string, server: 'redis' | 'valkey'): Promise<CommandDescription[]> {
  const directory = await mkdtemp(join(tmpdir(), 'holdfast-commands-'));
  const socketPath = join(directory, 'kv.sock');
  const child = spawn(
    executable,
    ['--port', '0', '--unixsocket', socketPath, '--save', '', '--dir', directory, '--appendonly', 'no'],
    { stdio: 'ignore' },
  );
  try {
    await untilReady(socketPath);
    return readCommandReply(await ask(socketPath, ['COMMAND']), server);
  } finally {
    child.kill('SIGKILL');
    await ended(child);
    await rm(directory, { recursive: true, force: true });
  }
}

const redis = await describe('redis-server', 'redis');
const valkey = await describe('valkey-server', 'valkey');
const lines = mergeDescriptions(redis, valkey).map((command) => `  ${JSON.stringify(command)},`);
await writeFile(
  TARGET,
  [
    '// Written by `npm run generate:commands` from COMMAND of Redis 7.0.15 and Valkey 8.0.1. Not edited by hand.',
    "import type { CommandDescription } from '../command.ts';",
    '',
    'export const GENERATED_COMMANDS: readonly CommandDescription[] = [',
    ...lines,
    '];',
    '',
  ].join('\n'),
);
