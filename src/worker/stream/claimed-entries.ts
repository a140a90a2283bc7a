/**
 * What a worker holds of one stream, and how many of those entries want a slot. Every change of an entry's state goes
 * through here, so that the count and the order by key stay right.
 *
 * Invariant: an entry is held once, however often it is delivered, until it is let go.
 */

import type { Held, HeldState } from '../entry.ts';
import { fieldsOf } from '../group/dead-letters.ts';
import type { Delivery } from '../group/group.ts';
import type { Dispatcher } from '../handlers/dispatcher.ts';
import { traceFields } from '../trace.ts';
import type { KeyOrder } from './key-order.ts';

export interface Hand {
  readonly size: number;
  /** Entries that want a slot, not counting those that wait for their key. */
  readonly queued: number;
  /** Those of them that are retries or were taken over. */
  readonly queuedAgain: number;
  /** `performance.now()` since when some do, if any. */
  readonly queuedSince: number;
  /** One of an ordered stream waits for its backoff, and with it those behind it. */
  readonly resting: boolean;
  has(id: string): boolean;
  get(id: string): Held | undefined;
  /** As of now: what is let go meanwhile stays in it. */
  entries(): Held[];
  take(delivery: Delivery): Held;
  /** Lets it wait for its slot, behind those of its key. */
  line(entry: Held): void;
  /** Lets it wait for its slot. */
  queue(entry: Held): void;
  start(entry: Held): void;
  settle(entry: Held): void;
  /** Lets it keep its place until it is queued again. */
  rest(entry: Held): void;
  /** Takes back one that waits for its slot. Gives the entry to settle in its place. */
  withdraw(entry: Held): Held;
  letGo(entry: Held): void;
}

export function createHand(options: {
  readonly stream: string;
  readonly order: KeyOrder | undefined;
  readonly dispatcher: () => Dispatcher;
  /** There is one less. */
  onLetGo(): void;
}): Hand {
  const { stream, order, dispatcher } = options;
  const held = new Map<string, Held>();
  let queued = 0;
  let queuedAgain = 0;
  let queuedSince = performance.now();
  let resting = 0;

  function setQueued(entry: Held, value: boolean): void {
    if (entry.queued === value) return;
    entry.queued = value;
    if (value && queued === 0) queuedSince = performance.now();
    queued += value ? 1 : -1;
    if (entry.again) queuedAgain += value ? 1 : -1;
  }
  function setState(entry: Held, state: HeldState): void {
    if (entry.state === 'resting') resting -= 1;
    if (state === 'resting') resting += 1;
    entry.state = state;
    setQueued(entry, state === 'waiting');
  }
  function queue(entry: Held): void {
    setState(entry, 'waiting');
    entry.waitingSince = performance.now();
    dispatcher().add(entry);
  }

  return {
    get size() {
      return held.size;
    },
    get queued() {
      return queued;
    },
    get queuedAgain() {
      return queuedAgain;
    },
    get queuedSince() {
      return queuedSince;
    },
    get resting() {
      return resting > 0;
    },
    has: (id) => held.has(id),
    get: (id) => held.get(id),
    entries: () => [...held.values()],
    take({ id, fields: flat, overdueMs, attempt, takeovers }) {
      const now = performance.now();
      const fields = fieldsOf(flat);
      const entry: Held = {
        stream,
        id,
        fields,
        trace: traceFields(fields),
        event: undefined,
        attempt,
        takeovers,
        stored: false,
        steps: [],
        step: 0,
        failures: [],
        interrupted: false,
        state: 'waiting',
        queued: false,
        again: overdueMs > 0 || attempt > 1,
        dueAt: now - overdueMs,
        waitingSince: now,
        renewedAt: now,
        claim: 'here',
        key: undefined,
        abort: undefined,
      };
      held.set(id, entry);
      setQueued(entry, true);
      return entry;
    },
    line(entry) {
      if (order === undefined || order.enter(entry)) queue(entry);
      else setQueued(entry, false);
    },
    queue,
    start: (entry) => setState(entry, 'running'),
    settle: (entry) => setState(entry, 'settling'),
    rest: (entry) => setState(entry, 'resting'),
    withdraw(entry) {
      // The dispatcher skips what is gone, so its copy in the queue must be another one than the entry that settles.
      const settling: Held = { ...entry, state: 'settling', queued: false };
      setState(entry, 'gone');
      held.set(entry.id, settling);
      return settling;
    },
    letGo(entry) {
      if (entry.state === 'gone') return;
      setState(entry, 'gone');
      held.delete(entry.id);
      const next = order?.leave(entry);
      if (next !== undefined) queue(next);
      options.onLetGo();
    },
  };
}
