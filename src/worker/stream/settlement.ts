/**
 * What becomes of an entry: writes down in the KV store what its handlers have come to, then lets it go.
 *
 *                 ┌─▶ acknowledge (batched) ────▶ let go
 *   outcome ──────┼─▶ postpone to GROUP:retry ──▶ let go, or back into its place in an ordered stream
 *                 └─▶ report for good ──────────▶ let go
 *
 * Invariant: nothing is let go before the KV store has answered, except where its claim is known to be lost.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from 'pino';
import { messageOf } from '../../errors.ts';
import type { App, FailedAttempt, HandlerSpec, PermanentFailure } from '../app.ts';
import { RECONNECT_MS_MAX } from '../connection.ts';
import type { Held } from '../entry.ts';
import { createGatherer } from '../gather.ts';
import type { FailureReporter } from '../group/dead-letters.ts';
import { type Group, isNoGroup } from '../group/group.ts';
import type { CallOutcome } from '../handlers/run-handler.ts';
import type { Outcome, WorkerMetrics } from '../metrics.ts';
import { retryDelayMs } from '../retry-policy.ts';
import type { AttemptMemory } from './attempt-memory.ts';
import type { Hand } from './claimed-entries.ts';

const BATCH_MAX = 500;
const REPORT_BATCH_MAX = 50;
const FINISHED_MAX = 10_000;
const PAUSE_MS = 50;

export interface Settlement {
  /** Entries on their way to the KV store. */
  readonly size: number;
  /** The handler whose turn it was has ended. */
  onOutcome(entry: Held, outcome: CallOutcome): void;
  acknowledge(entry: Held): void;
  /** For another worker, without an attempt counted, and due since it first was. */
  handBack(entry: Held): void;
  failForGood(entry: Held, task: string, errorMessage: string, attempts: number): void;
  /** True, once, for an entry that was handled here with success and could not be acknowledged, its claim being lost. */
  wasFinished(id: string): boolean;
  /** Ordered entries are not tried again in their place. */
  stop(): void;
  /** The end of patience: what the KV store does not take now is given up. Resolves when nothing is on its way. */
  abandon(): Promise<void>;
}

export interface SettlementOptions {
  readonly onFailure: App['onFailure'];
  readonly group: Group;
  readonly hand: Hand;
  readonly memory: AttemptMemory;
  readonly reporter: FailureReporter;
  /** Entries keep their place, and are tried again in it. */
  readonly ordered: boolean;
  readonly metrics: WorkerMetrics;
  readonly log: Logger;
  onAcknowledged(ids: readonly string[]): void;
}

interface Reported {
  readonly entry: Held;
  readonly failure: PermanentFailure;
  readonly told: FailedAttempt;
}

interface Postponed {
  readonly entry: Held;
  readonly delayMs: number;
  readonly failed: boolean;
}

