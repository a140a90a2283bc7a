/**
 * What is known of the events of one writer, by number, in columns: millions of events must fit.
 * Times are ms + 1, so that 0 means never. Per-group columns are indexed by `slotOf`.
 */
import { STREAMS } from './workload.ts';

export const STATE = { none: 0, invoked: 1, acknowledged: 2, failed: 3, unknown: 4 } as const;

const GROUPS_MAX = Math.max(...STREAMS.map((stream) => stream.groups.length));

/** How many groups must handle an event of this stream; where no group reads, the run's final reading counts as one. */
export function readersOf(stream: number): number {
  return Math.max(1, STREAMS[stream]!.groups.length);
}

export function slotOf(number: number, group: number): number {
  return number * GROUPS_MAX + group;
}

function grown<T extends Uint8Array | Uint32Array | Float64Array>(from: T, to: T): T {
  to.set(from);
  return to;
}

export class EventTable {
  readonly writer: number;
  /** One more than the largest number seen. */
  count = 0;
  state = new Uint8Array(0);
  stream = new Uint8Array(0);
  /** 1: past Holdfast's eyes. */
  observed = new Uint8Array(0);
  invokedAt = new Uint32Array(0);
  completedAt = new Uint32Array(0);
  /** The ID that the XADD was answered with. */
  idMs = new Float64Array(0);
  idSeq = new Float64Array(0);
  /** The ID of the first delivery that was seen, in whichever group. */
  seenMs = new Float64Array(0);
  seenSeq = new Float64Array(0);
  deletedAt = new Uint32Array(0);
  deliveredAt = new Uint32Array(0);
  /** 1: given by a read for new entries (`>`). */
  fresh = new Uint8Array(0);
  handledAt = new Uint32Array(0);
  /** When the consumer was told that its XACK was done. */
  toldAt = new Uint32Array(0);

  constructor(writer: number) {
    this.writer = writer;
  }

  reach(number: number): void {
    if (number < this.count) return;
    this.count = number + 1;
    if (number < this.state.length) return;
    const size = Math.max(1024, 2 ** Math.ceil(Math.log2(number + 1)));
    this.state = grown(this.state, new Uint8Array(size));
    this.stream = grown(this.stream, new Uint8Array(size));
    this.observed = grown(this.observed, new Uint8Array(size));
    this.invokedAt = grown(this.invokedAt, new Uint32Array(size));
    this.completedAt = grown(this.completedAt, new Uint32Array(size));
    this.idMs = grown(this.idMs, new Float64Array(size));
    this.idSeq = grown(this.idSeq, new Float64Array(size));
    this.seenMs = grown(this.seenMs, new Float64Array(size));
    this.seenSeq = grown(this.seenSeq, new Float64Array(size));
    this.deletedAt = grown(this.deletedAt, new Uint32Array(size));
    this.deliveredAt = grown(this.deliveredAt, new Uint32Array(size * GROUPS_MAX));
    this.fresh = grown(this.fresh, new Uint8Array(size * GROUPS_MAX));
    this.handledAt = grown(this.handledAt, new Uint32Array(size * GROUPS_MAX));
    this.toldAt = grown(this.toldAt, new Uint32Array(size * GROUPS_MAX));
  }

  wasSeen(number: number): boolean {
    return this.seenMs[number] !== 0 || this.seenSeq[number] !== 0;
  }

  isSeenId(number: number, idMs: number, idSeq: number): boolean {
    return this.seenMs[number] === idMs && this.seenSeq[number] === idSeq;
  }

  /** Handled by every reader of its stream. */
  isDone(number: number): boolean {
    const readers = readersOf(this.stream[number]!);
    for (let group = 0; group < readers; group += 1) {
      if (this.handledAt[slotOf(number, group)] === 0) return false;
    }
    return true;
  }
}

export function isIdBelow(ms: number, seq: number, otherMs: number, otherSeq: number): boolean {
  return ms < otherMs || (ms === otherMs && seq < otherSeq);
}
