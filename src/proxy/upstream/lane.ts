/**
 * A lane: one connection to the KV store, and the queue of replies that are owed on it. It moves bytes and knows no
 * command.
 *
 *              handshake answered            socket closed, malformed reply, retired
 *  connecting ───────────────────▶ ready ─────────────────────────────────────────▶ closed
 *       └───────────────────────────────────────────────────────────────────────────▲
 *
 * Replies come in the order of the requests, so the queue's head always says what the next frame is for:
 *   plain   `count` replies of one receiver, passed on as they come, never held whole
 *   glanced `count` replies of one receiver: nulls and errors go to who asked for them, others on as they come
 *   whole   one reply that its owner looks into, collected
 *   local   no reply: something the session answers itself when its turn has come
 *   members one reply to EXEC whose members its owner takes one by one, for only it can tell them from messages
 *   confirm confirmations of SUBSCRIBE and its kin, until their task has all
 * Pushes (RESP3 `>`, or messages in RESP2 once the connection is subscribed) are owed to nobody; on a dedicated lane
 * they go to its owner, on a shared lane there are none. One that stands in the middle of a reply (see the reply scanner)
 * is lifted out and follows it, as servers since 7.2 have it: clients read it right, and what it invalidates is newer than
 * what the reply holds.
 *
 * Invariant: every entry is either answered in order or told `lost`, once. What somebody throws at that ends their own session,
 * not the lane: others have replies behind it.
 */
import type { Socket } from 'node:net';
import { HoldfastError } from '../../errors.ts';
import { ReplyScanner } from '../../resp/reply-scanner.ts';
import { OutBuffer } from '../io/send-buffer.ts';
import type { ReadBuffer } from '../io/socket-reader.ts';
import {
  type Contained,
  type GlancedReplies,
  Owed,
  type OwedConfirmations,
  OwedReplies,
  type OwedReply,
  type OwedTransaction,
  type ReplyReceiver,
} from './reply-queue.ts';

/** The one session of a dedicated lane. */
export interface LaneOwner extends Contained {
  /** A push frame. */
  push(frame: Buffer): void;
  /** Raw mode: bytes as they come. */
  rawBytes(buffer: Buffer, length: number): void;
  /** What comes now came in one read. */
  readBegins(): void;
  readEnds(): void;
  /** The connection is gone; everything owed was told so before. */
  laneClosed(cause: HoldfastError): void;
  /** What the KV store takes again after `congested` was true. */
  laneDrained(): void;
}

export type LaneState = 'connecting' | 'ready' | 'closed';

const BETWEEN = 0;
const IN_PLAIN = 1;
const IN_WHOLE = 2;
const IN_PUSH = 3;
const IN_CONFIRM = 4;
/** A push in the middle of what `outerMode` reads. */
const IN_LIFTED = 5;
/** What the server sends here is nothing that it may. */
const UNEXPECTED = 6;
const IN_MEMBERS = 7;

const PUSH = 62;
const ARRAY = 42;
const MINUS = 45;
const BULK_ERROR = 33;
const BULK = 36;
const NULL = 95;
const NOTHING = Buffer.alloc(0);

/** First words of frames that are pushes, and of those that confirm. RESP2 sends them as arrays. */
const MESSAGE_KINDS: readonly Buffer[] = ['message', 'pmessage', 'smessage'].map((kind) => Buffer.from(kind));
const CONFIRM_KINDS: readonly Buffer[] = [
  'subscribe',
  'unsubscribe',
  'psubscribe',
  'punsubscribe',
  'ssubscribe',
  'sunsubscribe',
].map((kind) => Buffer.from(kind));

