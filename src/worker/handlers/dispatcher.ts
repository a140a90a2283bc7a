/**
 * Decides what runs next. Two lanes, each with a number of slots: this process's own (`concurrency`) and the threads.
 * Within a lane the handlers take turns, and within a handler first attempts and retries: neither waits behind a long
 * queue of the other. A handler that has reached its own limit is passed over.
 *
 *   add ──▶ [handler's queue] ──(lane free, handler free, rate granted)──▶ call ──▶ onOutcome
 *
 * Invariant: an entry is in at most one queue; one that was let go while it waited is skipped when its turn comes.
 */
import type { App, HandlerSpec } from '../app.ts';
import type { Held } from '../entry.ts';
import type { WorkerMetrics } from '../metrics.ts';
import type { RateGate } from './rate-limit.ts';
import { type CallOutcome, callHandler } from './run-handler.ts';
import type { ThreadPool } from './thread-pool.ts';

interface Lane {
  readonly limit: () => number;
  running: number;
  /** Handlers that ignored their signal and still hold a slot. */
  stuck: number;
  readonly turns: Turn[];
  next: number;
}

interface Turn {
  readonly handler: HandlerSpec;
  readonly lane: Lane;
  readonly firstAttempts: Held[];
  readonly retries: Held[];
  retriedLast: boolean;
  running: number;
  gate: RateGate | undefined;
  readonly observe: (seconds: number) => void;
  readonly inProgress: { inc(): void; dec(): void };
  readonly countRetry: () => void;
}

export interface Dispatcher {
  /** Puts the entry into the queue of the handler whose turn it is (`held.steps[held.step]`). */
  add(held: Held): void;
  /** Slots that are free. */
  readonly free: number;
  /** Handlers running within their time. */
  readonly running: number;
  /** Handlers that ignored their signal and still hold a slot. */
  readonly stuck: number;
  /** How many handlers of a kind may run at once. */
  slots(run: HandlerSpec['run']): number;
  /** `performance.now()` of the last outcome. */
  readonly lastOutcomeAt: number;
  /** Nothing starts any more. */
  stop(): void;
}

export interface DispatcherOptions {
  readonly app: App;
  readonly group: string;
  readonly pool: ThreadPool | undefined;
  readonly metrics: WorkerMetrics;
  /** Makes the gate of a handler with a rate limit. */
  gate(handler: HandlerSpec, wanted: () => number, onGranted: () => void): RateGate;
  onStart(held: Held): void;
  onOutcome(held: Held, outcome: CallOutcome, tookMs: number): void;
  /** A slot is free and nothing that waits could use it. */
  onFree(): void;
}

export function createDispatcher(options: DispatcherOptions): Dispatcher {
  const { app, pool, metrics } = options;
  const inProcess: Lane = { limit: () => app.concurrency, running: 0, stuck: 0, turns: [], next: 0 };
  const threads: Lane = { limit: () => pool?.limit ?? 0, running: 0, stuck: 0, turns: [], next: 0 };
  const turnOf = new Map<HandlerSpec, Turn>();
  for (const handler of app.handlers.values()) {
    const labels = { task: handler.name };
    const histogram = metrics.duration.labels(labels);
    const retryCounter = metrics.retries.labels(labels);
    const turn: Turn = {
      handler,
      lane: handler.run === 'thread' ? threads : inProcess,
      firstAttempts: [],
      retries: [],
      retriedLast: false,
      running: 0,
      gate: undefined,
      observe: (seconds) => histogram.observe(seconds),
      inProgress: metrics.inProgress.labels(labels),
      countRetry: () => retryCounter.inc(),
    };
    if (handler.rateLimit !== undefined) {
      turn.gate = options.gate(
        handler,
        () => Math.min(turn.firstAttempts.length + turn.retries.length, room(turn)),
        () => pump(turn.lane),
      );
    }
    turn.lane.turns.push(turn);
    turnOf.set(handler, turn);
  }
  const lanes = [inProcess, threads].filter((lane) => lane.turns.length > 0);
  pool?.onReady(() => pump(threads));

  let stopped = false;
  let lastOutcomeAt = performance.now();
  let pumping = false;

  function room(turn: Turn): number {
    return Math.max(0, Math.min(turn.lane.limit() - turn.lane.running, turn.handler.concurrency - turn.running));
  }

  /** Starts what can start in a lane, one of each handler in turn. */
  function pump(lane: Lane): void {
    if (pumping) return;
    pumping = true;
    let passedOver = 0;
    while (!stopped && lane.running < lane.limit() && passedOver < lane.turns.length) {
      const turn = lane.turns[lane.next]!;
      lane.next = (lane.next + 1) % lane.turns.length;
      const queue = nextQueue(turn);
      if (queue.length === 0 || turn.running >= turn.handler.concurrency || turn.gate?.take() === false) {
        passedOver += 1;
        continue;
      }
      passedOver = 0;
      turn.retriedLast = queue === turn.retries;
      start(turn, queue.shift()!);
    }
    pumping = false;
  }

  function start(turn: Turn, held: Held): void {
    const { lane, handler } = turn;
    lane.running += 1;
    turn.running += 1;
    turn.inProgress.inc();
    if (held.attempt > 1) turn.countRetry();
    options.onStart(held);
    const startedAt = performance.now();
    let decided = false;
    let released = false;
    let stuck = false;
    const call = callHandler({
      handler,
      event: held.event,
      context: {
        attempt: held.attempt,
        task: handler.name,
        stream: held.stream,
        group: options.group,
        id: held.id,
        trace: held.trace,
      },
      graceMs: app.graceMs,
      pool,
      onOutcome(outcome) {
        decided = true;
        held.abort = undefined;
        lastOutcomeAt = performance.now();
        const tookMs = lastOutcomeAt - startedAt;
        turn.observe(tookMs / 1000);
        options.onOutcome(held, outcome, tookMs);
        // Still here after this tick: nothing could end it.
        queueMicrotask(() => {
          if (released) return;
          lane.stuck += 1;
          stuck = true;
        });
      },
      onReleased() {
        released = true;
        if (stuck) lane.stuck -= 1;
        lane.running -= 1;
        turn.running -= 1;
        turn.inProgress.dec();
        pump(lane);
        options.onFree();
      },
      onThreadDeath(cause) {
        metrics.threadDeaths.inc({ cause });
      },
    });
    if (!decided) held.abort = call.abort;
  }

  return {
    add(held) {
      const turn = turnOf.get(held.steps[held.step]!)!;
      (held.attempt > 1 ? turn.retries : turn.firstAttempts).push(held);
      pump(turn.lane);
    },
    get free() {
      return lanes.reduce((sum, lane) => sum + Math.max(0, lane.limit() - lane.running), 0);
    },
    get running() {
      return lanes.reduce((sum, lane) => sum + lane.running - lane.stuck, 0);
    },
    get stuck() {
      return lanes.reduce((sum, lane) => sum + lane.stuck, 0);
    },
    slots: (run) => (run === 'thread' ? threads : inProcess).limit(),
    get lastOutcomeAt() {
      return lastOutcomeAt;
    },
    stop() {
      stopped = true;
      for (const turn of turnOf.values()) turn.gate?.close();
    },
  };
}

/** Without those that were let go while they waited; empty only when both are. */
function nextQueue({ firstAttempts, retries, retriedLast }: Turn): Held[] {
  for (const queue of [firstAttempts, retries]) while (queue[0]?.state === 'gone') queue.shift();
  const [preferred, other] = retriedLast ? [firstAttempts, retries] : [retries, firstAttempts];
  return preferred.length > 0 ? preferred : other;
}
