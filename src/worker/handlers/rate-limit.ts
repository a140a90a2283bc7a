/**
 * A rate limit over all workers: one key in the KV store holds the time up to which starts have been given out (the
 * generic cell rate algorithm, https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm), by the server's clock. A lost
 * key allows one burst of `max`, nothing more.
 */
import type { Redis } from 'ioredis';
import type { RateLimit } from '../app.ts';
import { createScript } from '../group/lua.ts';

/** KEYS: the limit. ARGV: max, perMs, wanted. Gives how many starts are granted, and after how many ms to ask for more. */
const TAKE = createScript(`
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local max, per = tonumber(ARGV[1]), tonumber(ARGV[2])
local each = per / max
local given = tonumber(redis.call('GET', KEYS[1]) or now)
if given < now then given = now end
local room = math.floor((now + per - given) / each + 0.000001)
local granted = math.max(0, math.min(room, tonumber(ARGV[3])))
if granted > 0 then
  given = given + granted * each
  redis.call('SET', KEYS[1], string.format('%.3f', given), 'PX', math.ceil(given - now) + 1)
end
return {granted, math.max(1, math.ceil(given + each - now - per))}
`);

export interface RateGate {
  /** Takes one start if there is one in hand. Otherwise asks for more and calls `onGranted` when they have come. */
  take(): boolean;
  /** Gives up what is in hand and asks no more. */
  close(): void;
}

const BATCH_MAX = 64;
const ERROR_PAUSE_MS = 500;

export function createRateGate(options: {
  readonly commands: Redis;
  readonly key: string;
  readonly limit: RateLimit;
  /** How many starts would be used now. */
  wanted(): number;
  onGranted(): void;
}): RateGate {
  const { limit } = options;
  let inHand = 0;
  /** A grant is for now: one that lies about would let starts come late and all at once. */
  let goodUntil = 0;
  let asking = false;
  let timer: NodeJS.Timeout | undefined;

  async function ask(): Promise<void> {
    const wanted = Math.min(options.wanted(), BATCH_MAX, limit.max);
    if (wanted === 0) {
      asking = false;
      return;
    }
    let pauseMs = ERROR_PAUSE_MS;
    try {
      const reply = await TAKE.run(options.commands, [options.key], [limit.max, limit.perMs, wanted]);
      const [granted, waitMs] = reply as [number, number];
      if (granted > 0) {
        inHand = granted;
        goodUntil = performance.now() + limit.perMs;
        asking = false;
        options.onGranted();
        return;
      }
      pauseMs = waitMs;
    } catch {
      // The connection reports its own troubles; no answer means no start.
    }
    timer = setTimeout(() => void ask(), pauseMs);
  }
  return {
    take() {
      if (inHand > 0 && performance.now() < goodUntil) {
        inHand -= 1;
        return true;
      }
      inHand = 0;
      if (!asking) {
        asking = true;
        void ask();
      }
      return false;
    },
    close() {
      asking = true;
      inHand = 0;
      clearTimeout(timer);
    },
  };
}
