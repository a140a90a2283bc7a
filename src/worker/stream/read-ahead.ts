/**
 * How many entries of a stream to take in beyond the free slots: handlers that are done in a moment must not wait for
 * round trips, and for slow ones nothing may be hoarded that another worker could handle.
 *
 * Whatever limits how fast entries get done is a bottleneck: the slots of the process, the threads, the concurrency and
 * the rate of a handler. What an entry costs each of them on average (ms of one of its slots, over all calls for this
 * stream) tells how many entries it lets through in a while; the narrowest one counts. Memory sets a bound of its own.
 */
import type { App, HandlerSpec } from '../app.ts';

const READ_AHEAD_MAX = 512;
/** Of entries as large as the largest of late. */
const READ_AHEAD_BYTES_MAX = 16 * 1024 * 1024;
const LARGEST_DECAY = 0.98;
/** So small that one slow call among many fast ones does not look like a change of pace. */
const WEIGHT = 0.02;
const COST_MS_MIN = 0.01;

interface Bottleneck {
  /** Those that pass through it; calls of the others cost it nothing. */
  readonly handlers: ReadonlySet<HandlerSpec>;
  readonly slots: () => number;
  /** Of a call; without it the time that the call takes. */
  readonly fixedCostMs?: number;
  /** `undefined` where nothing has ever come, infinite until the first call has ended. */
  meanCostMs: number | undefined;
}

export interface ReadAhead {
  /** An entry of about this many bytes has been delivered. */
  onDelivery(bytes: number): void;
  /** An entry for this handler has been taken in. */
  onEntry(handler: HandlerSpec): void;
  onOutcome(handler: HandlerSpec, tookMs: number): void;
  /** Entries that get done within `horizonMs` at the pace of the last ones; 0 as long as that is not known. */
  entriesWithin(horizonMs: number): number;
}

/** `slots`: how many handlers of a kind run at once. */
export function createReadAhead(app: App, slots: (run: HandlerSpec['run']) => number): ReadAhead {
  const handlers = [...app.handlers.values()];
  const bottlenecks: Bottleneck[] = (['in-process', 'thread'] as const).map((run) => ({
    handlers: new Set(handlers.filter((handler) => handler.run === run)),
    slots: () => slots(run),
    meanCostMs: undefined,
  }));
  for (const handler of handlers) {
    const { concurrency, rateLimit } = handler;
    const own = { handlers: new Set([handler]), meanCostMs: undefined };
    if (Number.isFinite(concurrency)) bottlenecks.push({ ...own, slots: () => concurrency });
    if (rateLimit !== undefined) {
      bottlenecks.push({ ...own, slots: () => 1, fixedCostMs: rateLimit.perMs / rateLimit.max });
    }
  }

  let largest = 1;

  return {
    onDelivery(bytes) {
      largest = Math.max(bytes, largest * LARGEST_DECAY);
    },
    onEntry(handler) {
      for (const each of bottlenecks) {
        if (each.meanCostMs === undefined && each.handlers.has(handler)) each.meanCostMs = Number.POSITIVE_INFINITY;
      }
    },
    onOutcome(handler, tookMs) {
      for (const each of bottlenecks) {
        const mean = each.meanCostMs;
        if (mean === undefined) continue;
        const passed = each.handlers.has(handler);
        const costMs = passed ? (each.fixedCostMs ?? tookMs) : 0;
        if (Number.isFinite(mean)) each.meanCostMs = mean + (costMs - mean) * WEIGHT;
        else if (passed) each.meanCostMs = costMs;
      }
    },
    entriesWithin(horizonMs) {
      const known = bottlenecks.filter((each) => each.meanCostMs !== undefined);
      if (known.length === 0) return 0;
      const entries = known.map((each) => (each.slots() * horizonMs) / Math.max(each.meanCostMs!, COST_MS_MIN));
      return Math.floor(Math.min(READ_AHEAD_MAX, READ_AHEAD_BYTES_MAX / largest, ...entries));
    },
  };
}
