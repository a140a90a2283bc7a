/**
 * What the faults of a run excuse. Times are milliseconds since the run began.
 */
export interface StruckFault {
  readonly nemesis: string;
  readonly resource: string;
  readonly index: number;
  readonly fraction: number;
  readonly beginMs: number;
  /** When healing began, and when the resource was in order again. */
  readonly healMs: number;
  readonly healedMs: number;
  /** When the KV store came to know less than it had answered for. */
  readonly losesData: 'at its beginning' | 'at its end' | 'throughout' | undefined;
}

/** A time at which the KV store lost data. */
export interface Loss {
  readonly fromMs: number;
  readonly untilMs: number;
  /** By then all must have been restored, other faults that kept it from that included. */
  readonly restoredByMs: number;
  /** What was acknowledged before then had been recorded, though the ledger, a sidecar or the way to the KV store was broken as well. */
  readonly recordedUntilMs: Readonly<Record<Acknowledging, number>>;
}

/** By XACK through Holdfast, or inside a script, where it can only be found by comparison. */
export type Acknowledging = 'plain' | 'script';

/** After the last fault was healed, the restore may take this long. */
export const SETTLE_MS = 5000;
/** `withinMs`: how long recording an acknowledgement may take where nothing hinders it. */
const RECORDING: Readonly<Record<Acknowledging, { withinMs: number; isHinderedBy(fault: StruckFault): boolean }>> = {
  // They are recorded every 200 ms; the rest is what the commit may take on a busy machine.
  plain: { withinMs: 1500, isHinderedBy: ({ resource }) => HINDERS_COMMITS.has(resource) },
  // Each checkpoint finds them (1000 ms), which a busy machine misses once; it reads the KV store for that.
  script: {
    withinMs: 3500,
    isHinderedBy: ({ resource, nemesis }) =>
      HINDERS_COMMITS.has(resource) || resource === 'kv-link' || nemesis === 'kv-pause',
  },
};
const HINDERS_COMMITS = new Set(['ledger', 'ledger-link', 'sidecar']);
/** The reconciler looks every second. */
const RECONCILE_MS = 3000;

export function lossesOf(faults: readonly StruckFault[]): Loss[] {
  function recordedUntil(atMs: number, how: Acknowledging): number {
    const { withinMs, isHinderedBy } = RECORDING[how];
    const earlier = faults.find(
      (fault) => isHinderedBy(fault) && fault.beginMs < atMs && atMs <= fault.healedMs + withinMs,
    );
    return earlier === undefined ? atMs - withinMs : recordedUntil(earlier.beginMs, how);
  }
  // While another fault lasts, the restore may have to wait.
  function hinderedUntil(atMs: number): number {
    const later = faults.find(
      (fault) => !CLIENTS.has(fault.resource) && fault.beginMs <= atMs + SETTLE_MS && fault.healedMs > atMs,
    );
    return later === undefined ? atMs : hinderedUntil(later.healedMs);
  }
  return faults.flatMap((fault) => {
    if (fault.losesData === undefined) return [];
    const fromMs = fault.losesData === 'at its end' ? fault.healMs : fault.beginMs;
    return [
      {
        fromMs,
        untilMs: fault.healedMs,
        restoredByMs: hinderedUntil(fault.healedMs) + SETTLE_MS,
        recordedUntilMs: { plain: recordedUntil(fromMs, 'plain'), script: recordedUntil(fromMs, 'script') },
      },
    ];
  });
}

/** May this loss be why an entry whose acknowledgement was answered at `toldMs` came again at `againMs`? */
export function excuses(loss: Loss, toldMs: number, againMs: number, how: Acknowledging): boolean {
  return againMs >= loss.fromMs && toldMs >= loss.recordedUntilMs[how] && toldMs <= loss.restoredByMs;
}

/** Faults that only stop producers or consumers do not keep Holdfast from seeing what is written. */
const CLIENTS = new Set(['producer', 'consumer']);

/** No fault from shortly before `atMs` until the reconciler must have seen what was written then. */
export function isSettled(faults: readonly StruckFault[], atMs: number): boolean {
  return !faults.some(
    (fault) =>
      !CLIENTS.has(fault.resource) && fault.beginMs < atMs + RECONCILE_MS && atMs < fault.healedMs + RECONCILE_MS,
  );
}

/** No fault, and none healed a moment ago. */
export function isCalm(faults: readonly StruckFault[], atMs: number): boolean {
  return !faults.some((fault) => fault.beginMs <= atMs && atMs <= fault.healedMs + SETTLE_MS);
}

/** How many of `sorted` are at most `value`. */
function countUpTo(sorted: Float64Array, value: number): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (sorted[middle]! <= value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** An acknowledgement whose answer never came is as good as answered after this long. */
const ANSWER_MS = 5000;

/** Of events and groups: when each was delivered first, and since when it was no longer in flight. */
export class FlightLog {
  readonly #how: Acknowledging;
  readonly #deliveredMs: number[] = [];
  readonly #landedMs: number[] = [];

  constructor(how: Acknowledging) {
    this.#how = how;
  }

  /** `handledMs`: XACK was sent; `toldMs`: it was answered. Negative: never. */
  add(deliveredMs: number, handledMs: number, toldMs: number): void {
    this.#deliveredMs.push(deliveredMs);
    if (toldMs >= 0) this.#landedMs.push(toldMs);
    else if (handledMs >= 0) this.#landedMs.push(handledMs + ANSWER_MS);
  }

  /** P2's bound: what was in flight at each loss, and what was acknowledged but not recorded by then. */
  redeliveriesMax(losses: readonly Loss[]): number {
    const delivered = Float64Array.from(this.#deliveredMs).sort();
    const landed = Float64Array.from(this.#landedMs).sort();
    return losses.reduce((sum, { fromMs, untilMs, recordedUntilMs }) => {
      const inFlight = countUpTo(delivered, untilMs) - countUpTo(landed, fromMs);
      return sum + inFlight + countUpTo(landed, fromMs) - countUpTo(landed, recordedUntilMs[this.#how]);
    }, 0);
  }
}
