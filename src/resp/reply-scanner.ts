/**
 * Finds where replies end, across any split of the bytes, without decoding them. RESP2 and RESP3.
 *
 * Redis 7.0 writes a client's own notifications into the middle of the reply that causes them (`*2 >3… :1 :1`), and does
 * not count them as members. The scanner stops in front of each (`pushAhead`); who reads takes the push by other means and
 * goes on behind it.
 *
 * No stack is needed: `outstanding` counts the frames that must still come before the top-level frame is complete. An
 * aggregate of n members adds n (a map 2n) and takes one; an attribute adds 2n and takes none, since it only precedes.
 *
 *   ┌────────────┐ line end   ┌──────────────┐  skip = 0
 *   │ in a line  │──────────▶ │ skipping bulk│──────────┐
 *   └────────────┘            └──────────────┘          ▼
 *         ▲                                      outstanding = 0 ? frame complete : next line
 *         └──────────────────────────────────────────────┘
 */
const CR = 13;
const LF = 10;
const MINUS = 45;

const BULK = 36; // $
const VERBATIM = 61; // =
const BLOB_ERROR = 33; // !
const ARRAY = 42; // *
const SET = 126; // ~
const PUSH = 62; // >
const MAP = 37; // %
const ATTRIBUTE = 124; // |

/** Type bytes a server can send: `+ - : $ * _ # , ( ! = % ~ > |`. */
const KNOWN = new Uint8Array(256);
for (const type of '+-:$*_#,(!=%~>|') KNOWN[type.charCodeAt(0)] = 1;

export class ReplyScanner {
  /** True after `scan` when it stopped behind the end of a top-level frame. */
  complete = false;
  /** True after `scan` when it stopped, within a frame, in front of a push that is none of the frame's members. */
  pushAhead = false;
  /** Set when the bytes cannot be RESP; the connection is of no use any more. */
  malformed = false;

  private outstanding = 0;
  private skip = 0;
  private lineType = 0;
  private lineValue = 0;
  private lineNegative = false;
  private lineSawCr = false;

  /** True where the next byte begins a new top-level frame. */
  get atBoundary(): boolean {
    return this.outstanding === 0 && this.lineType === 0 && this.skip === 0;
  }

  /**
   * Goes on from `start` until one top-level frame is complete or the bytes end; gives the offset reached.
   * `complete` tells which.
   */
  scan(buffer: Buffer, start: number, end: number): number {
    let at = start;
    let outstanding = this.outstanding;
    let within = !this.atBoundary;
    this.complete = false;
    this.pushAhead = false;
    if (!within) outstanding = 1;

    while (at < end) {
      if (this.skip > 0) {
        const available = end - at;
        if (this.skip > available) {
          this.skip -= available;
          this.outstanding = outstanding;
          return end;
        }
        at += this.skip;
        this.skip = 0;
        outstanding -= 1;
        if (outstanding === 0) break;
        continue;
      }

      if (this.lineType === 0) {
        const type = buffer[at]!;
        if (KNOWN[type] === 0) {
          this.malformed = true;
          return at;
        }
        if (type === PUSH && within) {
          this.outstanding = outstanding;
          this.pushAhead = true;
          return at;
        }
        within = true;
        this.lineType = type;
        this.lineValue = 0;
        this.lineNegative = false;
        this.lineSawCr = false;
        at += 1;
      }

      const counted = isCounted(this.lineType);
      if (counted && !this.lineSawCr) {
        while (at < end) {
          const byte = buffer[at]!;
          if (byte >= 48 && byte <= 57) this.lineValue = this.lineValue * 10 + (byte - 48);
          else if (byte === CR) {
            this.lineSawCr = true;
            at += 1;
            break;
          } else if (byte === MINUS) this.lineNegative = true;
          else {
            this.malformed = true;
            return at;
          }
          at += 1;
        }
      } else if (!this.lineSawCr) {
        const crAt = buffer.indexOf(CR, at);
        if (crAt < 0 || crAt >= end) at = end;
        else {
          at = crAt + 1;
          this.lineSawCr = true;
        }
      }
      if (!this.lineSawCr || at >= end) break;
      if (buffer[at] !== LF) {
        this.malformed = true;
        return at;
      }
      at += 1;

      const type = this.lineType;
      const value = this.lineNegative ? -1 : this.lineValue;
      this.lineType = 0;
      this.lineSawCr = false;
      if (!counted || value < 0) outstanding -= 1;
      else if (type === BULK || type === VERBATIM || type === BLOB_ERROR) this.skip = value + 2;
      else if (type === MAP) outstanding += value * 2 - 1;
      else if (type === ATTRIBUTE) outstanding += value * 2;
      else outstanding += value - 1;
      if (outstanding === 0) break;
    }

    this.outstanding = outstanding;
    this.complete = outstanding === 0;
    return at;
  }
}

function isCounted(type: number): boolean {
  return (
    type === BULK ||
    type === ARRAY ||
    type === MAP ||
    type === SET ||
    type === PUSH ||
    type === VERBATIM ||
    type === BLOB_ERROR ||
    type === ATTRIBUTE
  );
}
