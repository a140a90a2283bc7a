/**
 * What a user writes: streams, handlers and policies, checked once and frozen.
 *
 *   export default defineApp({
 *     streams: 'orders',
 *     handlers: { charge: async (order, { signal }) => { … } },
 *   });
 *
 * The module that exports an app is loaded in the worker's process (for policies, `decode` and `route`) and once more in
 * each worker thread (for the handlers), so it should do nothing at import that must happen only once.
 */
import { availableParallelism } from 'node:os';
import { HoldfastError, messageOf } from '../errors.ts';

/** What a handler is told beside its event. */
export interface TaskContext {
  /** Aborted at the timeout, when the claim on the entry was lost to another worker, and at the end of a shutdown. */
  readonly signal: AbortSignal;
  /** 1 for the first try. Only failures count; a worker that died in the middle does not. */
  readonly attempt: number;
  readonly task: string;
  readonly stream: string;
  readonly group: string;
  /** The entry's ID, `ms-seq`: the same in every attempt, so it serves as an idempotency key. */
  readonly id: string;
  /** The `ctx_…` fields of the entry: pass them on with entries that the handler adds. */
  readonly trace: Readonly<Record<string, string>>;
}

/** Returning (or resolving) is success, throwing (or rejecting) a failed attempt. The value is not kept. */
export type Handler<Event> = (event: Event, context: TaskContext) => unknown;

export interface RetryPolicy {
  /** Attempts in all, the first one included: 1 to 999. Default 5. */
  readonly attempts: number;
  /** Delay before the second attempt; doubles with each further one. Default 1000. */
  readonly baseMs: number;
  /** Cap of the delay. Default 3600000, at most 30 days. */
  readonly maxMs: number;
  /** Share of the delay by which it varies at random, 0 to 1. Default 0.1. */
  readonly jitter: number;
}

export interface RateLimit {
  /** Starts of this handler in every `perMs`, counted over all workers of the group. */
  readonly max: number;
  readonly perMs: number;
}

export interface HandlerDefinition<Event> {
  /** The handler itself, or … */
  readonly handle?: Handler<Event>;
  /** … a module whose default export it is: an absolute path, a `file:` URL, or a path relative to the app's module. */
  readonly module?: string;
  /** `thread` (default): CPU work and anything that may hang. `in-process`: asynchronous work that never blocks. */
  readonly run?: 'thread' | 'in-process';
  readonly timeoutMs?: number;
  readonly retry?: Partial<RetryPolicy>;
  /** At most this many of this handler at once in one worker. */
  readonly concurrency?: number;
  readonly rateLimit?: RateLimit;
}

/** An entry that failed for good, as the report is made from it. */
export interface PermanentFailure {
  readonly stream: string;
  readonly group: string;
  readonly id: string;
  /** The handler whose failure it was; empty for an entry that could not be decoded or routed. */
  readonly task: string;
  /** Failed attempts. */
  readonly attempts: number;
  readonly takeovers: number;
  readonly errorMessage: string;
  readonly fields: Readonly<Record<string, string>>;
}

/** An attempt in which handlers of an entry failed, or its takeover that was one too many. */
export interface FailedAttempt {
  readonly stream: string;
  readonly group: string;
  readonly id: string;
  readonly attempt: number;
  /** Each handler that failed; with an empty name what could not be decoded or routed. */
  readonly failures: readonly { readonly task: string; readonly errorMessage: string }[];
  /** There will be no other attempt. */
  readonly forGood: boolean;
  readonly fields: Fields;
}

export type Fields = Readonly<Record<string, string>>;

