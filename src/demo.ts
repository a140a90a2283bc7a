/**
 * `holdfast demo`: the promise shown, not told. An ordinary client produces events and two ordinary workers consume them
 * while the KV store is killed with SIGKILL, again and again; it keeps nothing on disk and comes back empty each time.
 *
 * Everything runs on servers of the demo's own, in a temporary directory, whatever the environment says: what is killed
 * here can never be somebody's.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { Redis } from 'ioredis';
import type { Holdfast } from './composition/sidecar.ts';
import { loadConfig } from './config/load-config.ts';
import { HoldfastError, messageOf } from './errors.ts';
import { createLogger } from './operations/logger.ts';
import { startHoldfast } from './serve.ts';
import type { Invocation, Subcommand } from './subcommand.ts';

const STREAM = 'task-queue';
const GROUP = 'workers';
const CONSUMERS = 2;
const EVENTS_DEFAULT = 20_000;
const KILLS_DEFAULT = 3;
const KILLS_MIN = 3;
const EVENTS_PER_KILL_MIN = 500;
const TICK_MS = 20;
const EVENTS_PER_TICK = 50;
/** XADDs that wait for their reply; beyond it the producer waits too. */
const IN_FLIGHT_MAX = 1000;
/** Longer than any restore of so few events takes. */
const PATIENCE_MS = 60_000;
const PROGRESS_MS = 250;
const READ_COUNT = 100;
const READ_BLOCK_MS = 200;

export interface DemoPlan {
  readonly events: number;
  readonly kills: number;
  /** How long the KV store may take to come back with what it had, and the workers to get what is missing at the end. */
  readonly patienceMs: number;
}

interface Kill {
  readonly at: number;
  /** The first event that was produced after it. */
  readonly eventAfter: number;
  /** When a worker got an event that was produced after it. */
  recoveredAt: number | undefined;
}

/** What producer and workers saw, by the number that each event carries. */
interface Tally {
  readonly events: number;
  produced: number;
  acknowledged: number;
  readonly wasAcknowledged: Uint8Array;
  readonly deliveries: Uint16Array;
  delivered: number;
  duplicates: number;
  /** Acknowledged and not delivered, so far. */
  missing: number;
  /** Replies of Holdfast that were errors, by their text. */
  readonly errors: Map<string, number>;
  readonly kills: Kill[];
}

function newTally(events: number): Tally {
  return {
    events,
    produced: 0,
    acknowledged: 0,
    wasAcknowledged: new Uint8Array(events),
    deliveries: new Uint16Array(events),
    delivered: 0,
    duplicates: 0,
    missing: 0,
    errors: new Map(),
    kills: [],
  };
}

function noteError(tally: Tally, error: unknown): void {
  const text = messageOf(error);
  tally.errors.set(text, (tally.errors.get(text) ?? 0) + 1);
}

function noteDelivery(tally: Tally, event: number): void {
  tally.deliveries[event]! += 1;
  if (tally.deliveries[event]! > 1) {
    tally.duplicates += 1;
    return;
  }
  tally.delivered += 1;
  if (tally.wasAcknowledged[event] === 1) tally.missing -= 1;
  const now = Date.now();
  for (const kill of tally.kills) if (event >= kill.eventAfter) kill.recoveredAt ??= now;
}

async function produceOne(client: Redis, tally: Tally, event: number): Promise<void> {
  try {
    await client.xadd(STREAM, '*', 'event', String(event));
    tally.acknowledged += 1;
    tally.wasAcknowledged[event] = 1;
    if (tally.deliveries[event] === 0) tally.missing += 1;
  } catch (error) {
    // Not acknowledged, so nothing is promised for it; it may be delivered all the same.
    noteError(tally, error);
  }
}

/** How many events are produced before the next kill. */
function producedAtKill(plan: DemoPlan, index: number): number {
  return Math.floor((plan.events * (index + 1)) / (plan.kills + 1));
}

/**
 * As far as may be produced now: up to the next kill until it has happened, then half of the way to the one after it
 * until that loss has healed. So there are always events that are produced after a kill, however long it takes to heal.
 */
function producedMax(plan: DemoPlan, tally: Tally): number {
  const healed = tally.kills.filter((kill) => kill.recoveredAt !== undefined).length;
  if (healed === plan.kills) return plan.events;
  return producedAtKill(plan, tally.kills.length > healed ? healed + 0.5 : healed);
}

