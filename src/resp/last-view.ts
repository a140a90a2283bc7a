/**
 * Words of buffers: four bytes at a time are compared and copied two to three times as fast as bytes, and for less than some 64
 * bytes calls of `compare` and `copy` cost more than that. A view of its own for each use would cost as much as it saves, so the last
 * one is kept: mostly the next bytes are in the same buffer.
 */
const NOTHING = Buffer.alloc(0);
/** Larger buffers are not kept from being collected. */
const KEPT_BYTES_MAX = 256 * 1024;

export class LastView {
  private buffer: Buffer = NOTHING;
  private view: DataView = viewOf(NOTHING);

  of(buffer: Buffer): DataView {
    if (buffer === this.buffer) return this.view;
    const view = viewOf(buffer);
    if (buffer.length <= KEPT_BYTES_MAX) {
      this.buffer = buffer;
      this.view = view;
    }
    return view;
  }
}

export function viewOf(buffer: Buffer): DataView {
  return new DataView(buffer.buffer, buffer.byteOffset, buffer.length);
}