export class Lane {
  state: LaneState = 'connecting';
  /** Set while the lane serves one session only. */
  owner: LaneOwner | undefined;
  /** The KV store's own client ID of this connection; 0 where it would not say. */
  clientId = 0;
  /** Of the server that it is connected to; empty where the user may not ask. */
  runId = '';
  /** Raw mode: no framing in either direction (MONITOR, replication). */
  raw = false;
  /** What a client's own request has it told stands behind the reply, as servers since 7.2 have it, not before. */
  pushesFollow = false;
  /** RESP2 with subscriptions: messages come as arrays. */
  subscribedResp2 = false;
  /** What was read of it. */
  bytesRead = 0;
  /** What is sent now would wait long for its reply (see the lane set). */
  stalled = false;
  congested = false;
  /** Whose script is under way: nobody else's request goes behind it, for the server would answer them on another connection. */
  occupant: ReplyReceiver | undefined;
  /** Told when the script is over. */
  onVacant: (() => void) | undefined;
  /** Our side of the connection has ended; the server closes it soon. */
  finishing = false;
  /** Sessions to tell when the KV store takes bytes again. */
  readonly drainWaiters = new Set<() => void>();

  readonly socket: Socket;
  /** What is sent next. Bytes that are appended here alone are owed nothing: a part of a request, or raw bytes. */
  readonly out: OutBuffer;
  private readonly readBuffer: ReadBuffer | undefined;
  private readonly laneBytesMax: number;
  private readonly scanner = new ReplyScanner();
  private mode = BETWEEN;
  private parts: Buffer[] = [];
  private readonly pushScanner = new ReplyScanner();
  private pushParts: Buffer[] = [];
  private outerMode = BETWEEN;
  /** Pushes that stood in the middle of the reply that is being read. */
  private lifted: Buffer[] = [];
  /** The first bytes of a frame, kept until they tell what it is for. */
  private undecided: Buffer = NOTHING;

  private readonly queue = new OwedReplies();
  /** So many entries will be over when the occupant's script is. */
  private occupiedUntil = 0;
  /** Of the glanced reply that is being read: what was delivered of it. */
  private glancedBytes = 0;
  private onClosed: (lane: Lane, cause: HoldfastError) => void;

  /**
   * `readBuffer` is given for lanes with a read buffer of their own; without one, delivered bytes are copied.
   * `onClosed` is called once, after everything owed was told.
   */
  constructor(
    socket: Socket,
    readBuffer: ReadBuffer | undefined,
    laneBytesMax: number,
    onClosed: (lane: Lane, cause: HoldfastError) => void,
  ) {
    this.socket = socket;
    this.readBuffer = readBuffer;
    this.laneBytesMax = laneBytesMax;
    this.out = new OutBuffer((bytes) => this.write(bytes));
    this.onClosed = onClosed;
    socket.on('drain', this.drained);
  }

  /** Entries of the queue: runs of plain replies count as one. */
  get owed(): number {
    return this.queue.size;
  }

  /** Entries of the queue that are over. */
  get settled(): number {
    return this.queue.popped;
  }

  /** A run of `count` complete requests; their replies are passed on as they come, or dropped without a receiver. */
  sendPlain(receiver: ReplyReceiver | undefined, buffer: Buffer, start: number, end: number, count: number): void {
    if (this.queue.size > 0) {
      const tail = (this.queue.head + this.queue.size - 1) & this.queue.mask;
      // The occupant's script stays an entry of its own.
      const merges = this.occupant === undefined || this.queue.popped + this.queue.size !== this.occupiedUntil;
      if (merges && this.queue.kinds[tail] === Owed.plain && this.queue.receivers[tail] === receiver)
        this.queue.counts[tail]! += count;
      else this.queue.push(Owed.plain, receiver, undefined, count);
    } else this.queue.push(Owed.plain, receiver, undefined, count);
    this.out.append(buffer, start, end);
  }

  /** A run of `count` complete requests whose nulls and errors, and no other replies, go to `replies`. */
  sendGlanced(
    receiver: ReplyReceiver,
    replies: GlancedReplies,
    buffer: Buffer,
    start: number,
    end: number,
    count: number,
  ): void {
    this.queue.push(Owed.glanced, receiver, undefined, count);
    this.queue.glances[(this.queue.head + this.queue.size - 1) & this.queue.mask] = replies;
    this.out.append(buffer, start, end);
  }

  /** One complete request whose reply goes to `task` whole. */
  sendWhole(task: OwedReply, request: Buffer): void {
    this.queue.push(Owed.whole, undefined, task, 1);
    this.out.append(request, 0, request.length);
  }

