/**
 * Splits an inline request into its arguments, with the quoting rules of `sdssplitargs`: double quotes take `\n \r \t
 * \b \a \xHH` and `\<any>`, single quotes take `\'`; a closing quote must be followed by white space or the end.
 */
const SINGLE_QUOTE = 39;
const DOUBLE_QUOTE = 34;
const BACKSLASH = 92;
const ESCAPES: ReadonlyMap<number, number> = new Map([
  [110, 10], // \n
  [114, 13], // \r
  [116, 9], // \t
  [98, 8], // \b
  [97, 7], // \a
]);

function isSpace(byte: number): boolean {
  return byte === 32 || (byte >= 9 && byte <= 13);
}

/** Not every kind of space: a vertical tab or a form feed is a part of the word that it stands in. */
function endsWord(byte: number): boolean {
  return byte === 32 || byte === 9 || byte === 10 || byte === 13;
}

function hexValue(byte: number | undefined): number {
  if (byte === undefined) return -1;
  if (byte >= 48 && byte <= 57) return byte - 48;
  const folded = byte | 0x20;
  return folded >= 97 && folded <= 102 ? folded - 87 : -1;
}

/** Gives the arguments as new buffers, or `undefined` for unbalanced quotes. A NUL byte ends the line, as in C. */
export function splitInline(line: Buffer): Buffer[] | undefined {
  const nulAt = line.indexOf(0);
  const end = nulAt < 0 ? line.length : nulAt;
  const args: Buffer[] = [];
  let at = 0;
  for (;;) {
    while (at < end && isSpace(line[at]!)) at += 1;
    if (at >= end) return args;
    const bytes: number[] = [];
    let quote = 0;
    for (;;) {
      if (at >= end) {
        if (quote !== 0) return undefined;
        break;
      }
      const byte = line[at]!;
      if (quote === 0) {
        if (endsWord(byte)) break;
        if (byte === DOUBLE_QUOTE || byte === SINGLE_QUOTE) quote = byte;
        else bytes.push(byte);
        at += 1;
      } else if (byte === quote) {
        if (at + 1 < end && !isSpace(line[at + 1]!)) return undefined;
        at += 1;
        break;
      } else if (quote === DOUBLE_QUOTE && byte === BACKSLASH && at + 1 < end) {
        const high = hexValue(line[at + 2]);
        const low = hexValue(line[at + 3]);
        if (line[at + 1] === 120 && at + 3 < end && high >= 0 && low >= 0) {
          bytes.push(high * 16 + low);
          at += 4;
        } else {
          const escaped = line[at + 1]!;
          bytes.push(ESCAPES.get(escaped) ?? escaped);
          at += 2;
        }
      } else if (quote === SINGLE_QUOTE && byte === BACKSLASH && at + 1 < end && line[at + 1] === SINGLE_QUOTE) {
        bytes.push(SINGLE_QUOTE);
        at += 2;
      } else {
        bytes.push(byte);
        at += 1;
      }
    }
    args.push(Buffer.from(bytes));
  }
}
