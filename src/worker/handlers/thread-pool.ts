/**
 * Worker threads (piscina): one handler at a time in each. A thread that blocks, leaks or exits is ended and replaced; only
 * the entry that it had in hand notices.
 *
 * Invariant: no more calls are under way than threads are ready (`limit`), so that nothing waits inside the pool and a
 * timeout never counts the time in which a new thread starts.
 */
import { pathToFileURL } from 'node:url';
import type { Logger } from 'pino';
import { Piscina } from 'piscina';
import { HoldfastError, messageOf } from '../../errors.ts';
import type { App, HandlerSpec } from '../app.ts';
import type { HandlerFailure } from '../handler-failure.ts';
import { threadArguments } from '../typescript.ts';
import type { AbortMessage, HandlerSource, ThreadContext, ThreadData, ThreadCall as ThreadMessage } from './thread.ts';

const PROBE_MS = 1000;
const TOKEN_MAX = 2 ** 31 - 1;

export const THREAD_DEATHS = ['killed', 'memory', 'exit', 'error'] as const;
export type ThreadDeath = (typeof THREAD_DEATHS)[number];

export interface ThreadCall {
  /** Rejects when the thread ended, with a `ThreadDeath` as the error's `code`. */
  readonly outcome: Promise<HandlerFailure | undefined>;
  /** The handler has been called. */
  begun(): boolean;
  abort(reason: string): void;
  /** Ends the thread. */
  kill(): void;
}

export interface ThreadPool {
  /** Calls that may be under way at once: the threads that are ready. */
  readonly limit: number;
  /** Called when `limit` has grown. */
  onReady(listener: () => void): void;
  call(event: unknown, context: ThreadContext): ThreadCall;
  close(): Promise<void>;
}

export interface ThreadPoolOptions {
  readonly app: App;
  /** `file:` URL of the module that exports the app by default. */
  readonly appModule: string | undefined;
  readonly log: Logger;
}

