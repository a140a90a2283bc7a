import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { Redis } from 'ioredis';
import { afterEach, describe, expect, test } from 'vitest';
import { defineApp } from '../../src/worker/app.ts';
import { createGroup, type Group } from '../../src/worker/group/group.ts';
import type { Worker } from '../../src/worker/worker.ts';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import busy from './apps/busy.ts';
import { type SpawnedWorker, spawnWorker } from './spawn-worker.ts';
import { addAll, client, deadLettersOf, drained, pendingOf, runWorker, until } from './worker-harness.ts';

const slowApp = fileURLToPath(new URL('./apps/slow.ts', import.meta.url));
const spawned: SpawnedWorker[] = [];

afterEach(async () => {
  for (const worker of spawned.splice(0)) {
    worker.kill('SIGKILL');
    await worker.exited;
  }
});

function spawnSlow(kv: string): SpawnedWorker {
  const worker = spawnWorker({ app: slowApp, kv }, { TELL_URL: kv });
  spawned.push(worker);
  return worker;
}

async function told(redis: Redis): Promise<string[]> {
  return redis.lrange('told', 0, -1);
}

/** Of a counter, over all its series. */
async function sumOf(workers: readonly Worker[], counter: string): Promise<number> {
  const metrics = workers.map((worker) => worker.metrics.getSingleMetric(`holdfast_worker_${counter}`)!.get());
  return (await Promise.all(metrics)).flatMap(({ values }) => values).reduce((sum, { value }) => sum + value, 0);
}

/** Another worker's hands, without its loops. */
function hands(redis: Redis, consumer: string): Group {
  return createGroup({
    stream: 'events',
    name: 'events-group',
    consumer,
    startId: '0',
    commands: redis,
    reader: redis,
  });
}

/** Such hands with so many entries in them, `n` of which counts from 0. */
async function handsWith(redis: Redis, count: number): Promise<{ readonly owner: Group; readonly ids: string[] }> {
  const owner = hands(redis, 'owner');
  await owner.ensure();
  const ids = await addAll(
    redis,
    'events',
    Array.from({ length: count }, (_, n) => ({ n: String(n) })),
  );
  await owner.read(count, 1);
  return { owner, ids };
}

