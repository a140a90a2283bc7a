/** Workers under test, in this process, stopped when the test file ends; and looks into the KV store from outside. */
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import pino from 'pino';
import { afterAll, afterEach } from 'vitest';
import type { App } from '../../src/worker/app.ts';
import { startWorker, type Worker, type WorkerOptions } from '../../src/worker/worker.ts';

const workers = new Set<Worker>();
const clients: Redis[] = [];

afterEach(async () => {
  await Promise.all([...workers].map((worker) => worker.stop()));
  workers.clear();
});
afterAll(() => {
  for (const client of clients) client.disconnect();
});

export async function runWorker(app: App, options: Partial<WorkerOptions> & { kv: string }): Promise<Worker> {
  const worker = await startWorker(app, {
    drainMs: 500,
    log: pino({ level: process.env.LOG ?? 'silent' }),
    ...options,
  });
  workers.add(worker);
  return worker;
}

export function client(url: string): Redis {
  const redis = new Redis(url, {
    protocol: 2,
    maxRetriesPerRequest: null,
    retryStrategy: () => 50,
    maxLoadingRetryTime: 20,
  });
  redis.on('error', () => {});
  clients.push(redis);
  return redis;
}

export async function until(
  what: string,
  condition: () => boolean | Promise<boolean>,
  limitMs = 15_000,
): Promise<void> {
  const deadline = Date.now() + limitMs;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`not within ${limitMs} ms: ${what}`);
    await sleep(10);
  }
}

/** Adds entries in one pipeline; gives their IDs. */
export async function addAll(
  redis: Redis,
  stream: string,
  entries: readonly Record<string, string>[],
): Promise<string[]> {
  const pipeline = redis.pipeline();
  for (const fields of entries) pipeline.xadd(stream, '*', ...Object.entries(fields).flat());
  return ((await pipeline.exec()) ?? []).map(([error, id]) => {
    if (error !== null) throw error;
    return String(id);
  });
}

export interface Pending {
  readonly id: string;
  readonly consumer: string;
  readonly idleMs: number;
  readonly deliveries: number;
}

export async function pendingOf(redis: Redis, stream: string, group = `${stream}-group`): Promise<Pending[]> {
  const rows = (await redis.call('XPENDING', stream, group, '-', '+', 10_000)) as [string, string, number, number][];
  return rows.map(([id, consumer, idleMs, deliveries]) => ({ id, consumer, idleMs, deliveries }));
}

/** Nothing pending and nothing that was not delivered. */
export async function drained(redis: Redis, stream: string, group = `${stream}-group`): Promise<boolean> {
  const groups = (await redis.call('XINFO', 'GROUPS', stream)) as unknown[][];
  const info = groups.find((flat) => flat[1] === group);
  if (info === undefined) return false;
  const of = (name: string): unknown => info[info.indexOf(name) + 1];
  if (of('pending') !== 0) return false;
  const rest = (await redis.call('XRANGE', stream, `(${of('last-delivered-id')}`, '+', 'COUNT', 1)) as unknown[];
  return rest.length === 0;
}

export async function deadLettersOf(redis: Redis, stream: string): Promise<Record<string, string>[]> {
  const entries = (await redis.call('XRANGE', `${stream}:dead`, '-', '+')) as [string, string[]][];
  return entries.map(([, flat]) => {
    const fields: Record<string, string> = {};
    for (let i = 0; i < flat.length; i += 2) fields[flat[i]!] = flat[i + 1]!;
    return fields;
  });
}
