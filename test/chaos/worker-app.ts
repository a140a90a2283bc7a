/**
 * The app of the worker's chaos run. Handlers note begin and end of each call in a file of their own (one for each
 * thread), with plain writes, which survive a kill -9.
 */
import { openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { threadId } from 'node:worker_threads';
import { defineApp, type TaskContext } from '../../src/worker/app.ts';
import {
  CHAOS_GRACE_MS,
  CHAOS_RETRY,
  CHAOS_TIMEOUT_MS,
  type ChaosEvent,
  eventOf,
  outcomeOf,
} from './worker-outcomes.ts';

const seed = process.env.CHAOS_SEED ?? '';
const notes = openSync(join(process.env.CHAOS_NOTES ?? '.', `${process.pid}-${threadId}.txt`), 'a');

function note(what: string, { id, attempt }: TaskContext, event: ChaosEvent): void {
  writeSync(notes, `${what} ${id} ${event.number} ${attempt} ${Date.now()}\n`);
}

async function handle(event: ChaosEvent, context: TaskContext): Promise<void> {
  note('begin', context, event);
  const outcome = outcomeOf(seed, event, context.attempt);
  switch (outcome) {
    case 'throw':
      note('fail', context, event);
      throw new Error('as drawn');
    case 'throw-odd':
      note('fail', context, event);
      throw { odd: true };
    case 'hang':
      await sleep(60_000, undefined, { signal: context.signal });
      return;
    case 'block':
      for (;;);
    case 'exit':
      note('fail', context, event);
      process.exit(1);
      return;
    default:
      note('ok', context, event);
  }
}

export default defineApp<ChaosEvent>({
  streams: 'events',
  group: 'workers',
  decode(fields) {
    const event = eventOf(seed, Number(fields.n));
    if (event.malformed) throw new Error('cannot be decoded');
    return event;
  },
  route: (event) => event.task,
  threads: 2,
  concurrency: 8,
  retry: CHAOS_RETRY,
  timeoutMs: CHAOS_TIMEOUT_MS,
  graceMs: CHAOS_GRACE_MS,
  handlers: { here: { run: 'in-process', handle }, there: { run: 'thread', handle } },
});
