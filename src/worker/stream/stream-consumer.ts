/**
 * One stream in one worker: takes entries in as slots allow, and looks after the group.
 *
 *   XREADGROUP ─┐
 *   claimDue ───┼─▶ intake ─▶ dispatcher ─▶ settlement ─▶ let go
 *   adopt ──────┘
 *
 * Loops: reading; claiming what is due; keeping claims; taking over from the dead; looking after the stream.
 *
 * Invariant: taking in is exclusive against recovering this worker's own pending entries: what is on its way is not
 * "unknown".
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Redis } from 'ioredis';
import type { Logger } from 'pino';
import { messageOf } from '../../errors.ts';
import type { App } from '../app.ts';
import { createBell } from '../bell.ts';
import { RECONNECT_MS_MAX } from '../connection.ts';
import type { Held } from '../entry.ts';
import { createFailureReporter } from '../group/dead-letters.ts';
import { type Group, isNoGroup } from '../group/group.ts';
import type { WorkerStore } from '../group/store.ts';
import type { Dispatcher } from '../handlers/dispatcher.ts';
import type { CallOutcome } from '../handlers/run-handler.ts';
import type { WorkerMetrics } from '../metrics.ts';
import { createAttemptMemory } from './attempt-memory.ts';
import { createClaimKeeper } from './claim-renewal.ts';
import { createHand } from './claimed-entries.ts';
import { createIntake } from './intake.ts';
import { createKeyOrder } from './key-order.ts';
import { createReadAhead } from './read-ahead.ts';
import { createSettlement } from './settlement.ts';
import { createStreamWatch, type StreamFigures } from './stream-watch.ts';

const BLOCK_MS = 2000;
const DUE_POLL_MS = 250;
const DUE_POLL_MS_MAX = 1000;
/** Retries in hand that wait for a slot: what keeps one handler's from hiding those of all others. */
const QUEUED_AGAIN_MAX = 256;
/** Of so many turns, while something is due, one is for new entries. */
const TURNS = 4;
const BATCH_MAX = 500;
/** Entries are taken in for so long in advance, and for as long as the store takes to answer. */
const READ_AHEAD_MS = 25;
/** Outcomes on their way to the KV store; beyond it nothing more is read. */
const SETTLING_MAX = 4096;
/** Entries of an ordered stream in hand, most of them behind others of their key. */
const ORDERED_HELD_MAX = 1000;
const RETRY_PAUSE_MS = 50;
const SETTLE_MS_MAX = 5000;

export interface ConsumerState {
  readonly stream: string;
  /** Standing by while another worker is active on an ordered stream. */
  readonly standby: boolean;
  /** Wants to read, and when it last could or did not want to (`performance.now()`). */
  readonly hungry: boolean;
  readonly lastReadAt: number;
  readonly held: number;
  /** Entries in hand that want a slot, and since when there are any. */
  readonly queued: number;
  readonly queuedSince: number;
  /** An ordered entry waits for its backoff, which may hold up the stream. */
  readonly resting: boolean;
  readonly figures: StreamFigures;
}

export interface StreamConsumer {
  readonly stream: string;
  start(): void;
  onStart(held: Held): void;
  onOutcome(held: Held, outcome: CallOutcome, tookMs: number): void;
  /** There may be room now. */
  wake(): void;
  state(): ConsumerState;
  /** Stops taking in, waits up to `drainMs` for what runs, and hands the rest back. */
  stop(drainMs: number): Promise<void>;
}

export interface StreamConsumerOptions {
  readonly app: App;
  readonly group: Group;
  readonly commands: Redis;
  readonly reader: Redis;
  readonly store: WorkerStore | undefined;
  readonly metrics: WorkerMetrics;
  readonly log: Logger;
  readonly dispatcher: () => Dispatcher;
}

