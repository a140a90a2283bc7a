/**
 * Entry IDs as 16 bytes, big-endian: milliseconds, then sequence. Bytes compare as the IDs do, in Postgres and here,
 * and hold what a bigint cannot (both halves are unsigned 64-bit).
 */
export const ENTRY_ID_LENGTH = 16;
export const ENTRY_ID_ZERO: Buffer = Buffer.alloc(ENTRY_ID_LENGTH);
export const ENTRY_ID_MAX: Buffer = Buffer.alloc(ENTRY_ID_LENGTH, 0xff);

const TWO_32 = 2 ** 32;
const UINT64_MAX = 2n ** 64n - 1n;
const DASH = 0x2d;

/** Writes the decimal digits `text[from, to)` at `offset`; false where they are no unsigned 64-bit number. */
function writeDecimal(target: Buffer, offset: number, text: Buffer, from: number, to: number): boolean {
  if (from >= to || to - from > 20) return false;
  let value = 0;
  for (let at = from; at < to; at += 1) {
    const digit = text[at]! - 0x30;
    if (digit < 0 || digit > 9) return false;
    value = value * 10 + digit;
  }
  if (to - from <= 15) {
    target.writeUInt32BE(Math.floor(value / TWO_32), offset);
    target.writeUInt32BE(value % TWO_32, offset + 4);
    return true;
  }
  const exact = BigInt(text.toString('latin1', from, to));
  if (exact > UINT64_MAX) return false;
  target.writeBigUInt64BE(exact, offset);
  return true;
}

/** `ms-seq`, or `ms` alone with `missingSequence` for the other half. `undefined` where the text is no entry ID. */
export function parseEntryId(
  text: Buffer | string,
  missingSequence: 'none' | 'min' | 'max' = 'none',
): Buffer | undefined {
  const bytes = typeof text === 'string' ? Buffer.from(text, 'latin1') : text;
  const dash = bytes.indexOf(DASH);
  const id = Buffer.allocUnsafe(ENTRY_ID_LENGTH);
  if (dash < 0) {
    if (missingSequence === 'none' || !writeDecimal(id, 0, bytes, 0, bytes.length)) return undefined;
    id.fill(missingSequence === 'min' ? 0 : 0xff, 8);
    return id;
  }
  return writeDecimal(id, 0, bytes, 0, dash) && writeDecimal(id, 8, bytes, dash + 1, bytes.length) ? id : undefined;
}

function formatHalf(id: Buffer, offset: number): string {
  const high = id.readUInt32BE(offset);
  if (high < 2 ** 21) return String(high * TWO_32 + id.readUInt32BE(offset + 4));
  return id.readBigUInt64BE(offset).toString();
}

/** `ms-seq` in decimal, as the servers write it. */
export function formatEntryId(id: Buffer): string {
  return `${formatHalf(id, 0)}-${formatHalf(id, 8)}`;
}

export function entryIdFrom(milliseconds: number | bigint, sequence: number | bigint): Buffer {
  const id = Buffer.allocUnsafe(ENTRY_ID_LENGTH);
  id.writeBigUInt64BE(BigInt(milliseconds), 0);
  id.writeBigUInt64BE(BigInt(sequence), 8);
  return id;
}

/** The Unix time in milliseconds in an ID's first half. */
export function entryIdMilliseconds(id: Buffer): number {
  return Number(id.readBigUInt64BE(0));
}

/** The next ID in order; the greatest one has no next and is given back. */
export function nextEntryId(id: Buffer): Buffer {
  const next = Buffer.from(id);
  for (let at = ENTRY_ID_LENGTH - 1; at >= 0; at -= 1) {
    if (next[at] !== 0xff) {
      next[at] = next[at]! + 1;
      return next;
    }
    next[at] = 0;
  }
  return ENTRY_ID_MAX;
}

/** The ID just below; 0-0 has none and is given back. */
export function previousEntryId(id: Buffer): Buffer {
  const previous = Buffer.from(id);
  for (let at = ENTRY_ID_LENGTH - 1; at >= 0; at -= 1) {
    if (previous[at] !== 0) {
      previous[at] = previous[at]! - 1;
      return previous;
    }
    previous[at] = 0xff;
  }
  return ENTRY_ID_ZERO;
}

export function maxEntryId(a: Buffer, b: Buffer): Buffer {
  return a.compare(b) >= 0 ? a : b;
}

export function minEntryId(a: Buffer, b: Buffer): Buffer {
  return a.compare(b) <= 0 ? a : b;
}