  /** An EXEC whose reply is taken member by member. */
  sendTransaction(task: OwedTransaction, request: Buffer): void {
    this.queue.push(Owed.members, undefined, task, 1);
    this.out.append(request, 0, request.length);
  }

  /** A SUBSCRIBE or its kin, which is answered by confirmations, or by one error. */
  sendConfirmed(confirmations: OwedConfirmations, request: Buffer): void {
    this.queue.push(Owed.confirm, undefined, undefined, 1);
    this.queue.confirmations[(this.queue.head + this.queue.size - 1) & this.queue.mask] = confirmations;
    this.out.append(request, 0, request.length);
  }

  /** What was sent last is `occupant`'s script: until it is answered the lane is theirs. */
  occupy(occupant: ReplyReceiver): void {
    this.occupant = occupant;
    this.occupiedUntil = this.queue.popped + this.queue.size;
  }

  /** `task.reply` is called as soon as everything owed before it has come. */
  whenReached(task: OwedReply): void {
    if (this.queue.size === 0) task.reply(NOTHING);
    else this.queue.push(Owed.local, undefined, task, 0);
  }

  /** Reader of the socket. */
  readonly read = (bytes: Buffer, length: number): void => {
    const { owner } = this;
    owner?.readBegins();
    this.take(bytes, length);
    owner?.readEnds();
  };

  private take(bytes: Buffer, bytesLength: number): void {
    if (this.state === 'closed') return;
    this.bytesRead += bytesLength;
    let buffer = bytes;
    let length = bytesLength;
    if (this.undecided.length > 0) {
      buffer = Buffer.concat([this.undecided, bytes.subarray(0, bytesLength)]);
      length = buffer.length;
      this.undecided = NOTHING;
    }
    let at = 0;
    while (at < length) {
      if (this.raw && this.queue.size === 0 && this.mode === BETWEEN) {
        this.passRaw(at === 0 ? buffer : buffer.subarray(at, length), length - at);
        return;
      }
      if (this.mode === BETWEEN) {
        this.mode = this.nextMode(buffer, at, length);
        if (this.mode === BETWEEN) {
          this.undecided = Buffer.from(buffer.subarray(at, length));
          return;
        }
        if (this.mode === UNEXPECTED) {
          this.close(new HoldfastError('KVDOWN', 'the KV store sent a reply where only a confirmation can be'));
          return;
        }
        if (this.mode === IN_MEMBERS) {
          // The header, which nextMode has seen whole.
          at = buffer.indexOf(13, at) + 2;
          continue;
        }
      }
      if (this.mode === IN_PLAIN) at = this.readPlain(buffer, at, length);
      else if (this.mode === IN_LIFTED) at = this.readLifted(buffer, at, length);
      else at = this.readWhole(buffer, at, length);
      if (this.isClosed()) return;
      if (this.mode === BETWEEN && !this.pushFollows(buffer, at, length)) this.runReached();
      if (this.occupant !== undefined && this.queue.popped >= this.occupiedUntil) this.vacate();
    }
  }

  private vacate(): void {
    this.occupant = undefined;
    this.onVacant?.();
  }

  private isClosed(): boolean {
    return this.state === 'closed';
  }