export interface AppDefinition<Event> {
  /** One stream or several; each is read in its own order. */
  readonly streams: string | readonly string[];
  /** The consumer group. Default: the first stream's name and `-group`. */
  readonly group?: string;
  /** Where a group that does not exist yet begins: `0` (default) is the start of the stream, `$` its end. */
  readonly startId?: string;
  readonly handlers: Readonly<Record<string, Handler<Event> | HandlerDefinition<Event>>>;
  /**
   * The handlers for an event. Several run in the order given, a failing one does not stop those behind it, and the
   * entry fails when one of them did. None: the entry is acknowledged. Throwing, or a name that is no handler, is a
   * permanent failure at once. Default: the field `task`, or the only handler there is.
   */
  readonly route?: (event: Event, fields: Fields) => string | readonly string[];
  /** The event from an entry's fields; throwing is a permanent failure at once. Default: the fields themselves. */
  readonly decode?: (fields: Fields) => Event;
  /**
   * Entries with the same key are handled one after the other, in stream order, retries included. Only one worker
   * is active on a stream then; the others stand by.
   */
  readonly orderBy?: (event: Event, fields: Fields) => string;
  readonly retry?: Partial<RetryPolicy>;
  /** Default 10000. */
  readonly timeoutMs?: number;
  /** From the aborted signal to the end of the thread. Default 1000. */
  readonly graceMs?: number;
  /** Handlers that run at once in the worker's own process. Default 16. */
  readonly concurrency?: number;
  /** Worker threads. Default: one for each core. */
  readonly threads?: number;
  /** Old-generation heap of one thread: what leaks more ends its thread, and nothing else. Default 256. */
  readonly threadMemoryMb?: number;
  /** How often a worker renews the claim on what it holds. Default 500. */
  readonly heartbeatMs?: number;
  /** An entry whose claim was not renewed for this long belongs to a dead worker. At least twice `heartbeatMs`. Default 2000. */
  readonly deadAfterMs?: number;
  /** Remove entries that every group of the stream has acknowledged. Default true. */
  readonly trim?: boolean;
  /** The stream that permanent failures of a stream go to. Default: its name and `:dead`. */
  readonly deadLetterStream?: (stream: string) => string;
  /** More fields, or other ones, for the entry of a permanent failure; `body` is its event as JSON. */
  readonly failureFields?: (failure: PermanentFailure) => Readonly<Record<string, string>>;
  /**
   * Told of each failed attempt, in the worker's process, before it is written down; of the last one again until it
   * resolves, and only then the failure is reported. May be told of the same attempt twice.
   */
  readonly onFailure?: (failure: FailedAttempt) => unknown;
}

export interface HandlerSpec {
  readonly name: string;
  readonly handle: Handler<unknown> | undefined;
  readonly module: string | undefined;
  readonly run: 'thread' | 'in-process';
  readonly timeoutMs: number;
  readonly retry: RetryPolicy;
  readonly concurrency: number;
  readonly rateLimit: RateLimit | undefined;
}

/** A checked app: every default filled in. Made by `defineApp` only. */
export interface App {
  readonly streams: readonly string[];
  readonly group: string;
  readonly startId: string;
  readonly handlers: ReadonlyMap<string, HandlerSpec>;
  readonly route: (event: unknown, fields: Fields) => string | readonly string[];
  readonly decode: (fields: Fields) => unknown;
  readonly orderBy: ((event: unknown, fields: Fields) => string) | undefined;
  readonly retry: RetryPolicy;
  readonly graceMs: number;
  readonly concurrency: number;
  readonly threads: number;
  readonly threadMemoryMb: number;
  readonly heartbeatMs: number;
  readonly deadAfterMs: number;
  readonly trim: boolean;
  readonly deadLetterStream: (stream: string) => string;
  readonly failureFields: ((failure: PermanentFailure) => Readonly<Record<string, string>>) | undefined;
  readonly onFailure: ((failure: FailedAttempt) => unknown) | undefined;
}

export const RETRY_DELAY_MS_MAX = 30 * 24 * 3600 * 1000;
/** `setTimeout` takes no more. */
const TIMER_MS_MAX = 2 ** 31 - 1;
const ATTEMPTS_MAX = 999;
const CONCURRENCY_MAX = 10_000;

/** Says what is wrong with a value, or `undefined`. By hand, since every new thread loads this before its first handler. */
type Rule = (value: unknown) => string | undefined;

const isFunction: Rule = (value) => (typeof value === 'function' ? undefined : 'must be a function');
/** One that is called for its value. */
const isPlainFunction: Rule = (value) =>
  isFunction(value) ?? (value?.constructor.name === 'AsyncFunction' ? 'must not be async' : undefined);
