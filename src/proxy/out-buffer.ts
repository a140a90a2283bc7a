/**
 * What a lane sends: requests are gathered here, whole or piece by piece, and written once for each turn of the event
 * loop.
 *
 * Hot path: nothing is allocated for a request.
 */
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
  private outLength = 0;
  private flushScheduled = false;

  constructor(write: (bytes: Buffer) => boolean) {
    this.write = write;
  }

  /** Appends `buffer[start, end)`. */
  append(buffer: Buffer, start: number, end: number): void {
    const length = end - start;
    if (this.outLength + length > OUT_BYTES) {
      this.flush();
      if (length > OUT_BYTES / 2) {
        this.write(Buffer.from(buffer.subarray(start, end)));
        return;
      }
    }
    if (this.out.length === 0) this.out = Buffer.allocUnsafeSlow(OUT_BYTES);
    if (length < COPIED_BYTES_MIN) {
      const { out } = this;
      let to = this.outLength;
      for (let at = start; at < end; at += 1) out[to++] = buffer[at]!;
    } else buffer.copy(this.out, this.outLength, start, end);
    this.outLength += length;
    this.flushSoon();
  }

  /** Appends `head`, `buffer[start, end)` and `tail`. */
  appendFramed(head: Buffer, buffer: Buffer, start: number, end: number, tail: Buffer): void {
    const length = head.length + end - start + tail.length;
    if (length > FRAMED_BYTES_MAX || this.outLength + length > OUT_BYTES || this.out.length === 0) {
      this.append(head, 0, head.length);
      this.append(buffer, start, end);
      this.append(tail, 0, tail.length);
      return;
    }
    // For so few bytes calls of `copy` cost more than the bytes.
    const { out } = this;
    let to = this.outLength;
    for (let at = 0; at < head.length; at += 1) out[to++] = head[at]!;
    for (let at = start; at < end; at += 1) out[to++] = buffer[at]!;
    for (let at = 0; at < tail.length; at += 1) out[to++] = tail[at]!;
    this.outLength = to;
    this.flushSoon();
  }

  private flushSoon(): void {
    if (this.flushScheduled) return;
    this.flushScheduled = true;
    setImmediate(this.flushLater);
  }

  /** Appends the line before a bulk string of so many bytes. */
  appendBulkLength(bytes: number): void {
    if (this.outLength + BULK_LENGTH_BYTES_MAX > OUT_BYTES) this.flush();
    if (this.out.length === 0) this.out = Buffer.allocUnsafeSlow(OUT_BYTES);
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
    this.flushSoon();
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
