/**
 * The bench suite: the same load directly at the KV server, through Holdfast, and through the peers that are
 * installed, in interleaved rounds of one run, so that what the machine does meanwhile strikes all of them alike.
 * Figures are medians over the rounds; ratios are ratios of medians.
 */
import { execFileSync } from 'node:child_process';
import { availableParallelism, cpus } from 'node:os';
import { type Load, type Measurement, measure, pinProcess } from './load.ts';
import {
  isInstalled,
  type KvBinary,
  type RunningProcess,
  startDataPlane,
  startHaproxy,
  startHoldfast,
  startKv,
  startNutcracker,
} from './processes.ts';

export type TargetName = 'direct' | 'holdfast' | 'data-plane' | 'other' | 'nutcracker' | 'haproxy';
export type Placement = 'pinned' | 'unpinned';

export interface BenchOptions {
  readonly server: KvBinary;
  readonly targets: readonly TargetName[];
  /** Names of cases; all without it. */
  readonly cases?: readonly string[];
  readonly placements: readonly Placement[];
  readonly rounds: number;
  /** How long the whole run may take; the length of one measurement follows from it. */
  readonly secondsMax: number;
  /** Holdfast's ledger; its embedded Postgres without it. */
  readonly databaseUrl?: string;
  /** A second checkout of Holdfast to compare with, as target `other`. */
  readonly otherCheckout?: string;
  readonly onProgress?: (line: string) => void;
}

export interface BenchRow {
  readonly case: string;
  readonly placement: Placement;
  readonly target: TargetName;
  readonly requestsPerSecond: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  /** CPU of the proxy process alone; absent for `direct`. */
  readonly cpuMicrosPerRequest: number | undefined;
  readonly ratioToDirect: number | undefined;
  readonly ratioToNutcracker: number | undefined;
  /** p50 less the p50 of `direct`. */
  readonly addedP50Ms: number | undefined;
  readonly rounds: readonly Measurement[];
}

export interface BenchResult {
  readonly machine: { readonly cores: number; readonly cpu: string; readonly node: string; readonly server: string };
  readonly seconds: number;
  readonly rows: readonly BenchRow[];
  /** What was not measured, and why. */
  readonly notes: readonly string[];
}

interface BenchCase {
  readonly name: string;
  readonly clients: number;
  readonly pipeline: number;
  readonly dataBytes: number;
  command(target: TargetName): readonly string[];
  /** nutcracker knows no streams, and durable XADD is Holdfast's alone (with direct as the yardstick). */
  readonly targets: readonly TargetName[];
  /** The stream to drop afterwards, through the same target. */
  stream?(target: TargetName): string;
}

const ALL_TARGETS: readonly TargetName[] = ['direct', 'holdfast', 'data-plane', 'other', 'nutcracker', 'haproxy'];
const STREAM_TARGETS: readonly TargetName[] = ['direct', 'holdfast', 'data-plane', 'other', 'haproxy'];
const LEDGER_TARGETS: readonly TargetName[] = ['direct', 'holdfast', 'other'];
const UNLEDGERED = 'plain:';
const MEASUREMENT_SECONDS_MAX = 2;
const MEASUREMENT_SECONDS_MIN = 0.2;
const CALIBRATION_REQUESTS = 3000;
/** Start, connecting and reporting of the generator, for each measurement. */
const OVERHEAD_SECONDS = 0.18;

function simpleCase(name: string, clients: number, pipeline: number, command: readonly string[]): BenchCase {
  return { name, clients, pipeline, dataBytes: 3, command: () => command, targets: ALL_TARGETS };
}

function streamCase(name: string, pipeline: number, durable: boolean): BenchCase {
  // A stream of one's own for each target: what is written directly must not look like a loss to a ledger.
  const stream = (target: TargetName) => `${durable && target !== 'direct' ? 'durable:' : UNLEDGERED}${target}`;
  return {
    name,
    clients: 50,
    pipeline,
    dataBytes: 100,
    command: (target) => ['XADD', stream(target), '*', 'body', '__data__'],
    targets: durable ? LEDGER_TARGETS : STREAM_TARGETS,
    stream,
  };
}

