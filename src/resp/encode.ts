/**
 * Encoders for RESP2 and RESP3. Each gives one whole frame as bytes; none looks at what it encodes.
 * Off the hot path: what is merely forwarded is never decoded and encoded again.
 */
export type Protocol = 2 | 3;

const CRLF = Buffer.from('\r\n');

export const OK: Buffer = Buffer.from('+OK\r\n');
export const QUEUED: Buffer = Buffer.from('+QUEUED\r\n');
export const PONG: Buffer = Buffer.from('+PONG\r\n');
export const EMPTY_ARRAY: Buffer = Buffer.from('*0\r\n');
const NULL_BULK = Buffer.from('$-1\r\n');
const NULL_ARRAY = Buffer.from('*-1\r\n');
const NULL = Buffer.from('_\r\n');

/** A missing value: `$-1` in RESP2, `_` in RESP3. */
export function nullBulk(protocol: Protocol): Buffer {
  return protocol === 3 ? NULL : NULL_BULK;
}

/** A missing array: `*-1` in RESP2, `_` in RESP3. */
export function nullArray(protocol: Protocol): Buffer {
  return protocol === 3 ? NULL : NULL_ARRAY;
}

export function simple(text: string): Buffer {
  return Buffer.from(`+${text}\r\n`, 'latin1');
}

/** `text` is `CODE message`; line breaks would end the frame and become blanks. */
export function error(text: string): Buffer {
  return Buffer.from(`-${text.replace(/[\r\n]+/g, ' ')}\r\n`);
}

/** An error whose text is bytes, each as one character (latin1): what a client sent is quoted as it came. */
export function errorOfBytes(text: string): Buffer {
  return Buffer.from(`-${text.replace(/[\r\n]/g, ' ')}\r\n`, 'latin1');
}

const UNSERVED = Buffer.from('-KVDOWN ');

/** Whether a reply says that the KV store has not answered. */
export function isUnserved(reply: Buffer): boolean {
  return reply[0] === 45 && reply.length > UNSERVED.length && UNSERVED.equals(reply.subarray(0, UNSERVED.length));
}

export function integer(value: number | bigint): Buffer {
  return Buffer.from(`:${value}\r\n`, 'latin1');
}

export function bulk(value: Buffer | string): Buffer {
  const bytes = typeof value === 'string' ? Buffer.from(value) : value;
  return Buffer.concat([Buffer.from(`$${bytes.length}\r\n`, 'latin1'), bytes, CRLF]);
}

/** Text in the form of INFO and CLIENT LIST: a bulk string in RESP2, verbatim in RESP3. */
export function text(protocol: Protocol, content: string): Buffer {
  const bytes = Buffer.from(content, 'latin1');
  if (protocol === 2) return bulk(bytes);
  return Buffer.concat([Buffer.from(`=${bytes.length + 4}\r\ntxt:`, 'latin1'), bytes, CRLF]);
}

/** An array of frames that are encoded already. */
export function array(frames: readonly Buffer[]): Buffer {
  return Buffer.concat([Buffer.from(`*${frames.length}\r\n`, 'latin1'), ...frames]);
}

/** Alternating keys and values, encoded already: a map in RESP3, a flat array in RESP2. */
export function map(protocol: Protocol, frames: readonly Buffer[]): Buffer {
  const head = protocol === 3 ? `%${frames.length / 2}\r\n` : `*${frames.length}\r\n`;
  return Buffer.concat([Buffer.from(head, 'latin1'), ...frames]);
}

/** A request as a multibulk frame. */
export function request(args: readonly (Buffer | string)[]): Buffer {
  const parts: Buffer[] = [Buffer.from(`*${args.length}\r\n`, 'latin1')];
  for (const arg of args) {
    const bytes = typeof arg === 'string' ? Buffer.from(arg) : arg;
    parts.push(Buffer.from(`$${bytes.length}\r\n`, 'latin1'), bytes, CRLF);
  }
  return Buffer.concat(parts);
}
