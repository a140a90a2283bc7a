/**
 * A reply that is one long list of names, rewritten in pieces: between two of them everybody else has their turn. Nothing
 * is made of a name but its bytes.
 */
import { setImmediate as turn } from 'node:timers/promises';
import { HoldfastError } from '../errors.ts';

/** Shorter lists are not worth a wait. */
const LIST_BYTES_MIN = 64 * 1024;
/** Some tenths of a millisecond. */
const PIECE_NAMES = 1000;
const CR = 13;
const BULK = 36;
const ARRAY = 42;
const SET = 126;

/** Whether `frame` is worth it: an array or a set, and long. */
export function isLongList(frame: Buffer): boolean {
  return frame.length >= LIST_BYTES_MIN && (frame[0] === ARRAY || frame[0] === SET);
}

/** `frame` is an array or a set of bulk strings. `seen` gives a name in place of each, not longer, or nothing to leave it out. */
export async function rewriteNameList(frame: Buffer, seen: (name: Buffer) => Buffer | undefined): Promise<Buffer> {
  const headerEnd = frame.indexOf(CR) + 2;
  const total = Number(frame.toString('latin1', 1, headerEnd - 2));
  const out = Buffer.allocUnsafe(frame.length);
  let length = 0;
  let kept = 0;
  let at = headerEnd;
  for (let read = 0; read < total; read += 1) {
    if (read % PIECE_NAMES === PIECE_NAMES - 1) await turn();
    if (frame[at] !== BULK) throw new HoldfastError('ERR', 'the KV store sent something else than a list of names');
    const lineEnd = frame.indexOf(CR, at);
    const start = lineEnd + 2;
    const end = start + Number(frame.toString('latin1', at + 1, lineEnd));
    at = end + 2;
    const name = seen(frame.subarray(start, end));
    if (name === undefined) continue;
    kept += 1;
    length += out.write(`$${name.length}\r\n`, length, 'latin1');
    length += name.copy(out, length);
    length += out.write('\r\n', length, 'latin1');
  }
  return Buffer.concat([Buffer.from(`${String.fromCharCode(frame[0]!)}${kept}\r\n`), out.subarray(0, length)]);
}