const GET = ['GET', 'key:__rand_int__'];
const SET = ['SET', 'key:__rand_int__', '__data__'];

export const BENCH_CASES: readonly BenchCase[] = [
  simpleCase('SET P1', 50, 1, SET),
  simpleCase('GET P1', 50, 1, GET),
  simpleCase('SET P16', 50, 16, SET),
  simpleCase('GET P16', 50, 16, GET),
  simpleCase('GET c1', 1, 1, GET),
  simpleCase('GET c500', 500, 1, GET),
  simpleCase('SET c500', 500, 1, SET),
  streamCase('XADD P1', 1, false),
  streamCase('XADD P16', 16, false),
  streamCase('XADD durable P1', 1, true),
  streamCase('XADD durable P16', 16, true),
];

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** Places with two cores and more: generator and KV server on the first, the proxy on the second. */
function place(placement: Placement, kv: RunningProcess, proxies: Iterable<RunningProcess>): string | undefined {
  const all = `0-${availableParallelism() - 1}`;
  pinProcess(kv.pid, placement === 'pinned' ? '0' : all);
  for (const proxy of proxies) pinProcess(proxy.pid, placement === 'pinned' ? '1' : all);
  return placement === 'pinned' ? '0' : undefined;
}

function dropStream(port: number, stream: string): void {
  execFileSync('redis-cli', ['-p', String(port), 'DEL', stream], { stdio: 'ignore', timeout: 60_000 });
}

async function startTargets(options: BenchOptions, kv: RunningProcess, notes: string[]) {
  const started = new Map<TargetName, RunningProcess>([['direct', kv]]);
  const holdfast = {
    kvUrl: `redis://127.0.0.1:${kv.port}`,
    streams: ['*', `!${UNLEDGERED}*`],
    ...(options.databaseUrl === undefined ? {} : { databaseUrl: options.databaseUrl }),
  };
  const launchers: Readonly<Record<Exclude<TargetName, 'direct'>, () => Promise<RunningProcess>>> = {
    holdfast: () => startHoldfast(holdfast),
    'data-plane': () => startDataPlane({ kvPort: kv.port }),
    other: () => startHoldfast({ ...holdfast, checkout: options.otherCheckout ?? '.' }),
    nutcracker: () => startNutcracker(kv.port),
    haproxy: () => startHaproxy(kv.port),
  };
  try {
    for (const target of options.targets) {
      if (target === 'direct') continue;
      if ((target === 'nutcracker' || target === 'haproxy') && !isInstalled(target)) {
        notes.push(`${target} is not installed`);
        continue;
      }
      if (target === 'other' && options.otherCheckout === undefined) continue;
      started.set(target, await launchers[target]());
    }
  } catch (error) {
    for (const each of started.values()) if (each !== kv) await each.stop();
    throw error;
  }
  return started;
}

