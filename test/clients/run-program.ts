/** Runs a client program against a port and gives what it said. */
import { spawn } from 'node:child_process';

export interface ProgramResult {
  readonly stdout: string;
  readonly stderr: string;
  /** `null` when it was stopped by us. */
  readonly exitCode: number | null;
}

export interface ProgramOptions {
  readonly input?: string | Buffer;
  /** Programs that run until they are stopped are stopped after this. */
  readonly stopAfterMs?: number;
  /** Runs once the program has been started, for what it is to see. */
  readonly meanwhile?: () => Promise<void>;
  readonly cwd?: string;
}

const PATIENCE_MS = 60_000;

export function runProgram(
  program: string,
  args: readonly string[],
  options: ProgramOptions = {},
): Promise<ProgramResult> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      stdio: ['pipe', 'pipe', 'pipe'],
      env: { ...process.env, TERM: 'dumb', REDISCLI_HISTFILE: '/dev/null' },
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    });
    let stdout = '';
    let stderr = '';
    let stopped = false;
    const stop = () => {
      stopped = true;
      child.kill('SIGKILL');
    };
    const timer = setTimeout(stop, options.stopAfterMs ?? PATIENCE_MS);
    child.stdout.on('data', (chunk: Buffer) => {
      stdout += chunk.toString('latin1');
    });
    child.stderr.on('data', (chunk: Buffer) => {
      stderr += chunk.toString('latin1');
    });
    child.once('error', reject);
    child.once('close', (exitCode) => {
      clearTimeout(timer);
      resolve({ stdout, stderr, exitCode: stopped ? null : exitCode });
    });
    child.stdin.on('error', () => {});
    child.stdin.end(options.input ?? '');
    options.meanwhile?.().catch(reject);
  });
}
