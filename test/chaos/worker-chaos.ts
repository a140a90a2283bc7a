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
import { tmpdir } from 'node:os';
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
import { CHAOS_GRACE_MS, CHAOS_RETRY, CHAOS_TIMEOUT_MS, eventOf, outcomeOf, succeedsAt } from './worker-outcomes.ts';

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

export interface WorkerChaosReport {
  readonly seed: string;
  readonly added: number;
  readonly seconds: number;
  readonly workerKills: number;
  readonly kvKills: number;
  readonly succeeded: number;
  readonly permanentlyFailed: number;
  /** Handler calls that ended well beyond the first for their event. */
  readonly duplicates: number;
  /** From a failed attempt's retry being due to its beginning, less the KV store's outages in between. */
  readonly retryLatenessMs: { readonly p50: number; readonly p99: number; readonly max: number };
  /** Longest time in which no handler began or ended while there was work, less the KV store's outages in it. */
  readonly longestSilenceMs: number;
  readonly pending: number;
  /** Broken promises, each in words; none is a pass. */
  readonly findings: readonly string[];
}

interface Note {
  readonly what: 'begin' | 'ok' | 'fail';
  readonly number: number;
  readonly attempt: number;
  readonly at: number;
}

const REPOSITORY = fileURLToPath(new URL('../../', import.meta.url));
const BATCH = 100;
const KV_DOWN_MS = 400;
const STALL_MS = 5000;
const RESTART_MS = 200;
const FINDINGS_MAX = 20;

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

  const workers: ChildProcess[] = [];
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
        stdio: ['ignore', 'ignore', 'inherit'],
        env: { ...process.env, CHAOS_SEED: options.seed, CHAOS_NOTES: notesDirectory },
      },
    );
    // As a supervisor would, whether it was killed or could not start, the KV store being down.
    const started = workers[slot];
    started.once('exit', () => {
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
      await killTree(workers[slot]!);
      workerKills += 1;
    }),
    every(options.killKvMs, async () => {
      const from = Date.now();
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
    workerKills,
    kvKills,
    pending: left,
    ...judge(options, added, addedAt, outages, await readNotes(notesDirectory), await readDeadLetters(redis)),
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

function judge(
  options: WorkerChaosOptions,
  added: ReadonlyMap<string, number>,
  addedAt: ReadonlyMap<string, number>,
  outages: readonly Span[],
  notes: ReadonlyMap<string, Note[]>,
  deadLetters: ReadonlyMap<string, number[]>,
): Omit<WorkerChaosReport, 'seed' | 'seconds' | 'workerKills' | 'kvKills' | 'pending'> {
  const findings: string[] = [];
  const find = (text: string): void => {
    if (findings.length < FINDINGS_MAX) findings.push(text);
  };
  let succeeded = 0;
  let permanentlyFailed = 0;
  let duplicates = 0;
  const lateness: number[] = [];
  for (const [id, number] of added) {
    const event = eventOf(options.seed, number);
    const own = notes.get(id) ?? [];
    const oks = own.filter((note) => note.what === 'ok');
    const reports = deadLetters.get(id) ?? [];
    const expected = event.malformed ? undefined : succeedsAt(options.seed, event);
    const attempts = event.malformed ? 0 : (expected ?? CHAOS_RETRY.attempts);
    duplicates += Math.max(0, oks.length - 1);
    if (expected !== undefined) {
      succeeded += 1;
      if (oks.length === 0) find(`${id}: never succeeded, noted ${JSON.stringify(own)}`);
      if (reports.length > 0) find(`${id}: reported as failed for good, though attempt ${expected} succeeds`);
    } else {
      permanentlyFailed += 1;
      if (oks.length > 0) find(`${id}: succeeded, though no attempt does`);
      if (reports.length !== 1) find(`${id}: ${reports.length} reports of its permanent failure`);
      if (reports[0] !== undefined && reports[0] !== attempts)
        find(`${id}: reported with ${reports[0]} attempts, not ${attempts}`);
    }
    const begun = new Set(own.filter((note) => note.what === 'begin').map((note) => note.attempt));
    for (let attempt = 1; attempt <= attempts; attempt += 1) {
      if (!begun.has(attempt))
        find(`${id}: attempt ${attempt} of ${attempts} was never made, noted ${JSON.stringify(own)}`);
    }
    if (Math.max(0, ...begun) > attempts)
      find(`${id}: attempt ${Math.max(...begun)} was made, the policy says ${attempts}`);
    for (const [attempt, late] of retriesOf(options.seed, event, own)) {
      const lateMs = withoutOutages(late.due, late.at, outages);
      lateness.push(lateMs);
      if (options.judgeStalls && lateMs > STALL_MS)
        find(`${id}: attempt ${attempt} began ${Math.round(lateMs)} ms after it was due, outages not counted`);
    }
  }
  for (const [id, reports] of deadLetters) if (reports.length > 1) find(`${id}: reported ${reports.length} times`);
  lateness.sort((a, b) => a - b);
  const at = (share: number): number => Math.round(lateness[Math.floor((lateness.length - 1) * share)] ?? 0);
  const longestSilenceMs = longestSilence(notes, addedAt, outages);
  if (options.judgeStalls && longestSilenceMs > STALL_MS)
    find(`nothing happened for ${longestSilenceMs} ms while there was work`);
  return {
    added: added.size,
    succeeded,
    permanentlyFailed,
    duplicates,
    retryLatenessMs: { p50: at(0.5), p99: at(0.99), max: at(1) },
    longestSilenceMs,
    findings,
  };
}

/** For each attempt beyond the first: when it was due after the last failure of the one before, and when it began. */
function retriesOf(
  seed: string,
  event: ReturnType<typeof eventOf>,
  notes: readonly Note[],
): Map<number, { due: number; at: number }> {
  const retries = new Map<number, { due: number; at: number }>();
  for (let attempt = 2; attempt <= CHAOS_RETRY.attempts; attempt += 1) {
    const first = notes.find((note) => note.what === 'begin' && note.attempt === attempt);
    if (first === undefined) break;
    const before = notes.filter((note) => note.attempt === attempt - 1 && note.at <= first.at);
    const drawn = outcomeOf(seed, event, attempt - 1);
    const timedOut = drawn === 'hang' || drawn === 'block';
    const last = before.findLast((note) => note.what === (timedOut ? 'begin' : 'fail'));
    if (last === undefined) continue;
    const backoff = Math.min(CHAOS_RETRY.baseMs * 2 ** (attempt - 2), CHAOS_RETRY.maxMs) * (1 + CHAOS_RETRY.jitter);
    retries.set(attempt, {
      due: last.at + backoff + (timedOut ? CHAOS_TIMEOUT_MS + CHAOS_GRACE_MS : 0),
      at: first.at,
    });
  }
  return retries;
}

interface Span {
  readonly from: number;
  readonly to: number;
}

/** Milliseconds from one time to another in which the KV store was there; 0 where the first is not before the other. */
function withoutOutages(from: number, to: number, outages: readonly Span[]): number {
  const away = outages.map((outage) => Math.max(0, Math.min(to, outage.to) - Math.max(from, outage.from)));
  return Math.max(0, to - from - away.reduce((sum, ms) => sum + ms, 0));
}

/** Between two notes of handlers, from when there was an entry that is not at its last note yet. */
function longestSilence(
  notes: ReadonlyMap<string, readonly Note[]>,
  addedAt: ReadonlyMap<string, number>,
  outages: readonly Span[],
): number {
  const changes: { at: number; noted: boolean; open: number }[] = [];
  for (const [id, at] of addedAt) {
    const own = notes.get(id);
    if (own === undefined) continue;
    changes.push({ at: Math.min(at, own[0]!.at), noted: false, open: 1 });
    for (const note of own) changes.push({ at: note.at, noted: true, open: note === own.at(-1) ? -1 : 0 });
  }
  changes.sort((a, b) => a.at - b.at || b.open - a.open);
  let longest = 0;
  let open = 0;
  let quietSince = 0;
  for (const change of changes) {
    if (open === 0) quietSince = change.at;
    if (change.noted) {
      longest = Math.max(longest, withoutOutages(quietSince, change.at, outages));
      quietSince = change.at;
    }
    open += change.open;
  }
  return longest;
}
