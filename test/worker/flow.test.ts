import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { defineApp, RETRY_DELAY_MS_MAX } from '../../src/worker/app.ts';
import { createGroup } from '../../src/worker/group/group.ts';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import fragile from './apps/fragile.ts';
import { addAll, client, drained, pendingOf, runWorker, until } from './worker-harness.ts';

const kind = kvKinds[0]!;

describe('order by key', () => {
  test('holds across workers and retries, and across a handover', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    const keys = ['a', 'b', 'c'];
    const done: Record<string, number[]> = { a: [], b: [], c: [] };
    let failures = 0;
    const app = defineApp({
      streams: 'events',
      orderBy: (event) => event.key!,
      heartbeatMs: 100,
      deadAfterMs: 400,
      retry: { baseMs: 30 },
      handlers: {
        any: {
          run: 'in-process',
          async handle(event, { attempt }) {
            await sleep(2);
            if (attempt === 1 && Number(event.n) % 7 === 0) {
              failures += 1;
              throw new Error('once');
            }
            done[event.key!]!.push(Number(event.n));
          },
        },
      },
    });
    await addAll(
      redis,
      'events',
      Array.from({ length: 150 }, (_, n) => ({ key: keys[n % 3]!, n: String(n) })),
    );
    const first = await runWorker(app, { kv: kv.url });
    await runWorker(app, { kv: kv.url });
    await until('some are done', () => done.a!.length > 10);
    await first.stop();
    await until('all are done', () => drained(redis, 'events'), 25_000);
    expect(failures).toBeGreaterThan(10);
    for (const key of keys) {
      // A handover may repeat what was not acknowledged yet; the order of first times is what is promised.
      const firsts = [...new Set(done[key])];
      expect(firsts).toEqual([...firsts].sort((a, b) => a - b));
      expect(firsts).toHaveLength(50);
    }
  });
});

/** What a handler waits for until the test lets it go on. */
function createGate(): { readonly released: Promise<void>; readonly release: () => void } {
  let release = (): void => {};
  const released = new Promise<void>((resolve) => {
    release = resolve;
  });
  return { released, release };
}

describe('a handler that is blocked', () => {
  const blocked = (started: string[], release: Promise<void>) =>
    defineApp({
      streams: 'events',
      concurrency: 8,
      heartbeatMs: 200,
      deadAfterMs: 1000,
      retry: { baseMs: 100, jitter: 0 },
      route: (event) => event.task!,
      handlers: {
        stuck: {
          run: 'in-process',
          concurrency: 1,
          async handle(event) {
            started.push(`stuck ${event.n}`);
            await release;
          },
        },
        failing: {
          run: 'in-process',
          handle(event, { attempt }) {
            started.push(`failing ${event.n} ${attempt}`);
            if (attempt < 3) throw new Error('not yet');
          },
        },
      },
    });

  test('does not keep back the retries of others, however many of its own entries wait', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    const started: string[] = [];
    const { release, released } = createGate();
    await addAll(redis, 'events', [
      { task: 'failing', n: '1' },
      ...Array.from({ length: 400 }, (_, n) => ({ task: 'stuck', n: String(n) })),
    ]);
    await runWorker(blocked(started, released), { kv: kv.url });
    await until('the last attempt', () => started.includes('failing 1 3'), 5000);
    expect(started.filter((line) => line.startsWith('stuck'))).toHaveLength(1);
    release();
    await until('all done', () => drained(redis, 'events'));
  });

  test('does not keep back the retries of others, however many of its own are due, in one worker alone', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    const started: string[] = [];
    const { release, released } = createGate();
    const ids = await addAll(redis, 'events', [
      ...Array.from({ length: 600 }, (_, n) => ({ task: 'stuck', n: String(n) })),
      { task: 'failing', n: '1' },
    ]);
    const dead = createGroup({
      ...{ stream: 'events', name: 'events-group', consumer: 'dead', startId: '0', commands: redis, reader: redis },
    });
    await dead.ensure();
    await dead.read(601, 1);
    await dead.postpone(
      ids.map((id, n) => ({ id, delayMs: n < 600 ? -60_000 : -1, attempt: n < 600 ? 2 : 1, takeovers: 0 })),
    );
    await redis.xgroup('DELCONSUMER', 'events', 'events-group', 'dead');
    await runWorker(blocked(started, released), { kv: kv.url });
    await until('the last attempt', () => started.includes('failing 1 3'), 30_000);
    expect(started.filter((line) => line.startsWith('stuck'))).toHaveLength(1);
    release();
    await until('all done', () => drained(redis, 'events'), 30_000);
  }, 70_000);

  test('has what waits for it offered to other workers, as old as it is', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    const started: string[] = [];
    const { release, released } = createGate();
    await addAll(
      redis,
      'events',
      Array.from({ length: 3 }, (_, n) => ({ task: 'stuck', n: String(n) })),
    );
    const began = Date.now();
    await runWorker(blocked(started, released), { kv: kv.url });
    await until(
      'one runs, two wait',
      async () => started.length === 1 && (await pendingOf(redis, 'events')).length === 3,
    );
    // Another worker is there, and has no slot either.
    await redis.call('XGROUP', 'CREATECONSUMER', 'events', 'events-group', 'other');
    const waiting = async () =>
      (await pendingOf(redis, 'events')).filter((entry) => entry.consumer === 'events-group:retry');
    await until('the others are offered', async () => (await waiting()).length === 2, 6000);
    const heldMs = Date.now() - began;
    for (const entry of await waiting()) {
      const overdueMs = entry.idleMs - 2 * RETRY_DELAY_MS_MAX;
      expect(overdueMs).toBeGreaterThan(900);
      expect(overdueMs).toBeLessThan(heldMs + 1000);
    }
    release();
    await until('all done', () => drained(redis, 'events'));
  });
});

