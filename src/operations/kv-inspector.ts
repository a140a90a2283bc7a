/**
 * Asks the KV store how it is, on a connection of its own, for readiness and status. It never waits long and never
 * throws: a KV store that does not answer is an answer.
 */
import type { Redis } from 'ioredis';
import { controlRedis, type KvAddress } from '../control-redis.ts';

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

function connection(target: KvAddress): Redis {
  return controlRedis(target, {
    name: 'status',
    connectTimeoutMs: COMMAND_TIMEOUT_MS,
    commandTimeoutMs: COMMAND_TIMEOUT_MS,
  });
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

export function inspectKv(target: KvAddress): KvInspector {
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
