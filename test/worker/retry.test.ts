import { setTimeout as sleep } from 'node:timers/promises';
import pg from 'pg';
import { describe, expect, test } from 'vitest';
import { defineApp, type PermanentFailure, permanentFailure } from '../../src/worker/app.ts';
import { deliveryCount, historyOf, retryDelayMs } from '../../src/worker/retry-policy.ts';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { addAll, client, deadLettersOf, drained, pendingOf, runWorker, until } from './worker-harness.ts';

describe('the policy', () => {
  const policy = { attempts: 5, baseMs: 1000, maxMs: 3_600_000, jitter: 0.1 };

  test('doubles from the base to the cap, varied by at most a tenth', () => {
    const middle = (failed: number) => retryDelayMs(policy, failed, () => 0.5);
    expect([1, 2, 3, 4].map(middle)).toEqual([1000, 2000, 4000, 8000]);
    expect(middle(40)).toBe(3_600_000);
    expect(retryDelayMs(policy, 1, () => 0)).toBe(900);
    expect(retryDelayMs(policy, 1, () => 0.999999)).toBe(1100);
  });

  test('keeps attempts and takeovers apart in one delivery count', () => {
    expect(historyOf(1)).toEqual({ attempt: 1, takeovers: 0 });
    for (const history of [
      { attempt: 1, takeovers: 20 },
      { attempt: 999, takeovers: 3 },
    ]) {
      expect(historyOf(deliveryCount(history))).toEqual(history);
    }
  });
});

