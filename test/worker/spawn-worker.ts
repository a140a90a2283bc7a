/** Starts and kills worker processes. */
import { type ChildProcess, spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { WorkerProcessOptions } from './worker-process.ts';

export interface SpawnedWorker {
  readonly pid: number;
  /** Resolves when it handles entries; rejects when it ends before that. */
  readonly ready: Promise<void>;
  kill(signal: NodeJS.Signals): void;
  /** Resolves with the exit code, `null` after a signal. */
  readonly exited: Promise<number | null>;
}

const SCRIPT = fileURLToPath(new URL('./worker-process.ts', import.meta.url));

export function spawnWorker(options: WorkerProcessOptions, env: Record<string, string> = {}): SpawnedWorker {
  const child: ChildProcess = spawn(
    process.execPath,
    ['--import', import.meta.resolve('tsx'), SCRIPT, JSON.stringify(options)],
    { stdio: ['ignore', 'pipe', 'inherit'], env: { ...process.env, ...env } },
  );
  const exited = new Promise<number | null>((resolve) => child.once('exit', (code) => resolve(code)));
  const ready = new Promise<void>((resolve, reject) => {
    child.stdout!.once('data', () => resolve());
    void exited.then((code) => reject(new Error(`the worker ended with ${code} before it was ready`)));
  });
  ready.catch(() => undefined);
  return { pid: child.pid!, ready, exited, kill: (signal) => void child.kill(signal) };
}