/** Produces all events at the demo's pace. */
async function produce(client: Redis, plan: DemoPlan, tally: Tally, signal: AbortSignal): Promise<void> {
  const inFlight = new Set<Promise<void>>();
  while (tally.produced < tally.events && !signal.aborted) {
    const due = Math.min(producedMax(plan, tally), tally.produced + EVENTS_PER_TICK);
    while (tally.produced < due && inFlight.size < IN_FLIGHT_MAX) {
      const one = produceOne(client, tally, tally.produced).finally(() => inFlight.delete(one));
      inFlight.add(one);
      tally.produced += 1;
    }
    await delay(TICK_MS);
  }
  await Promise.all(inFlight);
}

type Delivered = [stream: string, entries: [id: string, fields: string[]][]][] | null;

/** Reads and acknowledges until told to end. */
async function consume(client: Redis, name: string, tally: Tally, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    try {
      const reply = (await client.xreadgroup(
        ...(['GROUP', GROUP, name, 'COUNT', READ_COUNT, 'BLOCK', READ_BLOCK_MS, 'STREAMS', STREAM, '>'] as const),
      )) as Delivered;
      const entries = reply?.[0]?.[1] ?? [];
      for (const [, fields] of entries) noteDelivery(tally, Number(fields[1]));
      if (entries.length > 0) await client.xack(STREAM, GROUP, ...entries.map(([id]) => id));
    } catch (error) {
      if (signal.aborted) return;
      noteError(tally, error);
      await delay(TICK_MS);
    }
  }
}

/** Kills the KV store when so many events were produced, each time after the loss before it has healed. False: one did not. */
async function killOften(holdfast: Holdfast, plan: DemoPlan, tally: Tally, signal: AbortSignal): Promise<boolean> {
  for (let index = 0; index < plan.kills; index += 1) {
    const due = producedAtKill(plan, index);
    while (tally.produced < due) {
      if (signal.aborted) return false;
      await delay(TICK_MS);
    }
    const pid = holdfast.kvServer?.pid;
    if (pid === undefined) throw new HoldfastError('DEMO', 'the KV store did not come back');
    process.kill(pid, 'SIGKILL');
    const kill: Kill = { at: Date.now(), eventAfter: tally.produced, recoveredAt: undefined };
    tally.kills.push(kill);
    while (kill.recoveredAt === undefined && Date.now() - kill.at < plan.patienceMs) {
      if (signal.aborted) return false;
      await delay(TICK_MS);
    }
    if (kill.recoveredAt === undefined) return false;
  }
  return true;
}

function progressLine(tally: Tally, kills: number): string {
  const percent = Math.floor((100 * tally.produced) / tally.events);
  const last = tally.kills.at(-1);
  const state = last !== undefined && last.recoveredAt === undefined ? 'KV store killed, coming back' : 'running';
  return `${String(percent).padStart(3)} %  produced ${tally.produced}  acknowledged ${tally.acknowledged}  delivered ${tally.delivered}  kills ${tally.kills.length}/${kills}  ${state}`;
}

/** A line that is written over and over at a terminal, and once in a while elsewhere. Gives the function that ends it. */
function showProgress({ terminal, write }: Invocation, line: () => string): () => void {
  const show = () => write(terminal ? `\r\x1b[K${line()}` : `${line()}\n`);
  const timer = setInterval(show, terminal ? PROGRESS_MS : PROGRESS_MS * 8);
  return () => {
    clearInterval(timer);
    show();
    if (terminal) write('\n');
  };
}

function resultTable(tally: Tally, seconds: number): string {
  const recoveries = tally.kills.map(({ at, recoveredAt }) =>
    recoveredAt === undefined ? 'never' : ((recoveredAt - at) / 1000).toFixed(2),
  );
  const errors = [...tally.errors].map(([text, count]) => `${count} × ${text}`);
  const rows = [
    ['produced', String(tally.produced)],
    ['acknowledged to the producer', String(tally.acknowledged)],
    ['delivered to the workers', String(tally.delivered)],
    ['lost', String(tally.missing)],
    ['duplicates', `${tally.duplicates} (of events whose acknowledgement was not yet recorded)`],
    ['errors that clients saw', errors.length === 0 ? '0' : errors.join('; ')],
    ['KV store killed', `${tally.kills.length} times, each time back empty`],
    ['seconds to recover', recoveries.join(', ')],
    ['seconds in all', seconds.toFixed(1)],
  ] as const;
  const width = Math.max(...rows.map(([name]) => name.length));
  return `\n${rows.map(([name, value]) => `  ${name.padEnd(width)}  ${value}`).join('\n')}\n\n`;
}

