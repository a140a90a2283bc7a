/**
 * Finds the frames of requests in the bytes that came, without copying or decoding them.
 *
 * A scanner stands on one frame at a time and is resumable: when a frame is incomplete its position is kept, so that a
 * frame of a million arguments in small packets is scanned once. All offsets are relative to the start of the frame, so
 * the bytes may be moved between calls.
 *
 *   scan() ──▶ length > 0   the frame is complete; arguments are in `bounds`
 *          ──▶ 0            incomplete; at least `needed` bytes of the frame must be there before another call helps
 *          ──▶ -1           malformed; `error` has the text in the server's own words
 *
 * What is accepted and refused follows `processMultibulkBuffer` and `processInlineBuffer` of Redis 7.0: a difference
 * would let two parties disagree about where a request ends.
 */
import { splitInline } from './inline.ts';

const CR = 13;
const LF = 10;
const STAR = 42;
const DOLLAR = 36;
const MINUS = 45;
const ZERO = 48;
const NINE = 57;

/** The longest line (inline request, count) without an end that a server takes: `PROTO_INLINE_MAX_SIZE`. */
const LINE_BYTES_MAX = 64 * 1024;
const ARGUMENTS_MAX = 2 ** 31 - 1;

const INCOMPLETE = 0;
const MALFORMED = -1;

export interface RequestScannerLimits {
  /** Largest single argument in bytes (`proto-max-bulk-len`). */
  readonly bulkBytesMax: number;
}

export class RequestScanner {
  /** Number of arguments the frame declares; 0 for an empty frame, -1 before the header is read. */
  argc = -1;
  /** Start and end of argument i at `2i` and `2i + 1`, relative to the start of the frame. */
  bounds = new Int32Array(16);
  /** Arguments of an inline request, decoded; `undefined` for a multibulk frame. */
  inlineArguments: Buffer[] | undefined;
  /** False where a line did not end in CR LF although the server would take it: such a frame is encoded anew. */
  canonical = true;
  /** After an incomplete scan: the least length the frame can have, in bytes. */
  needed = 1;
  /** Arguments found so far. */
  found = 0;
  /** After a malformed scan: `Protocol error: …`. */
  error = '';

  private position = 0;
  /** Start and end (with its CR LF) of the argument that is arriving; 0 when none is. */
  private bulkStart = 0;
  private bulkEnd = 0;
  private value = 0;
  private readonly limits: RequestScannerLimits;

  constructor(limits: RequestScannerLimits) {
    this.limits = limits;
  }

  reset(): void {
    this.argc = -1;
    this.inlineArguments = undefined;
    this.canonical = true;
    this.needed = 1;
    this.found = 0;
    this.position = 0;
    this.bulkEnd = 0;
  }

  /**
   * After an incomplete scan of `available` bytes: how many of them no later call will look at, so that they may be
   * passed on and dropped. Later calls then get a `start` that lies as far before the bytes that are left.
   */
  settledBytes(available: number): number {
    return this.bulkEnd > 0 ? available : Math.min(this.position, available);
  }

  /** Scans the frame that starts at `start`, of which the bytes up to `end` are there. */
  scan(buffer: Buffer, start: number, end: number): number {
    let at = start + this.position;
    if (this.argc < 0) {
      if (at >= end) return INCOMPLETE;
      if (buffer[at] !== STAR) return this.scanInline(buffer, start, end);
      const next = this.readLength(buffer, at + 1, end);
      if (next <= 0) {
        if (next === INCOMPLETE) return this.incompleteLine(start, at, end, 'too big mbulk count string');
        return this.malformed('invalid multibulk length');
      }
      if (this.value > ARGUMENTS_MAX) return this.malformed('invalid multibulk length');
      at = next;
      this.position = at - start;
      if (this.value <= 0) {
        this.argc = 0;
        return this.position;
      }
      this.argc = this.value;
    }

    const argc = this.argc;
    let found = this.found;
    if (this.bulkEnd > 0) {
      const dataEnd = start + this.bulkEnd - 2;
      if (dataEnd + 2 > end) return INCOMPLETE;
      this.endBulk(buffer, found, start, dataEnd);
      found += 1;
      at = dataEnd + 2;
    }
    while (found < argc) {
      if (at >= end) return this.suspend(found, at - start, at - start + 1);
      const type = buffer[at]!;
      if (type !== DOLLAR) {
        // A server says "too big bulk count string" for a long unterminated line before it looks at the type.
        const crAt = lineEnd(buffer, CR, at, end);
        if (crAt < 0 && end - at > LINE_BYTES_MAX) return this.malformed('too big bulk count string');
        if (crAt < 0 || crAt + 1 >= end) return this.suspend(found, at - start, end - start + 1);
        return this.malformed(`expected '$', got '${String.fromCharCode(type)}'`);
      }
      const next = this.readLength(buffer, at + 1, end);
      if (next <= 0) {
        if (next === INCOMPLETE) {
          this.found = found;
          this.position = at - start;
          return this.incompleteLine(start, at, end, 'too big bulk count string');
        }
        return this.malformed('invalid bulk length');
      }
      const length = this.value;
      if (length < 0 || length > this.limits.bulkBytesMax) return this.malformed('invalid bulk length');
      const dataEnd = next + length;
      if (dataEnd + 2 > end) {
        this.bulkStart = next - start;
        this.bulkEnd = dataEnd + 2 - start;
        return this.suspend(found, at - start, this.bulkEnd);
      }
      this.bulkStart = next - start;
      this.endBulk(buffer, found, start, dataEnd);
      found += 1;
      at = dataEnd + 2;
    }
    this.found = found;
    this.position = at - start;
    return this.position;
  }

