import { expect, test } from 'vitest';
import { defineApp } from '../../src/worker/app.ts';
import type { Held } from '../../src/worker/entry.ts';
import { createDispatcher, type Dispatcher } from '../../src/worker/handlers/dispatcher.ts';
import { createMetrics } from '../../src/worker/metrics.ts';
import { until } from './worker-harness.ts';

const app = defineApp({
  streams: 'events',
  handlers: { work: { run: 'in-process', concurrency: 1, async handle() {} } },
});

function waiting(id: string, attempt: number): Held {
  return {
    stream: 'events',
    id,
    fields: {},
    trace: {},
    event: {},
    attempt,
    takeovers: 0,
    stored: false,
    steps: [app.handlers.get('work')!],
    step: 0,
    failures: [],
    interrupted: false,
    state: 'waiting',
    queued: true,
    again: attempt > 1,
    dueAt: 0,
    waitingSince: 0,
    renewedAt: 0,
    claim: 'here',
    key: undefined,
    abort: undefined,
  };
}

/** The order in which entries start that are all added while the first one runs. */
async function startsOf(entries: readonly Held[]): Promise<string[]> {
  const started: string[] = [];
  const dispatcher: Dispatcher = createDispatcher({
    app,
    group: 'group',
    pool: undefined,
    metrics: createMetrics(app),
    gate: () => {
      throw new Error('no handler here has a rate limit');
    },
    onStart: (held) => started.push(held.id),
    onOutcome() {},
    onFree() {},
  });
  for (const entry of entries) dispatcher.add(entry);
  const alive = entries.filter((entry) => entry.state !== 'gone').length;
  await until('all started', () => started.length === alive);
  dispatcher.stop();
  return started;
}

const named = (prefix: string, attempt: number, count: number): Held[] =>
  Array.from({ length: count }, (_, i) => waiting(`${prefix}${i + 1}`, attempt));

test('a retry does not wait behind a long queue of first attempts', async () => {
  const started = await startsOf([...named('new', 1, 20), ...named('retry', 2, 3)]);
  expect(started.slice(0, 7)).toEqual(['new1', 'retry1', 'new2', 'retry2', 'new3', 'retry3', 'new4']);
  expect(started.at(-1)).toBe('new20');
});

test('a first attempt does not wait behind a long queue of retries', async () => {
  const started = await startsOf([...named('retry', 3, 20), ...named('new', 1, 2)]);
  expect(started.slice(0, 5)).toEqual(['retry1', 'new1', 'retry2', 'new2', 'retry3']);
});

test('what was let go while it waited takes no turn', async () => {
  const gone: Held = { ...waiting('gone', 2), state: 'gone' };
  expect(await startsOf([waiting('new1', 1), gone, waiting('new2', 1)])).toEqual(['new1', 'new2']);
});
