/**
 * Signals to processes that the run started, and to their descendants. Nothing here looks processes up by name.
 */
import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { setprivWorks } from '../../src/embedded/server-process.ts';

/** Starts a process that the kernel kills when this one dies, where that can be arranged: no run leaves any behind. */
export async function spawnBound(
  command: string,
  args: readonly string[],
  options: SpawnOptions,
): Promise<ChildProcess> {
  if (!(await setprivWorks())) return spawn(command, args, options);
  return spawn('setpriv', ['--pdeathsig', 'KILL', '--', command, ...args], options);
}

/** Every descendant of `pid`, children first. */
export function descendantsOf(pid: number): number[] {
  const childrenOf = new Map<number, number[]>();
  for (const entry of readdirSync('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    try {
      // "pid (command) state ppid …": the command may hold blanks and parentheses.
      const stat = readFileSync(`/proc/${entry}/stat`, 'latin1');
      const parent = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]);
      childrenOf.set(parent, [...(childrenOf.get(parent) ?? []), Number(entry)]);
    } catch {
      // It ended while we looked.
    }
  }
  const found: number[] = [];
  for (let level = [pid]; level.length > 0; ) {
    level = level.flatMap((parent) => childrenOf.get(parent) ?? []);
    found.push(...level);
  }
  return found;
}

/** Gives how many of them are still there. Signal 0 only looks. */
export function sendTo(pids: readonly number[], signal: NodeJS.Signals | 0): number {
  return pids.filter((pid) => {
    try {
      return process.kill(pid, signal);
    } catch {
      return false;
    }
  }).length;
}

export function signalTree(child: ChildProcess, signal: NodeJS.Signals): void {
  if (child.pid !== undefined && isRunning(child)) sendTo([child.pid, ...descendantsOf(child.pid)], signal);
}

export function isRunning(child: ChildProcess): boolean {
  return child.exitCode === null && child.signalCode === null;
}

/** Resolves when the process has ended; at once if it has already. */
export function exitOf(child: ChildProcess): Promise<void> {
  return isRunning(child) ? new Promise((resolve) => child.once('exit', () => resolve())) : Promise.resolve();
}

/** Ends the process and its descendants without asking, and waits for it. */
export async function killTree(child: ChildProcess): Promise<void> {
  signalTree(child, 'SIGKILL');
  await exitOf(child);
}

/** Asks `ready` every `everyMs` until it gives true. Rejects with `what` after `timeoutMs`. */
export async function until(
  what: string,
  timeoutMs: number,
  ready: () => boolean | Promise<boolean>,
  everyMs = 20,
): Promise<void> {
  const deadline = Date.now() + timeoutMs;
  while (!(await ready())) {
    if (Date.now() > deadline) throw new Error(`${what}: not within ${timeoutMs} ms`);
    await new Promise((resolve) => setTimeout(resolve, everyMs));
  }
}
