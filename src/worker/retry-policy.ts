/**
 * When a failed entry is tried again, and how its history is written into the one number that a pending entry has.
 *
 *   delivery count = number of the attempt being made or due + 1000 × takeovers
 *
 * A fresh delivery has 1: the first attempt. Claims are made with JUSTID, which leaves the count alone.
 */
import type { RetryPolicy } from './app.ts';

const TAKEOVER_UNIT = 1000;
/** A worker died that often with the entry in its hands: the entry is to blame. */
export const TAKEOVERS_MAX = 20;

export interface History {
  /** Number of the attempt to make next, from 1. */
  readonly attempt: number;
  readonly takeovers: number;
}

export function deliveryCount(history: History): number {
  return history.attempt + TAKEOVER_UNIT * history.takeovers;
}

export function historyOf(deliveries: number): History {
  return { attempt: Math.max(1, deliveries % TAKEOVER_UNIT), takeovers: Math.floor(deliveries / TAKEOVER_UNIT) };
}

/** Milliseconds from the `failed`-th failure to the next attempt: min(base·2ⁿ, max), varied by ± `jitter`. */
export function retryDelayMs(policy: RetryPolicy, failed: number, random: () => number = Math.random): number {
  const delay = Math.min(policy.baseMs * 2 ** (failed - 1), policy.maxMs);
  return Math.round(delay * (1 + policy.jitter * (2 * random() - 1)));
}
