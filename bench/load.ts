/** One measurement: `redis-benchmark` against one port, and what the process under test spent meanwhile. */
import { execFile, execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';

export interface Load {
  /** The command as `redis-benchmark` takes it; `__rand_int__` and `__data__` are filled in by it. */
  readonly command: readonly string[];
  readonly clients: number;
  readonly pipeline: number;
  readonly dataBytes: number;
  readonly login?: { readonly user: string; readonly password: string };
}

export interface Measurement {
  readonly requestsPerSecond: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  /** User and system time of the measured process for each request, in microseconds. */
  readonly cpuMicrosPerRequest: number | undefined;
}

const KEYS = 100_000;

/** Time on a core that the threads of a process have had so far, in microseconds. */
export function cpuMicros(pid: number): number {
  const tasks = `/proc/${pid}/task`;
  const nanoseconds = (task: string): number =>
    Number(readFileSync(`${tasks}/${task}/schedstat`, 'latin1').split(' ')[0]);
  return readdirSync(tasks).reduce((sum, task) => sum + nanoseconds(task), 0) / 1000;
}

/** Binds every thread of a process to these cores, as `taskset` names them (`0`, `0-1`). */
export function pinProcess(pid: number, cores: string): void {
  execFileSync('taskset', ['-a', '-c', '-p', cores, String(pid)], { stdio: 'ignore' });
}

/** The figures in the output of `redis-benchmark --csv`. */
export function parseCsv(output: string): Pick<Measurement, 'requestsPerSecond' | 'p50Ms' | 'p99Ms'> {
  const rows = output
    .split('\n')
    .filter((line) => line.startsWith('"'))
    .map((line) => [...line.matchAll(/"((?:[^"\\]|\\.)*)"/g)].map((match) => match[1] ?? ''));
  const heads = rows[0] ?? [];
  const figures = rows[1] ?? [];
  const column = (name: string) => Number(figures[heads.indexOf(name)]);
  const result = {
    requestsPerSecond: column('rps'),
    p50Ms: column('p50_latency_ms'),
    p99Ms: column('p99_latency_ms'),
  };
  if (!Object.values(result).every(Number.isFinite)) throw new Error(`redis-benchmark gave no figures:\n${output}`);
  return result;
}

/** Runs `requests` requests. Rejects with the generator's own words when it fails or takes longer than `timeoutMs`. */
export async function measure(
  port: number,
  load: Load,
  requests: number,
  options: { measuredPid?: number | undefined; cores?: string | undefined; timeoutMs: number },
): Promise<Measurement> {
  const args = ['-h', '127.0.0.1', '-p', String(port), '--csv', '-n', String(requests), '-r', String(KEYS)];
  if (load.login !== undefined) args.push('--user', load.login.user, '-a', load.login.password);
  args.push('-c', String(load.clients), '-P', String(load.pipeline), '-d', String(load.dataBytes), ...load.command);
  const [file, all] =
    options.cores === undefined
      ? ['redis-benchmark', args]
      : ['taskset', ['-c', options.cores, 'redis-benchmark', ...args]];
  const { measuredPid } = options;
  const before = measuredPid === undefined ? 0 : cpuMicros(measuredPid);
  const output = await new Promise<string>((resolve, reject) => {
    execFile(file, all, { timeout: options.timeoutMs, killSignal: 'SIGKILL' }, (error, stdout, stderr) => {
      if (error === null) resolve(stdout);
      else reject(new Error(`${load.command[0]} on port ${port}: ${stderr.trim() || error.message}`));
    });
  });
  const spent = measuredPid === undefined ? undefined : cpuMicros(measuredPid) - before;
  return { ...parseCsv(output), cpuMicrosPerRequest: spent === undefined ? undefined : spent / requests };
}
