/**
 * Holdfast's own connection to the KV store for what scopes need besides the data plane: ACL users, compile checks.
 * It connects when it is first needed and again when it is needed after a loss.
 */
import type { Redis } from 'ioredis';
import { connectControl, controlRedis, explainKvFailure, type KvAddress } from '../control-redis.ts';
import { HoldfastError, messageOf } from '../errors.ts';

export type AdminReply = Buffer | number | null | AdminReply[];

export interface ScopeAdmin {
  /** Counts connections: what an earlier one had set up may be gone when it has changed. */
  readonly generation: number;
  /** Rejects with the server's error (`ReplyError`), or with `KVDOWN`. */
  command(args: readonly (string | Buffer)[]): Promise<AdminReply>;
  close(): void;
}

const TIMEOUT_MS = 5000;
/** So many times as long as one command may take, a connection may say nothing. */
const SILENT_TIMES = 3;
/** In ioredis's words. */
const TIMED_OUT = 'Command timed out';

interface Connection {
  readonly redis: Redis;
  readonly ready: Promise<void>;
  /** When it was last heard of, or was first asked something again. */
  heardAt: number;
  unanswered: number;
}

export function connectScopeAdmin(address: KvAddress, commandTimeoutMs = TIMEOUT_MS): ScopeAdmin {
  let generation = 0;
  let current: Connection | undefined;
  let closed = false;

  function connection(): Connection {
    if (closed) throw new HoldfastError('KVDOWN', 'Holdfast is shutting down');
    if (current !== undefined) return current;
    const redis = controlRedis(address, {
      name: 'scope',
      connectTimeoutMs: TIMEOUT_MS,
      commandTimeoutMs,
    });
    redis.once('close', () => {
      if (current?.redis === redis) current = undefined;
    });
    const ready = connectControl(redis).then(
      () => {
        generation += 1;
      },
      (thrown: unknown) => {
        if (current?.redis === redis) current = undefined;
        throw new HoldfastError('KVDOWN', explainKvFailure(address, thrown), { cause: thrown });
      },
    );
    current = { redis, ready, heardAt: Date.now(), unanswered: 0 };
    return current;
  }

  return {
    get generation() {
      return generation;
    },
    async command(args) {
      const used = connection();
      await used.ready;
      const [name, ...rest] = args;
      if (used.unanswered === 0) used.heardAt = Date.now();
      used.unanswered += 1;
      try {
        const reply = (await used.redis.callBuffer(String(name), ...rest)) as AdminReply;
        used.heardAt = Date.now();
        return reply;
      } catch (thrown) {
        if (thrown instanceof Error && thrown.name === 'ReplyError') {
          used.heardAt = Date.now();
          throw thrown;
        }
        // What takes one request too long is not the others': only a connection that stays silent is given up.
        const silentMs = Date.now() - used.heardAt;
        if (messageOf(thrown) !== TIMED_OUT || silentMs >= SILENT_TIMES * commandTimeoutMs) used.redis.disconnect();
        throw new HoldfastError('KVDOWN', `the KV store did not answer: ${messageOf(thrown)}`);
      } finally {
        used.unanswered -= 1;
      }
    },
    close() {
      closed = true;
      current?.redis.disconnect();
    },
  };
}