describe.each(kvKinds)('failed entries on %s', (kind) => {
  test('are tried again after the backoff, with the attempt counted, until they succeed', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    const tries: { attempt: number; at: number }[] = [];
    const app = defineApp({
      streams: 'events',
      retry: { baseMs: 100, jitter: 0 },
      handlers: {
        flaky: {
          run: 'in-process',
          handle(_event, { attempt }) {
            tries.push({ attempt, at: Date.now() });
            if (attempt < 4) throw new Error('not yet');
          },
        },
      },
    });
    await addAll(redis, 'events', [{ n: '1' }]);
    await runWorker(app, { kv: kv.url });
    await until('four attempts', () => tries.length === 4);
    await until('acknowledged', () => drained(redis, 'events'));
    expect(tries.map((each) => each.attempt)).toEqual([1, 2, 3, 4]);
    const gaps = tries.slice(1).map((each, i) => each.at - tries[i]!.at);
    // Each gap is the backoff and at most the poll for due entries, with room for a busy machine.
    for (const [i, wait] of [100, 200, 400].entries()) {
      expect(gaps[i]).toBeGreaterThanOrEqual(wait - 1);
      expect(gaps[i]).toBeLessThan(wait + 2000);
    }
    expect(await deadLettersOf(redis, 'events')).toEqual([]);
  });

  test('wait with the retry consumer, their count telling the next attempt', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    const app = defineApp({
      streams: 'events',
      retry: { baseMs: 60_000 },
      handlers: {
        failing: {
          run: 'in-process',
          handle() {
            throw new Error('no');
          },
        },
      },
    });
    const [id] = await addAll(redis, 'events', [{ n: '1' }]);
    await runWorker(app, { kv: kv.url });
    await until('postponed', async () => (await pendingOf(redis, 'events'))[0]?.consumer === 'events-group:retry');
    const [pending] = await pendingOf(redis, 'events');
    expect(pending).toMatchObject({ id, consumer: 'events-group:retry', deliveries: 2 });
  });

  test.each(['without a database', 'with a database'])(
    'end as one report and an acknowledgement after the last attempt, %s',
    async (mode) => {
      const kv = await startKv(kind);
      const redis = client(kv.url);
      const database = mode === 'with a database' ? (await startTestPostgres()).url : undefined;
      const app = defineApp({
        streams: 'events',
        retry: { attempts: 3, baseMs: 20 },
        failureFields: (failure: PermanentFailure) => ({ seenBy: failure.task }),
        handlers: {
          failing: {
            run: 'in-process',
            async handle() {
              throw new Error('never');
            },
          },
        },
      });
      const binary = Buffer.from([0xff, 0x00, 0x80]);
      const ids = await addAll(redis, 'events', [{ n: '1', ctx_traceparent: '00-1-2-01' }, { n: '2' }]);
      const binaryId = String(await redis.call('XADD', 'events', '*', 'blob', binary));
      await runWorker(app, { kv: kv.url, database });
      await until('reported', async () => (await deadLettersOf(redis, 'events')).length === 3);
      await until('acknowledged', () => drained(redis, 'events'));
      const letters = await deadLettersOf(redis, 'events');
      expect(letters.map((letter) => letter.id).sort()).toEqual([...ids, binaryId].sort());
      const first = letters.find((letter) => letter.id === ids[0])!;
      expect(first).toMatchObject({
        event: 'InternalTaskPermanentlyFailed',
        stream: 'events',
        group: 'events-group',
        task: 'failing',
        attempts: '3',
        ctx_traceparent: '00-1-2-01',
        seenBy: 'failing',
        original: JSON.stringify(['n', '1', 'ctx_traceparent', '00-1-2-01']),
      });
      expect(JSON.parse(first.body!)).toMatchObject({
        reason: 'InternalTaskPermanentlyFailed',
        involvedObject: { kind: 'System', name: 'queue' },
        details: { retryCount: 3, errorMessage: expect.stringContaining('never'), originalEvent: { n: '1' } },
      });
      const blob = letters.find((letter) => letter.id === binaryId)!;
      expect(JSON.parse(blob.originalBase64!)).toEqual(
        ['blob', binary].map((each) => Buffer.from(each).toString('base64')),
      );
    },
  );

  test('fail for good at once when they are malformed, and a handler may say so too', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    let calls = 0;
    const app = defineApp<{ task: string }>({
      streams: 'events',
      decode: (fields) => JSON.parse(fields.body ?? '') as { task: string },
      route: (event) => event.task,
      handlers: {
        hopeless: {
          run: 'in-process',
          handle() {
            calls += 1;
            throw permanentFailure('cannot ever work');
          },
        },
      },
    });
    await addAll(redis, 'events', [{ body: '{' }, { body: '{"task":"nobody"}' }, { body: '{"task":"hopeless"}' }]);
    await runWorker(app, { kv: kv.url });
    await until('three reports', async () => (await deadLettersOf(redis, 'events')).length === 3);
    await until('acknowledged', () => drained(redis, 'events'));
    const letters = await deadLettersOf(redis, 'events');
    expect(letters.map((letter) => letter.attempts).sort()).toEqual(['0', '0', '1']);
    expect(letters.map((letter) => letter.error!.split('\n')[0]).sort()).toEqual([
      expect.stringMatching(/^hopeless: .*cannot ever work/),
      expect.stringMatching(/^malformed: .*JSON/),
      'malformed: there is no handler "nobody"',
    ]);
    expect(calls).toBe(1);
  });

  test('with several handlers run all of them, whichever fails', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    const calls: string[] = [];
    const app = defineApp({
      streams: 'events',
      retry: { attempts: 2, baseMs: 20 },
      route: () => ['first', 'second', 'third'],
      handlers: Object.fromEntries(
        ['first', 'second', 'third'].map((name) => [
          name,
          {
            run: 'in-process' as const,
            handle() {
              calls.push(name);
              if (name === 'second') throw new Error('second fails');
            },
          },
        ]),
      ),
    });
    await addAll(redis, 'events', [{ n: '1' }]);
    await runWorker(app, { kv: kv.url });
    await until('reported', async () => (await deadLettersOf(redis, 'events')).length === 1);
    expect(calls).toEqual(['first', 'second', 'third', 'first', 'second', 'third']);
    expect((await deadLettersOf(redis, 'events'))[0]).toMatchObject({ task: 'second', attempts: '2' });
  });

  test('that match no handler on purpose are acknowledged', async () => {
    const kv = await startKv(kind);
    const redis = client(kv.url);
    const app = defineApp({
      streams: 'events',
      route: () => [],
      handlers: { none: { run: 'in-process', handle() {} } },
    });
    await addAll(redis, 'events', [{ n: '1' }, { n: '2' }]);
    await runWorker(app, { kv: kv.url });
    await until('acknowledged', () => drained(redis, 'events'));
    expect(await deadLettersOf(redis, 'events')).toEqual([]);
  });
});