const isBoolean: Rule = (value) => (typeof value === 'boolean' ? undefined : 'must be true or false');
const isText: Rule = (value) => (typeof value === 'string' && value !== '' ? undefined : 'must be a text');
const isRun: Rule = (value) =>
  value === 'thread' || value === 'in-process' ? undefined : "must be 'thread' or 'in-process'";
const isStartId: Rule = (value) =>
  typeof value === 'string' && /^(\$|\d+(-\d+)?)$/.test(value) ? undefined : 'must be 0, $ or an entry ID';

function isInteger(min: number, max: number): Rule {
  return (value) =>
    Number.isInteger(value) && (value as number) >= min && (value as number) <= max
      ? undefined
      : `must be a whole number from ${min} to ${max}`;
}
function isNumber(min: number, max: number): Rule {
  return (value) =>
    typeof value === 'number' && value >= min && value <= max ? undefined : `must be a number from ${min} to ${max}`;
}
function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
/** A record with these keys only; what is wrong is said with the path to it. */
function hasOnly(rules: Readonly<Record<string, Rule>>): Rule {
  return (value) => {
    if (!isRecord(value)) return 'must be an object';
    for (const [key, member] of Object.entries(value)) {
      const rule = Object.hasOwn(rules, key) ? rules[key] : undefined;
      if (rule === undefined) return `.${key}: there is no such setting`;
      const wrong = member === undefined ? undefined : rule(member);
      if (wrong !== undefined) return within(key, wrong);
    }
    return undefined;
  };
}
function within(key: string, wrong: string): string {
  return wrong.startsWith('.') ? `.${key}${wrong}` : `.${key}: ${wrong}`;
}

const isTime = isInteger(1, TIMER_MS_MAX);
const isRetry = hasOnly({
  attempts: isInteger(1, ATTEMPTS_MAX),
  baseMs: isInteger(1, RETRY_DELAY_MS_MAX),
  maxMs: isInteger(1, RETRY_DELAY_MS_MAX),
  jitter: isNumber(0, 1),
});
const isDefinition = hasOnly({
  handle: isFunction,
  module: isText,
  run: isRun,
  timeoutMs: isTime,
  retry: isRetry,
  concurrency: isInteger(1, CONCURRENCY_MAX),
  rateLimit: hasOnly({ max: isInteger(1, TIMER_MS_MAX), perMs: isTime }),
});
const isHandler: Rule = (value) => {
  if (typeof value === 'function') return undefined;
  const wrong = isDefinition(value);
  if (wrong !== undefined || !isRecord(value)) return wrong;
  if ((value.handle === undefined) === (value.module === undefined)) return 'needs either `handle` or `module`';
  const limit = value.rateLimit;
  return isRecord(limit) && (limit.max === undefined || limit.perMs === undefined)
    ? '.rateLimit: needs `max` and `perMs`'
    : undefined;
};
const isHandlers: Rule = (value) => {
  if (!isRecord(value) || Object.keys(value).length === 0) return 'must be an object with at least one handler';
  for (const [name, handler] of Object.entries(value)) {
    const wrong = isHandler(handler);
    if (wrong !== undefined) return within(name, wrong);
  }
  return undefined;
};
const isStreams: Rule = (value) => {
  const list: unknown[] = Array.isArray(value) ? value : [value];
  if (list.length === 0 || list.some((name) => isText(name) !== undefined)) return 'must be a name or a list of names';
  return new Set(list).size === list.length ? undefined : 'names a stream twice';
};
const isApp = hasOnly({
  streams: isStreams,
  group: isText,
  startId: isStartId,
  handlers: isHandlers,
  route: isPlainFunction,
  decode: isPlainFunction,
  orderBy: isPlainFunction,
  retry: isRetry,
  timeoutMs: isTime,
  graceMs: isTime,
  concurrency: isInteger(1, CONCURRENCY_MAX),
  threads: isInteger(1, 512),
  threadMemoryMb: isInteger(16, 1_000_000),
  heartbeatMs: isInteger(50, TIMER_MS_MAX),
  deadAfterMs: isTime,
  trim: isBoolean,
  deadLetterStream: isPlainFunction,
  failureFields: isPlainFunction,
  onFailure: isFunction,
});

