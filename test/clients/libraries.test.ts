/** ioredis, node-redis and BullMQ see through Holdfast what they see directly. */
import { FlowProducer, Queue, QueueEvents, Worker } from 'bullmq';
import { Redis } from 'ioredis';
import { createClient } from 'redis';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { startTwins, type Twins } from '../fuzz/twins.ts';

describe.each(['transaction', 'session'] as const)('pooling %s', (pooling) => {
  let twins: Twins;

  beforeAll(async () => {
    twins = await startTwins({ server: 'redis-server', front: 'holdfast', pooling });
  });

  afterAll(async () => {
    await twins.stop();
  });

  /** What `work` saw directly and through Holdfast. */
  async function both<Seen>(work: (port: number) => Promise<Seen>): Promise<[Seen, Seen]> {
    return [await work(twins.directPort), await work(twins.throughPort)];
  }

  test('ioredis: commands, pipelines, transactions, scripts, streams, pub/sub', async () => {
    const [direct, through] = await both(async (port) => {
      const redis = new Redis(port, { connectionName: 'ioredis-test' });
      const other = new Redis(port, { db: 2 });
      const subscriber = new Redis(port);
      try {
        const seen: unknown[] = [];
        seen.push(await redis.set('a', '1'), await redis.get('a'), await redis.client('GETNAME'));
        seen.push(await other.set('a', 'in 2'), await redis.get('a'), await other.get('a'));
        seen.push(await redis.pipeline().incr('n').incr('n').get('a').lpush('a', 'x').exec().catch(String));
        seen.push(await redis.multi().incr('n').get('n').exec());
        await redis.watch('n');
        await other.select(0);
        await other.incr('n');
        seen.push(await redis.multi().incr('n').exec());
        redis.defineCommand('double', { numberOfKeys: 1, lua: 'return redis.call("get", KEYS[1]) * ARGV[1]' });
        const double = (redis as unknown as { double(key: string, by: number): Promise<number> }).double;
        seen.push(await double.call(redis, 'n', 2), await double.call(redis, 'n', 3));
        seen.push(await redis.xadd('s', '1-1', 'f', 'v'), await redis.xgroup('CREATE', 's', 'g', '0'));
        seen.push(await redis.xreadgroup('GROUP', 'g', 'c', 'COUNT', 5, 'STREAMS', 's', '>'));
        seen.push(await redis.xack('s', 'g', '1-1'), await redis.xinfo('GROUPS', 's'));
        const messages: string[] = [];
        subscriber.on('message', (channel, message) => messages.push(`${channel} ${message}`));
        await subscriber.subscribe('news', 'more');
        for (let count = 0; count < 20; count += 1) await redis.publish('news', `m${count}`);
        await expect.poll(() => messages.length).toBe(20);
        seen.push(messages, await subscriber.unsubscribe());
        const blocked = other.blpop('queue', 5);
        await redis.rpush('queue', 'job');
        seen.push(await blocked);
        const keys: string[] = [];
        for await (const batch of redis.scanStream()) keys.push(...(batch as string[]));
        seen.push(keys.sort());
        seen.push(await redis.call('NOSUCH', 'x').catch(String), await redis.hset('a', 'b', 'c').catch(String));
        return seen;
      } finally {
        for (const client of [redis, other, subscriber]) client.disconnect();
      }
    });
    expect(through).toEqual(direct);
  });

  test.each([2, 3] as const)('node-redis with RESP%i: commands, transactions, blocking, pub/sub', async (RESP) => {
    const [direct, through] = await both(async (port) => {
      const client = createClient({ url: `redis://127.0.0.1:${port}/1`, RESP, name: 'node-redis-test' });
      const subscriber = client.duplicate();
      const blocking = client.duplicate();
      await Promise.all([client.connect(), subscriber.connect(), blocking.connect()]);
      try {
        const seen: unknown[] = [await client.flushDb()];
        seen.push(await client.set('a', '1'), await client.get('a'), await client.clientGetName());
        seen.push(await client.hSet('h', { one: '1', two: '2' }), await client.hGetAll('h'));
        seen.push(await client.zAdd('z', [{ score: 1.5, value: 'm' }]), await client.zRangeWithScores('z', 0, -1));
        seen.push(await client.multi().incr('n').get('n').hGetAll('h').exec());
        seen.push(await client.xAdd('s', '1-1', { f: 'v' }), await client.xRange('s', '-', '+'));
        const messages: string[] = [];
        await subscriber.subscribe('news', (message) => messages.push(message));
        for (let count = 0; count < 20; count += 1) await client.publish('news', `m${count}`);
        await expect.poll(() => messages.length).toBe(20);
        seen.push(messages);
        await subscriber.unsubscribe('news');
        seen.push(await subscriber.ping());
        const popped = blocking.blPop('queue', 5);
        await client.rPush('queue', 'job');
        seen.push(await popped);
        const keys: string[] = [];
        for await (const batch of client.scanIterator()) keys.push(...batch);
        seen.push(keys.sort(), await client.sendCommand(['NOSUCH']).catch(String));
        return seen;
      } finally {
        for (const each of [client, subscriber, blocking]) each.destroy();
      }
    });
    expect(through).toEqual(direct);
  });

  test('node-redis keeps its own cache true by invalidation pushes', async () => {
    const [direct, through] = await both(async (port) => {
      const cached = createClient({
        url: `redis://127.0.0.1:${port}`,
        RESP: 3,
        clientSideCache: { ttl: 0, maxEntries: 0, evictPolicy: 'LRU' },
      });
      const writer = createClient({ url: `redis://127.0.0.1:${port}` });
      await Promise.all([cached.connect(), writer.connect()]);
      try {
        await writer.set('cached', 'first');
        const seen: unknown[] = [await cached.get('cached'), await cached.get('cached')];
        await writer.set('cached', 'second');
        await expect.poll(() => cached.get('cached')).toBe('second');
        return seen;
      } finally {
        cached.destroy();
        writer.destroy();
      }
    });
    expect(through).toEqual(direct);
  });

  test('BullMQ: jobs, delays, retries, flows and events', async () => {
    const [direct, through] = await both(async (port) => {
      const connection = { host: '127.0.0.1', port, maxRetriesPerRequest: null };
      const name = 'jobs';
      const queue = new Queue(name, { connection });
      const events = new QueueEvents(name, { connection });
      const flows = new FlowProducer({ connection });
      const attempts = new Map<string, number>();
      const worker = new Worker(
        name,
        async (job) => {
          const attempt = (attempts.get(job.name) ?? 0) + 1;
          attempts.set(job.name, attempt);
          if (job.name === 'fails-once' && attempt === 1) throw new Error('the first time');
          return `${job.name}:${JSON.stringify(job.data)}`;
        },
        { connection, concurrency: 8 },
      );
      const results: string[] = [];
      try {
        await events.waitUntilReady();
        events.on('completed', ({ returnvalue }) => results.push(String(returnvalue)));
        await queue.addBulk(Array.from({ length: 100 }, (_, index) => ({ name: `job${index}`, data: { index } })));
        await queue.add('delayed', {}, { delay: 200 });
        await queue.add('fails-once', {}, { attempts: 2, backoff: 50 });
        await queue.add('urgent', {}, { priority: 1 });
        await flows.add({ name: 'parent', queueName: name, children: [{ name: 'child', queueName: name, data: {} }] });
        await expect.poll(() => results.length, { timeout: 15_000 }).toBe(105);
        const counts = await queue.getJobCounts('completed', 'failed', 'waiting', 'active', 'delayed');
        return { results: results.sort(), counts, retried: attempts.get('fails-once') };
      } finally {
        await worker.close();
        await events.close();
        await flows.close();
        await queue.close();
      }
    });
    expect(through).toEqual(direct);
  });
});
