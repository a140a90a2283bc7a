/**
 * One stream in one worker: takes entries in as slots allow, hands them to the dispatcher, and settles what comes out.
 *
 *   XREADGROUP ─┐                                        ┌─▶ acknowledge (batched) ──▶ let go
 *   claimDue ───┼─▶ intake ─▶ dispatcher ─▶ outcome ─────┼─▶ postpone to GROUP:retry ─▶ let go
 *   recover ────┘                                        └─▶ report for good ─────────▶ let go
 *
 * Loops: reading; claiming what is due; renewing claims; looking after the group (takeover, figures, trimming).
 *
 * Invariants:
 *  - An entry is held once, however often it is delivered, and its claim is renewed until it is let go.
 *  - Nothing is let go before the KV store has answered, except where its claim is known to be lost.
 *  - Taking in is exclusive against recovering this worker's own pending entries: what is on its way is not "unknown".
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Redis } from 'ioredis';
import type { Logger } from 'pino';
import { messageOf } from '../errors.ts';
import type { App, HandlerSpec, PermanentFailure } from './app.ts';
import { createBell } from './bell.ts';
import { createFailureReporter, fieldsOf } from './dead-letters.ts';
import type { Dispatcher } from './dispatcher.ts';
import { createGatherer } from './gather.ts';
import type { Delivery, Group } from './group.ts';
import type { Held } from './held.ts';
import { createKeyOrder } from './key-order.ts';
import type { Outcome, WorkerMetrics } from './metrics.ts';
import { createReadAhead } from './read-ahead.ts';
import { retryDelayMs, TAKEOVERS_MAX } from './retry-policy.ts';
import type { CallOutcome } from './run-handler.ts';
import type { KnownEntry, WorkerStore } from './store.ts';
import { createStreamWatch, type StreamFigures } from './stream-watch.ts';
import { traceFields } from './trace.ts';

const BLOCK_MS = 2000;
const DUE_POLL_MS = 250;
const DUE_POLL_MS_MAX = 1000;
const BATCH_MAX = 500;
/**
 * Entries are taken in for so long in advance, and for as long as the store takes to answer: a handler that is done in a
 * moment must not wait for round trips, one that takes long must not hoard entries.
 */
const READ_AHEAD_MS = 25;
const LOOK_UP_WEIGHT = 0.1;
const LOOK_UP_MS_MAX = 200;
const REPORT_BATCH_MAX = 50;
/** Outcomes on their way to the KV store; beyond it nothing more is read. */
const SETTLING_MAX = 4096;
/** Entries of an ordered stream in hand, most of them behind others of their key. */
const ORDERED_HELD_MAX = 1000;
/** An entry that waited so long for a slot is offered to the other workers. */
const WAITING_MS_MAX = 2000;
const FINISHED_MAX = 10_000;
const RETRY_PAUSE_MS = 50;
const RETRY_PAUSE_MS_MAX = 1000;

export interface ConsumerState {
  readonly stream: string;
  /** Standing by while another worker is active on an ordered stream. */
  readonly standby: boolean;
  /** Wants to read, and when it last could (`performance.now()`). */
  readonly hungry: boolean;
  readonly lastReadAt: number;
  readonly held: number;
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
  const reporter = createFailureReporter({ app, group, commands, store });
  const watch = createStreamWatch({ app, group, commands, metrics, log });
  const readAhead = createReadAhead(app, (run) => options.dispatcher().slots(run));
  const order = app.orderBy === undefined ? undefined : createKeyOrder({ commands, app, group, log });

  const held = new Map<string, Held>();
  /** Handled here with success, but not acknowledged, for the claim was lost: not to be handled again if they come back. */
  const finished = new Set<string>();
  /** Entries taken in that wait for a slot, not counting those that wait for their key. */
  let queued = 0;
  let stopping = false;
  /** The end of patience in a shutdown: nothing is tried again. */
  let abandoned = false;
  let reading = false;
  let lastReadAt = performance.now();
  let dueHint = false;
  let recoveryNeeded = false;
  let storeDownUntil = 0;
  /** Mean time of a look into the store, recent ones counting most. */
  let lookUpMs = 0;
  let loops: Promise<unknown> = Promise.resolve();
  const roomBell = createBell();
  const dueBell = createBell();
  const stopped = new AbortController();

