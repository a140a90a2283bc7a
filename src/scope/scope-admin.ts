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

export function connectScopeAdmin(address: KvAddress): ScopeAdmin {
  let generation = 0;
  let current: { redis: Redis; ready: Promise<void> } | undefined;
  let closed = false;

  function connection(): { redis: Redis; ready: Promise<void> } {
    if (closed) throw new HoldfastError('KVDOWN', 'Holdfast is shutting down');
    if (current !== undefined) return current;
    const redis = controlRedis(address, {
      name: 'scope',
      connectTimeoutMs: TIMEOUT_MS,
      commandTimeoutMs: TIMEOUT_MS,
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
    current = { redis, ready };
    return current;
  }

  return {
    get generation() {
      return generation;
    },
    async command(args) {
      const { redis, ready } = connection();
      await ready;
      const [name, ...rest] = args;
      try {
        return (await redis.callBuffer(String(name), ...rest)) as AdminReply;
      } catch (thrown) {
        if (thrown instanceof Error && thrown.name === 'ReplyError') throw thrown;
        redis.disconnect();
        throw new HoldfastError('KVDOWN', `the KV store did not answer: ${messageOf(thrown)}`);
      }
    },
    close() {
      closed = true;
      current?.redis.disconnect();
    },
  };
}
