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
  /** Acknowledgements could not be recorded since then, because the ledger or a sidecar was broken as well. */
  readonly unrecordedSinceMs: number;
}

/** After the last fault was healed, the restore may take this long. */
export const SETTLE_MS = 5000;
/** Acknowledgements are recorded every 200 ms; the rest is what the commit may take on a busy machine. */
export const FLUSH_MS = 1500;
/** Acknowledgements inside scripts are found by comparison, at every checkpoint (1000 ms), which a busy machine misses once. */
export const SCRIPT_FLUSH_MS = 3500;
/** The reconciler looks every second. */
const RECONCILE_MS = 3000;
const HINDERS_RECORDING = new Set(['ledger', 'ledger-link', 'sidecar']);

export function lossesOf(faults: readonly StruckFault[]): Loss[] {
  const hindrances = faults.filter((fault) => HINDERS_RECORDING.has(fault.resource));
  function hinderedSince(atMs: number): number {
    const earlier = hindrances.find((fault) => fault.beginMs < atMs && atMs <= fault.healedMs + FLUSH_MS);
    return earlier === undefined ? atMs : hinderedSince(earlier.beginMs);
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
        unrecordedSinceMs: hinderedSince(fromMs),
      },
    ];
  });
}

/** May this loss be why an entry whose acknowledgement was answered at `toldMs` came again at `againMs`? */
export function excuses(loss: Loss, toldMs: number, againMs: number, flushMs: number): boolean {
  return againMs >= loss.fromMs && toldMs >= loss.unrecordedSinceMs - flushMs && toldMs <= loss.restoredByMs;
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
  readonly #flushMs: number;
  readonly #deliveredMs: number[] = [];
  readonly #landedMs: number[] = [];

  /** `flushMs`: how long an acknowledgement may take to be recorded. */
  constructor(flushMs: number) {
    this.#flushMs = flushMs;
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
    return losses.reduce((sum, { fromMs, untilMs, unrecordedSinceMs }) => {
      const inFlight = countUpTo(delivered, untilMs) - countUpTo(landed, fromMs);
      return sum + inFlight + countUpTo(landed, fromMs) - countUpTo(landed, unrecordedSinceMs - this.#flushMs);
    }, 0);
  }
}