test('attempts survive a KV store that lost its pending entries, with a database', async () => {
  const kv = await startKv(kvKinds[0]!);
  const redis = client(kv.url);
  const { url: database } = await startTestPostgres();
  const attempts: number[] = [];
  const app = defineApp({
    streams: 'events',
    retry: { attempts: 3, baseMs: 300, jitter: 0 },
    handlers: {
      failing: {
        run: 'in-process',
        handle(_event, { attempt }) {
          attempts.push(attempt);
          throw new Error('no');
        },
      },
    },
  });
  const [id] = await addAll(redis, 'events', [{ n: '1' }]);
  await runWorker(app, { kv: kv.url, database });
  await until(
    'the first failure',
    async () => (await pendingOf(redis, 'events'))[0]?.consumer === 'events-group:retry',
  );
  // What a restore does: the same entry under the same ID, the group at its checkpoint, nothing pending.
  await redis
    .multi()
    .del('events')
    .xadd('events', id!, 'n', '1')
    .xgroup('CREATE', 'events', 'events-group', '0')
    .exec();
  await until('reported', async () => (await deadLettersOf(redis, 'events')).length === 1);
  expect(attempts).toEqual([1, 2, 3]);
  // And once more: what was reported is not handled again, and not reported again.
  await redis
    .multi()
    .del('events')
    .xadd('events', id!, 'n', '1')
    .xgroup('CREATE', 'events', 'events-group', '0')
    .exec();
  await until('acknowledged', () => drained(redis, 'events'));
  expect(attempts).toEqual([1, 2, 3]);
  expect(await deadLettersOf(redis, 'events')).toHaveLength(1);
});

test('a Postgres that does not answer holds up retries and new entries for a moment, once; reports stay single', async () => {
  const kv = await startKv(kvKinds[0]!);
  const redis = client(kv.url);
  const { url: database } = await startTestPostgres();
  const handled: string[] = [];
  const app = defineApp({
    streams: 'events',
    retry: { attempts: 2, baseMs: 50 },
    handlers: {
      any: {
        run: 'in-process',
        handle({ n, fails }, { attempt }) {
          if (attempt <= Number(fails)) throw new Error('as told');
          handled.push(n!);
        },
      },
    },
  });
  await runWorker(app, { kv: kv.url, database });
  const locker = new pg.Client({ connectionString: database });
  await locker.connect();
  await locker.query('BEGIN');
  // Whoever asks for an entry's attempts waits.
  await locker.query('LOCK TABLE holdfast.worker_entry');
  await addAll(redis, 'events', [{ n: 'first', fails: '0' }]);
  await until('the first one is handled', () => handled.includes('first'));
  let longestMs = 0;
  for (let n = 0; n < 25; n += 1) {
    const addedAt = performance.now();
    await addAll(redis, 'events', [{ n: String(n), fails: String(n % 2) }]);
    await until('the next one is handled', () => handled.includes(String(n)));
    longestMs = Math.max(longestMs, performance.now() - addedAt);
    await sleep(250);
  }
  // A statement is given up after 5 s.
  expect(longestMs).toBeLessThan(4000);
  await addAll(redis, 'events', [{ n: 'hopeless', fails: '2' }]);
  await until('it is reported', async () => (await deadLettersOf(redis, 'events')).length === 1);
  await locker.query('ROLLBACK');
  await locker.end();
  await until('all acknowledged', () => drained(redis, 'events'));
  // The report was made while its record could not be finished.
  await sleep(1500);
  expect(await deadLettersOf(redis, 'events')).toMatchObject([{ attempts: '2' }]);
}, 60_000);
