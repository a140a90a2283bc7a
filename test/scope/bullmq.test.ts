/** BullMQ, whose scripts build keys from packed arguments, in two scopes of one server at once. */
import { FlowProducer, Queue, QueueEvents, Worker } from 'bullmq';
import { describe, expect, it } from 'vitest';
import { startKv } from '../support/servers.ts';
import { asking, plain, startScopedProxy } from './scoped-proxy.ts';

interface Login {
  readonly port: number;
  readonly username?: string;
  readonly password?: string;
  readonly db?: number;
}

/** Runs a queue with everything in it; gives what came of the jobs. */
async function runQueue(mark: string, login: Login) {
  const connection = { host: '127.0.0.1', maxRetriesPerRequest: null, ...login };
  const name = 'jobs';
  const queue = new Queue(name, { connection });
  const events = new QueueEvents(name, { connection });
  const flows = new FlowProducer({ connection });
  const attempts = new Map<string, number>();
  const heard = new Set<string>();
  const results: string[] = [];
  const progress: unknown[] = [];
  await events.waitUntilReady();
  events.on('completed', ({ returnvalue }) => results.push(String(returnvalue)));
  events.on('failed', ({ failedReason }) => heard.add(`failed: ${failedReason}`));
  events.on('delayed', () => heard.add('delayed'));
  events.on('progress', ({ data }) => progress.push(data));
  const worker = new Worker(
    name,
    async (job) => {
      const attempt = (attempts.get(job.name) ?? 0) + 1;
      attempts.set(job.name, attempt);
      if (job.name === 'fails-once' && attempt === 1) throw new Error('the first time');
      if (job.name === 'fails-always') throw new Error('every time');
      if (job.name === 'progresses') await job.updateProgress(42);
      if (job.name === 'parent') return `${mark}:parent of ${Object.keys(await job.getChildrenValues()).length}`;
      return `${mark}:${job.name}:${job.data.mark}`;
    },
    { connection, concurrency: 4 },
  );
  try {
    await queue.addBulk(Array.from({ length: 40 }, (_, index) => ({ name: `job${index}`, data: { mark } })));
    await queue.add('delayed', { mark }, { delay: 150 });
    await queue.add('fails-once', { mark }, { attempts: 2, backoff: 30 });
    await queue.add('fails-always', { mark }, { attempts: 2, backoff: 30 });
    await queue.add('urgent', { mark }, { priority: 1 });
    await queue.add('progresses', { mark });
    await queue.add('once', { mark }, { jobId: 'unique' });
    await queue.add('once', { mark }, { jobId: 'unique' });
    await queue.upsertJobScheduler('every', { every: 60_000 }, { name: 'scheduled', data: { mark } });
    await flows.add({
      name: 'parent',
      queueName: name,
      children: [1, 2].map((child) => ({ name: `child${child}`, queueName: name, data: { mark } })),
    });
    await expect.poll(() => results.length, { timeout: 30_000, interval: 50 }).toBe(49);
    await expect.poll(() => heard.size, { timeout: 30_000, interval: 50 }).toBe(2);
    await queue.pause();
    const paused = await queue.isPaused();
    await queue.resume();
    return {
      results: results.sort(),
      heard: [...heard].sort(),
      progress,
      paused,
      counts: await queue.getJobCounts('completed', 'failed', 'waiting', 'active', 'delayed', 'waiting-children'),
      failed: (await queue.getFailed()).map((job) => [job.name, job.failedReason, job.attemptsMade]),
      schedulers: (await queue.getJobSchedulers()).map((scheduler) => scheduler.key),
      retried: attempts.get('fails-once'),
    };
  } finally {
    await worker.close();
    await events.close();
    await flows.close();
    await queue.close();
  }
}

describe.each(['redis', 'valkey'] as const)('BullMQ in a scope on %s', (server) => {
  it('does what it does outside, with not one key outside the scope', async () => {
    const kv = await startKv(server);
    const proxy = await startScopedProxy(kv.port, { users: { a: { scope: 'a:' }, b: { scope: 'b:' } } });
    const direct = asking(await proxy.unscoped());
    const heard: string[] = [];
    const listener = await proxy.unscoped();
    await listener.send('PSUBSCRIBE', '*');
    const listen = async (): Promise<void> => {
      for (;;) heard.push(String((plain(await listener.next(60_000)) as string[])[2]));
    };
    listen().catch(() => undefined);
    const wanted = await runQueue('bare', { port: kv.port, db: 9 });
    const keysIn = async (database: number): Promise<string[]> => {
      await direct('SELECT', database);
      return ((await direct('KEYS', '*')) as string[]).sort();
    };
    // Names of jobs hold times and random numbers.
    const withoutChance = (keys: readonly string[]): string[] =>
      keys.map((key) => key.replace(/\d{13}|[0-9a-f-]{36}/g, '<id>')).sort();
    const bareKeys = withoutChance(await keysIn(9));
    expect(bareKeys.length).toBeGreaterThan(40);
    heard.length = 0;
    const runs = await Promise.all(
      ['a', 'b'].map((user) => runQueue(user, { port: proxy.port, username: user, password: user })),
    );
    for (const [at, mark] of ['a', 'b'].entries()) {
      expect(
        JSON.parse(JSON.stringify(runs[at]).replaceAll(`${mark}:`, 'bare:').replaceAll(`:${mark}"`, ':bare"')),
      ).toEqual(wanted);
    }
    const keys = await keysIn(0);
    expect(keys.filter((key) => !/^[ab]:/.test(key))).toEqual([]);
    for (const prefix of ['a:', 'b:']) {
      const own = keys.filter((key) => key.startsWith(prefix)).map((key) => key.slice(prefix.length));
      expect(withoutChance(own)).toEqual(bareKeys);
    }
    expect(heard.filter((channel) => !/^[ab]:/.test(channel))).toEqual([]);
  });
});
