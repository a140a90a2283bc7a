/**
 * Order by key: entries with the same key one after the other, in stream order, retries included.
 *
 *  - Within a worker: a chain for each key. Its head is with the dispatcher, the others stand behind it.
 *  - Between workers: one is active on the stream and holds a lock that expires; the others stand by. The one that takes
 *    the lock over takes over everything pending, in order, before it reads on.
 *
 * The holder believes in its lock for less time than the lock lives, by its own clock, and ends what it runs before that.
 */
import type { Redis } from 'ioredis';
import type { Logger } from 'pino';
import { messageOf } from '../../errors.ts';
import type { App } from '../app.ts';
import type { Held } from '../entry.ts';
import { compareIds } from '../group/entry-id.ts';
import type { Group } from '../group/group.ts';
import { createScript } from '../group/lua.ts';

/** KEYS: the lock. ARGV: consumer, lifetime in ms. Gives 1 to the holder. */
const HOLD = createScript(`
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
`);
const RELEASE = createScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
`);
const BELIEF = 0.8;

export interface KeyOrder {
  /** This worker may read the stream now. */
  readonly active: boolean;
  /** What other workers left behind has been taken over since this one became active. */
  adopted: boolean;
  /** Puts the entry into its key's chain; true when it is the head. */
  enter(entry: Held): boolean;
  isBehind(entry: Held): boolean;
  /** Takes the entry out of its chain; gives the new head where there is one. */
  leave(entry: Held): Held | undefined;
  /** Takes or renews the lock; false when this worker was active and is not any more. */
  keep(): Promise<boolean>;
  release(): Promise<void>;
}

export function createKeyOrder(options: {
  readonly commands: Redis;
  readonly app: App;
  readonly group: Group;
  readonly log: Logger;
}): KeyOrder {
  const { commands, app, group, log } = options;
  const keys = [`${group.stream}:${group.name}:active`];
  const chains = new Map<string, Held[]>();
  let believedUntil = Number.NEGATIVE_INFINITY;
  let wasActive = false;
  let adopted = false;

  const isActive = (): boolean => performance.now() < believedUntil;

  return {
    get active() {
      return isActive();
    },
    get adopted() {
      return adopted;
    },
    set adopted(value) {
      adopted = value;
    },
    enter(entry) {
      const chain = chains.get(entry.key!);
      if (chain === undefined) {
        chains.set(entry.key!, [entry]);
        return true;
      }
      let at = chain.length;
      while (at > 1 && compareIds(chain[at - 1]!.id, entry.id) > 0) at -= 1;
      chain.splice(at, 0, entry);
      return false;
    },
    isBehind(entry) {
      const chain = entry.key === undefined ? undefined : chains.get(entry.key);
      return chain !== undefined && chain[0] !== entry && chain.includes(entry);
    },
    leave(entry) {
      const chain = entry.key === undefined ? undefined : chains.get(entry.key);
      const at = chain?.indexOf(entry) ?? -1;
      if (chain === undefined || at < 0) return undefined;
      chain.splice(at, 1);
      if (chain.length === 0) chains.delete(entry.key!);
      return at === 0 ? chain[0] : undefined;
    },
    async keep() {
      const sentAt = performance.now();
      try {
        const held = await HOLD.run(commands, keys, [group.consumer, app.deadAfterMs + app.graceMs]);
        believedUntil = held === 1 ? sentAt + app.deadAfterMs * BELIEF : Number.NEGATIVE_INFINITY;
      } catch (error) {
        log.debug({ error: messageOf(error) }, 'renewing the lock of an ordered stream failed');
      }
      const lost = wasActive && !isActive();
      if (lost) adopted = false;
      if (!wasActive && isActive()) log.info('active on the ordered stream');
      wasActive = isActive();
      return !lost;
    },
    async release() {
      believedUntil = Number.NEGATIVE_INFINITY;
      await RELEASE.run(commands, keys, [group.consumer]);
    },
  };
}