/** Gives the exit code: 1 when an acknowledged event was not delivered or the KV store did not come back. */
export async function demonstrate(holdfast: Holdfast, plan: DemoPlan, invocation: Invocation): Promise<number> {
  const { events, kills, patienceMs } = plan;
  const address = holdfast.addresses[0]!;
  const connect = () => {
    const client = 'path' in address ? new Redis(address.path) : new Redis(address.port, address.host);
    client.on('error', (error) => noteError(tally, error));
    return client;
  };
  const tally = newTally(events);
  const ending = new AbortController();
  void invocation.stopRequested.then(() => ending.abort());
  const producer = connect();
  const consumers = Array.from({ length: CONSUMERS }, connect);
  const startedAt = Date.now();
  await producer.xgroup('CREATE', STREAM, GROUP, '0', 'MKSTREAM');
  const endProgress = showProgress(invocation, () => progressLine(tally, kills));
  try {
    const consuming = consumers.map((client, index) => consume(client, `worker-${index + 1}`, tally, ending.signal));
    const producing = new AbortController();
    const killing = killOften(holdfast, plan, tally, ending.signal).then((healed) => healed || producing.abort());
    await Promise.all([produce(producer, plan, tally, AbortSignal.any([ending.signal, producing.signal])), killing]);
    const deadline = Date.now() + patienceMs;
    while (tally.missing > 0 && Date.now() < deadline && !ending.signal.aborted) await delay(TICK_MS);
    const interrupted = ending.signal.aborted;
    ending.abort();
    await Promise.all(consuming);
    if (interrupted) return 2;
  } finally {
    ending.abort();
    endProgress();
    for (const client of [producer, ...consumers]) client.disconnect();
  }
  invocation.write(resultTable(tally, (Date.now() - startedAt) / 1000));
  const recovered = tally.kills.length >= kills && tally.kills.every((kill) => kill.recoveredAt !== undefined);
  return tally.missing === 0 && recovered ? 0 : 1;
}

function numberOf(flag: string, value: unknown, min: number, fallback: number): number {
  if (value === undefined) return fallback;
  const number = Number(value);
  if (!Number.isInteger(number) || number < min) {
    throw new HoldfastError('CONFIG', `--${flag}: expected a whole number of at least ${min}`);
  }
  return number;
}

export const demo: Subcommand = {
  help: () => `Usage: holdfast demo [--events N] [--kills N]

Starts a KV store and a Postgres of its own, with Holdfast before them. While an ordinary client produces events and two
workers consume them, the KV store is killed and comes back empty, at least ${KILLS_MIN} times. Exit code 1 when an event that
was acknowledged to the producer is not delivered.

  --events N  how many events are produced (${EVENTS_DEFAULT})
  --kills N   how often the KV store is killed (${KILLS_DEFAULT})
`,
  async run(invocation) {
    const directory = await mkdtemp(join(tmpdir(), 'holdfast-demo-'));
    try {
      const own = ['--kv', 'embedded', '--database', 'embedded', '--data-dir', directory, '--http', 'off'];
      const { config, flags } = loadConfig({
        args: [...invocation.args, ...own, '--listen', '127.0.0.1:0', '--log-level', 'silent'],
        env: {},
        workingDirectory: directory,
        flags: { events: { type: 'string' }, kills: { type: 'string' } },
      });
      const kills = numberOf('kills', flags.kills, KILLS_MIN, KILLS_DEFAULT);
      const events = numberOf('events', flags.events, kills * EVENTS_PER_KILL_MIN, EVENTS_DEFAULT);
      invocation.write('starting a KV store, a Postgres and Holdfast in a temporary directory\n');
      const holdfast = await startHoldfast(config, createLogger({ level: 'silent', pretty: false }));
      try {
        return await demonstrate(holdfast, { events, kills, patienceMs: PATIENCE_MS }, invocation);
      } finally {
        await holdfast.stop();
      }
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  },
};