describe.each(kvKinds)('claims on %s', (kind) => {
  test('of a killed worker are taken over within five seconds, and no attempt is counted', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    const [first, second] = [spawnSlow(kv.url), spawnSlow(kv.url)];
    await Promise.all([first.ready, second.ready]);
    await addAll(
      redis,
      'events',
      Array.from({ length: 8 }, () => ({ ms: '1500' })),
    );
    await until('all eight run', async () => (await told(redis)).length === 8);
    first.kill('SIGKILL');
    const killedAt = Date.now();
    await until('all ended', () => drained(redis, 'events'), 20_000);
    expect(Date.now() - killedAt).toBeLessThan(5000 + 1500 + 1000);
    const lines = await told(redis);
    expect(lines.every((line) => line.split(' ')[2] === '1')).toBe(true);
    expect(new Set(lines.filter((line) => line.startsWith('end')).map((line) => line.split(' ')[1])).size).toBe(8);
    expect(await deadLettersOf(redis, 'events')).toEqual([]);
  });

  test('of a slow handler are kept: it runs once, far beyond the time after which a worker counts as dead', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    const starts: string[] = [];
    const app = (name: string) =>
      defineApp({
        streams: 'events',
        heartbeatMs: 100,
        deadAfterMs: 300,
        handlers: {
          slow: {
            run: 'in-process',
            async handle() {
              starts.push(name);
              await sleep(2000);
            },
          },
        },
      });
    await addAll(redis, 'events', [{ n: '1' }]);
    await runWorker(app('one'), { kv: kv.url });
    await runWorker(app('two'), { kv: kv.url });
    await until('acknowledged', () => drained(redis, 'events'));
    expect(starts).toHaveLength(1);
  });

  test('of handlers that keep the processors busy are kept as well', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    const module = new URL('./apps/busy.ts', import.meta.url).href;
    const workers = [await runWorker(busy, { kv: kv.url, module }), await runWorker(busy, { kv: kv.url, module })];
    await addAll(redis, 'events', Array(4).fill({ n: '1' }));
    await until('all run', async () => (await pendingOf(redis, 'events')).length === 4);
    await until('acknowledged', () => drained(redis, 'events'), 40_000);
    expect(await sumOf(workers, 'processed_total')).toBe(4);
    expect(await sumOf(workers, 'takeovers_total')).toBe(0);
    expect(await sumOf(workers, 'lost_claims_total')).toBe(0);
  });

  test('are still those of workers that live when the KV store was away for longer than a dead worker is waited for', async () => {
    const kv = await startKv(kind, { extraArgs: ['--appendonly', 'yes', '--appendfsync', 'no'] });
    const redis = client(kv.url);
    let away = true;
    let starts = 0;
    const app = defineApp({
      streams: 'events',
      concurrency: 8,
      heartbeatMs: 500,
      deadAfterMs: 1000,
      timeoutMs: 60_000,
      handlers: {
        slow: {
          run: 'in-process',
          async handle() {
            starts += 1;
            while (away) await sleep(20);
          },
        },
      },
    });
    const workers = await Promise.all([0, 1, 2].map(() => runWorker(app, { kv: kv.url })));
    await addAll(redis, 'events', Array(24).fill({ n: '1' }));
    await until('all run', () => starts === 24);
    for (let outage = 0; outage < 2; outage += 1) {
      await kv.kill9();
      await sleep(1500);
      await kv.restart();
      await until('renewed', async () => (await pendingOf(redis, 'events')).every((entry) => entry.idleMs < 500));
      await sleep(1000);
    }
    away = false;
    await until('all acknowledged', () => drained(redis, 'events'));
    expect(starts).toBe(24);
    expect(await sumOf(workers, 'takeovers_total')).toBe(0);
  });

  test('are left to a worker that lives until it can have renewed them, whenever the KV store comes back', async () => {
    const kv = await startKv(kind, { extraArgs: ['--appendonly', 'yes', '--appendfsync', 'no'] });
    const redis = client(kv.url);
    const { owner, ids } = await handsWith(redis, 8);
    const app = defineApp({
      streams: 'events',
      heartbeatMs: 1000,
      deadAfterMs: 2000,
      handlers: { any: { run: 'in-process', handle: () => undefined } },
    });
    const worker = await runWorker(app, { kv: kv.url });
    // The other one looks now and then: it must not be found when it happens to look.
    for (const awayMs of [1750, 1850, 1950, 2050, 2150]) {
      await owner.renew(ids);
      await kv.kill9();
      await sleep(awayMs);
      await kv.restart();
      // Not at once: it has to connect again first.
      await sleep(350);
      await until('renewed', () => owner.renew(ids).then(({ size }) => size === 0));
    }
    expect(await sumOf([worker], 'takeovers_total')).toBe(0);
    // It renews no more: now it is dead, and what it held is done within the time that that takes.
    await until('all acknowledged', () => drained(redis, 'events'));
    expect(await sumOf([worker], 'takeovers_total')).toBe(8);
  });

  test('that were lost allow nothing any more: no acknowledgement, no retry, no report, no renewal', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    const [slow, fast] = [hands(redis, 'slow'), hands(redis, 'fast')];
    await slow.ensure();
    const [id] = await addAll(redis, 'events', [{ n: '1' }]);
    await slow.read(1, 1);
    await redis.call('XCLAIM', 'events', 'events-group', 'fast', 0, id!, 'JUSTID');
    const history = { attempt: 4, takeovers: 0 };
    expect(await slow.acknowledge([id!])).toEqual([id]);
    expect(await slow.postpone([{ id: id!, delayMs: 0, ...history }])).toEqual([id]);
    expect(await slow.rewrite([{ id: id!, ...history }])).toEqual([id]);
    expect(await slow.bury('events:dead', id!, ['event', 'x'])).toBe(false);
    expect(await slow.renew([id!])).toEqual(new Map([[id, 'fast']]));
    expect(await pendingOf(redis, 'events')).toMatchObject([{ id, consumer: 'fast', deliveries: 1 }]);
    expect(await redis.exists('events:dead')).toBe(0);
    expect(await fast.acknowledge([id!])).toEqual([]);
    expect(await fast.renew([id!])).toEqual(new Map([[id, '']]));
  });

  test('for what is due are granted to one of many that ask at once', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    const { owner, ids } = await handsWith(redis, 50);
    await owner.postpone(ids.map((id) => ({ id, delayMs: 0, attempt: 2, takeovers: 0 })));
    const claimers = await Promise.all(
      Array.from({ length: 8 }, (_, i) => hands(client(kv.url), `claimer-${i}`).claimDue(50)),
    );
    expect(
      claimers
        .flat()
        .map((entry) => entry.id)
        .sort(),
    ).toEqual([...ids].sort());
    expect(claimers.flat().every((entry) => entry.attempt === 2)).toBe(true);
  });

  test('for what is due go by halves to what comes next and to what has been due longest, and drop what was deleted', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    const { owner, ids } = await handsWith(redis, 7);
    const delays = [-100, -200, -300, -5000, -60_000, -400, -20_000];
    await owner.postpone(ids.map((id, n) => ({ id, delayMs: delays[n]!, attempt: 2, takeovers: 0 })));
    await redis.xdel('events', ids[6]!);
    // The deleted one is one of the four that are claimed.
    const first = await owner.claimDue(4);
    expect(first).toMatchObject([{ id: ids[0] }, { id: ids[1] }, { id: ids[4], fields: ['n', '4'] }]);
    expect(first.map((entry) => Math.floor(entry.overdueMs / 1000))).toEqual([0, 0, 60]);
    expect((await owner.claimDue(2)).map((entry) => entry.id)).toEqual([ids[2], ids[3]]);
    expect((await owner.claimDue(2)).map((entry) => entry.id)).toEqual([ids[5]]);
    expect((await pendingOf(redis, 'events')).map((entry) => entry.id)).toEqual(ids.slice(0, 6));
  });

  test('for what is due pass nothing over for ever, whatever is handed back and older', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    const { owner, ids } = await handsWith(redis, 41);
    const young = ids[40]!;
    const postpone = (id: string) => ({ id, delayMs: id === young ? -1 : -60_000, attempt: 2, takeovers: 0 });
    await owner.postpone(ids.map(postpone));
    let looks = 0;
    for (let claimed: string[] = []; !claimed.includes(young) && looks < 100; looks += 1) {
      claimed = (await owner.claimDue(1 + (looks % 4))).map((entry) => entry.id);
      await owner.postpone(claimed.map(postpone));
    }
    expect(looks).toBeLessThanOrEqual(41);
  });

  test('for what is due reach all of it, also beyond what one look goes through', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    const { owner, ids } = await handsWith(redis, 2500);
    await owner.postpone(ids.map((id) => ({ id, delayMs: -100, attempt: 2, takeovers: 0 })));
    const looked: string[] = [];
    for (let look = 0; look < 3; look += 1) looked.push(...(await owner.claimDue(10)).map((entry) => entry.id));
    // Five of the round, and five of the thousand that are looked at: the last look begins where the others have not been.
    const [early, middle, late] = [ids.slice(0, 1000), ids.slice(1000, 2000), ids.slice(2000)];
    expect([early, middle, late].map((part) => looked.filter((id) => part.includes(id)).length)).toEqual([20, 5, 5]);
    // One that finds too little at the end goes on at the beginning.
    for (let look = 0; look < 2; look += 1) expect(await owner.claimDue(10)).toHaveLength(10);
    expect(await owner.claimDue(1000)).toHaveLength(1000);
  });

  test('wait out their delay', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    const owner = hands(redis, 'owner');
    await owner.ensure();
    const [soon, late] = await addAll(redis, 'events', [{ n: 'soon' }, { n: 'late' }]);
    await owner.read(2, 1);
    await owner.postpone([
      { id: soon!, delayMs: 200, attempt: 2, takeovers: 0 },
      { id: late!, delayMs: 60_000, attempt: 2, takeovers: 0 },
    ]);
    expect(await owner.claimDue(10)).toEqual([]);
    await until('the first is due', () => owner.hasDue());
    expect((await owner.claimDue(10)).map((entry) => entry.id)).toEqual([soon]);
    // Waiting is not being dead: nobody takes it over.
    expect(await owner.takeOver(await owner.holders(), 0, () => true)).toEqual([]);
    expect((await pendingOf(redis, 'events')).find((entry) => entry.id === late)?.consumer).toBe('events-group:retry');
  });

  test.each(['without a database', 'with a database'])(
    '[14] of 20 dead workers in a row are a permanent failure, %s',
    async (mode) => {
      const kv = await startKv(kind);
      const redis = client(kv.url);
      const database = mode === 'with a database' ? (await startTestPostgres()).url : undefined;
      const dying = hands(redis, 'dying');
      await dying.ensure();
      const [id] = await addAll(redis, 'events', [{ n: '1' }]);
      await dying.read(1, 1);
      for (let death = 1; death <= 20; death += 1) {
        expect(await dying.takeOver(await dying.holders(), 0, () => false)).toEqual([
          { id, attempt: 1, takeovers: death },
        ]);
        if (death < 20) expect(await dying.claimDue(1)).toMatchObject([{ id, attempt: 1, takeovers: death }]);
      }
      let calls = 0;
      const app = defineApp({
        streams: 'events',
        handlers: {
          any: {
            run: 'in-process',
            handle() {
              calls += 1;
            },
          },
        },
      });
      await runWorker(app, { kv: kv.url, database });
      await until('reported', async () => (await deadLettersOf(redis, 'events')).length === 1);
      expect((await deadLettersOf(redis, 'events'))[0]).toMatchObject({ id, attempts: '0', takeovers: '20' });
      expect(calls).toBe(0);
      await until('acknowledged', () => drained(redis, 'events'));
    },
  );

  test('are handed back by a worker that shuts down, without an attempt counted, and nothing of it stays', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    const attempts: number[] = [];
    const aborts: unknown[] = [];
    const app = (ms: number) =>
      defineApp({
        streams: 'events',
        concurrency: 2,
        handlers: {
          slow: {
            run: 'in-process',
            async handle(_event, { attempt, signal }) {
              attempts.push(attempt);
              signal.addEventListener('abort', () => aborts.push(signal.reason));
              await sleep(ms, undefined, { signal });
            },
          },
        },
      });
    await addAll(
      redis,
      'events',
      Array.from({ length: 5 }, (_, n) => ({ n: String(n) })),
    );
    const worker = await runWorker(app(60_000), { kv: kv.url, drainMs: 200 });
    await until('two run', () => attempts.length === 2);
    await worker.stop();
    expect(aborts).toHaveLength(2);
    const consumers = (await redis.call('XINFO', 'CONSUMERS', 'events', 'events-group')) as unknown[][];
    expect(consumers.map((info) => info[1])).toEqual(['events-group:retry']);
    await runWorker(app(1), { kv: kv.url });
    await until('acknowledged', () => drained(redis, 'events'));
    expect(attempts).toEqual([1, 1, 1, 1, 1, 1, 1]);
  });

  test('of consumers that are long gone go, those with something pending stay', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    const [kept, gone, me] = [hands(redis, 'kept'), hands(redis, 'gone'), hands(redis, 'me')];
    await kept.ensure();
    await addAll(redis, 'events', [{ n: '1' }]);
    for (const group of [kept, gone, me]) await group.read(1, 1);
    await redis.xgroup('CREATECONSUMER', 'events', 'events-group', 'gone');
    await redis.xgroup('CREATECONSUMER', 'events', 'events-group', 'me');
    await sleep(20);
    expect(await me.removeGoneConsumers(60_000)).toBe(0);
    expect(await me.removeGoneConsumers(10)).toBe(1);
    expect((await me.consumers()).map((info) => info.name).sort()).toEqual(['kept', 'me']);
  });
});
