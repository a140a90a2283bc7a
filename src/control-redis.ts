/**
 * Holdfast's own connections to the KV store, off the data plane: recovery, scopes, status. One does not reconnect and
 * queues nothing: when it breaks it is over, commands on it fail, and whoever needs one makes another.
 */
import type { ConnectionOptions } from 'node:tls';
import { Redis } from 'ioredis';
import { messageOf } from './errors.ts';

/** Where the KV store is, and who Holdfast is there. */
export interface KvAddress {
  readonly host?: string;
  readonly port?: number;
  /** A unix socket, instead of host and port. */
  readonly path?: string;
  readonly tls?: ConnectionOptions;
  readonly username?: string;
  readonly password?: string;
}

export interface ControlRedisOptions {
  /** Behind `holdfast:` in the KV store's CLIENT LIST. */
  readonly name: string;
  readonly connectTimeoutMs: number;
  readonly commandTimeoutMs: number;
}

/** Not connected yet: `connect()` rejects where it cannot be. Replies are RESP2. */
export function controlRedis(address: KvAddress, options: ControlRedisOptions): Redis {
  const { host = '127.0.0.1', port = 6379, path, tls, username, password } = address;
  const redis = new Redis({
    ...(path === undefined ? { host, port } : { path }),
    ...(tls === undefined ? {} : { tls }),
    ...(username === undefined ? {} : { username }),
    ...(password === undefined ? {} : { password }),
    protocol: 2,
    lazyConnect: true,
    enableReadyCheck: false,
    enableOfflineQueue: false,
    disableClientInfo: true,
    maxRetriesPerRequest: 0,
    retryStrategy: () => null,
    connectTimeout: options.connectTimeoutMs,
    commandTimeout: options.commandTimeoutMs,
    connectionName: `holdfast:${options.name}`,
  });
  // Each command tells its own failure.
  redis.on('error', () => undefined);
  return redis;
}

/** Resolves when a Redis answers. Rejects with the first error of the socket, of TLS or of the server, not with its consequence. */
export async function connectControl(redis: Redis): Promise<void> {
  let cause: unknown;
  const note = (error: unknown): void => {
    cause ??= error;
  };
  redis.on('error', note);
  try {
    await redis.connect();
    // What is no Redis shows itself with its first answer. A refusal is one of a Redis: each command tells its own.
    await redis.ping().catch((thrown: unknown) => {
      if (!(thrown instanceof Error && thrown.name === 'ReplyError')) throw thrown;
    });
  } catch (thrown) {
    redis.disconnect();
    throw cause ?? thrown;
  } finally {
    redis.off('error', note);
  }
}

function codeOf(thrown: unknown): string {
  return typeof thrown === 'object' && thrown !== null && 'code' in thrown ? String(thrown.code) : '';
}

/** Failures that a KV store which is down, starting or cut off gives: they pass without a change of the configuration. */
const AWAY_CODES: ReadonlySet<string> = new Set([
  'ECONNREFUSED',
  'ECONNRESET',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'ENOENT',
  'EPIPE',
  'ETIMEDOUT',
  'EAI_AGAIN',
]);

/** Whether the KV store is away, where the settings may be right. */
export function isKvAway(thrown: unknown): boolean {
  if (AWAY_CODES.has(codeOf(thrown))) return true;
  return /^(LOADING|MASTERDOWN) |Connection is closed|timed out|ETIMEDOUT/.test(messageOf(thrown));
}

/** Which mistake in the settings a failed connection or command shows, with the remedy: each reads differently. */
export function explainKvFailure(address: KvAddress, thrown: unknown): string {
  const { host = '127.0.0.1', port = 6379, path, tls, username, password } = address;
  const place = path ?? `${host}:${port}`;
  const message = messageOf(thrown);
  const code = codeOf(thrown);
  if (message.startsWith('NOAUTH')) {
    return `${place} wants a login: give kv.user and kv.password, or redis://USER:PASSWORD@… (${message})`;
  }
  if (/^WRONGPASS|invalid password|without any password configured/.test(message)) {
    const who = username ?? 'default';
    return `${place} refused the password of user ${who}${password === undefined ? ', for none was given' : ''} (${message})`;
  }
  if (message.startsWith('NOPERM')) {
    return `user ${username ?? 'default'} of ${place} may not do what Holdfast needs; grant ~* &* +@all to it (${message})`;
  }
  if (code === 'ECONNREFUSED') return `nothing listens at ${place} (${code})`;
  if (code === 'ENOENT') return `there is no socket ${place} (${code})`;
  if (code === 'EACCES') return `this process may not open the socket ${place} (${code})`;
  if (code === 'ENOTFOUND' || code === 'EAI_AGAIN') return `the name ${host} cannot be resolved (${code})`;
  if (code === 'EHOSTUNREACH' || code === 'ENETUNREACH') return `there is no route to ${place} (${code})`;
  if (tls !== undefined && /^(UNABLE_TO|SELF_SIGNED|DEPTH_ZERO|CERT_|ERR_TLS_CERT)/.test(code)) {
    return `the certificate of ${place} cannot be verified: ${message}; kv.tls.ca names its authority, kv.tls.serverName its name`;
  }
  if (/wrong version number|packet length too long|record layer/i.test(message) || code === 'EPROTO') {
    return `${place} does not speak TLS: redis:// instead of rediss:// (${message})`;
  }
  if (code.startsWith('ERR_SSL') || /alert/i.test(message)) {
    return `${place} ended the TLS handshake: ${message}; kv.tls.cert and kv.tls.key name a client certificate`;
  }
  if (/Protocol error|Unknown RESP type/i.test(message))
    return `${place} does not speak RESP: is it a Redis or Valkey? (${message})`;
  if (/timed out|ETIMEDOUT/i.test(message)) {
    return `${place} did not answer in time${tls === undefined ? '' : ': it may not speak TLS (redis://)'} (${message})`;
  }
  if (/Connection is closed|isn't writeable|ECONNRESET|EPIPE/.test(message) || code === 'ECONNRESET') {
    const hint = tls === undefined ? 'it may want TLS (rediss://)' : 'it may not speak TLS (redis://)';
    return `${place} closed the connection: ${hint}, or not be a Redis or Valkey (${message})`;
  }
  return `${place}: ${message}`;
}
