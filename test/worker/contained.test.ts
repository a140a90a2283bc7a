import { expect, test } from 'vitest';
import { defineApp } from '../../src/worker/app.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import app from './apps/contained.ts';
import lingering from './apps/lingering.ts';
import { addAll, client, deadLettersOf, drained, runWorker, until } from './worker-harness.ts';

const module = new URL('./apps/contained.ts', import.meta.url).href;

const CASES: Record<string, RegExp> = {
  blocks: /timed out after 200 ms/,
  ignores: /timed out after 200 ms/,
  obeys: /timed out after 200 ms/,
  leaks: /memory/,
  exits: /exited with code: 3/,
  'throws null': /not an error was thrown: null/,
  'throws an object': /not an error was thrown: \{"reason":"odd"\}/,
  'throws a trap': /cannot be looked at/,
  'throws later': /out of band/,
  'rejects later': /unhandled/,
  'rejects with undefined': /not an error was thrown: undefined/,
  'throws an uncloneable': /with a function/,
};

test('whatever a handler does in its thread is an outcome of its own entry, and of no other', async () => {
  const kv = await startKv(kvKinds[0]!);
  const redis = client(kv.url);
  const names = Object.keys(CASES);
  await addAll(
    redis,
    'events',
    [...names, 'fine', 'returns', 'returns much', 'in-process'].map((task) => ({ task })),
  );
  const worker = await runWorker(app, { kv: kv.url, module, http: '127.0.0.1:0' });
  await until('all settled', () => drained(redis, 'events'), 100_000);
  const letters = await deadLettersOf(redis, 'events');
  expect(letters.map((letter) => letter.task).sort()).toEqual([...names].sort());
  for (const letter of letters) {
    expect(letter.attempts, letter.task).toBe('2');
    expect(letter.error, letter.task).toMatch(CASES[letter.task!]!);
  }
  // The pool is whole again: two threads, and they work.
  await addAll(redis, 'events', [{ task: 'fine' }, { task: 'fine' }]);
  await until('the pool works again', () => drained(redis, 'events'));
  const metrics = await (await fetch(`http://${worker.http}/metrics`)).text();
  expect(metrics).toContain('holdfast_worker_processed_total{task="fine",outcome="succeeded"} 3');
  // What has not happened is there as well, so that its first time is an increase.
  expect(metrics).toContain('holdfast_worker_processed_total{task="fine",outcome="permanently_failed"} 0');
  expect(metrics).toContain('holdfast_worker_takeovers_total{stream="events"} 0');
  expect(metrics).toMatch(/holdfast_worker_thread_deaths_total\{cause="memory"\} 2/);
  expect(metrics).toMatch(/holdfast_worker_thread_deaths_total\{cause="exit"\} 2/);
  expect(worker.health()).toMatchObject({ healthy: true, running: 0, stuck: 0, held: 0 });
}, 130_000);

test('a call that its thread did not get to is no attempt', async () => {
  const kv = await startKv(kvKinds[0]!);
  const redis = client(kv.url);
  const lingeringModule = new URL('./apps/lingering.ts', import.meta.url).href;
  const worker = await runWorker(lingering, { kv: kv.url, module: lingeringModule });
  const abandoned = /processed_total\{task="fine",outcome="abandoned"\} [1-9]/;
  let rounds = 0;
  let metrics = '';
  // Whether the second call is handed over before the thread lingers is chance.
  while (rounds < 10 && !abandoned.test(metrics)) {
    rounds += 1;
    await addAll(redis, 'events', [{ task: 'lingers' }, { task: 'fine' }]);
    await until('all settled', () => drained(redis, 'events'), 60_000);
    metrics = await worker.metrics.metrics();
  }
  expect(await deadLettersOf(redis, 'events')).toEqual([]);
  expect(metrics).toMatch(abandoned);
  expect(metrics).toContain(`processed_total{task="fine",outcome="succeeded"} ${rounds}`);
}, 120_000);

test('a handler module that cannot be loaded in a thread keeps the worker from starting, and says which', async () => {
  const kv = await startKv(kvKinds[0]!);
  const broken = defineApp({ streams: 'events', threads: 2, handlers: { pay: { module: './no-such-module.ts' } } });
  const start = runWorker(broken, { kv: kv.url, module });
  await expect(start).rejects.toMatchObject({
    code: 'CONFIG',
    message: expect.stringMatching(/^handlers\.pay: .*no-such-module/),
  });
}, 60_000);
