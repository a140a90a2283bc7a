/**
 * Runs units of the Redis suite in external mode. Every unit gets a server (and a Holdfast) of its own, so that what
 * one unit leaves behind, a hang included, stays with it.
 *
 *   unit ─▶ server (─▶ Holdfast) ─▶ runtest --single unit ─▶ its [ok]/[err]/… lines ─▶ UnitResult
 */
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  type KvBinary,
  type RunningProcess,
  startDataPlane,
  startHoldfast,
  startKv,
  temporaryDirectory,
} from '../../bench/processes.ts';
import { prepareRunDirectory, type RedisSources } from './redis-sources.ts';

export type Target = 'direct' | 'transaction' | 'session';
export type Variant = 'resp2' | 'resp3' | 'singledb';
export type TestStatus = 'ok' | 'err' | 'skip' | 'ignore';

export interface TestResult {
  readonly name: string;
  readonly status: TestStatus;
  /** What the suite says of a failure. */
  readonly detail?: string;
}

export interface UnitResult {
  readonly unit: string;
  /** `died`: the suite gave up (an exception outside a test); `timeout`: it was stopped by us. */
  readonly outcome: 'done' | 'died' | 'timeout';
  readonly seconds: number;
  readonly tests: readonly TestResult[];
  /** The end of the output of the suite and of the processes under it, where the outcome is not `done`. */
  readonly tail?: string;
}

export interface SuiteTarget {
  readonly server: KvBinary;
  readonly target: Target;
  readonly variant: Variant;
}

export interface SuiteOptions extends SuiteTarget {
  readonly units: readonly string[];
  readonly tags: string;
  readonly jobs: number;
  readonly unitTimeoutSeconds: number;
  /** Without ledger and interceptors. */
  readonly dataPlaneOnly?: boolean;
  /** A database of its own for each Holdfast. */
  readonly createDatabase?: () => Promise<string>;
  readonly onUnit?: (result: UnitResult) => void;
}

export const SERVER_ARGS = [
  '--enable-protected-configs',
  'yes',
  '--enable-debug-command',
  'yes',
  '--enable-module-command',
  'yes',
];
const TAIL_CHARACTERS = 4000;
const OUTPUT_CHARACTERS_MAX = 8 * 1024 * 1024;

/** All units of the suite, in its own order. */
export function listUnits(sources: RedisSources): string[] {
  const text = readFileSync(join(sources.directory, 'tests', 'test_helper.tcl'), 'utf8');
  const list = /set ::all_tests \{([^}]*)\}/.exec(text)?.[1];
  if (list === undefined) throw new Error('test_helper.tcl has no list of tests');
  return list.split(/\s+/).filter((unit) => unit !== '');
}

/** The results in what `runtest` prints. */
export function parseSuiteOutput(output: string): TestResult[] {
  const tests: TestResult[] = [];
  let detail: string[] | undefined;
  const flush = () => {
    const last = tests.at(-1);
    if (detail !== undefined && last !== undefined) tests[tests.length - 1] = { ...last, detail: detail.join('\n') };
    detail = undefined;
  };
  for (const line of output.split('\n')) {
    const match = /^\[(ok|err|skip|ignore)\]: (.*)$/.exec(line);
    if (match !== null) {
      flush();
      const status = match[1] as TestStatus;
      const rest = match[2] ?? '';
      if (status === 'ok') tests.push({ name: rest.replace(/ \(\d+ ms\)$/, ''), status });
      else if (status === 'err') {
        tests.push({ name: rest.replace(/ in tests\/\S+\.tcl$/, ''), status });
        detail = [];
      } else tests.push({ name: rest.replace(/: (Tag: |Not supported |large memory ).*$/, ''), status });
    } else if (/^\[\S+( \S+)?\]: |^\s+The End/.test(line)) flush();
    else detail?.push(line);
  }
  flush();
  return tests;
}

interface Run {
  readonly output: string;
  readonly exitCode: number | null;
  readonly timedOut: boolean;
}

