/**
 * Liveness that means something: a worker is alive when it gets on with its work, not when it answers.
 *
 * It fails when the KV store has not answered for `stallAfterMs`; when it has room and could not read for that long; when
 * handlers that ignore their signal hold every slot; and when something waits to be handled, nothing runs, and nothing has
 * come to an end for that long. What waits for its backoff does not wait to be handled.
 */
import type { ConsumerState } from './stream/stream-consumer.ts';

export interface HealthReport {
  readonly healthy: boolean;
  /** Why not; empty when healthy. */
  readonly reasons: readonly string[];
  readonly running: number;
  readonly stuck: number;
  readonly held: number;
  /** Entries not given to the group yet, over all streams. */
  readonly backlog: number;
  readonly secondsSinceOutcome: number;
}

export interface HealthFacts {
  readonly now: number;
  readonly stallAfterMs: number;
  readonly free: number;
  readonly running: number;
  readonly stuck: number;
  readonly lastOutcomeAt: number;
  readonly streams: readonly ConsumerState[];
}

export function judgeHealth(facts: HealthFacts): HealthReport {
  const { now, stallAfterMs, streams } = facts;
  const stalled = (since: number): boolean => now - since > stallAfterMs;
  const seconds = (since: number): string => `${Math.round((now - since) / 1000)} s`;
  const reasons: string[] = [];
  for (const { stream, hungry, standby, lastReadAt, figures } of streams) {
    if (stalled(figures.at)) reasons.push(`${stream}: the KV store has not answered for ${seconds(figures.at)}`);
    if (hungry && !standby && stalled(lastReadAt)) {
      reasons.push(`${stream}: there is room, but nothing could be read for ${seconds(lastReadAt)}`);
    }
  }
  const held = streams.reduce((sum, stream) => sum + stream.held, 0);
  const backlog = streams.reduce((sum, { standby, figures }) => sum + (standby ? 0 : (figures.lag ?? 0)), 0);
  if (facts.free === 0 && facts.running === 0 && facts.stuck > 0) {
    reasons.push(`all slots are held by ${facts.stuck} handlers that ignore their signal`);
  }
  const waiting = streams.map(waitingIn).filter(({ entries }) => entries > 0);
  const since = Math.max(facts.lastOutcomeAt, Math.min(...waiting.map((each) => each.since)));
  if (waiting.length > 0 && facts.running === 0 && stalled(since)) {
    const entries = waiting.reduce((sum, each) => sum + each.entries, 0);
    reasons.push(`${entries} entries wait, nothing runs, and nothing has ended for ${seconds(since)}`);
  }
  return {
    healthy: reasons.length === 0,
    reasons,
    running: facts.running,
    stuck: facts.stuck,
    held,
    backlog,
    secondsSinceOutcome: Math.round((now - facts.lastOutcomeAt) / 1000),
  };
}

/** Entries that could be handled now, and since when there are some. */
function waitingIn({ standby, resting, queued, queuedSince, figures }: ConsumerState): {
  readonly entries: number;
  readonly since: number;
} {
  const lag = standby || resting ? 0 : (figures.lag ?? 0);
  const sinces = [...(queued > 0 ? [queuedSince] : []), ...(lag > 0 ? [figures.laggingSince] : [])];
  return { entries: queued + lag, since: Math.min(...sinces) };
}