  // ── room ──

  /** How many entries to take in now. */
  function room(): number {
    if (settlingCount() > SETTLING_MAX) return 0;
    const ahead = readAhead.entriesWithin(READ_AHEAD_MS + 2 * lookUpMs);
    const wanted = options.dispatcher().free + ahead - queued;
    // A long queue is filled up by halves, so that many small reads become few large ones.
    if (wanted < Math.max(1, ahead / 2)) return 0;
    return order === undefined ? wanted : Math.min(wanted, ORDERED_HELD_MAX - held.size);
  }
  function settlingCount(): number {
    return acknowledgements.size + retries.size + reports.size;
  }
  function wake(): void {
    if (roomBell.awaited && room() > 0) roomBell.ring();
  }
  /** Entries are due now, by this worker's own doing: nobody has to look for them. */
  function noteDue(): void {
    dueHint = true;
    dueBell.ring();
  }
  async function pause(ms: number): Promise<void> {
    await sleep(ms, undefined, { signal: stopped.signal }).catch(() => undefined);
  }

  // ── taking in ──

  let turn: Promise<unknown> = Promise.resolve();
  function exclusively<T>(action: () => Promise<T>): Promise<T> {
    const result = turn.then(action);
    turn = result.catch(() => undefined);
    return result;
  }

  async function intake(deliveries: readonly Delivery[]): Promise<void> {
    if (deliveries.length === 0) return;
    const now = performance.now();
    const fresh: Held[] = [];
    for (const delivery of deliveries) {
      const known = held.get(delivery.id);
      if (known !== undefined) {
        // Delivered again, as after a restore, while it is still in hand: the claim is new, the work is not.
        known.claim = 'here';
        known.renewedAt = now;
        continue;
      }
      const fields = fieldsOf(delivery.fields);
      const entry: Held = {
        stream,
        id: delivery.id,
        fields,
        trace: traceFields(fields),
        event: undefined,
        attempt: delivery.attempt,
        takeovers: delivery.takeovers,
        stored: false,
        steps: [],
        step: 0,
        failures: [],
        interrupted: false,
        state: 'waiting',
        waitingSince: now,
        renewedAt: now,
        claim: 'here',
        key: undefined,
        abort: undefined,
      };
      held.set(entry.id, entry);
      queued += 1;
      fresh.push(entry);
    }
    const remembered = await lookUp(fresh);
    const takenOver: Held[] = [];
    for (const entry of fresh) {
      if (entry.state === 'gone') continue;
      const known = remembered?.get(entry.id);
      if (known !== undefined) {
        entry.stored = true;
        entry.attempt = Math.max(entry.attempt, known.failed + 1);
      }
      if (entry.takeovers > (known?.takeovers ?? 0)) takenOver.push(entry);
      else entry.takeovers = known?.takeovers ?? 0;
      const reported = known?.failure;
      if (reported?.published === true || finished.delete(entry.id)) acknowledge(entry);
      else if (reported !== undefined) failForGood(entry, reported.task, reported.errorMessage, reported.attempts);
      else if (entry.takeovers >= TAKEOVERS_MAX) {
        failForGood(entry, '', `${entry.takeovers} workers died with it in their hands`, entry.attempt - 1);
      } else accept(entry);
    }
    if (takenOver.length > 0) void remember(takenOver);
  }

  async function lookUp(entries: readonly Held[]): Promise<ReadonlyMap<string, KnownEntry> | undefined> {
    if (store === undefined || entries.length === 0 || performance.now() < storeDownUntil) return undefined;
    const startedAt = performance.now();
    try {
      const known = await store.lookUp(
        stream,
        entries.map((entry) => entry.id),
      );
      const tookMs = Math.min(LOOK_UP_MS_MAX, performance.now() - startedAt);
      lookUpMs += (tookMs - lookUpMs) * LOOK_UP_WEIGHT;
      return known;
    } catch (error) {
      storeFailed(error);
      return undefined;
    }
  }
  async function remember(entries: readonly Held[]): Promise<void> {
    if (store === undefined) return;
    for (const entry of entries) entry.stored = true;
    try {
      await store.record(
        stream,
        entries.map(({ id, attempt, takeovers }) => ({ id, failed: attempt - 1, takeovers })),
      );
    } catch (error) {
      storeFailed(error);
    }
  }
  /** Attempts live in the pending entries too: without Postgres the worker goes on, and only a restore would forget them. */
  function storeFailed(error: unknown): void {
    metrics.storeErrors.inc();
    if (performance.now() >= storeDownUntil) log.warn({ error: messageOf(error) }, 'Postgres does not answer');
    storeDownUntil = performance.now() + 1000;
  }

