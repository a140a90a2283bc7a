/**
 * A worker: one process's share in the consumer group of an app. It talks RESP like any client, to Holdfast or to the KV
 * store itself. More throughput: start more workers.
 */
import { randomBytes } from 'node:crypto';
import type { Logger } from 'pino';
import type { Registry } from 'prom-client';
import { HoldfastError, messageOf } from '../errors.ts';
import type { App } from './app.ts';
import { answerFirst, connectFirst, createConnection } from './connection.ts';
import { createGroup } from './group/group.ts';
import { openPostgresStore } from './group/postgres-store.ts';
import { createDispatcher, type Dispatcher } from './handlers/dispatcher.ts';
import { createRateGate } from './handlers/rate-limit.ts';
import { startThreadPool } from './handlers/thread-pool.ts';
import { type HealthReport, judgeHealth } from './health.ts';
import { type HttpEndpoint, serveHttp } from './http.ts';
import { createMetrics } from './metrics.ts';
import { createStreamConsumer, type StreamConsumer } from './stream/stream-consumer.ts';

export interface WorkerOptions {
  /** `redis://`, `rediss://` or `unix:/path`: Holdfast, or a KV store directly. */
  readonly kv: string;
  /**
   * Postgres, where attempts and reports of permanent failures are kept beside the ledger. Without it they live in the
   * KV store alone: if that loses data, attempts begin again at 1.
   */
  readonly database?: string | undefined;
  /** URL of the module that exports the app by default, for the worker threads: `import.meta.url` in that module. */
  readonly module?: string | undefined;
  /** `host:port` or `unix:/path` for /healthz and /metrics. Default: none. */
  readonly http?: string | undefined;
  /** How long a shutdown waits for handlers before it aborts them. Default 20000. */
  readonly drainMs?: number | undefined;
  /** No progress for this long, with something to do, is unhealthy. Default 10000. */
  readonly stallAfterMs?: number | undefined;
  readonly log: Logger;
}

export interface Worker {
  /** The consumer's name in the group. */
  readonly consumer: string;
  /** Where /healthz and /metrics are, if anywhere. */
  readonly http: string | undefined;
  readonly metrics: Registry;
  health(): HealthReport;
  /** Takes nothing more, waits for what runs, hands the rest back. Safe to call twice. */
  stop(): Promise<void>;
}

/** Throws `CONFIG` for what cannot work: an unreachable server, a handler that does not load. */
export async function startWorker(app: App, options: WorkerOptions): Promise<Worker> {
  const { log } = options;
  const consumer = `${app.streams[0]}-consumer-${process.pid}-${randomBytes(3).toString('hex')}`;
  const stallAfterMs = options.stallAfterMs ?? 10_000;
  const undo: (() => unknown)[] = [];
  const undoAll = async (): Promise<void> => {
    for (const step of undo.splice(0).reverse()) await step();
  };

  try {
    const metrics = createMetrics(app);
    const commands = createConnection(options.kv, consumer, log);
    undo.push(() => commands.disconnect());
    await connectFirst(commands, options.kv);

    const store =
      options.database === undefined
        ? undefined
        : await openPostgresStore({
            databaseUrl: options.database,
            kvUser: kvUserOf(options.kv),
            kvDatabase: commands.options.db ?? 0,
            group: app.group,
            streams: app.streams,
            log,
          });
    if (store !== undefined) undo.push(() => store.close());
    else log.warn('no database: attempts and reports live in the KV store alone, and are lost with it');

    const needsThreads = [...app.handlers.values()].some((handler) => handler.run === 'thread');
    const appModule = options.module;
    for (const handler of app.handlers.values()) {
      if (handler.run === 'in-process' && handler.handle === undefined) {
        throw new HoldfastError(
          'CONFIG',
          `handlers.${handler.name}: a module runs in a thread; give \`handle\` instead`,
        );
      }
    }
    const pool = needsThreads ? await startThreadPool({ app, appModule, log }) : undefined;
    if (pool !== undefined) undo.push(() => pool.close());

    const consumers = new Map<string, StreamConsumer>();
    let lastTurn = 0;
    /** Whoever was woken first takes the room; so they take turns at being first. */
    const wakeAll = (): void => {
      const all = [...consumers.values()];
      lastTurn += 1;
      for (let i = 0; i < all.length; i += 1) all[(lastTurn + i) % all.length]!.wake();
    };
    const dispatcher: Dispatcher = createDispatcher({
      app,
      group: app.group,
      pool,
      metrics,
      gate: (handler, wanted, onGranted) =>
        createRateGate({
          commands,
          key: `${app.streams[0]}:${app.group}:rate:${handler.name}`,
          limit: handler.rateLimit!,
          wanted,
          onGranted,
        }),
      onStart: (held) => consumers.get(held.stream)!.onStart(held),
      onOutcome: (held, outcome, tookMs) => consumers.get(held.stream)!.onOutcome(held, outcome, tookMs),
      onFree: wakeAll,
    });

    for (const stream of app.streams) {
      const reader = createConnection(options.kv, `${consumer}:${stream}`, log);
      undo.push(() => reader.disconnect());
      await connectFirst(reader, options.kv);
      const group = createGroup({ stream, name: app.group, consumer, startId: app.startId, commands, reader });
      await answerFirst(() => group.ensure());
      const consumerOptions = { app, group, commands, reader, store, metrics, log, dispatcher: () => dispatcher };
      consumers.set(stream, createStreamConsumer(consumerOptions));
    }

    const slowestLimitMs = Math.max(0, ...[...app.handlers.values()].map((handler) => handler.rateLimit?.perMs ?? 0));
    const health = (): HealthReport =>
      judgeHealth({
        now: performance.now(),
        // A rate limit makes everybody wait with good reason.
        stallAfterMs: Math.max(stallAfterMs, 2 * slowestLimitMs),
        free: dispatcher.free,
        running: dispatcher.running,
        stuck: dispatcher.stuck,
        lastOutcomeAt: dispatcher.lastOutcomeAt,
        streams: [...consumers.values()].map((streamConsumer) => streamConsumer.state()),
      });
    let http: HttpEndpoint | undefined;
    if (options.http !== undefined) {
      const endpoint = await serveHttp(options.http, health, metrics.registry);
      undo.push(() => endpoint.close());
      http = endpoint;
    }

    for (const streamConsumer of consumers.values()) streamConsumer.start();
    log.info({ consumer, group: app.group, streams: app.streams, http: http?.address }, 'worker started');

    let stopping: Promise<void> | undefined;
    const stop = async (): Promise<void> => {
      log.info({ consumer }, 'worker stops: waiting for what runs');
      dispatcher.stop();
      await Promise.all([...consumers.values()].map((each) => each.stop(options.drainMs ?? 20_000)));
      await undoAll();
      log.info({ consumer }, 'worker stopped');
    };
    return {
      consumer,
      http: http?.address,
      metrics: metrics.registry,
      health,
      stop: () => (stopping ??= stop()),
    };
  } catch (error) {
    await undoAll();
    if (error instanceof HoldfastError) throw error;
    throw new HoldfastError('CONFIG', `kv: ${messageOf(error)}`, { cause: error });
  }
}

function kvUserOf(url: string): string {
  return url.startsWith('unix:') ? '' : decodeURIComponent(new URL(url).username);
}
