/**
 * One run: the stage is set, faults strike as planned while clients write and read, everything is drained, and the
 * history is judged.
 */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { availableParallelism, loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import type { SupervisedActor } from './actors.ts';
import { type Checker, createChecker, type Verdict } from './checker.ts';
import { connectClient, delay, NO_ANSWER } from './client-process.ts';
import { eventOf } from './event-fields.ts';
import { runClock } from './history.ts';
import type { KvKind } from './kv-node.ts';
import { isCalm, SETTLE_MS, type StruckFault } from './losses.ts';
import { type Arena, nemesisOf } from './nemeses.ts';
import { until } from './process-control.ts';
import { type RecoveryRecord, readRecoveryRecords } from './recovery-records.ts';
import { type RecoveryWatch, watchRecovery } from './recovery-watch.ts';
import type { Fault, Phase } from './schedule.ts';
import { type Stage, startStage } from './stage.ts';
import { noteStall } from './stall-notes.ts';
import { STREAMS } from './workload.ts';

export interface ChaosOptions {
  readonly seed: string;
  /** What strikes when; `planRun` draws one from the seed. */
  readonly plan: readonly Phase[];
  readonly kv: KvKind;
  /** 0: no Holdfast, clients speak to the KV store. */
  readonly sidecars: number;
  /** The source tree that sidecars run from. */
  readonly root: string;
  /** XADDs per second, all producers together. */
  readonly ratePerSecond: number;
  /** The drain gives up when nothing moved for this long. */
  readonly drainStillMs: number;
  /** Keep logs and history of a run that passed as well. */
  readonly keep: boolean;
  say(line: string): void;
}

export interface FaultReport extends StruckFault {
  /** From the end of its healing until all streams were written to; `undefined` where the next phase came first. */
  readonly writesMs: number | undefined;
  readonly readsMs: number | undefined;
}

export interface PhaseReport {
  /** When its last fault was healed. */
  readonly calmMs: number;
  readonly writesMs: number | undefined;
  readonly readsMs: number | undefined;
  /** Streams and groups that had not moved 5 s later. */
  readonly stalled: readonly string[];
  /** The machine's load average (1 minute) for each of its processors: far above 1, seconds measure the machine. */
  readonly load: number;
}

export interface ErrorCount {
  /** While something was broken, or had just been. */
  readonly inFaults: number;
  readonly inCalm: number;
}

export interface ChaosResult {
  readonly seed: string;
  readonly kv: KvKind;
  readonly sidecars: number;
  readonly seconds: number;
  readonly verdict: Verdict;
  readonly faults: readonly FaultReport[];
  readonly phases: readonly PhaseReport[];
  readonly sidecarCrashes: number;
  /** Producers and consumers that ended by themselves: a fault of the run's own. */
  readonly clientCrashes: number;
  /** What the sidecars wrote down of their recoveries. */
  readonly recoveries: readonly RecoveryRecord[];
  /** What clients were told, by operation and error. */
  readonly errors: Readonly<Record<string, ErrorCount>>;
  /** Everything that is against the promises, in words; empty when the run passed. */
  readonly violations: readonly string[];
  /** Where logs and history are; `undefined` when they were removed. */
  readonly directory: string | undefined;
}

const WARM_UP_MS_MAX = 60_000;
const POLL_MS = 100;
const TRIM_EVERY_MS = 5000;
/** A stalled stream or group is looked at this much longer, to tell slow from dead. */
const STALL_LOOK_MS_MAX = 60_000;
/** After the drain, for deliveries that should not come. */
const AFTERMATH_MS = 2500;

/** Trims what every group has handled. That some trims fail is nobody's loss. */
function startJanitor(port: number, checker: Checker, now: () => number, runStartMs: number): () => void {
  const client = connectClient(port, 0);
  const timer = setInterval(() => {
    STREAMS.forEach(({ name, trimmed }, stream) => {
      if (!trimmed) return;
      const belowMs = checker.trimmableBelowMs(stream, now(), runStartMs);
      client.call('XTRIM', name, 'MINID', String(belowMs)).catch(() => {});
    });
  }, TRIM_EVERY_MS);
  return () => {
    clearInterval(timer);
    client.disconnect();
  };
}

/** The final reading of streams that no group reads. */
async function readUngrouped(port: number, checker: Checker): Promise<void> {
  for (const { name, database, groups } of STREAMS) {
    if (groups.length > 0) continue;
    const client = connectClient(port, database);
    for (let from = '-'; ; ) {
      const page = (await client.callBuffer('XRANGE', name, from, '+', 'COUNT', '1000')) as [Buffer, Buffer[]][];
      for (const [, fields] of page) {
        const event = eventOf(fields);
        if (event !== undefined) checker.found(event.writer, event.number);
      }
      const last = page.at(-1);
      if (last === undefined) break;
      from = `(${last[0]}`;
    }
    client.disconnect();
  }
}

/** Strikes the faults of one phase and resolves when all are healed. Faults on one resource wait for each other. */
async function strike(
  phase: Phase,
  arena: Arena,
  now: () => number,
  struck: (fault: StruckFault) => void,
): Promise<void> {
  const startMs = now();
  const busy = new Map<string, Promise<void>>();
  async function run(fault: Fault, before: Promise<void> | undefined): Promise<void> {
    await delay(Math.max(0, startMs + fault.atMs - now()));
    await before;
    const { resource, losesData, begin, heal } = nemesisOf(fault.nemesis);
    const beginMs = now();
    await begin(arena, fault);
    await delay(fault.durationMs);
    const healMs = now();
    await heal(arena, fault);
    const { nemesis, index, fraction } = fault;
    struck({ nemesis, resource, index, fraction, beginMs, healMs, healedMs: now(), losesData });
  }
  await Promise.all(
    phase.faults.map((fault) => {
      const place = `${nemesisOf(fault.nemesis).resource}-${fault.index}`;
      const done = run(fault, busy.get(place));
      busy.set(place, done);
      return done;
    }),
  );
}

/** The quiet part of a phase: measures how long until all moves again, and finds what does not. */
async function calmDown(
  phase: Phase,
  checker: Checker,
  now: () => number,
  noteWhy: (why: string) => Promise<void>,
): Promise<PhaseReport> {
  const calmMs = now();
  const watch = watchRecovery(checker, now);
  while (!watch.look() && now() - calmMs < SETTLE_MS) await delay(POLL_MS / 2);
  const stalled = watch.waiting;
  if (stalled.length > 0) await noteWhy(`not moving ${SETTLE_MS} ms after the last fault: ${stalled.join(', ')}`);
  while (!watch.look() && now() - calmMs < STALL_LOOK_MS_MAX) await delay(POLL_MS / 2);
  await delay(Math.max(0, calmMs + phase.quietMs - now()));
  const load = loadavg()[0]! / availableParallelism();
  return { calmMs, writesMs: watch.writesMs, readsMs: watch.readsMs, stalled, load };
}

/** Waits until every group has handled everything, or nothing moves any more. */
async function drain(
  checker: Checker,
  now: () => number,
  stillMs: number,
  noteWhy: (why: string) => Promise<void>,
): Promise<void> {
  const groups = STREAMS.flatMap(({ groups }, stream) => groups.map((_, group) => [stream, group] as const));
  const sum = (count: 'backlog' | 'handled' | 'deliveries'): number =>
    groups.reduce((total, [stream, group]) => total + checker.progress(stream, group)[count], 0);
  let movedMs = now();
  let before = -1;
  while (sum('backlog') > 0 && now() - movedMs < stillMs) {
    const moved = sum('handled') + sum('deliveries');
    if (moved !== before) movedMs = now();
    before = moved;
    await delay(POLL_MS);
  }
  if (sum('backlog') > 0) await noteWhy(`the drain ended with a backlog of ${sum('backlog')}`);
  await delay(AFTERMATH_MS);
}

async function countErrors(
  paths: readonly string[],
  faults: readonly StruckFault[],
): Promise<Record<string, ErrorCount>> {
  const errors = new Map<string, { inFaults: number; inCalm: number }>();
  for (const path of paths) {
    const lines = await readFile(path, 'utf8').catch(() => '');
    for (const line of lines.split('\n')) {
      const match = /^(\d+) (\S+) (.*)$/.exec(line);
      if (match === null) continue;
      const what = `${match[2]} ${match[3]!.replace(/\d[\d.:-]*/g, 'N').slice(0, 100)}`;
      const count = errors.get(what) ?? { inFaults: 0, inCalm: 0 };
      if (isCalm(faults, Number(match[1]))) count.inCalm += 1;
      else count.inFaults += 1;
      errors.set(what, count);
    }
  }
  return Object.fromEntries(errors);
}

function violationsOf(
  verdict: Verdict,
  phases: readonly PhaseReport[],
  crashes: { readonly sidecars: number; readonly clients: number },
  recoveries: readonly RecoveryRecord[],
  errors: Readonly<Record<string, ErrorCount>>,
): string[] {
  const doubtful = recoveries.reduce((sum, record) => sum + record.possibleDuplicates, 0);
  const unanswered = Object.entries(errors).reduce(
    (sum, [what, { inCalm }]) => (what.includes(` ${NO_ANSWER}`) ? sum + inCalm : sum),
    0,
  );
  const mustBeZero: readonly (readonly [count: number, what: string])[] = [
    [verdict.lost, 'acknowledged events lost'],
    [verdict.observedLost, 'observed events lost'],
    [verdict.wrongFields, 'deliveries with wrong fields'],
    [verdict.phantoms, 'deliveries of events that were never added'],
    [verdict.foreign, 'deliveries of entries that nobody added'],
    [verdict.redeliveredUnbounded, 'deliveries after a recorded acknowledgement'],
    [verdict.redelivered - verdict.redeliveredMax, 'redeliveries above the bound'],
    [verdict.doubled - doubtful, 'events under two IDs that were not counted as doubtful'],
    [verdict.reborn, 'deliveries of deleted entries'],
    [verdict.idOrderBroken, 'IDs out of order'],
    [verdict.deliveryOrderBroken, 'deliveries out of order in calm times'],
    [recoveries.filter((record) => record.milliseconds === undefined).length, 'recoveries never completed'],
    [crashes.sidecars, 'sidecars that ended by themselves, or would not end'],
    [crashes.clients, 'clients of the run that ended by themselves, or would not end'],
    [unanswered, 'requests without an answer long after the last fault'],
  ];
  return [
    ...mustBeZero.filter(([count]) => count > 0).map(([count, what]) => `${count} ${what}`),
    ...phases.flatMap(({ stalled }, index) =>
      stalled.length === 0 ? [] : [`stalled after phase ${index}: ${stalled.join(', ')}`],
    ),
    ...Object.entries(errors)
      .filter(([what]) => what.includes(' NOGROUP'))
      .map(([what, { inFaults, inCalm }]) => `${inFaults + inCalm} times a client was told: ${what}`),
  ];
}

export async function runChaos(options: ChaosOptions): Promise<ChaosResult> {
  const directory = await mkdtemp(join(tmpdir(), 'holdfast-chaos-'));
  const startNs = process.hrtime.bigint();
  const runStartMs = Date.now();
  const now = runClock(startNs);
  const checker = createChecker();
  const faults: StruckFault[] = [];
  const watches: RecoveryWatch[] = [];
  const phases: PhaseReport[] = [];
  const withReplica = options.plan.some((phase) => phase.faults.some((fault) => nemesisOf(fault.nemesis).needsReplica));
  let stage: Stage | undefined;
  let poll: NodeJS.Timeout | undefined;
  let passed = false;
  try {
    stage = await startStage({ ...options, withReplica, directory, startNs }, checker);
    const { ports, producers, consumers, sidecars, errorsPaths } = stage;
    const set = stage;
    const noteWhy = (why: string): Promise<void> => noteStall(join(directory, 'stalls.txt'), why, set, checker);
    poll = setInterval(() => {
      set.poll();
      for (const watch of watches) watch.look();
    }, POLL_MS);
    const stopJanitor = startJanitor(ports[0]!, checker, now, runStartMs);
    await until('XADD to every stream', WARM_UP_MS_MAX, () =>
      STREAMS.every((_, stream) => checker.acknowledgedIn(stream) > 0),
    );
    for (const [index, phase] of options.plan.entries()) {
      const first = faults.length;
      await strike(phase, stage, now, (fault) => {
        faults.push(fault);
        watches.push(watchRecovery(checker, now));
      });
      const report = await calmDown(phase, checker, now, noteWhy);
      phases.push(report);
      const names = faults.slice(first).map((fault) => fault.nemesis);
      const seconds = ((report.readsMs ?? Number.NaN) / 1000).toFixed(1);
      const stalled = report.stalled.length === 0 ? '' : `, STALLED: ${report.stalled.join(', ')}`;
      options.say(
        `${(now() / 1000).toFixed(0)} s, phase ${index + 1}/${options.plan.length}: ${names.join(', ')}; ` +
          `${checker.acknowledged} acknowledged, all moving after ${seconds} s, load ${report.load.toFixed(1)}${stalled}`,
      );
    }
    await Promise.all(producers.map((actor) => actor.terminate()));
    await drain(checker, now, options.drainStillMs, noteWhy);
    stopJanitor();
    await readUngrouped(ports[0]!, checker);
    await Promise.all(consumers.map((actor) => actor.terminate()));
    stage.poll();

    const verdict = checker.verdict(faults);
    const errors = await countErrors(errorsPaths, faults);
    const recoveries =
      stage.ledger === undefined ? [] : await readRecoveryRecords(stage.ledger.urlVia(stage.ledger.port));
    const crashesOf = (actors: readonly SupervisedActor[]): number =>
      actors.reduce((sum, actor) => sum + actor.crashes, 0);
    const crashes = { sidecars: crashesOf(sidecars), clients: crashesOf([...producers, ...consumers]) };
    const violations = violationsOf(verdict, phases, crashes, recoveries, errors);
    passed = violations.length === 0;
    return {
      ...{ seed: options.seed, kv: options.kv, sidecars: options.sidecars, seconds: now() / 1000 },
      ...{ verdict, phases, recoveries, errors, violations },
      ...{ sidecarCrashes: crashes.sidecars, clientCrashes: crashes.clients },
      faults: faults.map((fault, i) => ({ ...fault, writesMs: watches[i]!.writesMs, readsMs: watches[i]!.readsMs })),
      directory: passed && !options.keep ? undefined : directory,
    };
  } finally {
    clearInterval(poll);
    await stage?.close();
    if (passed && !options.keep) await rm(directory, { recursive: true, force: true });
    else options.say(`logs and history: ${directory}`);
  }
}