  function accept(entry: Held): void {
    let names: readonly string[];
    try {
      entry.event = app.decode(entry.fields);
      const routed = app.route(entry.event, entry.fields);
      names = typeof routed === 'string' ? [routed] : routed;
      entry.key = app.orderBy?.(entry.event, entry.fields);
    } catch (error) {
      failForGood(entry, '', `malformed: ${messageOf(error)}`, 0);
      return;
    }
    const steps: HandlerSpec[] = [];
    for (const name of names) {
      const handler = app.handlers.get(name);
      if (handler === undefined) {
        failForGood(entry, name, `malformed: there is no handler ${JSON.stringify(name)}`, 0);
        return;
      }
      steps.push(handler);
      readAhead.onEntry(handler);
    }
    entry.steps = steps;
    if (steps.length === 0) acknowledge(entry);
    else if (order === undefined || order.enter(entry)) options.dispatcher().add(entry);
    else queued -= 1;
  }

  // ── outcomes ──

  function onStart(entry: Held): void {
    entry.state = 'running';
    queued -= 1;
  }

  function onOutcome(entry: Held, outcome: CallOutcome, tookMs: number): void {
    const handler = entry.steps[entry.step]!;
    readAhead.onOutcome(handler, tookMs);
    entry.step += 1;
    if (outcome.kind === 'interrupted') entry.interrupted = true;
    else if (outcome.kind === 'failed') {
      entry.failures.push({ handler, message: outcome.message, permanent: outcome.permanent });
    } else {
      count(handler, 'succeeded');
      metrics.lastSuccess.set(Date.now() / 1000);
    }
    const goOn = !entry.interrupted && entry.claim !== 'elsewhere' && entry.step < entry.steps.length;
    if (goOn) {
      entry.state = 'waiting';
      entry.waitingSince = performance.now();
      queued += 1;
      options.dispatcher().add(entry);
      return;
    }
    entry.state = 'settling';
    const [failure] = entry.failures;
    if (entry.interrupted || (entry.claim === 'elsewhere' && failure !== undefined)) {
      count(handler, 'abandoned');
      if (entry.claim === 'elsewhere' || order !== undefined) letGo(entry);
      else handBack(entry);
      return;
    }
    if (failure === undefined) {
      acknowledge(entry);
      return;
    }
    const { retry } = failure.handler;
    const text = entry.failures.map(({ handler: { name }, message }) => `${name}: ${message}`).join('\n');
    if (failure.permanent || entry.attempt >= retry.attempts) {
      count(failure.handler, 'permanently_failed');
      failForGood(entry, failure.handler.name, text, entry.attempt);
      return;
    }
    count(failure.handler, 'failed');
    const delayMs = retryDelayMs(retry, entry.attempt);
    log.info({ id: entry.id, task: failure.handler.name, attempt: entry.attempt, delayMs, error: text }, 'task failed');
    retries.add({ entry, delayMs, failed: true });
  }
  function count(handler: HandlerSpec, outcome: Outcome): void {
    metrics.processed.inc({ task: handler.name, outcome });
  }

  function settle(entry: Held): void {
    if (entry.state === 'waiting') queued -= 1;
    entry.state = 'settling';
  }
  function acknowledge(entry: Held): void {
    settle(entry);
    acknowledgements.add(entry);
  }
  function handBack(entry: Held): void {
    settle(entry);
    retries.add({ entry, delayMs: 0, failed: false });
  }
  function failForGood(entry: Held, task: string, errorMessage: string, attempts: number): void {
    settle(entry);
    log.warn({ id: entry.id, task, attempts, takeovers: entry.takeovers, error: errorMessage }, 'task failed for good');
    const { takeovers, fields } = entry;
    reports.add({
      entry,
      failure: { stream, group: group.name, id: entry.id, task, attempts, takeovers, errorMessage, fields },
    });
  }

