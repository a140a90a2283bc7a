/**
 * Asks the KV store how it is, on a connection of its own, for readiness and status. It never waits long and never
 * throws: a KV store that does not answer is an answer.
 */
import type { ConnectionOptions } from 'node:tls';
import { Redis } from 'ioredis';

export interface KvTarget {
  readonly host?: string;
  readonly port?: number;
  /** A Unix socket, instead of host and port. */
  readonly path?: string;
  readonly tls?: ConnectionOptions;
  readonly username?: string;
  readonly password?: string;
}

export interface KvReport {
  readonly reachable: boolean;
  /** `redis` or `valkey`; absent where Holdfast's user may not ask. */
  readonly server?: string;
  readonly version?: string;
  readonly role?: string;
  readonly uptimeSeconds?: number;
  readonly usedMemoryBytes?: number;
  /** 0: no limit. */
  readonly maxMemoryBytes?: number;
  readonly maxMemoryPolicy?: string;
  readonly evictedKeys?: number;
  readonly keyspaceHits?: number;
  readonly keyspaceMisses?: number;
}

export interface KvInspector {
  reachable(): Promise<boolean>;
  report(): Promise<KvReport>;
  stop(): void;
}

const COMMAND_TIMEOUT_MS = 1000;
const UNREACHABLE: KvReport = { reachable: false };

function connection(target: KvTarget): Redis {
  const { host, port, path, tls, username, password } = target;
  const client = new Redis({
    ...(path === undefined ? { host: host ?? '127.0.0.1', port: port ?? 6379 } : { path }),
    ...(tls === undefined ? {} : { tls }),
    ...(username === undefined ? {} : { username }),
    ...(password === undefined ? {} : { password }),
    lazyConnect: true,
    enableReadyCheck: false,
    enableOfflineQueue: false,
    maxRetriesPerRequest: 0,
    retryStrategy: () => null,
    connectTimeout: COMMAND_TIMEOUT_MS,
    commandTimeout: COMMAND_TIMEOUT_MS,
    connectionName: 'holdfast:status',
  });
  // Each command tells its own failure.
  client.on('error', () => {});
  return client;
}

/** The server answered, even if with a refusal. */
function isReply(error: unknown): boolean {
  return error instanceof Error && error.name === 'ReplyError';
}

function reportFrom(info: string): KvReport {
  const fields = new Map<string, string>();
  for (const line of info.split('\r\n')) {
    const colon = line.indexOf(':');
    if (colon > 0) fields.set(line.slice(0, colon), line.slice(colon + 1));
  }
  const number = (name: string) => Number(fields.get(name) ?? 0);
  return {
    reachable: true,
    server: fields.get('server_name') ?? 'redis',
    version: fields.get('valkey_version') ?? fields.get('redis_version') ?? '',
    role: fields.get('role') ?? '',
    uptimeSeconds: number('uptime_in_seconds'),
    usedMemoryBytes: number('used_memory'),
    maxMemoryBytes: number('maxmemory'),
    maxMemoryPolicy: fields.get('maxmemory_policy') ?? '',
    evictedKeys: number('evicted_keys'),
    keyspaceHits: number('keyspace_hits'),
    keyspaceMisses: number('keyspace_misses'),
  };
}

export function inspectKv(target: KvTarget): KvInspector {
  const client = connection(target);
  let connecting: Promise<void> | undefined;

  /** Connects when somebody asks, not on a timer: an answer is never older than the question. */
  async function connected(): Promise<Redis> {
    if (client.status !== 'ready') {
      connecting ??= client.connect().finally(() => {
        connecting = undefined;
      });
      await connecting;
    }
    return client;
  }
  return {
    async reachable() {
      try {
        await (await connected()).ping();
        return true;
      } catch (error) {
        return isReply(error);
      }
    },
    async report() {
      try {
        return reportFrom(await (await connected()).info());
      } catch (error) {
        return isReply(error) ? { reachable: true } : UNREACHABLE;
      }
    },
    stop() {
      client.disconnect();
    },
  };
}