export function createSettlement(options: SettlementOptions): Settlement {
  const { group, hand, memory, ordered, metrics, log } = options;
  const finished = new Set<string>();
  let stopping = false;
  let abandoned = false;

  /** Tries until the KV store has answered. Gives `undefined` when a shutdown lost its patience. */
  async function untilAnswered<T>(what: string, action: () => Promise<T>): Promise<T | undefined> {
    let pauseMs = PAUSE_MS;
    let tries = 0;
    while (!abandoned) {
      try {
        return await action();
      } catch (error) {
        if (isNoGroup(error)) await group.ensure().catch(() => undefined);
        if (tries % 80 === 0) log.warn({ error: messageOf(error) }, `cannot ${what}, trying again`);
        tries += 1;
        await sleep(pauseMs);
        pauseMs = Math.min(pauseMs * 2, RECONNECT_MS_MAX);
      }
    }
    return undefined;
  }

  const acknowledgements = createGatherer<Held>(BATCH_MAX, async (batch) => {
    const ids = batch.map((entry) => entry.id);
    const lost = await untilAnswered('acknowledge', () => group.acknowledge(ids));
    if (lost !== undefined) {
      for (const id of lost) rememberFinished(id);
      options.onAcknowledged(lost.length === 0 ? ids : ids.filter((id) => !lost.includes(id)));
      await memory.forget(batch);
    }
    for (const entry of batch) hand.letGo(entry);
  });
  function rememberFinished(id: string): void {
    finished.add(id);
    if (finished.size > FINISHED_MAX) finished.delete(finished.values().next().value!);
  }

  const postponements = createGatherer<Postponed>(BATCH_MAX, async (batch) => {
    if (options.onFailure !== undefined) {
      const told = batch.filter(({ failed }) => failed).map(({ entry }) => attemptOf(entry, failuresOf(entry), false));
      await Promise.all(told.map(tellOnce));
    }
    for (const { entry, failed } of batch) if (failed) entry.attempt += 1;
    // First the store, then the KV store: of a crash in between a count too high is left in one place, never too low.
    await memory.remember(batch.filter((item) => item.failed).map((item) => item.entry));
    const items = batch.map(({ entry: { id, attempt, takeovers }, delayMs }) => ({ id, attempt, takeovers, delayMs }));
    const lost = await untilAnswered('write down a failed attempt', () =>
      ordered ? group.rewrite(items) : group.postpone(items),
    );
    for (const { entry, delayMs } of batch) {
      if (!ordered || lost === undefined || lost.includes(entry.id) || stopping) hand.letGo(entry);
      else retryInPlace(entry, delayMs);
    }
  });
  /** An ordered stream's entry keeps its place, and its key waits with it. */
  function retryInPlace(entry: Held, delayMs: number): void {
    entry.failures = [];
    entry.step = 0;
    hand.rest(entry);
    setTimeout(() => {
      if (entry.state === 'resting' && !stopping) hand.queue(entry);
    }, delayMs).unref();
  }

  function attemptOf(entry: Held, failures: FailedAttempt['failures'], forGood: boolean): FailedAttempt {
    const { id, attempt, fields } = entry;
    return { stream: group.stream, group: group.name, id, attempt, failures, forGood, fields };
  }
  /** An attempt that another one follows is not held up by whoever wants to know of it. */
  async function tellOnce(attempt: FailedAttempt): Promise<void> {
    try {
      await options.onFailure?.(attempt);
    } catch (error) {
      log.warn({ id: attempt.id, error: messageOf(error) }, 'onFailure failed');
    }
  }

  const reports = createGatherer<Reported>(REPORT_BATCH_MAX, async (batch) => {
    if (options.onFailure !== undefined) {
      const { onFailure } = options;
      await Promise.all(
        batch.map(({ told }) => untilAnswered('tell of a permanent failure', async () => await onFailure(told))),
      );
    }
    await untilAnswered('report a permanent failure', () => options.reporter.report(batch.map((item) => item.failure)));
    options.onAcknowledged(batch.map((item) => item.entry.id));
    for (const { entry } of batch) hand.letGo(entry);
  });

  function acknowledge(entry: Held): void {
    hand.settle(entry);
    acknowledgements.add(entry);
  }
  function handBack(entry: Held): void {
    hand.settle(entry);
    postponements.add({ entry, delayMs: Math.min(0, Math.round(entry.dueAt - performance.now())), failed: false });
  }
  function failForGood(
    entry: Held,
    task: string,
    errorMessage: string,
    attempts: number,
    failures: FailedAttempt['failures'] = [{ task, errorMessage }],
  ): void {
    hand.settle(entry);
    const { id, takeovers, fields } = entry;
    log.warn({ id, task, attempts, takeovers, error: errorMessage }, 'task failed for good');
    const { stream, name } = group;
    const failure = { stream, group: name, id, task, attempts, takeovers, errorMessage, fields };
    reports.add({ entry, failure, told: attemptOf(entry, failures, true) });
  }
  function count(handler: HandlerSpec, outcome: Outcome): void {
    metrics.processed.inc({ task: handler.name, outcome });
  }

  /** All handlers that are to run have ended; `last` is the last one. */
  function conclude(entry: Held, last: HandlerSpec): void {
    hand.settle(entry);
    const [failure] = entry.failures;
    if (entry.interrupted || (entry.claim === 'elsewhere' && failure !== undefined)) {
      count(last, 'abandoned');
      if (entry.claim === 'elsewhere' || ordered) hand.letGo(entry);
      else handBack(entry);
      return;
    }
    if (failure === undefined) {
      acknowledge(entry);
      return;
    }
    const { name: task, retry } = failure.handler;
    const text = entry.failures.map(({ handler, message }) => `${handler.name}: ${message}`).join('\n');
    if (failure.permanent || entry.attempt >= retry.attempts) {
      count(failure.handler, 'permanently_failed');
      failForGood(entry, task, text, entry.attempt, failuresOf(entry));
      return;
    }
    count(failure.handler, 'failed');
    const delayMs = retryDelayMs(retry, entry.attempt);
    log.info({ id: entry.id, task, attempt: entry.attempt, delayMs, error: text }, 'task failed');
    postponements.add({ entry, delayMs, failed: true });
  }

  return {
    get size() {
      return acknowledgements.size + postponements.size + reports.size;
    },
    onOutcome(entry, outcome) {
      const handler = entry.steps[entry.step]!;
      entry.step += 1;
      if (outcome.kind === 'interrupted') entry.interrupted = true;
      else if (outcome.kind === 'not begun') {
        entry.interrupted = true;
        // Counted as a worker that died, so that it ends somewhere should no thread ever get to it.
        entry.takeovers += 1;
      } else if (outcome.kind === 'failed') {
        entry.failures.push({ handler, message: outcome.message, permanent: outcome.permanent });
      } else {
        count(handler, 'succeeded');
        metrics.lastSuccess.set(Date.now() / 1000);
      }
      const goOn = !entry.interrupted && entry.claim !== 'elsewhere' && entry.step < entry.steps.length;
      if (goOn) hand.queue(entry);
      else conclude(entry, handler);
    },
    acknowledge,
    handBack,
    failForGood,
    wasFinished: (id) => finished.delete(id),
    stop() {
      stopping = true;
    },
    async abandon() {
      abandoned = true;
      await Promise.all([acknowledgements.idle(), postponements.idle(), reports.idle()]);
    },
  };
}

function failuresOf(entry: Held): FailedAttempt['failures'] {
  return entry.failures.map(({ handler, message }) => ({ task: handler.name, errorMessage: message }));
}