export function createStreamConsumer(options: StreamConsumerOptions): StreamConsumer {
  const { app, group, commands, reader, store, metrics } = options;
  const { stream } = group;
  const log = options.log.child({ stream });
  const labels = { stream };
  const watch = createStreamWatch({ app, group, commands, metrics, log });
  const readAhead = createReadAhead(app, (run) => options.dispatcher().slots(run));
  const order = app.orderBy === undefined ? undefined : createKeyOrder({ commands, app, group, log });

  const hand = createHand({ stream, order, dispatcher: options.dispatcher, onLetGo: wake });
  const memory = createAttemptMemory({ stream, store, metrics, log });
  const settlement = createSettlement({
    group,
    hand,
    memory,
    onFailure: app.onFailure,
    reporter: createFailureReporter({ app, group, commands, store }),
    ordered: order !== undefined,
    metrics,
    log,
    onAcknowledged: (ids) => watch.acknowledged(ids),
  });
  const intake = createIntake({ app, hand, memory, settlement, readAhead });
  const claims = createClaimKeeper({ app, group, hand, settlement, metrics, log });

  let stopping = false;
  let stopped = false;
  let lastReadAt = performance.now();
  let dueHint = false;
  let recoveryNeeded = false;
  let loops: Promise<unknown> = Promise.resolve();
  const roomBell = createBell();
  const dueBell = createBell();
  const stopSignal = new AbortController();

  // ── room ──

  /** How many entries to take in now. */
  function room(): number {
    if (settlement.size > SETTLING_MAX) return 0;
    const ahead = readAhead.entriesWithin(READ_AHEAD_MS + 2 * memory.lookUpMs);
    const wanted = options.dispatcher().free + ahead - hand.queued;
    // A long queue is filled up by halves, so that many small reads become few large ones.
    if (wanted < Math.max(1, ahead / 2)) return 0;
    return order === undefined ? wanted : Math.min(wanted, ORDERED_HELD_MAX - hand.size);
  }
  /**
   * How many due entries to take in now: where a slot is free they are not kept out by what waits for others, such as new entries
   * of a handler that is blocked.
   */
  function roomForDue(): number {
    const { free } = options.dispatcher();
    if (free === 0 || settlement.size > SETTLING_MAX) return room();
    return Math.max(room(), Math.min(free, QUEUED_AGAIN_MAX - hand.queuedAgain));
  }
  function wake(): void {
    if (roomBell.awaited && (room() > 0 || (dueHint && roomForDue() > 0))) roomBell.ring();
  }
  /** Entries are due now, by this worker's own doing: nobody has to look for them. */
  function noteDue(): void {
    dueHint = true;
    dueBell.ring();
  }
  async function pause(ms: number): Promise<void> {
    await sleep(ms, undefined, { signal: stopSignal.signal }).catch(() => undefined);
  }

  // ── taking in ──

  let turn: Promise<unknown> = Promise.resolve();
  function exclusively<T>(action: () => Promise<T>): Promise<T> {
    const result = turn.then(action);
    turn = result.catch(() => undefined);
    return result;
  }

  // ── loops ──

  function isActive(): boolean {
    return order === undefined || order.active;
  }

  /** Everything is tried again; a group that is gone is made anew first. */
  async function onError(what: string, error: unknown): Promise<void> {
    if (isNoGroup(error)) await group.ensure().catch(() => undefined);
    else log.debug({ error: messageOf(error) }, what);
  }

  async function readLoop(): Promise<void> {
    let turns = 0;
    let pauseMs = RETRY_PAUSE_MS;
    while (!stopping) {
      if (!isActive()) {
        lastReadAt = performance.now();
        await pause(DUE_POLL_MS);
        continue;
      }
      if (room() <= 0 && !(dueHint && roomForDue() > 0)) {
        lastReadAt = performance.now();
        await roomBell.wait(DUE_POLL_MS);
        continue;
      }
      try {
        if (order !== undefined) await adoptAll();
        else if (recoveryNeeded) await exclusively(recoverOwn);
        recoveryNeeded = false;
        turns += 1;
        if (dueHint && turns % TURNS !== 0) await claimPass();
        else await readOnce();
        pauseMs = RETRY_PAUSE_MS;
      } catch (error) {
        if (stopping) return;
        recoveryNeeded = true;
        await onError('reading failed', error);
        await pause(pauseMs);
        pauseMs = Math.min(pauseMs * 2, RECONNECT_MS_MAX);
      }
    }
  }
  async function readOnce(): Promise<void> {
    const count = room();
    if (count <= 0) return;
    // An ordered stream must not be read by one that lost its turn meanwhile.
    const blockMs = order === undefined ? BLOCK_MS : Math.min(BLOCK_MS, app.heartbeatMs);
    const deliveries = await group.read(count, blockMs);
    lastReadAt = performance.now();
    await intake(deliveries);
  }

  /** What the server gave to this worker in a reply that never arrived goes back to all workers. */
  async function recoverOwn(): Promise<void> {
    const unknown = (await group.own(BATCH_MAX * 2)).filter(({ id }) => !hand.has(id));
    if (unknown.length === 0) return;
    await group.postpone(unknown.map((entry) => ({ ...entry, delayMs: 0 })));
    noteDue();
  }

  let adoptedAt = Number.NEGATIVE_INFINITY;
  /** The one active worker takes everything that is pending and that it does not hold. Between reads, so nothing is on its way. */
  async function adoptAll(): Promise<void> {
    if (!recoveryNeeded && order?.adopted === true && performance.now() - adoptedAt < app.heartbeatMs) return;
    let after = '0-0';
    while (hand.size < ORDERED_HELD_MAX) {
      const { entries, last } = await group.adopt(after, BATCH_MAX, (id) => hand.has(id));
      lastReadAt = performance.now();
      await intake(entries);
      if (last === undefined) break;
      after = last;
    }
    order!.adopted = true;
    adoptedAt = performance.now();
  }

  async function claimPass(): Promise<void> {
    await exclusively(async () => {
      const count = Math.min(roomForDue(), BATCH_MAX);
      if (count <= 0) return;
      const deliveries = await group.claimDue(count);
      // Others that are due have been left for the next time.
      dueHint = deliveries.length >= count;
      lastReadAt = performance.now();
      await intake(deliveries);
    });
  }
  async function dueLoop(): Promise<void> {
    /** Of one look: where looking is dear, it is done less often, but what was found is taken without a pause. */
    let tookMs = 0;
    while (!stopping) {
      const pollMs = Math.min(DUE_POLL_MS_MAX, Math.max(DUE_POLL_MS, tookMs * 10));
      await (dueHint ? roomBell.wait(DUE_POLL_MS) : dueBell.wait(pollMs));
      if (stopping) return;
      let startedAt = performance.now();
      try {
        // While the reader waits for room it takes turns itself between new entries and due ones.
        if (roomForDue() <= 0) dueHint ||= await group.hasDue();
        else {
          do {
            startedAt = performance.now();
            await claimPass();
          } while (dueHint && roomForDue() > 0 && !stopping);
        }
      } catch (error) {
        dueHint = false;
        log.debug({ error: messageOf(error) }, 'looking for due entries failed');
      }
      tookMs = performance.now() - startedAt;
    }
  }

  /** Goes on through a shutdown, until everything is handed over. */
  async function claimLoop(): Promise<void> {
    while (!stopped) {
      if (order !== undefined && !(await order.keep())) claims.dropAll();
      try {
        await claims.renew();
        // Alone, too, where retries that wait for their handler keep out those of others.
        const { othersPresent } = watch.figures;
        const full = hand.queuedAgain >= QUEUED_AGAIN_MAX;
        if (order === undefined && (othersPresent || full)) claims.offerWaiting(!othersPresent);
      } catch (error) {
        await onError('renewing claims failed', error);
      }
      await sleep(app.heartbeatMs / 2, undefined, { ref: false });
    }
  }

  async function takeOverLoop(): Promise<void> {
    // While the KV store does not answer nobody can renew a claim: those who live come first, once they are connected again.
    const graceMs = RECONNECT_MS_MAX + app.heartbeatMs;
    let answersSince: number | undefined;
    while (!stopping) {
      let taken = 0;
      const askedAt = performance.now();
      try {
        const holders = await group.holders();
        const answeredAt = performance.now();
        if (answersSince === undefined || answeredAt - askedAt > app.heartbeatMs) answersSince = answeredAt;
        if (answeredAt - answersSince >= graceMs) {
          taken = (await group.takeOver(holders, app.deadAfterMs, (id) => hand.has(id))).length;
        }
      } catch (error) {
        answersSince = undefined;
        await onError('taking over failed', error);
      }
      if (taken === 0) {
        await pause(app.deadAfterMs / 8);
        continue;
      }
      metrics.takeovers.inc(labels, taken);
      log.info({ entries: taken }, 'took over entries of workers that stopped renewing');
      noteDue();
    }
  }

  async function watchLoop(): Promise<void> {
    while (!stopping) {
      await pause(app.heartbeatMs / 2);
      metrics.waiting.set(labels, hand.queued);
      try {
        await watch.look();
      } catch (error) {
        await onError('looking after the group failed', error);
      }
    }
  }

  return {
    stream,
    start() {
      // An ordered stream's active worker adopts everything itself.
      const others = order === undefined ? [dueLoop(), takeOverLoop()] : [];
      loops = Promise.all([readLoop(), watchLoop(), ...others]);
      void claimLoop();
    },
    onStart: hand.start,
    onOutcome(entry, outcome, tookMs) {
      readAhead.onOutcome(entry.steps[entry.step]!, tookMs);
      settlement.onOutcome(entry, outcome);
    },
    wake,
    state() {
      return {
        stream,
        standby: !isActive(),
        hungry: isActive() && room() > 0,
        lastReadAt,
        held: hand.size,
        queued: hand.queued,
        queuedSince: hand.queuedSince,
        resting: hand.resting,
        figures: watch.figures,
      };
    },
    async stop(drainMs) {
      stopping = true;
      settlement.stop();
      stopSignal.abort();
      // A blocked read must not take anything in any more; what it was given just now is handed back below.
      reader.disconnect();
      roomBell.ring();
      dueBell.ring();
      await loops;
      for (const entry of hand.entries()) {
        if (entry.state !== 'waiting') continue;
        if (order === undefined) settlement.handBack(hand.withdraw(entry));
        else hand.letGo(entry);
      }
      const running = (): Held[] => hand.entries().filter((entry) => entry.state === 'running');
      await waitUntil(() => running().length === 0, drainMs);
      for (const entry of running()) entry.abort?.('the worker shuts down');
      await waitUntil(() => running().length === 0, app.graceMs + 500);
      await waitUntil(() => settlement.size === 0, SETTLE_MS_MAX);
      stopped = true;
      await settlement.abandon();
      try {
        if (order === undefined) await recoverOwn();
        await order?.release();
        await group.removeOwnConsumer();
      } catch (error) {
        log.warn({ error: messageOf(error) }, 'could not hand everything back; other workers will take it over');
      }
    },
  };
}

async function waitUntil(condition: () => boolean, limitMs: number): Promise<void> {
  const deadline = performance.now() + limitMs;
  while (!condition() && performance.now() < deadline) await sleep(10);
}