describe('limits', () => {
  test('of concurrency hold for the worker and for one handler', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    const running = { all: 0, narrow: 0, most: 0, mostNarrow: 0 };
    const work = async () => {
      running.all += 1;
      running.most = Math.max(running.most, running.all);
      await sleep(20);
      running.all -= 1;
    };
    const app = defineApp({
      streams: 'events',
      concurrency: 5,
      handlers: {
        wide: { run: 'in-process', handle: work },
        narrow: {
          run: 'in-process',
          concurrency: 2,
          async handle() {
            running.narrow += 1;
            running.mostNarrow = Math.max(running.mostNarrow, running.narrow);
            await work();
            running.narrow -= 1;
          },
        },
      },
    });
    await addAll(
      redis,
      'events',
      Array.from({ length: 60 }, (_, n) => ({ task: n % 2 === 0 ? 'wide' : 'narrow' })),
    );
    await runWorker(app, { kv: kv.url });
    await until('done', () => drained(redis, 'events'));
    expect(running.most).toBe(5);
    expect(running.mostNarrow).toBe(2);
  });

  test('of rate hold over all workers together', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    const starts: number[] = [];
    const app = defineApp({
      streams: 'events',
      handlers: {
        limited: {
          run: 'in-process',
          rateLimit: { max: 10, perMs: 500 },
          handle() {
            starts.push(performance.now());
          },
        },
      },
    });
    await addAll(
      redis,
      'events',
      Array.from({ length: 40 }, (_, n) => ({ n: String(n) })),
    );
    await runWorker(app, { kv: kv.url });
    await runWorker(app, { kv: kv.url });
    await until('done', () => drained(redis, 'events'));
    starts.sort((a, b) => a - b);
    expect(starts).toHaveLength(40);
    // A burst of 10, then one every 50 ms: the 40th is due after 1500 ms.
    expect(starts[39]! - starts[0]!).toBeGreaterThan(1400);
  });
});

test('several streams are read side by side, and a full one does not hold up the others', async () => {
  const kv = await startKv(kind);
  const redis = client(kv.url);
  const done: string[] = [];
  const app = defineApp({
    streams: ['slow', 'fast'],
    group: 'workers',
    concurrency: 4,
    handlers: {
      slow: { run: 'in-process', concurrency: 2, handle: () => sleep(300) },
      fast: {
        run: 'in-process',
        handle: (event) => {
          done.push(event.n!);
        },
      },
    },
  });
  await addAll(redis, 'slow', Array(20).fill({ task: 'slow' }));
  await runWorker(app, { kv: kv.url });
  await sleep(100);
  await addAll(
    redis,
    'fast',
    Array.from({ length: 20 }, (_, n) => ({ task: 'fast', n: String(n) })),
  );
  await until('the fast ones are done', () => done.length === 20, 2500);
  expect(await drained(redis, 'slow', 'workers')).toBe(false);
  await until('the slow ones are done', () => drained(redis, 'slow', 'workers'), 20_000);
});