  /** Ends the connection. Everything owed is told `lost` with `cause`. */
  close(cause: HoldfastError): void {
    if (this.state === 'closed') return;
    this.state = 'closed';
    this.socket.destroy();
    const mode = this.mode === IN_LIFTED ? this.outerMode : this.mode;
    const partial = mode === IN_PLAIN && !this.scanner.atBoundary;
    let first = true;
    while (this.queue.size > 0) {
      const slot = this.queue.head;
      const kind = this.queue.kinds[slot]!;
      const receiver = this.queue.receivers[slot];
      const task = this.queue.tasks[slot];
      const count = this.queue.counts[slot]!;
      const glances = this.queue.glances[slot];
      const confirmations = this.queue.confirmations[slot];
      this.queue.pop();
      if (confirmations !== undefined) contain(confirmations, () => confirmations.lost(cause));
      if (glances !== undefined && !(first && partial)) {
        for (let i = 0; i < count; i += 1) contain(glances, () => glances.lost(cause));
      } else if (kind === Owed.plain || kind === Owed.glanced) {
        const cut = first && partial;
        if (receiver !== undefined) contain(receiver, () => receiver.repliesLost(count, cut, cause));
      } else if (task !== undefined) contain(task, () => task.lost(cause, this.clientId));
      first = false;
    }
    this.parts = [];
    this.pushParts = [];
    this.lifted = [];
    for (const waiter of this.drainWaiters) waiter();
    this.drainWaiters.clear();
    this.onClosed(this, cause);
    const owner = this.owner;
    this.owner = undefined;
    if (owner !== undefined) contain(owner, () => owner.laneClosed(cause));
  }

  /**
   * Ends our side of the connection behind what was sent, as the client did: the server still answers what it had
   * before, gives up what blocks, and closes.
   */
  finish(): void {
    if (this.finishing || this.state === 'closed') return;
    this.out.flush();
    this.finishing = true;
    this.socket.end();
  }

  /**
   * Gives whether the write finished at once. Behind our end nothing can be sent: what is owed for it is lost when the
   * server closes.
   */
  private write(bytes: Buffer): boolean {
    if (this.state === 'closed' || this.finishing) return true;
    this.socket.write(bytes);
    const waiting = this.socket.writableLength;
    if (waiting > this.laneBytesMax) this.congested = true;
    return waiting === 0;
  }

  private readonly drained = (): void => {
    this.congested = false;
    const waiters = [...this.drainWaiters];
    this.drainWaiters.clear();
    for (const waiter of waiters) waiter();
    const { owner } = this;
    if (owner !== undefined) contain(owner, () => owner.laneDrained());
  };

  private readPlain(buffer: Buffer, start: number, length: number): number {
    const scanner = this.scanner;
    const slot = this.queue.head;
    const owed = this.queue.counts[slot]!;
    const receiver = this.queue.receivers[slot];
    const glances = this.queue.glances[slot];
    const onlyOne = this.lifted.length > 0;
    let at = start;
    let done = 0;
    if (glances === undefined) {
      do {
        at = scanner.scan(buffer, at, length);
        if (!scanner.complete) break;
        done += 1;
      } while (done < owed && at < length && buffer[at] !== PUSH && !onlyOne);
    } else {
      const { uniform } = glances;
      let bytes = 0;
      do {
        const from = at;
        if (scanner.atBoundary) this.glancedBytes = 0;
        at = scanner.scan(buffer, at, length);
        this.glancedBytes += at - from;
        if (!scanner.complete) break;
        done += 1;
        if (uniform) bytes += this.glancedBytes;
        else this.tellAnswered(glances, 1, this.glancedBytes);
      } while (done < owed && at < length && buffer[at] !== PUSH && !isTaken(glances, buffer, at, length));
      if (uniform && done > 0) this.tellAnswered(glances, done, bytes);
    }
    if (scanner.malformed) return this.notResp(length);
    if (scanner.complete) this.mode = BETWEEN;
    else if (scanner.pushAhead) this.beginLifted(IN_PLAIN);
    if (receiver !== undefined && at > start) this.deliver(receiver, buffer, start, at);
    if (done > 0 && !this.isClosed()) {
      if (onlyOne) this.passLifted(this.owner);
      if (this.isClosed()) return at;
      this.queue.counts[slot] = owed - done;
      if (done === owed) this.queue.pop();
      if (receiver !== undefined) this.tellDone(receiver, done);
    }
    return at;
  }

  private deliver(receiver: ReplyReceiver, buffer: Buffer, start: number, end: number): void {
    try {
      receiver.deliver(buffer, start, end, this.readBuffer);
    } catch (thrown) {
      receiver.fault(thrown);
    }
  }

  private tellDone(receiver: ReplyReceiver, replies: number): void {
    try {
      receiver.repliesDone(replies);
    } catch (thrown) {
      receiver.fault(thrown);
    }
  }

