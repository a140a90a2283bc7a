/**
 * The worker's own chaos run: events are added while workers and the KV store are killed, and handlers fail, hang, block
 * and exit as drawn. Then everything is counted from outside: what handlers noted, dead letters, what is pending.
 *
 * `direct`: the KV store writes every command to its append-only file before it replies, so what it acknowledged survives
 * its kills (fsync is for power cuts, and would only measure the disk).
 * `holdfast`: the KV store keeps nothing; a sidecar with its ledger stands before it.
 */
import { type ChildProcess, execFile } from 'node:child_process';
import { cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { availableParallelism, loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { Redis } from 'ioredis';
import { startHoldfast } from '../../bench/processes.ts';
import { type KvServer, type KvServerKind, startKvServer } from '../../src/embedded/kv-server.ts';
import { startPostgres } from '../../src/embedded/postgres.ts';
import type { WorkerProcessOptions } from '../worker/worker-process.ts';
import { exitOf, killTree, spawnBound } from './process-control.ts';
import { seededRandom } from './seeded-random.ts';
import { eventOf } from './worker-outcomes.ts';
import { judge, type Note, type Span, secondsOf, union, type Verdict } from './worker-verdict.ts';

export interface WorkerChaosOptions {
  readonly seed: string;
  readonly events: number;
  readonly mode: 'direct' | 'holdfast';
  readonly kv: KvServerKind;
  readonly workers: number;
  /** Mean time between kills of a worker, and of the KV store; 0 for none. */
  readonly killWorkerMs: number;
  readonly killKvMs: number;
  /** Events added per second, at most. */
  readonly rate: number;
  readonly limitMs: number;
  /** Where the Postgres is; one of the run's own without it. */
  readonly database?: string | undefined;
  /** Whether a retry that begins more than 5 s late, or 5 s of silence, is a finding. */
  readonly judgeStalls: boolean;
  say(line: string): void;
}

export interface WorkerChaosReport extends Verdict {
  readonly seed: string;
  readonly seconds: number;
  /** Processes that wanted a processor, mean of the run, and processors. */
  readonly load: readonly [number, number];
  readonly workerKills: number;
  readonly kvKills: number;
  /** What was killed when, in seconds since the start: for whoever asks why something came late. */
  readonly kills: readonly string[];
  /** In all, without the KV store, and without any worker that is ready. */
  readonly kvAwaySeconds: number;
  readonly workersAwaySeconds: number;
}

const REPOSITORY = fileURLToPath(new URL('../../', import.meta.url));
const BATCH = 100;
const KV_DOWN_MS = 400;
const RESTART_MS = 200;
const LOAD_MS = 5000;

export async function runWorkerChaos(options: WorkerChaosOptions): Promise<WorkerChaosReport> {
  const { say } = options;
  const directory = await mkdtemp(join(tmpdir(), 'holdfast-worker-chaos-'));
  const notesDirectory = join(directory, 'notes');
  await mkdir(notesDirectory);
  const undo: (() => Promise<unknown>)[] = [() => rm(directory, { recursive: true, force: true })];
  try {
    const kv = await startKvServer({
      dataDir: join(directory, 'kv'),
      kind: options.kv,
      ...(options.mode === 'direct' ? { extraArgs: ['--appendonly', 'yes', '--appendfsync', 'no'] } : {}),
    });
    undo.push(() => kv.stop());
    let database = options.database;
    if (database === undefined) {
      const postgres = await startPostgres({ dataDir: join(directory, 'postgres') });
      undo.push(() => postgres.stop());
      database = postgres.url;
    }
    let url = kv.url;
    if (options.mode === 'holdfast') {
      const sidecar = await startHoldfast({ kvUrl: kv.url, databaseUrl: database });
      undo.push(() => sidecar.stop());
      url = `redis://127.0.0.1:${sidecar.port}`;
    }
    const compiled = await compileWorker();
    undo.push(() => rm(compiled, { recursive: true, force: true }));
    return await run({ ...options, database }, kv, url, notesDirectory, compiled, undo, say);
  } finally {
    for (const step of undo.reverse()) await step().catch((error: unknown) => say(String(error)));
  }
}

/**
 * Workers and their threads start many times in a run: as plain JavaScript, which takes a tenth of what tsx takes. Inside
 * node_modules, so that packages are found from there.
 */
async function compileWorker(): Promise<string> {
  const target = await mkdtemp(join(REPOSITORY, 'node_modules', '.worker-chaos-'));
  const compiler = join(REPOSITORY, 'node_modules', 'typescript', 'bin', 'tsc');
  await promisify(execFile)(process.execPath, [compiler, '-p', REPOSITORY, '--noEmit', 'false', '--outDir', target]);
  await cp(join(REPOSITORY, 'src', 'ledger', 'sql'), join(target, 'src', 'ledger', 'sql'), { recursive: true });
  await writeFile(join(target, 'package.json'), '{"type":"module"}');
  return target;
}

async function run(
  options: WorkerChaosOptions & { database: string },
  kv: KvServer,
  url: string,
  notesDirectory: string,
  compiled: string,
  undo: (() => Promise<unknown>)[],
  say: (line: string) => void,
): Promise<WorkerChaosReport> {
  const random = seededRandom(options.seed);
  const startedAt = Date.now();
  const redis = new Redis(url, {
    protocol: 2,
    autoResendUnfulfilledCommands: false,
    maxRetriesPerRequest: 0,
    retryStrategy: () => 50,
  });
  redis.on('error', () => {});
  undo.push(async () => redis.disconnect());

  const loads = [loadavg()[0]!];
  const loadWatch = setInterval(() => loads.push(loadavg()[0]!), LOAD_MS);
  undo.push(async () => clearInterval(loadWatch));

  const workers: ChildProcess[] = [];
  const presence = watchPresence();
  let ending = false;
  async function startOne(slot: number): Promise<void> {
    const settings: WorkerProcessOptions = {
      app: join(compiled, 'test/chaos/worker-app.js'),
      kv: url,
      database: options.database,
      log: process.env.CHAOS_LOG ?? 'fatal',
    };
    workers[slot] = await spawnBound(
      process.execPath,
      [join(compiled, 'test/worker/worker-process.js'), JSON.stringify(settings)],
      {
        stdio: ['ignore', 'pipe', 'inherit'],
        env: { ...process.env, CHAOS_SEED: options.seed, CHAOS_NOTES: notesDirectory },
      },
    );
    // As a supervisor would, whether it was killed or could not start, the KV store being down.
    const started = workers[slot];
    // Its first words say that it is ready.
    started.stdout!.once('data', () => presence.add(started));
    started.once('exit', () => {
      presence.delete(started);
      void sleep(RESTART_MS).then(() => (ending || workers[slot] !== started ? undefined : startOne(slot)));
    });
  }
  undo.push(async () => {
    ending = calm = true;
    await Promise.all(workers.map(killTree));
  });
  for (let slot = 0; slot < options.workers; slot += 1) await startOne(slot);

  // ── nemeses ──
  let calm = false;
  let workerKills = 0;
  let kvKills = 0;
  const kills: string[] = [];
  const workersKilledAt: number[] = [];
  const noteKill = (what: string): void => void kills.push(`${((Date.now() - startedAt) / 1000).toFixed(1)} ${what}`);
  const outages: Span[] = [];
  async function every(meanMs: number, strike: () => Promise<void>): Promise<void> {
    if (meanMs === 0) return;
    const draws = random.fork(String(strike));
    while (!calm) {
      await sleep(meanMs * (0.5 + draws.next()));
      if (!calm) await strike();
    }
  }
  const victims = random.fork('victims');
  const nemeses = [
    every(options.killWorkerMs, async () => {
      const slot = victims.integer(0, options.workers - 1);
      noteKill(`worker ${slot}`);
      workersKilledAt.push(Date.now());
      await killTree(workers[slot]!);
      workerKills += 1;
    }),
    every(options.killKvMs, async () => {
      const from = Date.now();
      noteKill('KV store');
      await kv.kill9();
      await sleep(KV_DOWN_MS);
      await kv.restart();
      await answered(redis);
      kvKills += 1;
      outages.push({ from, to: Date.now() });
      say(`KV store down for ${Date.now() - from} ms`);
    }),
  ];

  // ── events ──
  const added = new Map<string, number>();
  const addedAt = new Map<string, number>();
  let next = 1;
  while (added.size < options.events && Date.now() - startedAt < options.limitMs) {
    const numbers = Array.from({ length: Math.min(BATCH, options.events - added.size) }, () => next++);
    const sentAt = Date.now();
    const replies = await Promise.allSettled(
      numbers.map((number) => redis.xadd('events', '*', 'task', eventOf(options.seed, number).task, 'n', number)),
    );
    for (const [i, reply] of replies.entries()) {
      if (reply.status !== 'fulfilled' || reply.value === null) continue;
      added.set(reply.value, numbers[i]!);
      addedAt.set(reply.value, Date.now());
    }
    const failed = replies.filter((reply) => reply.status === 'rejected').length;
    const pauseMs = (BATCH * 1000) / options.rate - (Date.now() - sentAt);
    await sleep(failed > 0 ? 100 : Math.max(0, pauseMs));
    if (next % 10_000 < BATCH) say(`${added.size} added, ${workerKills} workers and ${kvKills} KV stores killed`);
  }
  const allAddedAt = Date.now();
  say(`all ${added.size} added after ${allAddedAt - startedAt} ms`);

  // ── drain: kills go on until almost all is done, then stop, so that the end can be seen ──
  const remaining = async (): Promise<number> => {
    try {
      const groups = (await redis.call('XINFO', 'GROUPS', 'events')) as unknown[][];
      const info = groups[0]!;
      const rest = (await redis.call(
        'XRANGE',
        'events',
        `(${info[info.indexOf('last-delivered-id') + 1]}`,
        '+',
      )) as unknown[];
      return Number(info[info.indexOf('pending') + 1]) + rest.length;
    } catch {
      return Number.POSITIVE_INFINITY;
    }
  };
  let left = await remaining();
  while (left > Math.max(50, options.events / 50) && Date.now() - startedAt < options.limitMs) {
    await sleep(500);
    left = await remaining();
  }
  calm = true;
  await Promise.all(nemeses);
  say(`nemeses end with ${left} left: ${workerKills} workers and ${kvKills} KV stores killed`);
  while (left > 0 && Date.now() - startedAt < options.limitMs) {
    await sleep(100);
    left = await remaining();
  }
  const seconds = (Date.now() - startedAt) / 1000;
  if (left > 0) {
    say(`pending: ${JSON.stringify(await redis.call('XPENDING', 'events', 'workers', '-', '+', 20))}`);
  }
  ending = true;
  for (const worker of workers) worker.kill('SIGTERM');
  await Promise.race([Promise.all(workers.map(exitOf)), sleep(30_000)]);

  return {
    seed: options.seed,
    seconds,
    load: [Math.round(loads.reduce((sum, load) => sum + load, 0) / loads.length), availableParallelism()],
    workerKills,
    kvKills,
    kills,
    kvAwaySeconds: secondsOf(outages),
    workersAwaySeconds: secondsOf(presence.absences.slice(1)),
    ...judge(
      { ...options, startedAt, workersKilledAt },
      added,
      addedAt,
      union([...outages, ...presence.absences]),
      await readNotes(notesDirectory),
      await readDeadLetters(redis),
      left,
    ),
  };
}

/** When no worker was ready: with all of them killed, nothing is late that does not begin. */
function watchPresence(): {
  readonly absences: Span[];
  add(worker: ChildProcess): void;
  delete(worker: ChildProcess): void;
} {
  const ready = new Set<ChildProcess>();
  const absences: Span[] = [];
  let from = 0;
  return {
    absences,
    add(worker) {
      if (ready.size === 0) absences.push({ from, to: Date.now() });
      ready.add(worker);
    },
    delete(worker) {
      if (ready.delete(worker) && ready.size === 0) from = Date.now();
    },
  };
}

/** Until the group's pending entries can be asked for again, where the workers ask: a restore is part of the outage. */
async function answered(redis: Redis): Promise<void> {
  for (;;) {
    try {
      await redis.call('XPENDING', 'events', 'workers');
      return;
    } catch {
      await sleep(20);
    }
  }
}

async function readNotes(directory: string): Promise<Map<string, Note[]>> {
  const notes = new Map<string, Note[]>();
  for (const name of await readdir(directory)) {
    for (const line of (await readFile(join(directory, name), 'utf8')).split('\n')) {
      const [what, id, number, attempt, at] = line.split(' ');
      // A line that a kill cut short is no note.
      if (what === undefined || id === undefined || at === undefined) continue;
      const own = notes.get(id) ?? [];
      own.push({ what: what as Note['what'], number: Number(number), attempt: Number(attempt), at: Number(at) });
      notes.set(id, own);
    }
  }
  for (const own of notes.values()) own.sort((a, b) => a.at - b.at);
  return notes;
}

async function readDeadLetters(redis: Redis): Promise<Map<string, number[]>> {
  const attempts = new Map<string, number[]>();
  let from = '-';
  for (;;) {
    const page = (await redis.call('XRANGE', 'events:dead', from, '+', 'COUNT', 1000)) as [string, string[]][];
    for (const [, fields] of page) {
      const id = fields[fields.indexOf('id') + 1]!;
      attempts.set(id, [...(attempts.get(id) ?? []), Number(fields[fields.indexOf('attempts') + 1])]);
    }
    if (page.length < 1000) return attempts;
    from = `(${page.at(-1)![0]}`;
  }
}
