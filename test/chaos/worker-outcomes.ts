/**
 * What a handler of the worker's chaos run does with an event: a pure function of the run's seed, the event's number and
 * the attempt, so that the checker knows what must have become of each event.
 */
import { seededRandom } from './seeded-random.ts';

export type Outcome = 'ok' | 'throw' | 'throw-odd' | 'hang' | 'block' | 'exit';
export type ChaosTask = 'here' | 'there';

export const CHAOS_RETRY = { attempts: 5, baseMs: 100, maxMs: 1000, jitter: 0.1 };
export const CHAOS_TIMEOUT_MS = 1000;
export const CHAOS_GRACE_MS = 200;
/** Every so many events one fails in every attempt, and one cannot be decoded. */
const HOPELESS_EVERY = 211;
const MALFORMED_EVERY = 1009;

export interface ChaosEvent {
  readonly number: number;
  readonly task: ChaosTask;
  readonly malformed: boolean;
}

export function eventOf(seed: string, number: number): ChaosEvent {
  const random = seededRandom(`${seed}/event/${number}`);
  return { number, task: random.chance(0.4) ? 'there' : 'here', malformed: number % MALFORMED_EVERY === 0 };
}

export function outcomeOf(seed: string, event: ChaosEvent, attempt: number): Outcome {
  if (event.number % HOPELESS_EVERY === 0) return 'throw';
  const draw = seededRandom(`${seed}/outcome/${event.number}/${attempt}`).next();
  if (draw < 0.08) return 'throw';
  if (draw < 0.09) return 'throw-odd';
  if (draw < 0.093) return 'hang';
  if (event.task === 'there' && draw < 0.0945) return 'block';
  if (event.task === 'there' && draw < 0.096) return 'exit';
  return 'ok';
}

/** The attempt that succeeds; `undefined`: all fail. */
export function succeedsAt(seed: string, event: ChaosEvent): number | undefined {
  for (let attempt = 1; attempt <= CHAOS_RETRY.attempts; attempt += 1) {
    if (outcomeOf(seed, event, attempt) === 'ok') return attempt;
  }
  return undefined;
}
