/**
 * What runs in a worker thread: loads all handlers before it is ready, runs them, and puts whatever comes of it, errors
 * that are no errors included, into a message that can be sent. Told over a channel when to abort.
 */
import { workerData } from 'node:worker_threads';
import { HoldfastError } from '../../errors.ts';
import { appFromExport, type Handler, type TaskContext } from '../app.ts';
import { failureOf, type HandlerFailure } from '../handler-failure.ts';
import { runTraced } from '../trace.ts';
import { prepareImport } from '../typescript.ts';

/** Where a handler is. */
export interface HandlerSource {
  readonly task: string;
  /** `file:` URL. */
  readonly module: string;
  /** What the module exports by default: the app that the handler is part of, or the handler itself. */
  readonly exports: 'app' | 'handler';
}

export interface ThreadData {
  /** Name of the channel that carries aborts. */
  readonly channel: string;
  readonly sources: readonly HandlerSource[];
  /** Shared with the worker: where a call has its place, its token as soon as its handler is called. */
  readonly begun: Int32Array;
}

export interface ThreadCall {
  readonly token: number;
  readonly place: number;
  readonly event: unknown;
  readonly context: ThreadContext;
}

export type ThreadContext = Omit<TaskContext, 'signal'>;

export interface AbortMessage {
  readonly token: number;
  readonly reason: string;
}

const data = workerData as ThreadData;
const running = new Map<number, AbortController>();
const handlers = new Map<string, Handler<unknown>>();

// Piscina has no word for "stop what you do, but live on"; the channel has.
const channel = new BroadcastChannel(data.channel);
channel.onmessage = (event) => {
  const { token, reason } = (event as { data: AbortMessage }).data;
  running.get(token)?.abort(new HoldfastError('ABORTED', reason));
};
(channel as unknown as { unref(): void }).unref();

async function load({ task, module, exports }: HandlerSource): Promise<void> {
  await prepareImport(module);
  const loaded = (await import(module)) as { default?: unknown };
  const handler = exports === 'handler' ? loaded.default : appFromExport(loaded.default).handlers.get(task)?.handle;
  if (typeof handler !== 'function') {
    const missing = exports === 'handler' ? 'does not export a function by default' : 'has no such handler';
    throw new HoldfastError('CONFIG', `${module} ${missing}`);
  }
  handlers.set(task, handler as Handler<unknown>);
}

async function loadAll(): Promise<HandlerFailure | undefined> {
  for (const source of data.sources) {
    try {
      await load(source);
    } catch (thrown) {
      const failure = failureOf(thrown);
      return { ...failure, message: `handlers.${source.task}: ${failure.message}` };
    }
  }
  return undefined;
}

/** Without a call: whether the handlers could be loaded. */
async function start(): Promise<(call: ThreadCall | undefined) => Promise<HandlerFailure | undefined>> {
  const loading = await loadAll();
  return async (call) => {
    if (loading !== undefined || call === undefined) return loading;
    const controller = new AbortController();
    running.set(call.token, controller);
    try {
      const context: TaskContext = { ...call.context, signal: controller.signal };
      const handle = handlers.get(context.task)!;
      Atomics.store(data.begun, call.place, call.token);
      await runTraced(context.trace, context, () => handle(call.event, context));
      return undefined;
    } catch (thrown) {
      return failureOf(thrown);
    } finally {
      running.delete(call.token);
    }
  };
}

// Piscina waits for it before it counts the thread as ready.
export default start();
