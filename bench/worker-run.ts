/**
 * One measurement of the worker bench, in a process of its own: a queue is filled, one worker empties it, and the rate is
 * jobs over the time from the worker's start to the last job's acknowledgement being on its way. Arguments: one JSON.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker as BullWorker, Queue } from 'bullmq';
import { Redis } from 'ioredis';
import pino from 'pino';
import { appFromExport } from '../src/worker/app.ts';
import { startWorker } from '../src/worker/worker.ts';

export type System = 'holdfast' | 'bullmq' | 'bullmq processes' | 'bullmq threads';
export type Work = 'in-process' | 'thread' | 'thread-1ms';

export interface Run {
  readonly system: System;
  readonly work: Work;
  readonly concurrency: number;
  readonly jobs: number;
  readonly kv: string;
  readonly database: string | undefined;
}

const FILL_BATCH = 1000;
const LIMIT_MS = 60_000;
const module = new URL('./worker-apps/handlers.mjs', import.meta.url).href;
const bullProcessor = (work: Work): string =>
  new URL(`./worker-apps/bullmq-${work === 'thread-1ms' ? '1ms' : 'no-op'}.cjs`, import.meta.url).pathname;

async function runHoldfast({ work, concurrency, jobs, kv, database }: Run): Promise<number> {
  const redis = new Redis(kv, { protocol: 2 });
  await redis.del('bench');
  for (let done = 0; done < jobs; done += FILL_BATCH) {
    const pipeline = redis.pipeline();
    for (let i = done; i < Math.min(jobs, done + FILL_BATCH); i += 1) pipeline.xadd('bench', '*', 'task', work, 'n', i);
    await pipeline.exec();
  }
  const definition = (await import(module)).default as { handlers: Record<string, unknown> };
  const app = appFromExport({
    ...definition,
    // Only the handlers that are measured, so that no thread starts for nothing.
    handlers: { [work]: definition.handlers[work] },
    concurrency,
    threads: concurrency,
  });
  const worker = await startWorker(app, { kv, database, module, log: pino({ level: 'warn' }) });
  const succeeded = worker.metrics.getSingleMetric('holdfast_worker_processed_total')!;
  const startedAt = performance.now();
  let done = 0;
  while (done < jobs && performance.now() - startedAt < LIMIT_MS) {
    await sleep(2);
    done = (await succeeded.get()).values[0]?.value ?? 0;
  }
  const seconds = (performance.now() - startedAt) / 1000;
  await worker.stop();
  const [left] = (await redis.call('XPENDING', 'bench', 'bench-group')) as [number];
  if (done !== jobs || left !== 0) throw new Error(`${done} of ${jobs} done, ${left} still pending`);
  redis.disconnect();
  return jobs / seconds;
}

async function runBull({ system, work, concurrency, jobs, kv }: Run): Promise<number> {
  const { hostname: host, port } = new URL(kv);
  const connection = { host, port: Number(port), maxRetriesPerRequest: null };
  const queue = new Queue('bench', { connection });
  await queue.obliterate({ force: true });
  for (let done = 0; done < jobs; done += FILL_BATCH) {
    const batch = Array.from({ length: Math.min(FILL_BATCH, jobs - done) }, (_, i) => ({
      name: 'job',
      data: { n: i },
    }));
    await queue.addBulk(batch.map((job) => ({ ...job, opts: { removeOnComplete: true } })));
  }
  let done = 0;
  const options = { connection, concurrency, useWorkerThreads: system === 'bullmq threads', autorun: false };
  const worker =
    system === 'bullmq'
      ? new BullWorker('bench', async () => {}, options)
      : new BullWorker('bench', bullProcessor(work), options);
  await worker.waitUntilReady();
  worker.on('completed', () => {
    done += 1;
  });
  const startedAt = performance.now();
  void worker.run();
  while (done < jobs && performance.now() - startedAt < LIMIT_MS) await sleep(2);
  const seconds = (performance.now() - startedAt) / 1000;
  await worker.close();
  await queue.close();
  if (done !== jobs) throw new Error(`${done} of ${jobs} done`);
  return jobs / seconds;
}

const run = JSON.parse(process.argv[2] ?? '{}') as Run;
const rate = await (run.system === 'holdfast' ? runHoldfast(run) : runBull(run));
process.stdout.write(`${JSON.stringify({ rate })}\n`);
process.exit(0);
