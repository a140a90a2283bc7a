/**
 * The replies that are owed on a lane, in order, and to whom: a ring that grows, in arrays side by side, so that a request
 * that is forwarded costs no object.
 */
import type { HoldfastError } from '../../errors.ts';
import type { ReadBuffer } from '../io/socket-reader.ts';

/**
 * Whoever a lane calls. What they throw is theirs alone: the lane goes on for everybody else, and tells them of it.
 */
export interface Contained {
  /** One of its other methods threw. Must not throw. */
  fault(thrown: unknown): void;
}

/** Where the bytes of plain replies go. */
export interface ReplyReceiver extends Contained {
  /** Replies or a part of one. `readBuffer` is given where a view of the bytes may be retained instead of copied. */
  deliver(buffer: Buffer, start: number, end: number, readBuffer: ReadBuffer | undefined): void;
  /** `count` plain replies are complete. */
  repliesDone(count: number): void;
  /** `count` plain replies will not come; `partial` when a part of the first was delivered already. */
  repliesLost(count: number, partial: boolean, cause: HoldfastError): void;
}

/** Somebody who waits for one whole reply, or for their turn. */
export interface OwedReply extends Contained {
  /** The whole reply; an empty buffer for a `local` entry. */
  reply(frame: Buffer): void;
  /** `clientId`: of the connection that broke, as the KV store knows it. */
  lost(cause: HoldfastError, clientId?: number): void;
}

/** An EXEC in whose reply confirmations and messages stand. An error or a null comes as `reply` alone. */
export interface OwedTransaction extends OwedReply {
  /** The reply's header: how many members there are, at least one. */
  begin(count: number): void;
  /** Each frame behind it. Gives whether it was the last; then `reply` follows. Throws where none can be. */
  member(frame: Buffer): boolean;
}

/** A SUBSCRIBE or its kin. What the server says decides how many confirmations there are. */
export interface OwedConfirmations extends Contained {
  /** The first word of its confirmations. */
  readonly word: Buffer;
  /** Each confirmation, or the one error in their place. Gives whether it was the last; then `done` follows. */
  confirmed(frame: Buffer): boolean;
  done(): void;
  lost(cause: HoldfastError): void;
}

/** Somebody who counts replies, and takes those that are null or errors. Called once for each, in order. */
export interface GlancedReplies extends Contained {
  /** Replies that are null are not taken. */
  readonly errorsOnly: boolean;
  /** Replies in a row can be told of together. */
  readonly uniform: boolean;
  /** The next replies, so many, have been delivered. */
  answered(replies: number, bytes: number): void;
  take(frame: Buffer): void;
  lost(cause: HoldfastError): void;
}

/** What an entry is; drawn in lane.ts. */
export const Owed = {
  plain: 0,
  whole: 1,
  local: 2,
  confirm: 3,
  glanced: 4,
  members: 5,
} as const;

const CAPACITY_MIN = 64;

export class OwedReplies {
  receivers: (ReplyReceiver | undefined)[] = new Array(CAPACITY_MIN);
  tasks: (OwedReply | undefined)[] = new Array(CAPACITY_MIN);
  confirmations: (OwedConfirmations | undefined)[] = new Array(CAPACITY_MIN);
  glances: (GlancedReplies | undefined)[] = new Array(CAPACITY_MIN);
  counts = new Int32Array(CAPACITY_MIN);
  kinds = new Uint8Array(CAPACITY_MIN);
  mask = CAPACITY_MIN - 1;
  head = 0;
  size = 0;
  /** Entries that were taken off in all. */
  popped = 0;

  push(kind: number, receiver: ReplyReceiver | undefined, task: OwedReply | undefined, count: number): void {
    if (this.size > this.mask) this.grow();
    const slot = (this.head + this.size) & this.mask;
    this.kinds[slot] = kind;
    this.receivers[slot] = receiver;
    this.tasks[slot] = task;
    this.counts[slot] = count;
    this.size += 1;
  }

  pop(): void {
    this.receivers[this.head] = undefined;
    this.tasks[this.head] = undefined;
    this.confirmations[this.head] = undefined;
    this.glances[this.head] = undefined;
    this.head = (this.head + 1) & this.mask;
    this.size -= 1;
    this.popped += 1;
  }

  /** The slot of the first entry that the server answers; -1 without one. */
  answeredNext(): number {
    for (let i = 0; i < this.size; i += 1) {
      const slot = (this.head + i) & this.mask;
      if (this.kinds[slot] !== Owed.local) return slot;
    }
    return -1;
  }

  private grow(): void {
    const capacity = (this.mask + 1) * 2;
    const receivers: (ReplyReceiver | undefined)[] = new Array(capacity);
    const tasks: (OwedReply | undefined)[] = new Array(capacity);
    const confirmations: (OwedConfirmations | undefined)[] = new Array(capacity);
    const glances: (GlancedReplies | undefined)[] = new Array(capacity);
    const counts = new Int32Array(capacity);
    const kinds = new Uint8Array(capacity);
    for (let i = 0; i < this.size; i += 1) {
      const slot = (this.head + i) & this.mask;
      receivers[i] = this.receivers[slot];
      tasks[i] = this.tasks[slot];
      confirmations[i] = this.confirmations[slot];
      glances[i] = this.glances[slot];
      counts[i] = this.counts[slot]!;
      kinds[i] = this.kinds[slot]!;
    }
    this.receivers = receivers;
    this.tasks = tasks;
    this.confirmations = confirmations;
    this.glances = glances;
    this.counts = counts;
    this.kinds = kinds;
    this.mask = capacity - 1;
    this.head = 0;
  }
}
