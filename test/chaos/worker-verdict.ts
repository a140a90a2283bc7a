/** What the worker's chaos run came to, counted from outside: handlers' notes and dead letters against what was drawn. */
import {
  CHAOS_GRACE_MS,
  CHAOS_RETRY,
  CHAOS_TIMEOUT_MS,
  type ChaosEvent,
  eventOf,
  outcomeOf,
  succeedsAt,
} from './worker-outcomes.ts';

const STALL_MS = 5000;
/** A worker that is killed is waited for so long, and looked for so often. An entry may have been in the hands of each. */
const DEATH_MS = 2250;
/** Of one kind that are told in words, so that one kind does not hide another. */
const FINDINGS_MAX = 5;

export interface Verdict {
  readonly added: number;
  readonly succeeded: number;
  readonly permanentlyFailed: number;
  /** Handler calls that ended well beyond the first for their event. */
  readonly duplicates: number;
  /** From a failed attempt's retry being due to its beginning, less the time in between without KV store or workers. */
  readonly retryLatenessMs: Readonly<Record<'p50' | 'p90' | 'p99' | 'p999' | 'max', number>>;
  /** Retries that these are of. */
  readonly retries: number;
  /** Longest time in which no handler began or ended while there was work, less the time without KV store or workers. */
  readonly longestSilenceMs: number;
  /** Broken promises: how many of each kind; none is a pass. */
  readonly findingCounts: Readonly<Record<string, number>>;
  /** The first of each kind in words. */
  readonly findings: readonly string[];
}

/** What a handler wrote down about one attempt at an event. */
export interface Note {
  readonly what: 'begin' | 'ok' | 'fail';
  readonly number: number;
  readonly attempt: number;
  readonly at: number;
}

/** `outages` do not overlap. */
export function judge(
  options: {
    readonly seed: string;
    readonly judgeStalls: boolean;
    readonly startedAt: number;
    readonly workersKilledAt: readonly number[];
  },
  added: ReadonlyMap<string, number>,
  addedAt: ReadonlyMap<string, number>,
  outages: readonly Span[],
  notes: ReadonlyMap<string, Note[]>,
  deadLetters: ReadonlyMap<string, number[]>,
  pending: number,
): Verdict {
  const findings: string[] = [];
  const findingCounts: Record<string, number> = {};
  const find = (kind: string, text: string): void => {
    findingCounts[kind] = (findingCounts[kind] ?? 0) + 1;
    if (findingCounts[kind] <= FINDINGS_MAX) findings.push(`${kind}: ${text}`);
  };
  if (pending > 0) find('pending', `${pending} entries were not done when the time was over`);
  let succeeded = 0;
  let permanentlyFailed = 0;
  let duplicates = 0;
  const lateness: number[] = [];
  for (const [id, number] of added) {
    const event = eventOf(options.seed, number);
    const own = notes.get(id) ?? [];
    const oks = own.filter((note) => note.what === 'ok');
    const reports = deadLetters.get(id) ?? [];
    const expected = event.malformed ? undefined : succeedsAt(options.seed, event);
    const attempts = event.malformed ? 0 : (expected ?? CHAOS_RETRY.attempts);
    duplicates += Math.max(0, oks.length - 1);
    if (expected !== undefined) {
      succeeded += 1;
      if (oks.length === 0) find('no success', `${id}: never succeeded, noted ${JSON.stringify(own)}`);
      if (reports.length > 0)
        find('false report', `${id}: reported as failed for good, though attempt ${expected} succeeds`);
    } else {
      permanentlyFailed += 1;
      if (oks.length > 0) find('false success', `${id}: succeeded, though no attempt does`);
      if (reports.length !== 1) find('count of reports', `${id}: ${reports.length} reports of its permanent failure`);
      if (reports[0] !== undefined && reports[0] !== attempts)
        find('attempts in report', `${id}: reported with ${reports[0]} attempts, not ${attempts}`);
    }
    const begun = new Set(own.filter((note) => note.what === 'begin').map((note) => note.attempt));
    for (let attempt = 1; attempt <= attempts; attempt += 1) {
      if (!begun.has(attempt))
        find(
          'missing attempt',
          `${id}: attempt ${attempt} of ${attempts} was never made, noted ${JSON.stringify(own)}`,
        );
    }
    if (Math.max(0, ...begun) > attempts)
      find('attempt too many', `${id}: attempt ${Math.max(...begun)} was made, the policy says ${attempts}`);
    for (const [attempt, late] of retriesOf(options.seed, event, own)) {
      const lateMs = withoutOutages(late.due, late.at, outages);
      lateness.push(lateMs);
      const deaths = options.workersKilledAt.filter((killedAt) => killedAt > late.due && killedAt < late.at).length;
      if (options.judgeStalls && lateMs > STALL_MS + Math.max(0, deaths - 1) * DEATH_MS) {
        const dueAt = ((late.due - options.startedAt) / 1000).toFixed(1);
        find(
          'late retry',
          `${id}: attempt ${attempt}, due at ${dueAt} s, began ${Math.round(lateMs)} ms late, less outages`,
        );
      }
    }
  }
  for (const [id, reports] of deadLetters)
    if (reports.length > 1) find('count of reports', `${id}: reported ${reports.length} times`);
  lateness.sort((a, b) => a - b);
  const at = (share: number): number => Math.round(lateness[Math.floor((lateness.length - 1) * share)] ?? 0);
  const longestSilenceMs = longestSilence(notes, addedAt, outages);
  if (options.judgeStalls && longestSilenceMs > STALL_MS)
    find('silence', `nothing happened for ${longestSilenceMs} ms while there was work`);
  return {
    added: added.size,
    succeeded,
    permanentlyFailed,
    duplicates,
    retryLatenessMs: { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: at(1) },
    retries: lateness.length,
    longestSilenceMs,
    findingCounts,
    findings,
  };
}