  function letGo(entry: Held): void {
    if (entry.state === 'gone') return;
    if (entry.state === 'waiting' && !(order?.isBehind(entry) ?? false)) queued -= 1;
    entry.state = 'gone';
    held.delete(entry.id);
    const next = order?.leave(entry);
    if (next !== undefined) {
      queued += 1;
      next.waitingSince = performance.now();
      options.dispatcher().add(next);
    }
    wake();
  }

  // ── settling ──

  /** Tries until the KV store has answered. Gives `undefined` when a shutdown lost its patience. */
  async function untilAnswered<T>(what: string, action: () => Promise<T>): Promise<T | undefined> {
    let pauseMs = RETRY_PAUSE_MS;
    let tries = 0;
    while (!abandoned) {
      try {
        return await action();
      } catch (error) {
        if (isNoGroup(error)) await group.ensure().catch(() => undefined);
        if (tries % 20 === 0) log.warn({ error: messageOf(error) }, `cannot ${what}, trying again`);
        tries += 1;
        await sleep(pauseMs);
        pauseMs = Math.min(pauseMs * 2, RETRY_PAUSE_MS_MAX);
      }
    }
    return undefined;
  }

  const acknowledgements = createGatherer<Held>(BATCH_MAX, async (batch) => {
    const ids = batch.map((entry) => entry.id);
    const lost = await untilAnswered('acknowledge', () => group.acknowledge(ids));
    if (lost !== undefined) {
      for (const id of lost) rememberFinished(id);
      watch.acknowledged(lost.length === 0 ? ids : ids.filter((id) => !lost.includes(id)));
      const stored = batch.filter((entry) => entry.stored).map((entry) => entry.id);
      if (store !== undefined && stored.length > 0) await store.forget(stream, stored).catch(storeFailed);
    }
    for (const entry of batch) letGo(entry);
  });
  function rememberFinished(id: string): void {
    finished.add(id);
    if (finished.size > FINISHED_MAX) finished.delete(finished.values().next().value!);
  }

  const retries = createGatherer<{ entry: Held; delayMs: number; failed: boolean }>(BATCH_MAX, async (batch) => {
    for (const { entry, failed } of batch) if (failed) entry.attempt += 1;
    // First the store, then the KV store: of a crash in between a count too high is left in one place, never too low.
    const failed = batch.filter((item) => item.failed).map((item) => item.entry);
    if (failed.length > 0) await remember(failed);
    const items = batch.map(({ entry: { id, attempt, takeovers }, delayMs }) => ({ id, attempt, takeovers, delayMs }));
    const lost = await untilAnswered('write down a failed attempt', () =>
      order === undefined ? group.postpone(items) : group.rewrite(items),
    );
    for (const { entry, delayMs } of batch) {
      if (order === undefined || lost === undefined || lost.includes(entry.id) || stopping) letGo(entry);
      else retryInPlace(entry, delayMs);
    }
  });
  /** An ordered stream's entry keeps its place, and its key waits with it. */
  function retryInPlace(entry: Held, delayMs: number): void {
    entry.failures = [];
    entry.step = 0;
    entry.state = 'resting';
    setTimeout(() => {
      if (entry.state !== 'resting' || stopping) return;
      entry.state = 'waiting';
      entry.waitingSince = performance.now();
      queued += 1;
      options.dispatcher().add(entry);
    }, delayMs).unref();
  }

  const reports = createGatherer<{ entry: Held; failure: PermanentFailure }>(REPORT_BATCH_MAX, async (batch) => {
    await untilAnswered('report a permanent failure', () => reporter.report(batch.map((item) => item.failure)));
    watch.acknowledged(batch.map((item) => item.entry.id));
    for (const { entry } of batch) letGo(entry);
  });

  // ── loops ──

  function isActive(): boolean {
    return order === undefined || order.active;
  }

