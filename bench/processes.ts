/**
 * The child processes that benches and suites measure: KV servers, peer proxies, and Holdfast as an operator runs it.
 * Every one listens on a free port of 127.0.0.1, has a directory of its own below the system's temporary one, and is
 * stopped and swept away by `stop()`, at the latest when this process exits.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { freePort } from '../src/embedded/free-port.ts';

export type KvBinary = 'redis-server' | 'valkey-server';

export interface RunningProcess {
  readonly name: string;
  readonly host: '127.0.0.1';
  readonly port: number;
  readonly pid: number;
  readonly directory: string;
  /** Milliseconds from spawn to the first `+PONG`. */
  readonly startMs: number;
  /** The last 64 KB of stdout and stderr. */
  output(): string;
  running(): boolean;
  stop(): Promise<void>;
}

const repository = join(dirname(fileURLToPath(import.meta.url)), '..');
const OUTPUT_CHARACTERS_MAX = 64 * 1024;
const live = new Set<ChildProcess>();
const directories = new Set<string>();

process.on('exit', () => {
  for (const child of live) child.kill('SIGKILL');
  for (const directory of directories) rmSync(directory, { recursive: true, force: true });
});

/** Whether an executable of that name is on PATH. */
export function isInstalled(binary: string): boolean {
  try {
    execFileSync('sh', ['-c', `command -v ${binary}`], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

/** A directory that is removed when this process ends; world-readable, as a Postgres below it runs as another user. */
export function temporaryDirectory(prefix: string): string {
  const directory = mkdtempSync(join(tmpdir(), `holdfast-${prefix}-`));
  directories.add(directory);
  return directory;
}

/** Sends one inline PING on a connection of its own. */
export function answersPing(port: number, timeoutMs = 1000): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1');
    const finish = (answered: boolean) => {
      socket.destroy();
      resolve(answered);
    };
    socket.setTimeout(timeoutMs, () => finish(false));
    socket.once('error', () => finish(false));
    socket.once('connect', () => socket.write('*1\r\n$4\r\nPING\r\n'));
    socket.once('data', (data) => finish(data.toString('latin1').startsWith('+PONG')));
    socket.once('close', () => finish(false));
  });
}