/** For each attempt beyond the first: when it was due after the last failure of the one before, and when it began. */
function retriesOf(seed: string, event: ChaosEvent, notes: readonly Note[]): Map<number, { due: number; at: number }> {
  const retries = new Map<number, { due: number; at: number }>();
  for (let attempt = 2; attempt <= CHAOS_RETRY.attempts; attempt += 1) {
    const first = notes.find((note) => note.what === 'begin' && note.attempt === attempt);
    if (first === undefined) break;
    const before = notes.filter((note) => note.attempt === attempt - 1 && note.at <= first.at);
    const drawn = outcomeOf(seed, event, attempt - 1);
    const timedOut = drawn === 'hang' || drawn === 'block';
    const last = before.findLast((note) => note.what === (timedOut ? 'begin' : 'fail'));
    if (last === undefined) continue;
    const backoff = Math.min(CHAOS_RETRY.baseMs * 2 ** (attempt - 2), CHAOS_RETRY.maxMs) * (1 + CHAOS_RETRY.jitter);
    retries.set(attempt, {
      due: last.at + backoff + (timedOut ? CHAOS_TIMEOUT_MS + CHAOS_GRACE_MS : 0),
      at: first.at,
    });
  }
  return retries;
}

export interface Span {
  readonly from: number;
  readonly to: number;
}

export function secondsOf(spans: readonly Span[]): number {
  return spans.reduce((sum, { from, to }) => sum + (to - from), 0) / 1000;
}

/** Spans that overlap become one. */
export function union(spans: readonly Span[]): Span[] {
  const merged: { from: number; to: number }[] = [];
  for (const span of [...spans].sort((a, b) => a.from - b.from)) {
    const last = merged.at(-1);
    if (last !== undefined && span.from <= last.to) last.to = Math.max(last.to, span.to);
    else merged.push({ ...span });
  }
  return merged;
}

/** Milliseconds from one time to another outside of outages, which do not overlap; 0 where the first is not before the other. */
function withoutOutages(from: number, to: number, outages: readonly Span[]): number {
  const away = outages.map((outage) => Math.max(0, Math.min(to, outage.to) - Math.max(from, outage.from)));
  return Math.max(0, to - from - away.reduce((sum, ms) => sum + ms, 0));
}

/** Between two notes of handlers, from when there was an entry that is not at its last note yet. */
function longestSilence(
  notes: ReadonlyMap<string, readonly Note[]>,
  addedAt: ReadonlyMap<string, number>,
  outages: readonly Span[],
): number {
  const changes: { at: number; noted: boolean; open: number }[] = [];
  for (const [id, at] of addedAt) {
    const own = notes.get(id);
    if (own === undefined) continue;
    changes.push({ at: Math.min(at, own[0]!.at), noted: false, open: 1 });
    for (const note of own) changes.push({ at: note.at, noted: true, open: note === own.at(-1) ? -1 : 0 });
  }
  changes.sort((a, b) => a.at - b.at || b.open - a.open);
  let longest = 0;
  let open = 0;
  let quietSince = 0;
  for (const change of changes) {
    if (open === 0) quietSince = change.at;
    if (change.noted) {
      longest = Math.max(longest, withoutOutages(quietSince, change.at, outages));
      quietSince = change.at;
    }
    open += change.open;
  }
  return longest;
}
