/**
 * Reads a socket into a buffer that is used again for every read. Allocating 64 KB for each read of each socket is the
 * largest single cost of a plain Node proxy.
 *
 * Bytes given to a reader are valid until it returns; what must live longer is copied. On a connection with a
 * `ReadBuffer` of its own, a reader may hand a view of them to a write and call `retain()` where that did not finish at
 * once: the next read then gets a new buffer.
 */
import net from 'node:net';
import type { Duplex } from 'node:stream';

/** `buffer[0..length)` holds what came. */
export type ByteReader = (buffer: Buffer, length: number) => void;

const READ_BYTES = 64 * 1024;

export class ReadBuffer {
  current: Buffer = Buffer.allocUnsafeSlow(READ_BYTES);
  private retained = false;

  /** The bytes of the current read are still in use after the reader returns. */
  retain(): void {
    this.retained = true;
  }

  /** The buffer for the next read. */
  next(): Buffer {
    if (this.retained) {
      this.retained = false;
      this.current = Buffer.allocUnsafeSlow(READ_BYTES);
    }
    return this.current;
  }
}

function toCallback(reader: ByteReader): (bytes: number, buffer: Uint8Array) => boolean {
  return (bytes, buffer) => {
    reader(buffer as Buffer, bytes);
    return true;
  };
}

/** The `onread` option of `net.connect` and `tls.connect` for a reader with a buffer of its own. */
export function onread(
  readBuffer: ReadBuffer,
  reader: ByteReader,
): { buffer: () => Buffer; callback: (bytes: number, buffer: Uint8Array) => boolean } {
  return { buffer: () => readBuffer.next(), callback: toCallback(reader) };
}

interface HandleOwner {
  _handle?: unknown;
  _server?: unknown;
}

/** The documented way: one allocation for each read. Serves TLS, and Nodes without `handle`. */
export function readByEvents(stream: Duplex, reader: ByteReader): void {
  stream.on('data', (chunk: Buffer) => reader(chunk, chunk.length));
}

/**
 * Gives a socket that reads into `buffer`, which all accepted sockets share, for an accepted one (accepted with `pauseOnConnect`). `handle` is not
 * documented API: where it is missing the socket stays as it is and its `data` events are used.
 */
export function adoptAccepted(socket: net.Socket, buffer: Buffer, reader: ByteReader): net.Socket {
  const owner = socket as net.Socket & HandleOwner;
  const handle = owner._handle;
  if (handle === undefined || handle === null) {
    readByEvents(socket, reader);
    return socket;
  }
  const options = { handle, allowHalfOpen: true, onread: { buffer, callback: toCallback(reader) } };
  const adopted = new net.Socket(options as unknown as net.SocketConstructorOpts) as net.Socket & HandleOwner;
  // The server counts its connections by this field; without it close() would wait for ever.
  adopted._server = owner._server;
  owner._handle = null;
  owner._server = null;
  return adopted;
}
