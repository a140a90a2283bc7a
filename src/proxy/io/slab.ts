/**
 * Bytes that are kept until their replies have come, in buffers that are used again: an allocation for each run of
 * requests would cost more than everything else that is done for it.
 */
const SLAB_BYTES = 64 * 1024;
/** What is longer gets a buffer of its own. */
const SHARED_BYTES_MAX = SLAB_BYTES / 8;

export class Slab {
  readonly buffer: Buffer;
  private used = 0;
  /** How many have bytes here. One that never lets go costs the reuse of this slab, nothing else. */
  private users = 0;

  constructor(bytes: number) {
    this.buffer = Buffer.allocUnsafeSlow(bytes);
  }

  hasRoom(bytes: number): boolean {
    return this.used + bytes <= this.buffer.length;
  }

  /** Copies bytes here, where there is room for them, and gives where they begin. */
  keep(source: Buffer, start: number, end: number): number {
    const at = this.used;
    source.copy(this.buffer, at, start, end);
    this.used = at + end - start;
    this.users += 1;
    return at;
  }

  /** Somebody's bytes are needed no more. */
  release(): void {
    this.users -= 1;
    if (this.users === 0) this.used = 0;
  }
}

let shared = new Slab(SLAB_BYTES);

/** A slab that has room for so many bytes. */
export function slabFor(bytes: number): Slab {
  if (bytes > SHARED_BYTES_MAX) return new Slab(bytes);
  if (!shared.hasRoom(bytes)) shared = new Slab(SLAB_BYTES);
  return shared;
}