function pause(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

interface Launch {
  name: string;
  command: string;
  args: readonly string[];
  port: number;
  directory: string;
  environment?: NodeJS.ProcessEnv;
  startTimeoutMs?: number;
  stopTimeoutMs?: number;
}

async function launch(options: Launch): Promise<RunningProcess> {
  const { name, command, args, port, directory, startTimeoutMs = 15_000, stopTimeoutMs = 5_000 } = options;
  const startedAt = performance.now();
  const child = spawn(command, args, {
    cwd: directory,
    stdio: ['ignore', 'pipe', 'pipe'],
    // Which form of Holdfast is meant is no setting of Holdfast's.
    env: { ...process.env, HOLDFAST_FROM_SOURCE: undefined, ...options.environment },
  });
  live.add(child);
  let output = '';
  let exited = false;
  const keep = (chunk: Buffer) => {
    output = (output + chunk.toString()).slice(-OUTPUT_CHARACTERS_MAX);
  };
  child.stdout?.on('data', keep);
  child.stderr?.on('data', keep);
  child.once('error', (error) => {
    exited = true;
    output += error.message;
  });
  const ended = new Promise<void>((resolve) => {
    child.once('close', () => {
      exited = true;
      live.delete(child);
      resolve();
    });
    child.once('error', () => resolve());
  });
  const stop = async () => {
    child.kill('SIGTERM');
    const killer = setTimeout(() => child.kill('SIGKILL'), stopTimeoutMs);
    await ended;
    clearTimeout(killer);
    rmSync(directory, { recursive: true, force: true });
    directories.delete(directory);
  };
  while (!(await answersPing(port))) {
    if (exited || performance.now() - startedAt > startTimeoutMs) {
      await stop();
      throw new Error(`${name} did not answer on port ${port}:\n${output}`);
    }
    await pause(20);
  }
  return {
    name,
    host: '127.0.0.1',
    port,
    pid: child.pid ?? 0,
    directory,
    startMs: performance.now() - startedAt,
    output: () => output,
    running: () => !exited,
    stop,
  };
}

/** A KV server without persistence; `args` are further server options. `givenPort`: that of one that has ended. */
export async function startKv(
  binary: KvBinary,
  args: readonly string[] = [],
  givenPort?: number,
): Promise<RunningProcess> {
  const directory = temporaryDirectory('kv');
  const port = givenPort ?? (await freePort());
  return launch({
    name: binary,
    command: binary,
    args: [
      '--port',
      String(port),
      '--bind',
      '127.0.0.1',
      '--save',
      '',
      '--appendonly',
      'no',
      '--dir',
      directory,
      ...args,
    ],
    port,
    directory,
  });
}

export async function startNutcracker(upstreamPort: number): Promise<RunningProcess> {
  const directory = temporaryDirectory('nutcracker');
  const port = await freePort();
  const statisticsPort = await freePort();
  const file = join(directory, 'nutcracker.yml');
  writeFileSync(
    file,
    `pool:\n  listen: 127.0.0.1:${port}\n  redis: true\n  hash: fnv1a_64\n  distribution: ketama\n  servers:\n    - 127.0.0.1:${upstreamPort}:1\n`,
  );
  const args = ['-c', file, '-s', String(statisticsPort), '-a', '127.0.0.1', '-v', '0', '-m', '16384'];
  return launch({ name: 'nutcracker', command: 'nutcracker', args, port, directory });
}

export async function startHaproxy(upstreamPort: number): Promise<RunningProcess> {
  const directory = temporaryDirectory('haproxy');
  const port = await freePort();
  const file = join(directory, 'haproxy.cfg');
  writeFileSync(
    file,
    [
      'global',
      '  nbthread 1',
      '  maxconn 4000',
      'defaults',
      '  mode tcp',
      '  timeout connect 5s',
      '  timeout client 1h',
      '  timeout server 1h',
      'frontend clients',
      `  bind 127.0.0.1:${port}`,
      '  default_backend kv',
      'backend kv',
      `  server kv 127.0.0.1:${upstreamPort}`,
      '',
    ].join('\n'),
  );
  return launch({ name: 'haproxy', command: 'haproxy', args: ['-db', '-f', file], port, directory });
}

export interface HoldfastLaunch {
  kvUrl: string;
  /** Without it Holdfast starts its embedded Postgres in its own directory. */
  databaseUrl?: string;
  pooling?: 'transaction' | 'session';
  streams?: readonly string[];
  /** Besides its own, as they stand in the configuration. */
  listeners?: readonly { readonly address: string; readonly scope?: string; readonly requireAuth?: boolean }[];
  /** Further top-level settings, written into the configuration file as they are. */
  settings?: Readonly<Record<string, unknown>>;
  nodeArgs?: readonly string[];
  /** Another checkout of Holdfast than this one. */
  checkout?: string;
}

/** The built executable where there is one and `HOLDFAST_FROM_SOURCE` is not set, the sources by tsx otherwise. */
export function holdfastCommand(checkout = repository): readonly string[] {
  const built = join(checkout, 'dist', 'main.js');
  if (existsSync(built) && process.env.HOLDFAST_FROM_SOURCE === undefined) return [built];
  return ['--import', import.meta.resolve('tsx'), join(checkout, 'src', 'main.ts')];
}

/** `holdfast serve` with a configuration file of its own. */
export async function startHoldfast(options: HoldfastLaunch): Promise<RunningProcess> {
  const directory = temporaryDirectory('serve');
  const port = await freePort();
  const httpPort = await freePort();
  const file = join(directory, 'holdfast.yaml');
  const ledger = {
    ...(options.databaseUrl === undefined ? {} : { database: options.databaseUrl }),
    streams: options.streams ?? ['*'],
  };
  // JSON is YAML.
  writeFileSync(
    file,
    JSON.stringify({
      listen: [`127.0.0.1:${port}`, ...(options.listeners ?? [])],
      http: `127.0.0.1:${httpPort}`,
      kv: { url: options.kvUrl },
      pooling: options.pooling ?? 'transaction',
      ledger,
      ...options.settings,
    }),
  );
  return launch({
    name: 'holdfast',
    command: process.execPath,
    args: [
      ...(options.nodeArgs ?? []),
      ...holdfastCommand(options.checkout),
      'serve',
      '--config',
      file,
      '--data-dir',
      join(directory, 'data'),
      '--log-level',
      'warn',
    ],
    port,
    directory,
    startTimeoutMs: 60_000,
    stopTimeoutMs: 15_000,
  });
}

export interface DataPlaneLaunch {
  kvPort: number;
  pooling?: 'transaction' | 'session';
  limits?: Readonly<Record<string, number>>;
  checkout?: string;
}

/** The data plane without ledger and interceptors. */
export async function startDataPlane(options: DataPlaneLaunch): Promise<RunningProcess> {
  const directory = temporaryDirectory('data-plane');
  const port = await freePort();
  return launch({
    name: 'data-plane',
    command: process.execPath,
    args: [
      '--import',
      import.meta.resolve('tsx'),
      join(options.checkout ?? repository, 'bench', 'data-plane.ts'),
      String(port),
      String(options.kvPort),
      options.pooling ?? 'transaction',
      JSON.stringify(options.limits ?? {}),
    ],
    port,
    directory,
  });
}