  async function readLoop(): Promise<void> {
    let claimedLast = false;
    let pauseMs = RETRY_PAUSE_MS;
    while (!stopping) {
      if (!isActive()) {
        lastReadAt = performance.now();
        await pause(DUE_POLL_MS);
        continue;
      }
      if (room() <= 0) {
        await roomBell.wait(DUE_POLL_MS);
        continue;
      }
      try {
        if (order !== undefined) await adoptAll();
        else if (recoveryNeeded) await exclusively(recoverOwn);
        recoveryNeeded = false;
        if (dueHint && !claimedLast) {
          claimedLast = true;
          await claimPass();
          continue;
        }
        claimedLast = false;
        await readOnce();
        pauseMs = RETRY_PAUSE_MS;
      } catch (error) {
        if (stopping) return;
        recoveryNeeded = true;
        if (isNoGroup(error)) await group.ensure().catch(() => undefined);
        else log.debug({ error: messageOf(error) }, 'reading failed');
        await pause(pauseMs);
        pauseMs = Math.min(pauseMs * 2, RETRY_PAUSE_MS_MAX);
      }
    }
  }
  async function readOnce(): Promise<void> {
    const count = room();
    if (count <= 0) return;
    // An ordered stream must not be read by one that lost its turn meanwhile.
    const blockMs = order === undefined ? BLOCK_MS : Math.min(BLOCK_MS, app.heartbeatMs);
    reading = true;
    try {
      const deliveries = await group.read(count, blockMs);
      lastReadAt = performance.now();
      await intake(deliveries);
    } finally {
      reading = false;
    }
  }

  /** What the server gave to this worker in a reply that never arrived goes back to all workers. */
  async function recoverOwn(): Promise<void> {
    const unknown = (await group.own(BATCH_MAX * 2)).filter(({ id }) => !held.has(id));
    if (unknown.length === 0) return;
    await group.postpone(unknown.map((entry) => ({ ...entry, delayMs: 0 })));
    noteDue();
  }

  let adoptedAt = Number.NEGATIVE_INFINITY;
  /** The one active worker takes everything that is pending and that it does not hold. Between reads, so nothing is on its way. */
  async function adoptAll(): Promise<void> {
    if (!recoveryNeeded && order?.adopted === true && performance.now() - adoptedAt < app.heartbeatMs) return;
    let after = '0-0';
    while (held.size < ORDERED_HELD_MAX) {
      const { entries, last } = await group.adopt(after, BATCH_MAX, (id) => held.has(id));
      await intake(entries);
      if (last === undefined) break;
      after = last;
    }
    order!.adopted = true;
    adoptedAt = performance.now();
  }

  async function claimPass(): Promise<void> {
    await exclusively(async () => {
      const count = room();
      if (count <= 0) return;
      const deliveries = await group.claimDue(Math.min(count, BATCH_MAX));
      dueHint = deliveries.length > 0;
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
        if (room() <= 0 || !reading) dueHint ||= await group.hasDue();
        else {
          do {
            startedAt = performance.now();
            await claimPass();
          } while (dueHint && room() > 0 && !stopping);
        }
      } catch (error) {
        dueHint = false;
        log.debug({ error: messageOf(error) }, 'looking for due entries failed');
      }
      tookMs = performance.now() - startedAt;
    }
  }