  private tellAnswered(glances: GlancedReplies, replies: number, bytes: number): void {
    try {
      glances.answered(replies, bytes);
    } catch (thrown) {
      glances.fault(thrown);
    }
  }

  private passRaw(buffer: Buffer, length: number): void {
    const { owner } = this;
    if (owner !== undefined) contain(owner, () => owner.rawBytes(buffer, length));
  }

  private passPush(owner: LaneOwner | undefined, frame: Buffer): void {
    if (owner !== undefined) contain(owner, () => owner.push(frame));
  }

  private readWhole(buffer: Buffer, start: number, length: number): number {
    const scanner = this.scanner;
    const at = scanner.scan(buffer, start, length);
    if (scanner.malformed) return this.notResp(length);
    const part = Buffer.from(buffer.subarray(start, at));
    if (!scanner.complete) {
      this.parts.push(part);
      if (scanner.pushAhead) this.beginLifted(this.mode);
      return at;
    }
    const frame = joined(this.parts, part);
    if (this.parts.length > 0) this.parts = [];
    const mode = this.mode;
    this.mode = BETWEEN;
    const { owner } = this;
    if (mode === IN_PUSH) this.passPush(owner, frame);
    else if (mode === IN_CONFIRM) this.takeConfirmation(frame);
    else if (mode === IN_MEMBERS) this.takeMember(frame);
    else this.takeReply(frame);
    if (this.lifted.length > 0) this.passLifted(owner);
    return at;
  }

  private beginLifted(outerMode: number): void {
    this.outerMode = outerMode;
    this.mode = IN_LIFTED;
  }

  private readLifted(buffer: Buffer, start: number, length: number): number {
    const scanner = this.pushScanner;
    const at = scanner.scan(buffer, start, length);
    if (scanner.malformed || scanner.pushAhead) return this.notResp(length);
    const part = Buffer.from(buffer.subarray(start, at));
    if (!scanner.complete) {
      this.pushParts.push(part);
      return at;
    }
    this.lifted.push(joined(this.pushParts, part));
    this.pushParts = [];
    this.mode = this.outerMode;
    return at;
  }

  private passLifted(owner: LaneOwner | undefined): void {
    const { lifted } = this;
    this.lifted = [];
    for (const push of lifted) this.passPush(owner, push);
  }

  private notResp(length: number): number {
    this.close(new HoldfastError('KVDOWN', 'the KV store sent bytes that are not RESP'));
    return length;
  }

  private takeConfirmation(frame: Buffer): void {
    const confirmations = this.queue.confirmations[this.queue.head]!;
    contain(confirmations, () => {
      if (!confirmations.confirmed(frame) || this.isClosed()) return;
      this.queue.pop();
      confirmations.done();
    });
  }

  private takeMember(frame: Buffer): void {
    const task = this.queue.tasks[this.queue.head] as OwedTransaction;
    try {
      if (!task.member(frame)) {
        this.mode = IN_MEMBERS;
        return;
      }
    } catch (thrown) {
      this.close(thrown instanceof HoldfastError ? thrown : new HoldfastError('KVDOWN', String(thrown)));
      return;
    }
    this.queue.pop();
    contain(task, () => task.reply(NOTHING));
  }

  private takeReply(frame: Buffer): void {
    const glances = this.queue.glances[this.queue.head];
    if (glances !== undefined) {
      this.queue.counts[this.queue.head]! -= 1;
      if (this.queue.counts[this.queue.head] === 0) this.queue.pop();
      contain(glances, () => glances.take(frame));
    } else {
      const task = this.queue.tasks[this.queue.head]!;
      this.queue.pop();
      try {
        task.reply(frame);
      } catch (thrown) {
        task.fault(thrown);
      }
    }
  }