function runSuite(directory: string, args: readonly string[], timeoutSeconds: number): Promise<Run> {
  return new Promise((resolve, reject) => {
    // A process group of its own: the suite starts helpers that outlive it when it hangs.
    const child = spawn('./runtest', args, {
      cwd: directory,
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, TERM: 'dumb' },
    });
    const pid = child.pid;
    let output = '';
    let timedOut = false;
    const endGroup = () => {
      try {
        if (pid !== undefined) process.kill(-pid, 'SIGKILL');
      } catch {
        // The group is gone already.
      }
    };
    const timer = setTimeout(() => {
      timedOut = true;
      endGroup();
    }, timeoutSeconds * 1000);
    const keep = (chunk: Buffer) => {
      if (output.length < OUTPUT_CHARACTERS_MAX) output += chunk.toString('latin1');
    };
    process.once('exit', endGroup);
    child.stdout.on('data', keep);
    child.stderr.on('data', keep);
    child.once('error', reject);
    child.once('exit', () => endGroup());
    child.once('close', (exitCode) => {
      clearTimeout(timer);
      process.removeListener('exit', endGroup);
      resolve({ output, exitCode, timedOut });
    });
  });
}

export interface RunSettings {
  readonly unit: string;
  readonly tags: string;
  readonly unitTimeoutSeconds: number;
  readonly variant?: Variant;
}

/** Runs one unit in a prepared directory, against what listens there. */
export async function runSuiteUnit(
  directory: string,
  front: { readonly host: string; readonly port: number },
  basePort: number,
  { unit, tags, unitTimeoutSeconds, variant }: RunSettings,
): Promise<UnitResult> {
  const startedAt = performance.now();
  const args = ['--host', front.host, '--port', String(front.port), '--baseport', String(basePort)];
  args.push('--tags', tags, '--durable', '--single', unit);
  if (variant === 'singledb') args.push('--singledb');
  const run = await runSuite(directory, args, unitTimeoutSeconds);
  const seconds = Math.round((performance.now() - startedAt) / 100) / 10;
  const result = { unit, seconds, tests: parseSuiteOutput(run.output) };
  if (!run.timedOut && /The End/.test(run.output)) return { ...result, outcome: 'done' };
  return { ...result, outcome: run.timedOut ? 'timeout' : 'died', tail: run.output.slice(-TAIL_CHARACTERS) };
}

async function runUnit(unit: string, directory: string, basePort: number, options: SuiteOptions): Promise<UnitResult> {
  const processes: RunningProcess[] = [];
  const startedAt = performance.now();
  try {
    const kv = await startKv(options.server, SERVER_ARGS);
    processes.push(kv);
    if (options.target !== 'direct' && options.dataPlaneOnly === true) {
      processes.unshift(await startDataPlane({ kvPort: kv.port, pooling: options.target }));
    } else if (options.target !== 'direct') {
      const databaseUrl = await options.createDatabase?.();
      processes.unshift(
        await startHoldfast({
          kvUrl: `redis://127.0.0.1:${kv.port}`,
          pooling: options.target,
          ...(databaseUrl === undefined ? {} : { databaseUrl }),
        }),
      );
    }
    const result = await runSuiteUnit(directory, processes[0]!, basePort, { ...options, unit });
    const ended = processes.filter((each) => !each.running());
    const seconds = Math.round((performance.now() - startedAt) / 100) / 10;
    if (ended.length === 0) return { ...result, seconds };
    const tails = [result.tail ?? '', ...ended.map((each) => `${each.name} ended:\n${each.output()}`)];
    return {
      ...result,
      seconds,
      outcome: result.outcome === 'done' ? 'died' : result.outcome,
      tail: tails.join('\n').slice(-2 * TAIL_CHARACTERS),
    };
  } finally {
    for (const each of processes) await each.stop();
  }
}

/** Runs the units, `jobs` at a time, and gives their results in the order of `units`. */
export async function runUnits(sources: RedisSources, options: SuiteOptions): Promise<UnitResult[]> {
  const results = new Map<string, UnitResult>();
  const queue = [...options.units];
  const worker = async (slot: number) => {
    const directory = temporaryDirectory('suite');
    prepareRunDirectory(sources, directory, options.variant === 'resp3');
    // The suite looks for a free port in the 32 below its base port: below the ports that connections are given, and
    // slots must not meet there.
    const basePort = 11_000 + slot * 64 + (process.pid % 90) * 200;
    for (let unit = queue.shift(); unit !== undefined; unit = queue.shift()) {
      let result: UnitResult;
      try {
        result = await runUnit(unit, directory, basePort, options);
      } catch (error) {
        result = { unit, outcome: 'died', seconds: 0, tests: [], tail: String(error) };
      }
      results.set(unit, result);
      options.onUnit?.(result);
    }
  };
  await Promise.all(Array.from({ length: Math.min(options.jobs, queue.length) }, (_, slot) => worker(slot)));
  return options.units.map((unit) => results.get(unit)!);
}
