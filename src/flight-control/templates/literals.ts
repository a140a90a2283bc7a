/** Go's literals (https://go.dev/ref/spec#Lexical_elements) as values. */
import { TemplateFault } from './problem.ts';
import { GoNumber } from './values.ts';

const ESCAPES: Readonly<Record<string, number>> = {
  a: 7,
  b: 8,
  f: 12,
  n: 10,
  r: 13,
  t: 9,
  v: 11,
  '\\': 92,
};
const MAX_INT = 2n ** 63n - 1n;
const MIN_INT = -(2n ** 63n);
const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** Of one character of a literal, escaped or not: its code, whether it stands for a byte, and where it ends. */
function unquoteOne(
  text: string,
  at: number,
  quote: string,
): { code: number; isByte: boolean; end: number } | undefined {
  const code = text.codePointAt(at)!;
  if (code !== 92) return { code, isByte: false, end: at + (code > 0xffff ? 2 : 1) };
  const letter = text[at + 1] ?? '';
  if (letter === quote) return { code: quote.charCodeAt(0), isByte: false, end: at + 2 };
  const simple = Object.hasOwn(ESCAPES, letter) ? ESCAPES[letter] : undefined;
  if (simple !== undefined) return { code: simple, isByte: false, end: at + 2 };
  const digits =
    /^x[0-9a-fA-F]{2}|^u[0-9a-fA-F]{4}|^U[0-9a-fA-F]{8}|^[0-7]{3}/.exec(text.slice(at + 1, at + 10))?.[0] ?? '';
  if (digits === '') return undefined;
  const octal = /^[0-7]/.test(digits);
  const value = octal ? Number.parseInt(digits, 8) : Number.parseInt(digits.slice(1), 16);
  const isByte = octal || digits[0] === 'x';
  if (isByte ? value > 255 : value > 0x10ffff || (value >= 0xd800 && value < 0xe000)) return undefined;
  return { code: value, isByte, end: at + 1 + digits.length };
}

/** Of a `"…"` with its quotes. */
export function unquoteString(text: string, position: number): string {
  const parts: Buffer[] = [];
  const body = text.slice(1, -1);
  for (let at = 0; at < body.length; ) {
    const one = unquoteOne(body, at, '"');
    if (one === undefined) throw new TemplateFault('syntax', position + 1 + at, 'invalid escape in a string');
    parts.push(one.isByte ? Buffer.from([one.code]) : Buffer.from(String.fromCodePoint(one.code)));
    at = one.end;
  }
  try {
    return utf8.decode(Buffer.concat(parts));
  } catch {
    throw new TemplateFault('syntax', position, 'strings that are not UTF-8 are not supported');
  }
}

/** Of a raw string with its quotes. */
export function unquoteRawString(text: string): string {
  return text.slice(1, -1).replaceAll('\r', '');
}

/** Of a `'c'` with its quotes. */
export function unquoteCharacter(text: string, position: number): GoNumber {
  const body = text.slice(1, -1);
  const one = body === '' || body === "'" ? undefined : unquoteOne(body, 0, "'");
  if (one === undefined || one.end !== body.length) {
    throw new TemplateFault('syntax', position, `malformed character constant: ${text}`);
  }
  return new GoNumber('int', BigInt(one.code));
}

function underscoresFit(text: string): boolean {
  if (!text.includes('_')) return true;
  // Only between digits, or between the base's prefix and a digit, and only where the base is written or octal.
  return /^[+-]?0[xXbBoO_]/.test(text) && !/__|_$|_\.|\._|_[pPeE]|[pPeE]_/.test(text);
}

/** Throws `syntax`, and for complex ones says that they are not supported. */
export function parseNumber(text: string, position: number): GoNumber {
  const fail = (why: string): never => {
    throw new TemplateFault('syntax', position, `${why}: ${text}`);
  };
  if (text.endsWith('i') && !/^[+-]?0[xX]/.test(text)) return fail('complex constants are not supported');
  if (!underscoresFit(text)) return fail('illegal number syntax');
  const plain = text.replaceAll('_', '');
  const whole = /^([+-]?)(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]*|[1-9][0-9]*)$/.exec(plain);
  if (whole !== null) {
    const digits = whole[2]!.replace(/^0o?(?=[0-7])/i, '0o');
    const value = (whole[1] === '-' ? -1n : 1n) * BigInt(digits);
    if (value > MAX_INT || value < MIN_INT) return fail('integer overflows int');
    return new GoNumber('int', value);
  }
  if (/^[+-]?0[xX]/.test(plain)) return fail('hexadecimal floating-point constants are not supported');
  if (!/^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$/.test(plain)) return fail('illegal number syntax');
  const value = Number(plain);
  if (!Number.isFinite(value)) return fail('illegal number syntax');
  // Digits alone, with an 8 or a 9 behind a leading zero: Go reads them as a float that is whole.
  if (/^[+-]?[0-9]+$/.test(plain)) return new GoNumber('int', BigInt(Math.trunc(value)));
  return new GoNumber('float', value);
}
