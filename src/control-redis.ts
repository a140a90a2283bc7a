/**
 * Holdfast's own connections to the KV store, off the data plane: recovery, scopes, status. One does not reconnect and
 * queues nothing: when it breaks it is over, commands on it fail, and whoever needs one makes another.
 */
import type { ConnectionOptions } from 'node:tls';
import { Redis } from 'ioredis';

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