  async function renewLoop(): Promise<void> {
    while (!abandoned) {
      if (order !== undefined && !(await order.keep())) dropAll('another worker may be active on the stream now');
      try {
        await renewAll();
        offerWaiting();
      } catch (error) {
        if (isNoGroup(error)) await group.ensure().catch(() => undefined);
        else log.debug({ error: messageOf(error) }, 'renewing claims failed');
      }
      await sleep(app.heartbeatMs / 2, undefined, { ref: false });
    }
  }
  async function renewAll(): Promise<void> {
    const now = performance.now();
    const due = [...held.values()].filter((entry) => now - entry.renewedAt >= app.heartbeatMs / 2);
    for (let i = 0; i < due.length; i += BATCH_MAX) {
      const entries = due.slice(i, i + BATCH_MAX);
      const sentAt = performance.now();
      const lost = await group.renew(entries.map((entry) => entry.id));
      for (const entry of entries) {
        const owner = lost.get(entry.id);
        if (owner === undefined) entry.renewedAt = sentAt;
        // Delivered again since this was sent: that claim is newer than the answer. Settling: its own answer will tell.
        else if (entry.renewedAt <= sentAt && entry.state !== 'settling' && entry.state !== 'gone') {
          loseClaim(entry, owner);
        }
      }
    }
  }
  function loseClaim(entry: Held, owner: string): void {
    const claim = owner === '' ? 'nowhere' : 'elsewhere';
    if (entry.claim === claim) return;
    entry.claim = claim;
    metrics.lostClaims.inc(labels);
    log.info({ id: entry.id, owner }, 'lost the claim on an entry');
    if (entry.state !== 'running') letGo(entry);
    else if (claim === 'elsewhere') entry.abort?.(`the entry belongs to ${owner} now`);
  }
  function dropAll(reason: string): void {
    for (const entry of [...held.values()]) {
      entry.claim = 'elsewhere';
      if (entry.state === 'running') entry.abort?.(reason);
      else if (entry.state === 'waiting' || entry.state === 'resting') letGo(entry);
    }
  }
  /** What waits too long behind slow handlers goes to whoever is free. */
  function offerWaiting(): void {
    if (order !== undefined || !watch.figures.othersPresent) return;
    const before = performance.now() - WAITING_MS_MAX;
    for (const entry of held.values()) {
      if (entry.state === 'waiting' && entry.steps.length > 0 && entry.step === 0 && entry.waitingSince < before) {
        takeFromQueue(entry);
      }
    }
  }
  /** The dispatcher skips what is gone, so its copy in the queue must be another one than the entry that settles. */
  function takeFromQueue(entry: Held): void {
    queued -= 1;
    const settling: Held = { ...entry, state: 'settling' };
    entry.state = 'gone';
    held.set(entry.id, settling);
    retries.add({ entry: settling, delayMs: 0, failed: false });
  }

  async function watchLoop(): Promise<void> {
    while (!stopping) {
      await pause(app.heartbeatMs / 2);
      try {
        if (order === undefined) {
          const taken = await group.takeOver(app.deadAfterMs, (id) => held.has(id));
          if (taken.length > 0) {
            metrics.takeovers.inc(labels, taken.length);
            log.info({ entries: taken.length }, 'took over entries of workers that stopped renewing');
            noteDue();
          }
        }
        metrics.waiting.set(labels, queued);
        await watch.look();
      } catch (error) {
        if (isNoGroup(error)) await group.ensure().catch(() => undefined);
        else log.debug({ error: messageOf(error) }, 'looking after the group failed');
      }
    }
  }

  return {
    stream,
    start() {
      loops = Promise.all([readLoop(), ...(order === undefined ? [dueLoop()] : []), watchLoop()]);
      void renewLoop();
    },
    onStart,
    onOutcome,
    wake,
    state() {
      return {
        stream,
        standby: !isActive(),
        hungry: isActive() && room() > 0,
        lastReadAt,
        held: held.size,
        figures: watch.figures,
      };
    },
    async stop(drainMs) {
      stopping = true;
      stopped.abort();
      // A blocked read must not take anything in any more; what it was given just now is handed back below.
      reader.disconnect();
      roomBell.ring();
      dueBell.ring();
      await loops;
      for (const entry of [...held.values()]) {
        if (entry.state !== 'waiting') continue;
        if (order === undefined) takeFromQueue(entry);
        else letGo(entry);
      }
      const running = (): Held[] => [...held.values()].filter((entry) => entry.state === 'running');
      await waitUntil(() => running().length === 0, drainMs);
      for (const entry of running()) entry.abort?.('the worker shuts down');
      await waitUntil(() => running().length === 0, app.graceMs + 500);
      await waitUntil(() => settlingCount() === 0, 5000);
      abandoned = true;
      await Promise.all([acknowledgements.idle(), retries.idle(), reports.idle()]);
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

function isNoGroup(error: unknown): boolean {
  return error instanceof Error && error.message.startsWith('NOGROUP');
}
