/** The program as an operator runs it: a process of its own with flags, environment and signals. */
import { type ChildProcess, spawn } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, expect } from 'vitest';
import type { StatusReport } from '../../src/operations/status-report.ts';

const MAIN = new URL('../../src/main.ts', import.meta.url).pathname;
const READY_MS = 40_000;

const programs: ChildProcess[] = [];
afterAll(() => {
  for (const child of programs.splice(0)) child.kill('SIGKILL');
});

export interface Program {
  readonly child: ChildProcess;
  readonly output: { readonly stdout: string; readonly stderr: string };
  /** The exit code. */
  readonly exited: Promise<number | null>;
}

/** `holdfast` with these arguments; killed at the end of the test file if it still runs. */
export function launch(args: readonly string[], env: Record<string, string> = {}): Program {
  const child = spawn(process.execPath, ['--import', 'tsx', MAIN, ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...env },
  });
  programs.push(child);
  const output = { stdout: '', stderr: '' };
  child.stdout.on('data', (chunk) => (output.stdout += chunk));
  child.stderr.on('data', (chunk) => (output.stderr += chunk));
  const exited = new Promise<number | null>((resolve) => child.once('close', (code) => resolve(code)));
  return { child, output, exited };
}

export interface Sidecar extends Program {
  /** On 127.0.0.1, where clients connect. */
  readonly port: number;
  /** A URL without a path. */
  readonly http: string;
  status(): Promise<StatusReport>;
}

/** `holdfast serve` on free ports; resolves when it is ready. */
export async function serve(args: readonly string[], env: Record<string, string> = {}): Promise<Sidecar> {
  const program = launch(['serve', '--listen', '127.0.0.1:0', '--http', '127.0.0.1:0', ...args], env);
  const { child, output } = program;
  const ended = () => child.exitCode !== null || child.signalCode !== null;
  await expect.poll(() => output.stdout.includes('"ready:') || ended(), { timeout: READY_MS }).toBe(true);
  const line = output.stdout.split('\n').find((text) => text.includes('"ready:'));
  if (line === undefined) throw new Error(`did not become ready: ${output.stderr}${output.stdout}`);
  const ready = JSON.parse(line) as { listen: string[]; http: string };
  const http = `http://${ready.http}`;
  return {
    ...program,
    port: Number(ready.listen[0]!.split(':').at(-1)),
    http,
    status: async () => (await (await fetch(`${http}/status`)).json()) as StatusReport,
  };
}

/** Of the server that runs in this directory. */
export async function pidIn(directory: string): Promise<number> {
  return Number.parseInt(await readFile(join(directory, 'server.pid'), 'utf8'), 10);
}