/** Starts all threads and loads every handler in each. Throws `CONFIG` when one cannot be loaded. */
export async function startThreadPool(options: ThreadPoolOptions): Promise<ThreadPool> {
  const { app, log } = options;
  const handlers = [...app.handlers.values()].filter((handler) => handler.run === 'thread');
  const sources = handlers.map((handler) => sourceOf(handler, options.appModule));
  const channelName = `holdfast-worker-${process.pid}-${Math.random()}`;
  const channel = new BroadcastChannel(channelName);
  // In `src` this is thread.ts, in `dist` thread.js.
  const filename = new URL(import.meta.url.replace(/thread-pool(\.[jt]s).*$/, 'thread$1')).href;
  const execArgv = threadArguments();
  // One place for each call under way. A thread that is being ended may still write: its token, which nobody looks for.
  const places = Array.from({ length: app.threads }, (_, place) => place);
  const begun = new Int32Array(new SharedArrayBuffer(places.length * Int32Array.BYTES_PER_ELEMENT));
  const workerData: ThreadData = { channel: channelName, sources, begun };
  const pool = new Piscina({
    filename,
    workerData,
    minThreads: app.threads,
    maxThreads: app.threads,
    maxQueue: app.threads,
    idleTimeout: Number.POSITIVE_INFINITY,
    // An idle thread goes on with what its handlers left behind (connections, timers) instead of sleeping hard.
    atomics: 'disabled',
    recordTiming: false,
    ...(execArgv.length === 0 ? {} : { execArgv }),
    resourceLimits: { maxOldGenerationSizeMb: app.threadMemoryMb },
  });
  let lastError: unknown;
  pool.on('error', (error: unknown) => {
    lastError = error;
    log.error({ error: messageOf(error) }, 'a worker thread failed with no entry in hand');
  });

  const check = async (signal?: AbortSignal): Promise<void> => {
    const failure = (await pool.run(undefined, signal === undefined ? {} : { signal })) as HandlerFailure | undefined;
    if (failure !== undefined) throw new HoldfastError('CONFIG', failure.message);
  };
  try {
    await Promise.all(Array.from({ length: app.threads }, () => check()));
  } catch (error) {
    channel.close();
    await pool.destroy();
    if (error instanceof HoldfastError) throw error;
    throw new HoldfastError('CONFIG', `handlers: a thread ended at the start: ${messageOf(lastError ?? error)}`);
  }

  /** Threads that have loaded their handlers, by thread ID. Piscina's events tell of one at a time, and of ends twice or never. */
  const loaded = new Set(pool.threads.map((thread) => thread.threadId));
  let ready = loaded.size;
  let closing = false;
  const listeners: (() => void)[] = [];
  const recount = (): void => {
    const alive = new Set(pool.threads.map((thread) => thread.threadId));
    for (const id of loaded) if (!alive.has(id)) loaded.delete(id);
    const before = ready;
    ready = loaded.size;
    if (ready > before) for (const listener of listeners) listener();
  };
  pool.on('workerDestroy', ({ id }: { id: number }) => {
    // It is among the pool's threads until this event is over.
    loaded.delete(id);
    recount();
  });
  pool.on('workerCreate', ({ id }: { id: number }) => {
    loaded.add(id);
    recount();
  });
  // Piscina stops replacing threads once one has died while it started, and leaves a call that waited for it waiting.
  // A new call makes it try again.
  let probe: AbortController | undefined;
  const probing = setInterval(() => {
    recount();
    if (ready >= app.threads) return;
    if (probe !== undefined) {
      if (pool.threads.length < app.threads) probe.abort(new Error('it ended while it started'));
      return;
    }
    probe = new AbortController();
    check(probe.signal)
      .catch((error: unknown) => {
        if (!closing) log.error({ error: messageOf(causeOf(error)) }, 'a worker thread could not be replaced');
      })
      .finally(() => {
        probe = undefined;
      });
  }, PROBE_MS);
  probing.unref();

  let tokens = 0;
  return {
    get limit() {
      return ready;
    },
    onReady(listener) {
      listeners.push(listener);
    },
    call(event, context) {
      tokens = (tokens % TOKEN_MAX) + 1;
      const token = tokens;
      const place = places.pop()!;
      const killer = new AbortController();
      const message: ThreadMessage = { token, place, event, context };
      const outcome = pool.run(message, { signal: killer.signal }).catch((error: unknown) => {
        if (isNotClonable(error)) throw new HoldfastError('PERMANENT', messageOf(error));
        const death: ThreadDeath = killer.signal.aborted || closing ? 'killed' : causeOfDeath(error);
        throw new HoldfastError(death, `the handler's thread ended: ${messageOf(error)}`, { cause: error });
      }) as Promise<HandlerFailure | undefined>;
      const release = (): void => void places.push(place);
      outcome.then(release, release);
      return {
        outcome,
        begun: () => Atomics.load(begun, place) === token,
        abort(reason) {
          channel.postMessage({ token, reason } satisfies AbortMessage);
        },
        kill() {
          killer.abort();
        },
      };
    },
    async close() {
      closing = true;
      clearInterval(probing);
      channel.close();
      await pool.destroy();
    },
  };
}

function sourceOf(handler: HandlerSpec, appModule: string | undefined): HandlerSource {
  const { name: task, module } = handler;
  if (module === undefined) {
    if (appModule !== undefined) return { task, module: appModule, exports: 'app' };
    throw new HoldfastError(
      'CONFIG',
      `handlers.${task}: runs in a thread, so it needs \`module\`, or the app's own module in startWorker's options`,
    );
  }
  const base = appModule ?? pathToFileURL(`${process.cwd()}/`).href;
  return { task, module: module.startsWith('file:') ? module : new URL(module, base).href, exports: 'handler' };
}

function causeOfDeath(error: unknown): ThreadDeath {
  if (!(error instanceof Error)) return 'error';
  if ('code' in error && error.code === 'ERR_WORKER_OUT_OF_MEMORY') return 'memory';
  return error.message.startsWith('worker exited') ? 'exit' : 'error';
}

/** Of an abort, its reason. */
function causeOf(error: unknown): unknown {
  return error instanceof Error && error.cause !== undefined ? error.cause : error;
}

function isNotClonable(error: unknown): boolean {
  return error instanceof Error && error.name === 'DataCloneError';
}