/** Starts everything, measures, stops everything. Rejects when a program that was asked for does not start. */
export async function runBench(options: BenchOptions): Promise<BenchResult> {
  const startedAt = performance.now();
  const notes: string[] = [];
  const say = options.onProgress ?? (() => {});
  const cases = BENCH_CASES.filter((each) => options.cases === undefined || options.cases.includes(each.name));
  let placements = options.placements;
  if (placements.includes('pinned') && (availableParallelism() < 2 || !isInstalled('taskset'))) {
    notes.push('not pinned: that takes two cores and taskset');
    placements = placements.filter((each) => each !== 'pinned');
  }
  if (placements.length === 0) placements = ['unpinned'];
  const kv = await startKv(options.server, ['--maxclients', '12000']);
  let targets = new Map<TargetName, RunningProcess>([['direct', kv]]);
  try {
    targets = await startTargets(options, kv, notes);
    const proxies = [...targets.values()].filter((each) => each !== kv);
    const pairs = cases.flatMap((each) =>
      each.targets.filter((target) => targets.has(target)).map((target) => ({ each, target })),
    );
    const slots = pairs.length * placements.length * (options.rounds + 1);
    const share = options.secondsMax / slots - OVERHEAD_SECONDS;
    const seconds = Math.min(MEASUREMENT_SECONDS_MAX, Math.max(MEASUREMENT_SECONDS_MIN, share));
    const results = new Map<string, Measurement[]>();
    for (const placement of placements) {
      const cores = place(placement, kv, proxies);
      const requests = new Map<string, number>();
      // Round 0 finds out how many requests fill the time, and warms up.
      for (let round = 0; round <= options.rounds; round += 1) {
        const rotation = round % pairs.length;
        // Targets of one case follow each other, in another order each round.
        const order = cases.flatMap((each) => {
          const own = pairs.filter((pair) => pair.each === each);
          const turn = rotation % Math.max(1, own.length);
          return [...own.slice(turn), ...own.slice(0, turn)];
        });
        for (const { each, target } of order) {
          const running = targets.get(target)!;
          const key = `${placement} ${each.name} ${target}`;
          const load: Load = { ...each, command: each.command(target) };
          const least = Math.max(CALIBRATION_REQUESTS, each.clients * each.pipeline * 4);
          const count = requests.get(key) ?? Math.min(least, each.clients === 1 ? 1000 : least);
          const measurement = await measure(running.port, load, count, {
            measuredPid: target === 'direct' ? undefined : running.pid,
            cores,
            timeoutMs: Math.ceil(seconds * 20_000) + 20_000,
          });
          if (each.stream !== undefined) dropStream(running.port, each.stream(target));
          if (round === 0) {
            const fitting = Math.round(measurement.requestsPerSecond * seconds);
            requests.set(key, Math.max(each.clients * each.pipeline, fitting));
          } else results.set(key, [...(results.get(key) ?? []), measurement]);
        }
        say(`${placement}: round ${round} of ${options.rounds}`);
      }
    }
    const rows = placements.flatMap((placement) =>
      pairs.map(({ each, target }) => row(results, each, placement, target)),
    );
    const version = execFileSync(options.server, ['--version'], { encoding: 'utf8' });
    return {
      machine: {
        cores: availableParallelism(),
        cpu: cpus()[0]?.model ?? 'unknown',
        node: process.version,
        server: `${options.server} ${/v=(\S+)/.exec(version)?.[1] ?? ''}`,
      },
      seconds: Math.round((performance.now() - startedAt) / 1000),
      rows,
      notes,
    };
  } finally {
    for (const running of targets.values()) if (running !== kv) await running.stop();
    await kv.stop();
  }
}

function row(
  results: ReadonlyMap<string, readonly Measurement[]>,
  benchCase: BenchCase,
  placement: Placement,
  target: TargetName,
): BenchRow {
  const of = (other: TargetName) => results.get(`${placement} ${benchCase.name} ${other}`);
  const rounds = of(target) ?? [];
  const rate = (measurements: readonly Measurement[]) => median(measurements.map((each) => each.requestsPerSecond));
  const p50 = (measurements: readonly Measurement[]) => median(measurements.map((each) => each.p50Ms));
  const direct = of('direct');
  const nutcracker = of('nutcracker');
  const cpu = rounds.map((each) => each.cpuMicrosPerRequest).filter((each) => each !== undefined);
  return {
    case: benchCase.name,
    placement,
    target,
    requestsPerSecond: rate(rounds),
    p50Ms: p50(rounds),
    p99Ms: median(rounds.map((each) => each.p99Ms)),
    cpuMicrosPerRequest: cpu.length === 0 ? undefined : median(cpu),
    ratioToDirect: direct === undefined ? undefined : rate(rounds) / rate(direct),
    ratioToNutcracker: nutcracker === undefined ? undefined : rate(rounds) / rate(nutcracker),
    addedP50Ms: direct === undefined || target === 'direct' ? undefined : p50(rounds) - p50(direct),
    rounds,
  };
}
