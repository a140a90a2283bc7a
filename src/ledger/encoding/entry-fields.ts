/**
 * The fields of an entry, in the form in which the servers send them in XRANGE: `*N\r\n$…`, canonical RESP.
 * So "the same fields" is equality of bytes, a reply's member is stored as it came, and a restoring XADD is a
 * concatenation. Field order and repeated fields are part of an entry and survive.
 */
const CR = 13;
const LF = 10;
/** All but key and fields: numbers of at most 20 digits, an ID of at most 41 characters. */
const XADD_BYTES_MAX = 200;

function decimalLength(value: number): number {
  let length = 1;
  for (let rest = value; rest >= 10; rest = Math.floor(rest / 10)) length += 1;
  return length;
}

/** How many bytes `writeFields` will write for the arguments from `first` on. */
export function fieldsLength(args: readonly Buffer[], first: number): number {
  let length = 1 + decimalLength(args.length - first) + 2;
  for (let at = first; at < args.length; at += 1) {
    const bytes = args[at]!.length;
    length += 1 + decimalLength(bytes) + 2 + bytes + 2;
  }
  return length;
}

function writeHead(target: Buffer, offset: number, type: number, value: number): number {
  target[offset] = type;
  const digits = decimalLength(value);
  let rest = value;
  for (let at = offset + digits; at > offset; at -= 1) {
    target[at] = 0x30 + (rest % 10);
    rest = Math.floor(rest / 10);
  }
  const end = offset + 1 + digits;
  target[end] = CR;
  target[end + 1] = LF;
  return end + 2;
}

/** Writes the arguments from `first` on at `offset`; gives the offset behind them. */
export function writeFields(target: Buffer, offset: number, args: readonly Buffer[], first: number): number {
  let at = writeHead(target, offset, 0x2a, args.length - first);
  for (let index = first; index < args.length; index += 1) {
    const bytes = args[index]!;
    at = writeHead(target, at, 0x24, bytes.length);
    bytes.copy(target, at);
    at += bytes.length;
    target[at] = CR;
    target[at + 1] = LF;
    at += 2;
  }
  return at;
}

export function encodeFields(args: readonly Buffer[], first = 0): Buffer {
  const fields = Buffer.allocUnsafe(fieldsLength(args, first));
  writeFields(fields, 0, args, first);
  return fields;
}

/** Field names and values alternating, as views. */
export function decodeFields(fields: Buffer): Buffer[] {
  const members: Buffer[] = [];
  let at = fields.indexOf(CR) + 2;
  while (at < fields.length) {
    const end = fields.indexOf(CR, at);
    const length = Number(fields.toString('latin1', at + 1, end));
    members.push(fields.subarray(end + 2, end + 2 + length));
    at = end + 2 + length + 2;
  }
  return members;
}

/** How many bytes `writeRestoringXadd` writes at most. */
export function restoringXaddLengthMax(key: Buffer, fields: Buffer): number {
  return key.length + fields.length + XADD_BYTES_MAX;
}

/** Writes one `XADD key [MAXLEN n] id field value …` at `offset`; gives the offset behind it. */
export function writeRestoringXadd(
  target: Buffer,
  offset: number,
  key: Buffer,
  idText: string,
  fields: Buffer,
  maxlen?: number,
): number {
  const end = fields.indexOf(CR);
  let members = 0;
  for (let at = 1; at < end; at += 1) members = members * 10 + fields[at]! - 0x30;
  let at = offset;
  at += target.write(`*${members + (maxlen === undefined ? 3 : 5)}\r\n$4\r\nXADD\r\n$${key.length}\r\n`, at, 'latin1');
  at += key.copy(target, at);
  const trim = maxlen === undefined ? '' : `$6\r\nMAXLEN\r\n$${String(maxlen).length}\r\n${maxlen}\r\n`;
  at += target.write(`\r\n${trim}$${idText.length}\r\n${idText}\r\n`, at, 'latin1');
  return at + fields.copy(target, at, end + 2);
}
