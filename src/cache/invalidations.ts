/**
 * Invalidation of a scope: all its keys go, and so does what is being fetched for them. Each is an event that is kept for
 * a while: which scope, by whom, how many keys, how long it took.
 */
import type { Logger } from 'pino';
import type { KvAddress } from '../control-redis.ts';
import { messageOf } from '../errors.ts';
import { KvConnection } from '../recovery/kv-connection.ts';
import { OWNERS_KEY } from './lease-scripts.ts';
import type { Leases } from './leases.ts';

export interface InvalidationEvent {
  /** ISO 8601. */
  readonly at: string;
  /** The prefix of the keys. */
  readonly scope: string;
  readonly database: number;
  /** A user, a client or a task. */
  readonly by: string;
  readonly keys: number;
  readonly tookMs: number;
  /** Why it did not get through, if it did not. */
  readonly error?: string;
}

export interface Invalidations {
  readonly total: number;
  readonly keysTotal: number;
  /** Newest first. */
  readonly recent: readonly InvalidationEvent[];
  /** Deletes every key with this prefix. Rejects with KVDOWN, or the KV store's refusal; what was deleted stays so. */
  invalidate(request: { prefix: Buffer | string; database?: number; by: string }): Promise<InvalidationEvent>;
  /** An invalidation that somebody else carried out. */
  record(event: InvalidationEvent): void;
}

export interface InvalidationOptions {
  readonly kv: KvAddress;
  readonly leases: Leases | undefined;
  readonly log: Logger;
}

const KEPT = 100;
const SCAN_COUNT = 1000;
const COMMAND_TIMEOUT_MS = 10_000;

export function createInvalidations({ kv, leases, log }: InvalidationOptions): Invalidations {
  const recent: InvalidationEvent[] = [];
  let total = 0;
  let keysTotal = 0;

  function record(event: InvalidationEvent): void {
    total += 1;
    keysTotal += event.keys;
    recent.unshift(event);
    recent.length = Math.min(recent.length, KEPT);
    log.info(event, 'a cache scope was invalidated');
  }

  async function deleteAll(prefix: Buffer, database: number, deleted: (count: number) => void): Promise<void> {
    const connection = await KvConnection.open(kv, COMMAND_TIMEOUT_MS);
    try {
      if (leases !== undefined) {
        const owned = (await connection.command(database, ['HKEYS', OWNERS_KEY])) as Buffer[];
        const fetched = owned.filter((key) => key.subarray(0, prefix.length).equals(prefix));
        if (fetched.length > 0) leases.deleted(database, fetched);
      }
      const match = Buffer.concat([escapeGlob(prefix), Buffer.from('*')]);
      let cursor = '0';
      do {
        const scan = ['SCAN', cursor, 'MATCH', match, 'COUNT', SCAN_COUNT];
        const [next, keys] = (await connection.command(database, scan)) as [Buffer, Buffer[]];
        if (keys.length > 0) deleted(Number(await connection.command(database, ['UNLINK', ...keys])));
        cursor = next.toString();
      } while (cursor !== '0');
    } finally {
      connection.close();
    }
  }

  return {
    get total() {
      return total;
    },
    get keysTotal() {
      return keysTotal;
    },
    recent,
    record,
    async invalidate({ prefix, database = 0, by }) {
      const bytes = typeof prefix === 'string' ? Buffer.from(prefix) : prefix;
      const startedAt = performance.now();
      const at = new Date().toISOString();
      let keys = 0;
      const event = (error?: string): InvalidationEvent => ({
        ...{ at, scope: bytes.toString(), database, by, keys },
        tookMs: Math.round(performance.now() - startedAt),
        ...(error === undefined ? {} : { error }),
      });
      try {
        await deleteAll(bytes, database, (count) => {
          keys += count;
        });
      } catch (thrown) {
        record(event(messageOf(thrown)));
        throw thrown;
      }
      const done = event();
      record(done);
      return done;
    },
  };
}

function escapeGlob(prefix: Buffer): Buffer {
  return Buffer.from(prefix.toString('latin1').replace(/[*?[\]\\]/g, '\\$&'), 'latin1');
}
