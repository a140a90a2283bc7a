import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { defineApp } from '../../src/worker/app.ts';
import { createReadAhead } from '../../src/worker/stream/read-ahead.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import mixed from './apps/mixed.ts';
import { addAll, client, pendingOf, runWorker, until } from './worker-harness.ts';

test('fast handlers in the process do not hoard entries for slow threads', async () => {
  const kv = await startKv(kvKinds[0]!);
  const redis = client(kv.url);
  await addAll(
    redis,
    'events',
    Array.from({ length: 1200 }, (_, n) => ({ task: n % 3 === 0 ? 'slow' : 'fast' })),
  );
  const module = new URL('./apps/mixed.ts', import.meta.url).href;
  await runWorker(mixed, { kv: kv.url, module });
  await until('slow ones wait', async () => (await pendingOf(redis, 'events')).length > 10);
  // It goes on as long as it finds room.
  let last = '';
  await until('nothing moves any more', async () => {
    const before = last;
    await sleep(1000);
    last = JSON.stringify((await pendingOf(redis, 'events')).map((entry) => entry.id));
    return last === before;
  });
  // 16 slots in the process and 1 thread.
  expect((await pendingOf(redis, 'events')).length).toBeLessThanOrEqual(17);
});

test('the narrowest bottleneck says how many entries are taken in ahead', () => {
  const app = defineApp({
    streams: 'events',
    handlers: {
      fast: { run: 'in-process', handle() {} },
      narrow: { run: 'in-process', concurrency: 2, handle() {} },
      limited: { run: 'in-process', rateLimit: { max: 10, perMs: 1000 }, handle() {} },
    },
  });
  const [fast, narrow, limited] = [...app.handlers.values()];
  const ahead = createReadAhead(app, () => 16);
  expect(ahead.entriesWithin(1000)).toBe(0);
  ahead.onEntry(fast!);
  expect(ahead.entriesWithin(1000)).toBe(0);
  for (let i = 0; i < 1000; i += 1) ahead.onOutcome(fast!, 100);
  expect(ahead.entriesWithin(1000)).toBe(160);
  // Not known yet how long it takes.
  ahead.onEntry(narrow!);
  expect(ahead.entriesWithin(1000)).toBe(0);
  for (let i = 0; i < 1000; i += 1) ahead.onOutcome(narrow!, 100);
  expect(ahead.entriesWithin(1000)).toBe(20);
  ahead.onEntry(limited!);
  for (let i = 0; i < 1000; i += 1) ahead.onOutcome(limited!, 1);
  expect(ahead.entriesWithin(1000)).toBe(10);
});

test('large entries are not taken in ahead by the hundred', () => {
  const app = defineApp({ streams: 'events', handlers: { fast: { run: 'in-process', handle() {} } } });
  const [fast] = [...app.handlers.values()];
  const ahead = createReadAhead(app, () => 16);
  ahead.onEntry(fast!);
  ahead.onOutcome(fast!, 0.01);
  ahead.onDelivery(100);
  expect(ahead.entriesWithin(1000)).toBe(512);
  ahead.onDelivery(8 * 1024 * 1024);
  expect(ahead.entriesWithin(1000)).toBe(2);
  for (let i = 0; i < 1000; i += 1) ahead.onDelivery(100);
  expect(ahead.entriesWithin(1000)).toBe(512);
});