  private endBulk(buffer: Buffer, index: number, start: number, dataEnd: number): void {
    if (buffer[dataEnd] !== CR || buffer[dataEnd + 1] !== LF) this.canonical = false;
    this.bulkEnd = 0;
    this.setBounds(index, this.bulkStart, dataEnd - start);
  }

  private setBounds(index: number, from: number, to: number): void {
    const slot = index * 2;
    if (slot + 1 >= this.bounds.length) {
      const larger = new Int32Array(this.bounds.length * 2);
      larger.set(this.bounds);
      this.bounds = larger;
    }
    this.bounds[slot] = from;
    this.bounds[slot + 1] = to;
  }

  private suspend(found: number, position: number, needed: number): number {
    this.found = found;
    this.position = position;
    this.needed = needed;
    return INCOMPLETE;
  }

  private incompleteLine(start: number, at: number, end: number, tooBig: string): number {
    if (end - at > LINE_BYTES_MAX) return this.malformed(tooBig);
    this.needed = end - start + 1;
    return INCOMPLETE;
  }

  private malformed(text: string): number {
    this.error = `Protocol error: ${text}`;
    return MALFORMED;
  }

  /**
   * Reads a decimal line into `value`; gives the offset behind it, 0 where its end is not there yet, -1 where it is
   * not a number as `string2ll` takes it (no plus sign, no leading zero).
   */
  private readLength(buffer: Buffer, from: number, end: number): number {
    let at = from;
    let value = 0;
    let byte = at < end ? buffer[at]! : 0;
    if (byte > ZERO && byte <= NINE) {
      do {
        value = value * 10 + (byte - ZERO);
        at += 1;
        byte = at < end ? buffer[at]! : 0;
      } while (byte >= ZERO && byte <= NINE);
      if (byte === CR && at + 1 < end && at - from < 16) {
        if (buffer[at + 1] !== LF) this.canonical = false;
        this.value = value;
        return at + 2;
      }
    }
    return this.readUnusualLength(buffer, from, end);
  }

  private readUnusualLength(buffer: Buffer, from: number, end: number): number {
    const crAt = lineEnd(buffer, CR, from, end);
    if (crAt < 0 || crAt + 1 >= end) return INCOMPLETE;
    if (buffer[crAt + 1] !== LF) this.canonical = false;
    const negative = buffer[from] === MINUS;
    const digits = buffer.toString('latin1', negative ? from + 1 : from, Math.min(crAt, from + 32));
    if (!/^(?:0|[1-9][0-9]{0,18})$/.test(digits) || (negative && digits === '0')) return MALFORMED;
    if (BigInt(digits) > (negative ? 9223372036854775808n : 9223372036854775807n)) return MALFORMED;
    this.value = negative ? -Number(digits) : Number(digits);
    return crAt + 2;
  }

  private scanInline(buffer: Buffer, start: number, end: number): number {
    const lfAt = lineEnd(buffer, LF, start, end);
    if (lfAt < 0) {
      if (end - start > LINE_BYTES_MAX) return this.malformed('too big inline request');
      this.needed = end - start + 1;
      return INCOMPLETE;
    }
    const textEnd = lfAt > start && buffer[lfAt - 1] === CR ? lfAt - 1 : lfAt;
    const args = splitInline(buffer.subarray(start, textEnd));
    if (args === undefined) return this.malformed('unbalanced quotes in request');
    this.inlineArguments = args;
    this.argc = args.length;
    this.position = lfAt + 1 - start;
    return this.position;
  }
}

/**
 * Where `byte` ends the line that `from` is in, or -1. The servers look with strchr: behind a NUL they find nothing. In
 * a line that is too long they find it only if it comes with the same read as the limit; here they never do.
 */
function lineEnd(buffer: Buffer, byte: number, from: number, end: number): number {
  const at = buffer.indexOf(byte, from);
  if (at < 0 || at >= end || at - from > LINE_BYTES_MAX) return -1;
  const nulAt = buffer.indexOf(0, from);
  return nulAt >= 0 && nulAt < at ? -1 : at;
}
