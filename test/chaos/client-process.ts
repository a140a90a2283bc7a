/**
 * What producer and consumer processes have in common: their settings, their connections and their list of errors.
 */
import { appendFileSync } from 'node:fs';
import { Redis } from 'ioredis';
import { messageOf } from '../../src/errors.ts';

export interface ClientSettings {
  readonly seed: string;
  /** The process's number in the run: `client` in the history, and `writer` of its events. */
  readonly client: number;
  /** Which of the workload's lists it runs. Even ones speak RESP3, odd ones RESP2. */
  readonly slot: number;
  /** Decimal nanoseconds of the monotonic clock at the run's start. */
  readonly startNs: string;
  readonly historyPath: string;
  /** Lines `atMs operation error text`: what clients were told, for the report. */
  readonly errorsPath: string;
  readonly port: number;
  /** Past every sidecar. */
  readonly directPort: number;
  /** XADDs per second of all producers together. */
  readonly ratePerSecond: number;
  /** Make groups again on NOGROUP; only where no sidecar keeps them. */
  readonly recreatesGroups: boolean;
}

/** The process's one argument, JSON. */
export function readSettings(): ClientSettings {
  return JSON.parse(process.argv[2]!) as ClientSettings;
}

/**
 * An ordinary client, except that it does not send a request twice by itself: then an event that comes twice was
 * doubled by somebody else.
 */
export function connectClient(port: number, database: number, protocol: 2 | 3 = 3): Redis {
  const client = new Redis({
    ...{ host: '127.0.0.1', port, db: database, protocol },
    autoResendUnfulfilledCommands: false,
    maxRetriesPerRequest: 0,
    enableOfflineQueue: true,
    retryStrategy: (attempts) => Math.min(20 * attempts, 250),
    reconnectOnError: () => false,
  });
  client.setMaxListeners(0);
  // Each request's own rejection tells of the fault; a client without this listener would print it as well.
  client.on('error', (error) => {
    // ioredis goes on in database 0 when the SELECT of a new connection was refused, which would be this client's own loss.
    if (isRefusedSelect(error)) client.disconnect(true);
  });
  return client;
}

function isRefusedSelect(error: unknown): boolean {
  const command = error instanceof Error && 'command' in error ? error.command : undefined;
  return typeof command === 'object' && command !== null && 'name' in command && command.name === 'select';
}

/** Longer than any fault, and than what Holdfast may hold a request for: who is not answered by then never will be. */
const ANSWER_MS_MAX = 25_000;

/** ioredis may forget a request when its connection closes; it has this long to say so itself. */
const FORGOTTEN_MS = 1000;
const DROPPED = 'dropped';

/** Ends a client. One that waits to reconnect would neither answer its requests any more nor say that it is closed. */
export function dropClient(client: Redis): void {
  client.disconnect();
  client.emit(DROPPED);
}

/**
 * What `request` comes to. Without an answer in time (`blockMs` apart) it rejects with `NO_ANSWER`, and the client takes a new
 * connection: a reply that is missing must not stop the client for the rest of the run, and must be told in the report.
 */
export async function answered<T>(client: Redis, request: Promise<T>, blockMs = 0): Promise<T> {
  let limit: NodeJS.Timeout | undefined;
  let forgotten: NodeJS.Timeout | undefined;
  let closed = (): void => {};
  const failure = new Promise<never>((_, reject) => {
    closed = () => {
      forgotten ??= setTimeout(() => reject(new Error('Connection is closed.')), FORGOTTEN_MS);
    };
    client.on('close', closed);
    client.on(DROPPED, closed);
    limit = setTimeout(() => {
      reject(new Error(`${NO_ANSWER} within ${ANSWER_MS_MAX} ms`));
      client.disconnect(true);
    }, blockMs + ANSWER_MS_MAX);
  });
  try {
    return await Promise.race([request, failure]);
  } finally {
    client.off('close', closed);
    client.off(DROPPED, closed);
    clearTimeout(limit);
    clearTimeout(forgotten);
  }
}

/** How the error of a request begins that was never answered. */
export const NO_ANSWER = 'no answer';

export interface ErrorLog {
  add(operation: string, error: unknown): void;
}

const ERROR_LINES_MAX = 20_000;

export function openErrorLog(path: string, now: () => number): ErrorLog {
  let lines = 0;
  return {
    add(operation, error) {
      if (lines >= ERROR_LINES_MAX) return;
      lines += 1;
      appendFileSync(path, `${now()} ${operation} ${messageOf(error).replace(/\s+/g, ' ').slice(0, 200)}\n`);
    },
  };
}

/** Codes of errors after which the entry is certainly not in the stream. All else leaves the outcome open. */
const CERTAIN_FAILURES = new Set(['ERR', 'OOM', 'WRONGTYPE', 'NOPERM', 'NOAUTH', 'READONLY', 'MISCONF', 'EXECABORT']);

/** Is `error` the server's word that the request had no effect? */
export function failedForSure(error: unknown): boolean {
  if (!(error instanceof Error) || error.name !== 'ReplyError') return false;
  return CERTAIN_FAILURES.has(error.message.split(' ', 1)[0]!);
}

export function delay(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

export function protocolOf(settings: ClientSettings): 2 | 3 {
  return settings.slot % 2 === 0 ? 3 : 2;
}