describe('trimming', () => {
  test('removes what every group has acknowledged, and nothing else', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    const app = defineApp({ streams: 'events', handlers: { any: { run: 'in-process', handle() {} } } });
    const ids = await addAll(
      redis,
      'events',
      Array.from({ length: 50 }, (_, n) => ({ n: String(n) })),
    );
    await redis.xgroup('CREATE', 'events', 'other', '0');
    await redis.xreadgroup('GROUP', 'other', 'me', 'COUNT', 30, 'STREAMS', 'events', '>');
    await redis.call('XACK', 'events', 'other', ...ids.slice(0, 20));
    await runWorker(app, { kv: kv.url });
    await until('trimmed to what the other group still needs', async () => (await redis.xlen('events')) === 30);
    await redis.call('XACK', 'events', 'other', ...ids.slice(20, 30));
    await redis.xreadgroup('GROUP', 'other', 'me', 'STREAMS', 'events', '>');
    await redis.call('XACK', 'events', 'other', ...ids.slice(30));
    await until('trimmed to nothing', async () => (await redis.xlen('events')) === 0);
  });

  test('goes on above an entry that keeps failing', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    const app = defineApp({
      streams: 'events',
      retry: { baseMs: 600_000 },
      handlers: {
        any: {
          run: 'in-process',
          handle(event) {
            if (event.n === '0') throw new Error('for long');
          },
        },
      },
    });
    for (let from = 0; from < 12_000; from += 3000) {
      await addAll(
        redis,
        'events',
        Array.from({ length: 3000 }, (_, n) => ({ n: String(from + n) })),
      );
    }
    await runWorker(app, { kv: kv.url });
    await until('most are removed', async () => (await redis.xlen('events')) < 5001, 20_000);
    expect((await redis.xrange('events', '-', '+', 'COUNT', 1))[0]?.[1]).toEqual(['n', '0']);
  });
});

