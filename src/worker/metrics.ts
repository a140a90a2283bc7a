/** What the worker counts, in the words of Prometheus. One registry for each worker. */
import { Counter, Gauge, Histogram, Registry } from 'prom-client';
import type { App } from './app.ts';
import { THREAD_DEATHS } from './handlers/thread-pool.ts';

const OUTCOMES = ['succeeded', 'failed', 'permanently_failed', 'abandoned'] as const;
export type Outcome = (typeof OUTCOMES)[number];

export interface WorkerMetrics {
  readonly registry: Registry;
  readonly inProgress: Gauge<'task'>;
  readonly processed: Counter<'task' | 'outcome'>;
  readonly retries: Counter<'task'>;
  readonly duration: Histogram<'task'>;
  readonly waiting: Gauge<'stream'>;
  readonly queueDepth: Gauge<'stream'>;
  readonly pending: Gauge<'stream'>;
  readonly oldestAgeSeconds: Gauge<'stream'>;
  readonly consumers: Gauge<'stream'>;
  readonly deadLetters: Gauge<'stream'>;
  readonly takeovers: Counter<'stream'>;
  readonly lostClaims: Counter<'stream'>;
  readonly trimmed: Counter<'stream'>;
  readonly threadDeaths: Counter<'cause'>;
  readonly storeErrors: Counter;
  readonly lastSuccess: Gauge;
}

/** Every series there may be begins at 0, so that the first failure is an increase. */
export function createMetrics(app: App): WorkerMetrics {
  const registry = new Registry();
  const registers = [registry];
  const gauge = <Label extends string>(name: string, help: string, ...labelNames: Label[]): Gauge<Label> =>
    new Gauge({ name: `holdfast_worker_${name}`, help, labelNames, registers });
  const counter = <Label extends string>(name: string, help: string, ...labelNames: Label[]): Counter<Label> =>
    new Counter({ name: `holdfast_worker_${name}`, help, labelNames, registers });
  const metrics: WorkerMetrics = {
    registry,
    inProgress: gauge('in_progress', 'Handlers running now', 'task'),
    processed: counter('processed_total', 'Attempts that ended, by outcome', 'task', 'outcome'),
    retries: counter('retries_total', 'Attempts beyond the first one that began', 'task'),
    duration: new Histogram({
      name: 'holdfast_worker_duration_seconds',
      help: 'Time from the start of a handler to its outcome',
      labelNames: ['task'],
      buckets: [0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60, 600],
      registers,
    }),
    waiting: gauge('waiting', 'Entries read by this worker that wait for a free slot', 'stream'),
    queueDepth: gauge('queue_depth', 'Entries of the stream that the group has not been given yet', 'stream'),
    pending: gauge('pending', 'Entries in the pending entries list of the group, retries included', 'stream'),
    oldestAgeSeconds: gauge('oldest_age_seconds', 'Age of the oldest entry that is not acknowledged', 'stream'),
    consumers: gauge('consumers', 'Consumers of the group', 'stream'),
    deadLetters: gauge('dead_letters', 'Permanent failures that nobody has retried or purged', 'stream'),
    takeovers: counter('takeovers_total', 'Entries taken over from workers that stopped renewing', 'stream'),
    lostClaims: counter('lost_claims_total', 'Entries whose claim this worker lost while it held them', 'stream'),
    trimmed: counter('trimmed_total', 'Acknowledged entries removed from the stream', 'stream'),
    threadDeaths: counter('thread_deaths_total', 'Worker threads that ended with an entry in hand', 'cause'),
    storeErrors: counter('store_errors_total', 'Statements to Postgres that failed'),
    lastSuccess: gauge('last_success_timestamp_seconds', 'When a handler last succeeded (Unix time); 0 for never'),
  };
  for (const task of app.handlers.keys()) {
    for (const outcome of OUTCOMES) metrics.processed.inc({ task, outcome }, 0);
    metrics.inProgress.set({ task }, 0);
    metrics.retries.inc({ task }, 0);
    metrics.duration.zero({ task });
  }
  for (const stream of app.streams) {
    for (const each of [metrics.takeovers, metrics.lostClaims, metrics.trimmed]) each.inc({ stream }, 0);
  }
  for (const cause of THREAD_DEATHS) metrics.threadDeaths.inc({ cause }, 0);
  return metrics;
}
