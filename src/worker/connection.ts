/**
 * ioredis as the worker wants it: no hidden queues and no hidden resending. A command fails at once when the connection
 * is down or breaks under it, and the loop that sent it decides what that means.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis, type RedisOptions } from 'ioredis';
import type { Logger } from 'pino';
import { HoldfastError, messageOf } from '../errors.ts';
import { ioredisTarget, withoutPassword } from '../redis-url.ts';

/** The longest pause before a connection, or what failed on it, is tried again: so soon an outage is over for all of a worker. */
export const RECONNECT_MS_MAX = 250;
/**
 * A server that still loads its data is asked again after this. ioredis would wait for as long as the server believes to need
 * still, in whole seconds: up to several after it has loaded everything.
 */
const LOADING_RETRY_MS = 50;
const CONNECT_MS = 5000;
const STARTUP_MS = 10_000;
/** With a reply owed, so long without a byte means a dead connection, whatever TCP says. Blocking reads block for less. */
const SILENCE_MS = 5000;

/** `url`: `redis://`, `rediss://` or `unix:/path`. */
export function createConnection(url: string, name: string, log: Logger): Redis {
  const options = {
    lazyConnect: true,
    protocol: 2 as const,
    connectionName: name.replace(/\s/g, '-'),
    enableOfflineQueue: false,
    autoResendUnfulfilledCommands: false,
    // Rejects what a connection leaves unanswered. Any other value would leave it pending for ever.
    maxRetriesPerRequest: 0,
    connectTimeout: CONNECT_MS,
    maxLoadingRetryTime: LOADING_RETRY_MS,
    socketTimeout: SILENCE_MS,
    retryStrategy: (times: number) => Math.min(25 * 2 ** Math.min(times, 8), RECONNECT_MS_MAX),
  } satisfies RedisOptions;
  const redis = new Redis(ioredisTarget(url), options);
  let down = false;
  redis.on('error', (error: Error) => {
    if (!down) log.warn({ connection: name, error: error.message }, 'connection to the KV store failed, reconnecting');
    down = true;
  });
  redis.on('ready', () => {
    if (down) log.info({ connection: name }, 'connected to the KV store again');
    down = false;
  });
  return redis;
}

/** Connects for the first time. Throws `CONFIG` when the server cannot be reached within 10 s. */
export async function connectFirst(redis: Redis, url: string): Promise<void> {
  const deadline = Date.now() + STARTUP_MS;
  let last: unknown = new Error('no answer');
  const note = (error: unknown): void => {
    last = error;
  };
  redis.on('error', note);
  // Its rejection says no more than the events do, and comes after them.
  redis.connect().catch(() => undefined);
  while (redis.status !== 'ready') {
    if (Date.now() > deadline) {
      redis.disconnect();
      throw new HoldfastError('CONFIG', `kv: cannot reach ${withoutPassword(url)}: ${messageOf(last)}`);
    }
    await sleep(20);
  }
  redis.off('error', note);
}

/** What a server says while it is on its way up or over: the same command may succeed in a moment. */
const PASSING = /^(LOADING|MASTERDOWN|TRYAGAIN|READONLY|BUSY|OOM|MISCONF|CLUSTERDOWN|KVDOWN|LEDGERDOWN|RECOVERING)\b/;

export function isPassing(message: string): boolean {
  return PASSING.test(message);
}

/** Runs the first command on a connection. Throws `CONFIG` for a refusal, and when there is no answer within 10 s. */
export async function answerFirst(action: () => Promise<unknown>): Promise<void> {
  const deadline = Date.now() + STARTUP_MS;
  for (;;) {
    try {
      await action();
      return;
    } catch (error) {
      const refused = error instanceof Error && error.name === 'ReplyError' && !isPassing(error.message);
      if (refused || Date.now() > deadline)
        throw new HoldfastError('CONFIG', `kv: ${messageOf(error)}`, { cause: error });
      await sleep(100);
    }
  }
}
