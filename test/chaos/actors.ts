/**
 * The processes of a run that faults strike: sidecars, producers, consumers. Each keeps its place over restarts.
 */
import type { ChildProcess } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { ClientSettings } from './client-process.ts';
import type { Actor } from './nemeses.ts';
import { exitOf, isRunning, killTree, signalTree, spawnBound, until } from './process-control.ts';

const REPOSITORY = fileURLToPath(new URL('../../', import.meta.url));
const READY_MS_MAX = 60_000;
const TERMINATE_MS_MAX = 30_000;
const RESPAWN_MS = 300;

/** What the process writes is appended to `logPath`. */
async function spawnNode(file: string, args: readonly string[], cwd: string, logPath: string): Promise<ChildProcess> {
  const log = openSync(logPath, 'a');
  try {
    return await spawnBound(process.execPath, ['--import', 'tsx', file, ...args], { cwd, stdio: ['ignore', log, log] });
  } finally {
    closeSync(log);
  }
}

function accepts(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1');
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}

/** Asks the process to end; one that does not within its time is killed. Gives whether it ended by itself. */
async function terminate(child: ChildProcess): Promise<boolean> {
  if (!isRunning(child)) return true;
  child.kill('SIGCONT');
  child.kill('SIGTERM');
  let obeyed = true;
  const timer = setTimeout(() => {
    obeyed = false;
    signalTree(child, 'SIGKILL');
  }, TERMINATE_MS_MAX);
  await exitOf(child);
  clearTimeout(timer);
  return obeyed;
}

export interface SidecarSettings {
  /** The source tree to run; a mutated copy, perhaps. */
  readonly root: string;
  readonly port: number;
  readonly kvPort: number;
  readonly databaseUrl: string;
  readonly directory: string;
  readonly name: string;
}

/** Its supervisor starts it again when it ends by itself, as a machine's would. */
export interface SupervisedActor extends Actor {
  /** How often it ended without being asked to, and how often it did not end when it was asked to. */
  readonly crashes: number;
}

export function createSidecar(settings: SidecarSettings): SupervisedActor {
  const { root, port, kvPort, databaseUrl, directory, name } = settings;
  let child: ChildProcess | undefined;
  let wanted = false;
  let crashes = 0;

  async function launch(): Promise<void> {
    const launched = await spawnNode(
      join(root, 'src', 'main.ts'),
      [
        ...['serve', '--listen', `127.0.0.1:${port}`, '--kv', `redis://127.0.0.1:${kvPort}`],
        ...['--database', databaseUrl, '--data-dir', join(directory, name), '--http', '127.0.0.1:0'],
        ...['--streams', 'chaos:*', '--log-level', 'info'],
      ],
      root,
      join(directory, `${name}.log`),
    );
    child = launched;
    launched.once('exit', (code) => {
      if (!wanted || child !== launched) return;
      // 2 is a refusal to start, which a fault elsewhere may well be the reason for.
      if (code !== 2) crashes += 1;
      setTimeout(() => {
        if (wanted && child === launched) void launch();
      }, RESPAWN_MS);
    });
  }
  return {
    get crashes() {
      return crashes;
    },
    async start() {
      wanted = true;
      await launch();
      await until(`${name} to listen`, READY_MS_MAX, () => accepts(port), 50);
    },
    async kill() {
      wanted = false;
      if (child !== undefined) await killTree(child);
    },
    async terminate() {
      wanted = false;
      if (child !== undefined && !(await terminate(child))) crashes += 1;
    },
    pause: () => child !== undefined && signalTree(child, 'SIGSTOP'),
    resume: () => child !== undefined && signalTree(child, 'SIGCONT'),
  };
}

/** What changes with each process of a client actor. */
export type ClientLife = Pick<ClientSettings, 'client' | 'historyPath' | 'errorsPath'>;

/**
 * A producer or consumer that is started again in its place. `nextLife` numbers its processes; `ended` is told when the
 * last record of one is written.
 */
export function createClient(
  kind: 'producer' | 'consumer',
  settings: Omit<ClientSettings, keyof ClientLife>,
  directory: string,
  nextLife: () => ClientLife,
  ended: (life: ClientLife) => void,
): SupervisedActor {
  let child: ChildProcess | undefined;
  let wanted = false;
  let crashes = 0;

  async function launch(): Promise<void> {
    const life = nextLife();
    const launched = await spawnNode(
      fileURLToPath(new URL(`./${kind}-process.ts`, import.meta.url)),
      [JSON.stringify({ ...settings, ...life })],
      REPOSITORY,
      join(directory, `${kind}-${settings.slot}.log`),
    );
    child = launched;
    launched.once('exit', () => {
      ended(life);
      if (!wanted || child !== launched) return;
      crashes += 1;
      setTimeout(() => {
        if (wanted && child === launched) void launch();
      }, RESPAWN_MS);
    });
  }
  return {
    get crashes() {
      return crashes;
    },
    async start() {
      wanted = true;
      await launch();
    },
    async kill() {
      wanted = false;
      if (child !== undefined) await killTree(child);
    },
    async terminate() {
      wanted = false;
      if (child !== undefined && !(await terminate(child))) crashes += 1;
    },
    pause: () => child !== undefined && signalTree(child, 'SIGSTOP'),
    resume: () => child !== undefined && signalTree(child, 'SIGCONT'),
  };
}
