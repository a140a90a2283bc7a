/**
 * What a lane sends: requests are gathered here, whole or piece by piece, and written once for each turn of the event
 * loop.
 *
 * Hot path: nothing is allocated for a request.
 */
import { LastView, viewOf } from '../../resp/last-view.ts';
import { decimalDigits } from './integer.ts';

const OUT_BYTES = 128 * 1024;
/** For fewer bytes a call of `copy` costs more than the bytes. */
const COPIED_BYTES_MIN = 64;
/** Longer requests are worth calls of `copy`. */
const FRAMED_BYTES_MAX = 256;
/** `$`, the digits of a length, CR LF. */
const BULK_LENGTH_BYTES_MAX = 19;
const NOTHING = Buffer.alloc(0);
const BULK = 36;
const CR = 13;
const LF = 10;
const ZERO = 48;

export class OutBuffer {
  /** Gives whether the write finished at once. */
  private readonly write: (bytes: Buffer) => boolean;
  private out: Buffer = NOTHING;
  private outView: DataView = viewOf(NOTHING);
  private readonly source = new LastView();
  private readonly before = new LastView();
  private readonly behind = new LastView();
  private outLength = 0;
  private flushScheduled = false;

  constructor(write: (bytes: Buffer) => boolean) {
    this.write = write;
  }

  /** Appends `buffer[start, end)`. */
  append(buffer: Buffer, start: number, end: number): void {
    this.appendSeen(this.source, buffer, start, end);
  }

  /** Appends bytes that are the same for one request after the other. */
  appendFixed(bytes: Buffer): void {
    this.appendSeen(this.behind, bytes, 0, bytes.length);
  }

  private appendSeen(seen: LastView, buffer: Buffer, start: number, end: number): void {
    const length = end - start;
    if (this.outLength + length > OUT_BYTES) {
      this.flush();
      if (length > OUT_BYTES / 2) {
        this.write(Buffer.from(buffer.subarray(start, end)));
        return;
      }
    }
    if (this.out.length === 0) this.renew();
    if (length < COPIED_BYTES_MIN) this.put(seen.of(buffer), start, end);
    else {
      buffer.copy(this.out, this.outLength, start, end);
      this.outLength += length;
    }
    this.flushSoon();
  }

  private renew(): void {
    this.out = Buffer.allocUnsafeSlow(OUT_BYTES);
    this.outView = viewOf(this.out);
  }

  /** Copies few bytes for which there is room. */
  private put(from: DataView, start: number, end: number): void {
    const { outView } = this;
    const wordsEnd = start + ((end - start) & ~3);
    let to = this.outLength;
    let at = start;
    for (; at < wordsEnd; at += 4, to += 4) outView.setInt32(to, from.getInt32(at, true), true);
    for (; at < end; at += 1, to += 1) outView.setUint8(to, from.getUint8(at));
    this.outLength = to;
  }

  /** Appends `head`, `buffer[start, end)` and `tail`. */
  appendFramed(head: Buffer, buffer: Buffer, start: number, end: number, tail: Buffer): void {
    const length = head.length + end - start + tail.length;
    if (length > FRAMED_BYTES_MAX || this.outLength + length > OUT_BYTES || this.out.length === 0) {
      this.appendFixed(head);
      this.append(buffer, start, end);
      this.appendFixed(tail);
      return;
    }
    this.put(this.before.of(head), 0, head.length);
    this.put(this.source.of(buffer), start, end);
    this.put(this.behind.of(tail), 0, tail.length);
    this.flushSoon();
  }

  /** Appends `buffer[start, end)`, the line before a bulk string of so many bytes, and the `prefix` that it begins with. */
  appendPrefix(buffer: Buffer, start: number, end: number, bytes: number, prefix: Buffer): void {
    const length = end - start + BULK_LENGTH_BYTES_MAX + prefix.length;
    if (length > FRAMED_BYTES_MAX || this.outLength + length > OUT_BYTES || this.out.length === 0) {
      this.append(buffer, start, end);
      if (this.outLength + BULK_LENGTH_BYTES_MAX > OUT_BYTES) this.flush();
      if (this.out.length === 0) this.renew();
      this.putBulkLength(bytes);
      this.appendFixed(prefix);
      return;
    }
    this.put(this.source.of(buffer), start, end);
    this.putBulkLength(bytes);
    this.put(this.before.of(prefix), 0, prefix.length);
    this.flushSoon();
  }

  private flushSoon(): void {
    if (this.flushScheduled) return;
    this.flushScheduled = true;
    setImmediate(this.flushLater);
  }

  private putBulkLength(bytes: number): void {
    const { out } = this;
    const end = this.outLength + 1 + decimalDigits(bytes);
    out[this.outLength] = BULK;
    let rest = bytes;
    for (let at = end - 1; at > this.outLength; at -= 1) {
      const tenths = Math.floor(rest / 10);
      out[at] = ZERO + rest - tenths * 10;
      rest = tenths;
    }
    out[end] = CR;
    out[end + 1] = LF;
    this.outLength = end + 2;
  }

  /** Writes what was appended in this turn. */
  flush(): void {
    if (this.outLength === 0) return;
    const view = this.out.subarray(0, this.outLength);
    this.outLength = 0;
    // A write that did not finish at once still needs its bytes.
    if (!this.write(view)) this.out = NOTHING;
  }

  private readonly flushLater = (): void => {
    this.flushScheduled = false;
    this.flush();
  };
}