  /** What the frame that begins at `at` is for; BETWEEN when too few of its bytes are there to tell. */
  private nextMode(buffer: Buffer, at: number, length: number): number {
    const type = buffer[at]!;
    const kind = this.queue.size > 0 ? this.queue.kinds[this.queue.head]! : -1;
    if (type === PUSH || (type === ARRAY && (this.subscribedResp2 || kind === Owed.confirm))) {
      const word = firstWord(buffer, at, length);
      if (word === undefined) return BETWEEN;
      if (kind === Owed.confirm && this.queue.confirmations[this.queue.head]!.word.equals(word)) return IN_CONFIRM;
      if (type === PUSH || MESSAGE_KINDS.some((message) => message.equals(word))) return IN_PUSH;
      if (CONFIRM_KINDS.some((confirm) => confirm.equals(word))) return IN_PUSH;
    }
    if (kind === Owed.plain) return IN_PLAIN;
    if (kind === Owed.glanced) {
      if (!isTaken(this.queue.glances[this.queue.head]!, buffer, at, length)) return IN_PLAIN;
      return type === BULK && at + 1 >= length ? BETWEEN : IN_WHOLE;
    }
    if (kind === Owed.whole) return IN_WHOLE;
    if (kind === Owed.members) {
      if (type !== ARRAY) return IN_WHOLE;
      const headerEnd = buffer.indexOf(13, at);
      if (headerEnd < 0 || headerEnd + 1 >= length) return BETWEEN;
      const count = Number(buffer.toString('latin1', at + 1, headerEnd));
      if (!(count > 0)) return IN_WHOLE;
      (this.queue.tasks[this.queue.head] as OwedTransaction).begin(count);
      return IN_MEMBERS;
    }
    if (kind === Owed.confirm) return type === MINUS ? IN_CONFIRM : UNEXPECTED;
    // Nothing is owed. A server that is about to close says why in an error; pass that to the owner as a push.
    return IN_PUSH;
  }

  /** Whether what comes next is a message that belongs to the reply before it. */
  private pushFollows(buffer: Buffer, at: number, length: number): boolean {
    if (!this.pushesFollow || at >= length || buffer[at] !== PUSH) return false;
    const slot = this.queue.answeredNext();
    if (slot < 0 || this.queue.kinds[slot] !== Owed.confirm) return true;
    const word = firstWord(buffer, at, length);
    return word !== undefined && !this.queue.confirmations[slot]!.word.equals(word);
  }

  private runReached(): void {
    while (this.queue.size > 0 && this.queue.kinds[this.queue.head] === Owed.local) {
      const task = this.queue.tasks[this.queue.head]!;
      this.queue.pop();
      contain(task, () => task.reply(NOTHING));
    }
  }
}

/** What `called` throws concerns `whose` session, not the lane. */
function contain(whose: Contained, called: () => void): void {
  try {
    called();
  } catch (thrown) {
    whose.fault(thrown);
  }
}

function joined(parts: Buffer[], last: Buffer): Buffer {
  return parts.length === 0 ? last : Buffer.concat([...parts, last]);
}

/** An error, `_` or `$-1`; true as well while only the `$` of what may be null is there to see. */
function isTaken(replies: GlancedReplies, buffer: Buffer, at: number, length: number): boolean {
  const type = buffer[at];
  if (type === MINUS || type === BULK_ERROR) return true;
  if (replies.errorsOnly) return false;
  return type === NULL || (type === BULK && (at + 1 >= length || buffer[at + 1] === MINUS));
}

/** The first member of an aggregate where it is a bulk or simple string; `undefined` while its bytes are incomplete. */
function firstWord(buffer: Buffer, at: number, length: number): Buffer | undefined {
  const headerEnd = buffer.indexOf(13, at);
  if (headerEnd < 0 || headerEnd + 2 >= length) return undefined;
  const wordLine = headerEnd + 2;
  const lineEnd = buffer.indexOf(13, wordLine);
  if (lineEnd < 0 || lineEnd + 1 >= length) return undefined;
  if (buffer[wordLine] !== 36) return NOTHING;
  const wordLength = Number(buffer.toString('latin1', wordLine + 1, lineEnd));
  if (!(wordLength >= 0 && wordLength <= 32)) return NOTHING;
  const wordStart = lineEnd + 2;
  return wordStart + wordLength > length ? undefined : buffer.subarray(wordStart, wordStart + wordLength);
}