function check(definition: AppDefinition<never>): void {
  let wrong = isApp(definition);
  if (wrong === undefined && definition.streams === undefined) wrong = '.streams: is missing';
  if (wrong === undefined && definition.handlers === undefined) wrong = '.handlers: is missing';
  if (wrong === undefined && (definition.deadAfterMs ?? 2000) < 2 * (definition.heartbeatMs ?? 500)) {
    wrong = '.deadAfterMs: must be at least twice heartbeatMs';
  }
  if (wrong !== undefined) throw new HoldfastError('CONFIG', wrong.startsWith('.') ? wrong.slice(1) : `app: ${wrong}`);
}

/** Known to every copy of this module: the app's own may be another one than the worker's. */
const DEFINED = Symbol.for('holdfast.app');

/**
 * Checks an app and fills in its defaults.
 *
 * Throws `CONFIG` naming the first wrong setting.
 */
export function defineApp<Event = Fields>(definition: AppDefinition<Event>): App {
  check(definition as unknown as AppDefinition<never>);
  const streams = typeof definition.streams === 'string' ? [definition.streams] : [...definition.streams];
  const retry: RetryPolicy = { attempts: 5, baseMs: 1000, maxMs: 3_600_000, jitter: 0.1, ...definition.retry };
  const timeoutMs = definition.timeoutMs ?? 10_000;
  const handlers = new Map<string, HandlerSpec>();
  for (const [name, given] of Object.entries(definition.handlers)) {
    const handler: HandlerDefinition<Event> = typeof given === 'function' ? { handle: given } : given;
    handlers.set(name, {
      name,
      handle: handler.handle as Handler<unknown> | undefined,
      module: handler.module,
      run: handler.run ?? 'thread',
      timeoutMs: handler.timeoutMs ?? timeoutMs,
      retry: { ...retry, ...handler.retry },
      concurrency: handler.concurrency ?? Number.POSITIVE_INFINITY,
      rateLimit: handler.rateLimit,
    });
  }
  const only = handlers.size === 1 ? [...handlers.keys()][0] : undefined;
  const app: App = Object.freeze({
    [DEFINED]: true,
    streams,
    group: definition.group ?? `${streams[0]}-group`,
    startId: definition.startId ?? '0',
    handlers,
    route: (definition.route as App['route'] | undefined) ?? ((_event, fields) => routeByField(fields, only)),
    decode: definition.decode ?? ((fields) => fields),
    orderBy: definition.orderBy as App['orderBy'],
    retry,
    graceMs: definition.graceMs ?? 1000,
    concurrency: definition.concurrency ?? 16,
    threads: definition.threads ?? availableParallelism(),
    threadMemoryMb: definition.threadMemoryMb ?? 256,
    heartbeatMs: definition.heartbeatMs ?? 500,
    deadAfterMs: definition.deadAfterMs ?? 2000,
    trim: definition.trim ?? true,
    deadLetterStream: definition.deadLetterStream ?? ((stream) => `${stream}:dead`),
    failureFields: definition.failureFields,
    onFailure: definition.onFailure,
  });
  if (streams.includes(app.deadLetterStream(streams[0]!))) {
    throw new HoldfastError('CONFIG', 'deadLetterStream: must not be one of the streams that the app reads');
  }
  return app;
}

/** The app in what a module exports by default: made by `defineApp`, or a plain definition. */
export function appFromExport(exported: unknown): App {
  if (typeof exported !== 'object' || exported === null) {
    throw new HoldfastError('CONFIG', 'the module must export an app by default: `export default defineApp({ … })`');
  }
  if (DEFINED in exported) return exported as unknown as App;
  return defineApp(exported as AppDefinition<unknown>);
}

function routeByField(fields: Fields, only: string | undefined): string {
  const name = fields.task ?? only;
  if (name === undefined) throw new HoldfastError('MALFORMED', 'the entry has no field `task`');
  return name;
}

/** An error that a handler throws where another attempt would be pointless: the entry fails for good at once. */
export function permanentFailure(reason: unknown): HoldfastError {
  return new HoldfastError('PERMANENT', messageOf(reason), { cause: reason });
}
