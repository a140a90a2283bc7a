/**
 * What one client is still to be sent, in order.
 *
 * Usually bytes go straight to the socket. A *hold* is a reply whose turn has come but which is not ready (a commit, a
 * lease): everything behind it queues until it is released.
 *
 *   socket ◀── [ hold | bytes, bytes | hold | bytes ]
 *
 * Memory is bounded by `outputBytesMax`, counted over what queues here and what the socket has not taken yet.
 */
import type { Socket } from 'node:net';
import type { ReadBuffer } from './socket-reader.ts';

export interface Hold {
  /** Gives the reply its bytes; those behind it go on. Once. */
  release(reply: Buffer): void;
  /** There will be none: the connection ends here, as soon as what stands before it was written. */
  end(): void;
}

export interface OutputEvents {
  /** The client reads slowly: the socket will tell `drain` once it has caught up. */
  slow(): void;
  /** More than `outputBytesMax` waits for the client. */
  overflow(): void;
  /** After `finish`: everything owed is on its way, and our side has ended. */
  finished(): void;
}

interface Segment {
  ready: boolean;
  chunks: Buffer[];
}

/** Slices up to this are copied: a small view would keep the whole read buffer alive behind a slow client. */
const COPY_BYTES_MAX = 4096;
/** With this much in the socket's own buffer a client counts as a slow reader. */
const SLOW_BYTES = 1024 * 1024;

export class SessionOutput {
  bytesTotal = 0;
  private readonly socket: Socket;
  private readonly outputBytesMax: number;
  private readonly events: OutputEvents;
  private segments: Segment[] = [];
  private heldBytes = 0;
  private pending: Buffer[] = [];
  private pendingBytes = 0;
  private flushScheduled = false;
  private ended = false;
  private finishing = false;
  /** The connection ends within what queues here: nothing is taken behind that. */
  private sealed = false;

  constructor(socket: Socket, outputBytesMax: number, events: OutputEvents) {
    this.socket = socket;
    this.outputBytesMax = outputBytesMax;
    this.events = events;
  }

  /** Bytes that the client has not taken. */
  get waitingBytes(): number {
    return this.heldBytes + this.pendingBytes + this.socket.writableLength;
  }

  get holding(): boolean {
    return this.segments.length > 0;
  }

  /**
   * Bytes of a buffer that will be used again. With a `readBuffer` large slices are written as views, and it is told
   * where the write did not finish at once.
   */
  deliver(buffer: Buffer, start: number, end: number, readBuffer: ReadBuffer | undefined): void {
    if (this.ended || this.sealed) return;
    const length = end - start;
    if (this.segments.length > 0 || this.pending.length > 0) {
      this.write(Buffer.from(buffer.subarray(start, end)));
      return;
    }
    this.bytesTotal += length;
    if (readBuffer !== undefined && length > COPY_BYTES_MAX) {
      this.socket.write(buffer.subarray(start, end));
      if (this.socket.writableLength > 0) readBuffer.retain();
    } else {
      const copy = Buffer.allocUnsafe(length);
      buffer.copy(copy, 0, start, end);
      this.socket.write(copy);
    }
    this.check();
  }

  /** Bytes that nobody else will change. */
  write(bytes: Buffer): void {
    if (this.ended || this.sealed) return;
    this.bytesTotal += bytes.length;
    const tail = this.segments[this.segments.length - 1];
    if (tail !== undefined) {
      // A segment that is not ready is a hold: what comes behind it starts a segment of its own.
      if (tail.ready) tail.chunks.push(bytes);
      else this.segments.push({ ready: true, chunks: [bytes] });
      this.heldBytes += bytes.length;
      this.check();
      return;
    }
    this.pending.push(bytes);
    this.pendingBytes += bytes.length;
    this.scheduleFlush();
    this.check();
  }

  /** Reserves this place in the order for a reply that is not ready yet. */
  hold(): Hold {
    const segment: Segment = { ready: false, chunks: [] };
    if (!this.sealed) this.segments.push(segment);
    return {
      release: (reply) => {
        segment.ready = true;
        if (this.ended) return;
        this.bytesTotal += reply.length;
        segment.chunks.push(reply);
        this.heldBytes += reply.length;
        this.releaseReady();
      },
      end: () => this.endAt(segment),
    };
  }

  /** Ends the connection as soon as everything before this place was written. */
  endHere(): void {
    this.hold().end();
  }

  private endAt(segment: Segment): void {
    const at = this.segments.indexOf(segment);
    if (this.ended || at < 0) return;
    for (const { chunks } of this.segments.splice(at)) for (const chunk of chunks) this.heldBytes -= chunk.length;
    this.sealed = true;
    this.finish();
  }

  /** Ends the connection as soon as everything owed was written. */
  finish(): void {
    this.finishing = true;
    if (this.segments.length === 0) this.scheduleFlush();
  }

  /** Nothing is written any more. */
  end(): void {
    this.ended = true;
    this.segments = [];
    this.pending = [];
    this.heldBytes = 0;
    this.pendingBytes = 0;
  }

  /** Writes what waits for the end of this tick. */
  readonly flush = (): void => {
    this.flushScheduled = false;
    if (this.ended) return;
    const { pending } = this;
    if (pending.length > 0) {
      this.pending = [];
      this.pendingBytes = 0;
      this.socket.write(pending.length === 1 ? pending[0]! : Buffer.concat(pending));
      this.check();
    }
    if (this.finishing && this.segments.length === 0) {
      this.ended = true;
      this.socket.end(() => this.events.finished());
    }
  };

  private releaseReady(): void {
    let count = 0;
    for (const segment of this.segments) {
      if (!segment.ready) break;
      for (const chunk of segment.chunks) {
        this.pending.push(chunk);
        this.pendingBytes += chunk.length;
        this.heldBytes -= chunk.length;
      }
      count += 1;
    }
    if (count === 0) return;
    this.segments.splice(0, count);
    this.scheduleFlush();
  }

  private scheduleFlush(): void {
    if (this.flushScheduled) return;
    this.flushScheduled = true;
    setImmediate(this.flush);
  }

  private check(): void {
    if (this.ended) return;
    if (this.waitingBytes > this.outputBytesMax) this.events.overflow();
    else if (this.socket.writableLength > SLOW_BYTES) this.events.slow();
  }
}