describe('health', () => {
  test('fails while handlers that ignore their signal hold every slot, and says so over HTTP', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    let release = (): void => {};
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    const app = defineApp({
      streams: 'events',
      concurrency: 2,
      timeoutMs: 100,
      graceMs: 50,
      retry: { attempts: 1 },
      handlers: { deaf: { run: 'in-process', handle: () => held } },
    });
    await addAll(redis, 'events', Array(4).fill({ n: '1' }));
    const worker = await runWorker(app, { kv: kv.url, http: '127.0.0.1:0' });
    expect((await fetch(`http://${worker.http}/healthz`)).status).toBe(200);
    await until('stuck', () => !worker.health().healthy);
    const response = await fetch(`http://${worker.http}/healthz`);
    expect(response.status).toBe(503);
    expect(await response.json()).toMatchObject({
      healthy: false,
      stuck: 2,
      reasons: [expect.stringMatching(/ignore/)],
    });
    release();
    await until('free again', () => worker.health().healthy);
  });

  test('fails when the KV store has been away for too long, and recovers with it', async () => {
    const kv = await startKv(kind);
    const app = defineApp({ streams: 'events', handlers: { any: { run: 'in-process', handle() {} } } });
    const worker = await runWorker(app, { kv: kv.url, stallAfterMs: 1500 });
    await kv.kill9();
    expect(worker.health().healthy).toBe(true);
    await until('unhealthy', () => !worker.health().healthy);
    await kv.restart();
    await until('healthy', () => worker.health().healthy);
    const redis = client(kv.url);
    await addAll(redis, 'events', [{ n: '1' }]);
    await until('works again', () => drained(redis, 'events'));
  });

  test('fails when there is backlog and no progress, as without a thread that starts, and recovers with the threads', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    const module = new URL('./apps/fragile.ts', import.meta.url).href;
    const worker = await runWorker(fragile, { kv: kv.url, module, stallAfterMs: 4000 });
    process.env.FRAGILE = '1';
    try {
      await addAll(redis, 'events', Array(3).fill({ n: '1' }));
      await until('unhealthy', () => worker.health().reasons.some((reason) => reason.includes('entries wait')), 30_000);
    } finally {
      delete process.env.FRAGILE;
    }
    await until('all done', () => drained(redis, 'events'), 60_000);
    await until('healthy', () => worker.health().healthy);
  }, 120_000);

  test('is no matter of work that comes after a long rest', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    let done = false;
    const app = defineApp({
      streams: 'events',
      concurrency: 1,
      handlers: {
        any: {
          run: 'in-process',
          async handle() {
            await sleep(4500);
            done = true;
          },
        },
      },
    });
    const { url: database } = await startTestPostgres();
    const worker = await runWorker(app, { kv: kv.url, database, stallAfterMs: 4000 });
    await sleep(4500);
    const reasons = new Set<string>();
    const look = (): void => {
      for (const reason of worker.health().reasons) if (!reason.includes('has not answered')) reasons.add(reason);
    };
    await addAll(redis, 'events', [{ n: '1' }]);
    // While it is looked up, while it runs, and while the first read after it waits.
    await until('done', async () => {
      for (let i = 0; i < 50; i += 1) {
        look();
        await new Promise((resolve) => setImmediate(resolve));
      }
      return done;
    });
    for (let i = 0; i < 50; i += 1) {
      look();
      await sleep(10);
    }
    expect([...reasons]).toEqual([]);
  });

  test('is no matter of a reader that is busy with entries of the dead', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    let handled = 0;
    const app = defineApp({
      streams: 'events',
      concurrency: 1,
      heartbeatMs: 200,
      deadAfterMs: 400,
      // One is taken in at a time, and takes its time.
      decode() {
        const until = performance.now() + 700;
        while (performance.now() < until);
      },
      route() {
        handled += 1;
        return [];
      },
      handlers: { any: { run: 'in-process', handle() {} } },
    });
    await redis.call('XGROUP', 'CREATE', 'events', 'events-group', '0', 'MKSTREAM');
    await addAll(redis, 'events', Array(8).fill({ n: '1' }));
    await redis.call('XREADGROUP', 'GROUP', 'events-group', 'dead', 'COUNT', 8, 'STREAMS', 'events', '>');
    await sleep(500);
    const worker = await runWorker(app, { kv: kv.url, stallAfterMs: 1800 });
    const reasons = new Set<string>();
    await until('all handled', () => {
      for (const reason of worker.health().reasons) if (!reason.includes('has not answered')) reasons.add(reason);
      return handled === 8;
    });
    expect([...reasons]).toEqual([]);
  });

  test('is no matter of an ordered entry that waits for its backoff', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    const app = defineApp({
      streams: 'events',
      orderBy: () => 'one',
      retry: { baseMs: 60_000 },
      handlers: {
        any: {
          run: 'in-process',
          handle() {
            throw new Error('later');
          },
        },
      },
    });
    await addAll(redis, 'events', Array(3).fill({ n: '1' }));
    const worker = await runWorker(app, { kv: kv.url, stallAfterMs: 4000 });
    await until('it failed', async () => (await pendingOf(redis, 'events')).some((entry) => entry.deliveries === 2));
    const failedAt = performance.now();
    while (performance.now() < failedAt + 5500) {
      await sleep(50);
      expect(worker.health().reasons.filter((reason) => !reason.includes('has not answered'))).toEqual([]);
    }
  });

  test('is no matter of a long handler within its time', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    const app = defineApp({
      streams: 'events',
      concurrency: 1,
      handlers: { long: { run: 'in-process', handle: () => sleep(1500) } },
    });
    await addAll(redis, 'events', Array(2).fill({ n: '1' }));
    const worker = await runWorker(app, { kv: kv.url, stallAfterMs: 300 });
    await until('one runs', () => worker.health().running === 1);
    for (let i = 0; i < 10; i += 1) {
      await sleep(100);
      expect(worker.health().reasons.filter((reason) => !reason.includes('has not answered'))).toEqual([]);
    }
  });
});
