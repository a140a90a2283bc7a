/**
 * One-dimensional arrays in Postgres's binary format (array_send in src/backend/utils/adt/arrayfuncs.c), because a
 * batch of bytea as text costs three times the bytes and most of the time. `pg` passes Buffers on as binary parameters.
 */
const HEADER_LENGTH = 20;
const OID_BYTEA = 17;
const OID_BIGINT = 20;

function header(length: number, oid: number, hasNulls: boolean, bytes: number): Buffer {
  const target = Buffer.allocUnsafe(HEADER_LENGTH + bytes);
  target.writeInt32BE(1, 0);
  target.writeInt32BE(hasNulls ? 1 : 0, 4);
  target.writeInt32BE(oid, 8);
  target.writeInt32BE(length, 12);
  target.writeInt32BE(1, 16);
  return target;
}

/** bigint[]; `undefined` is null. Values are safe integers. */
export function bigintArray(values: readonly (number | undefined)[]): Buffer {
  let present = 0;
  for (const value of values) if (value !== undefined) present += 1;
  const target = header(values.length, OID_BIGINT, present < values.length, values.length * 4 + present * 8);
  let at = HEADER_LENGTH;
  for (const value of values) {
    if (value === undefined) {
      target.writeInt32BE(-1, at);
      at += 4;
      continue;
    }
    target.writeInt32BE(8, at);
    target.writeInt32BE(Math.floor(value / 2 ** 32), at + 4);
    target.writeUInt32BE(value >>> 0, at + 8);
    at += 12;
  }
  return target;
}

/** bytea[]; `undefined` is null. */
export function byteaArray(values: readonly (Buffer | undefined)[]): Buffer {
  let bytes = 0;
  let hasNulls = false;
  for (const value of values) {
    if (value === undefined) hasNulls = true;
    else bytes += value.length;
  }
  const target = header(values.length, OID_BYTEA, hasNulls, values.length * 4 + bytes);
  let at = HEADER_LENGTH;
  for (const value of values) {
    target.writeInt32BE(value === undefined ? -1 : value.length, at);
    at += 4;
    if (value === undefined) continue;
    value.copy(target, at);
    at += value.length;
  }
  return target;
}

/** bytea[] whose elements are written in place: `lengths[i]` bytes by `write(target, offset, i)`. */
export function byteaArrayOf(
  lengths: readonly number[],
  write: (target: Buffer, offset: number, index: number) => void,
): Buffer {
  let bytes = 0;
  for (const length of lengths) bytes += length;
  const target = header(lengths.length, OID_BYTEA, false, lengths.length * 4 + bytes);
  let at = HEADER_LENGTH;
  for (let index = 0; index < lengths.length; index += 1) {
    const length = lengths[index]!;
    target.writeInt32BE(length, at);
    write(target, at + 4, index);
    at += 4 + length;
  }
  return target;
}
