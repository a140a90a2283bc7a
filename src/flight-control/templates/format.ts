/** Go's fmt.Sprint and fmt.Sprintf (https://pkg.go.dev/fmt) for the values that templates have. */
import { GoLabels, GoMap, GoNumber, type GoValue, typeName } from './values.ts';

/** What this engine does not print as Go does is refused, never printed otherwise. */
export class UnsupportedFormat extends Error {}

interface Flags {
  minus: boolean;
  plus: boolean;
  sharp: boolean;
  space: boolean;
  zero: boolean;
  width: number | undefined;
  precision: number | undefined;
}

const PLAIN: Flags = {
  minus: false,
  plus: false,
  sharp: false,
  space: false,
  zero: false,
  width: undefined,
  precision: undefined,
};
const WIDTH_MAX = 1_000_000;

/** By the order of their bytes, as Go prints maps. */
function labelsText({ entries }: GoLabels): string {
  const sorted = [...entries].sort(([a], [b]) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
  return `map[${sorted.map(([key, value]) => `${key}:${value}`).join(' ')}]`;
}

function refuseMap(): never {
  throw new UnsupportedFormat('. and .metadata cannot be printed: name a field of theirs');
}

/** Of `{{ value }}`. */
export function printed(value: GoValue): string {
  if (value === undefined || value === null) return '<no value>';
  if (value instanceof GoLabels) return labelsText(value);
  return sprintOne(value);
}

function sprintOne(value: GoValue): string {
  if (typeof value === 'string') return value;
  if (typeof value === 'boolean') return String(value);
  if (value instanceof GoNumber)
    return value.kind === 'float' ? formatFloat(value.value as number, 'g', undefined, PLAIN) : String(value.value);
  if (value instanceof GoLabels) return `&${labelsText(value)}`;
  if (value instanceof GoMap) return refuseMap();
  return '<nil>';
}

/** `print`: spaces between two operands that are both no strings. */
export function sprint(values: readonly GoValue[]): string {
  let text = '';
  values.forEach((value, index) => {
    const previous = values[index - 1];
    if (index > 0 && typeof value !== 'string' && typeof previous !== 'string') text += ' ';
    text += sprintOne(value);
  });
  return text;
}

/** `println`: spaces between all of them. */
export function sprintln(values: readonly GoValue[]): string {
  return `${values.map(sprintOne).join(' ')}\n`;
}

/** So many digits more tell a tie from what is only near to one. */
const TIE_DIGITS = 30;
const PRECISION_MAX = 60;

/**
 * `digits` rounded to the first `kept`, a tie to the even one, as Go does; JavaScript rounds ties up. May have one digit more.
 */
function roundDigits(digits: string, kept: number): string {
  const head = digits.slice(0, kept) || '0';
  const tail = digits.slice(kept);
  const up = /^5(?=0*$)/.test(tail) ? Number(head.at(-1)) % 2 === 1 : /^[5-9]/.test(tail);
  return up ? String(BigInt(head) + 1n).padStart(head.length, '0') : head;
}

function fixed(value: number, precision: number): string {
  const [whole, fraction = ''] = value.toFixed(precision + TIE_DIGITS).split('.');
  const digits = roundDigits(whole! + fraction, whole!.length + precision);
  const point = digits.length - precision;
  return precision === 0 ? digits : `${digits.slice(0, point)}.${digits.slice(point)}`;
}

/** The digits and the exponent of a finite number, shortest or to `precision` digits behind the first. */
function exponential(value: number, precision: number | undefined): { digits: string; exponent: number } {
  const text = precision === undefined ? value.toExponential() : value.toExponential(precision + TIE_DIGITS);
  const [mantissa, exponent] = text.split('e');
  const digits = mantissa!.replace('.', '');
  if (precision === undefined) return { digits, exponent: Number(exponent) };
  const rounded = roundDigits(digits, precision + 1);
  const carried = rounded.length > precision + 1;
  return { digits: carried ? rounded.slice(0, -1) : rounded, exponent: Number(exponent) + (carried ? 1 : 0) };
}

function exponentText(exponent: number): string {
  return `${exponent < 0 ? '-' : '+'}${String(Math.abs(exponent)).padStart(2, '0')}`;
}

function formatFloat(value: number, verb: 'e' | 'f' | 'g', precision: number | undefined, flags: Flags): string {
  if (flags.sharp) throw new UnsupportedFormat(`the flag # of %${verb} is not supported`);
  if (precision !== undefined && precision > PRECISION_MAX) {
    throw new UnsupportedFormat(`a precision above ${PRECISION_MAX} is not supported`);
  }
  const negative = value < 0 || Object.is(value, -0);
  const magnitude = Math.abs(value);
  const sign = negative ? '-' : flags.plus ? '+' : flags.space ? ' ' : '';
  return sign + unsignedFloat(magnitude, verb, precision);
}

function unsignedFloat(value: number, verb: 'e' | 'f' | 'g', precision: number | undefined): string {
  if (verb === 'f') {
    if (value >= 1e21) throw new UnsupportedFormat('%f of so great a number is not supported');
    return fixed(value, precision ?? 6);
  }
  if (verb === 'e') {
    const { digits, exponent } = exponential(value, precision ?? 6);
    return `${withPoint(digits, 1)}e${exponentText(exponent)}`;
  }
  const shortest = precision === undefined;
  const wanted = precision === 0 ? 1 : precision;
  const { digits: all, exponent } = exponential(value, wanted === undefined ? undefined : wanted - 1);
  const digits = all.replace(/0+$/, '') || '0';
  let limit = wanted ?? 6;
  if (!shortest && limit > digits.length && digits.length >= exponent + 1) limit = digits.length;
  if (shortest) limit = 6;
  if (exponent < -4 || exponent >= limit) return `${withPoint(digits, 1)}e${exponentText(exponent)}`;
  if (exponent < 0) return `0.${'0'.repeat(-exponent - 1)}${digits}`;
  return withPoint(digits.padEnd(exponent + 1, '0'), exponent + 1);
}

function withPoint(digits: string, whole: number): string {
  return digits.length > whole ? `${digits.slice(0, whole)}.${digits.slice(whole)}` : digits;
}

function pad(text: string, { width, minus, zero }: Flags, numeric = false): string {
  if (width === undefined) return text;
  const missing = width - [...text].length;
  if (missing <= 0) return text;
  if (minus) return text + ' '.repeat(missing);
  if (!zero) return ' '.repeat(missing) + text;
  // Versions of Go differ in it.
  if (!numeric) throw new UnsupportedFormat('zeros before what is no number are not supported');
  const sign = /^[+\- ]/.exec(text)?.[0] ?? '';
  return sign + '0'.repeat(missing) + text.slice(sign.length);
}

const BASES: Readonly<Record<string, readonly [radix: number, prefix: string]>> = {
  d: [10, ''],
  v: [10, ''],
  b: [2, '0b'],
  o: [8, '0'],
  O: [8, ''],
  x: [16, '0x'],
  X: [16, '0X'],
};

function formatInteger(value: bigint, verb: string, flags: Flags): string | undefined {
  if (verb === 'c') return pad(character(value), flags);
  if (verb === 'q') return pad(quotedCharacter(value), flags);
  if (verb === 'U') {
    if (flags.sharp || value < 0n) throw new UnsupportedFormat('%#U is not supported');
    return pad(`U+${value.toString(16).toUpperCase().padStart(4, '0')}`, { ...flags, zero: false });
  }
  const base = Object.hasOwn(BASES, verb) ? BASES[verb] : undefined;
  if (base === undefined) return undefined;
  const magnitude = value < 0n ? -value : value;
  let digits = magnitude.toString(base[0]);
  if (verb === 'X') digits = digits.toUpperCase();
  const sign = value < 0n ? '-' : flags.plus ? '+' : flags.space ? ' ' : '';
  const prefix = verb === 'O' ? '0o' : flags.sharp ? (verb === 'o' && digits.startsWith('0') ? '' : base[1]) : '';
  if (flags.precision !== undefined) {
    if (flags.precision === 0 && value === 0n) return pad('', { ...flags, zero: false });
    return pad(sign + prefix + digits.padStart(flags.precision, '0'), { ...flags, zero: false });
  }
  if (flags.zero && !flags.minus && flags.width !== undefined) {
    const room = flags.width - (sign === '' ? 0 : 1);
    return sign + prefix + digits.padStart(room, '0');
  }
  return pad(sign + prefix + digits, { ...flags, zero: false });
}

function character(value: bigint): string {
  const valid = value >= 0n && value <= 0x10ffffn && !(value >= 0xd800n && value < 0xe000n);
  return String.fromCodePoint(valid ? Number(value) : 0xfffd);
}

function quotedCharacter(value: bigint): string {
  const text = character(value);
  if (text === "'" || text === '\\') return `'\\${text}'`;
  return `'${escaped(text)}'`;
}

const NAMED_ESCAPES: Readonly<Record<string, string>> = {
  '\u0007': '\\a',
  '\b': '\\b',
  '\f': '\\f',
  '\n': '\\n',
  '\r': '\\r',
  '\t': '\\t',
  '\v': '\\v',
};

/** Of one character; `"`, `'` and `\` are the caller's. */
function escaped(text: string): string {
  const named = NAMED_ESCAPES[text];
  if (named !== undefined) return named;
  const code = text.codePointAt(0)!;
  if (text === ' ' || /[\p{L}\p{M}\p{N}\p{P}\p{S}]/u.test(text)) return text;
  if (code < 0x80) return `\\x${code.toString(16).padStart(2, '0')}`;
  if (code < 0x10000) return `\\u${code.toString(16).padStart(4, '0')}`;
  return `\\U${code.toString(16).padStart(8, '0')}`;
}

function quotedString(text: string, flags: Flags): string {
  if (flags.sharp || flags.plus) throw new UnsupportedFormat('%#q and %+q are not supported');
  return `"${[...text].map((one) => (one === '"' || one === '\\' ? `\\${one}` : escaped(one))).join('')}"`;
}

function formatString(text: string, verb: string, flags: Flags): string | undefined {
  const cut = flags.precision === undefined ? text : [...text].slice(0, flags.precision).join('');
  switch (verb) {
    case 'v':
      if (flags.sharp) return pad(quotedString(text, { ...flags, sharp: false, plus: false }), flags);
      return pad(cut, flags);
    case 's':
      return pad(cut, flags);
    case 'q':
      return pad(quotedString(cut, flags), flags);
    case 'x':
    case 'X': {
      if (flags.space || flags.sharp) throw new UnsupportedFormat(`the flags "# " of %${verb} are not supported`);
      const bytes = Buffer.from(text);
      const hex = bytes.subarray(0, flags.precision).toString('hex');
      return pad(verb === 'X' ? hex.toUpperCase() : hex, flags);
    }
    default:
      return undefined;
  }
}

function formatValue(value: GoValue, verb: string, flags: Flags): string {
  if (verb === 'T' || verb === 'p' || verb === 'w') {
    if (verb === 'T' && !(value instanceof GoMap)) return pad(value === undefined ? '<nil>' : typeName(value), flags);
    throw new UnsupportedFormat(`%${verb} is not supported`);
  }
  if (value instanceof GoMap) return refuseMap();
  if (value === null || value === undefined) return verb === 'v' ? pad('<nil>', flags) : `%!${verb}(<nil>)`;
  if (value instanceof GoLabels) {
    if (verb !== 'v' && verb !== 's') throw new UnsupportedFormat(`%${verb} of labels is not supported`);
    if (flags.width !== undefined || flags.sharp || flags.plus)
      throw new UnsupportedFormat('flags for labels are not supported');
    return `&${labelsText(value)}`;
  }
  return scalar(value, verb, flags) ?? badVerb(value, verb, flags);
}

function scalar(value: string | boolean | GoNumber, verb: string, flags: Flags): string | undefined {
  if (typeof value === 'string') return formatString(value, verb, flags);
  if (typeof value === 'boolean') return verb === 't' || verb === 'v' ? pad(String(value), flags) : undefined;
  if (value.kind !== 'float') {
    if (verb === 'v' && flags.sharp && value.kind === 'uint')
      throw new UnsupportedFormat('%#v of a byte is not supported');
    return formatInteger(value.value as bigint, verb, verb === 'v' ? { ...flags, sharp: false } : flags);
  }
  const number = value.value as number;
  const lower = verb.toLowerCase();
  if (lower === 'e' || lower === 'f' || lower === 'g') {
    const text = formatFloat(number, lower, flags.precision, flags);
    return pad(lower === verb || lower === 'f' ? text : text.toUpperCase(), flags, true);
  }
  if (verb === 'v') return pad(formatFloat(number, 'g', flags.precision, flags), flags, true);
  if (verb === 'b' || verb === 'x' || verb === 'X') throw new UnsupportedFormat(`%${verb} of a float is not supported`);
  return undefined;
}

function badVerb(value: string | boolean | GoNumber, verb: string, flags: Flags): string {
  return `%!${verb}(${typeName(value)}=${scalar(value, 'v', { ...flags, width: undefined, precision: undefined }) ?? ''})`;
}

/** `printf`. Throws `UnsupportedFormat`. */
export function sprintf(format: string, values: readonly GoValue[]): string {
  let text = '';
  let at = 0;
  let argument = 0;
  const integer = (): number | undefined => {
    const value = values[argument];
    argument += 1;
    return value instanceof GoNumber && value.kind !== 'float' ? Number(value.value) : undefined;
  };
  const digits = (): number | undefined => {
    const [found] = /^[0-9]*/.exec(format.slice(at))!;
    at += found.length;
    return found === '' ? undefined : Number(found);
  };
  while (at < format.length) {
    const percent = format.indexOf('%', at);
    if (percent < 0) return finish(text + format.slice(at));
    text += format.slice(at, percent);
    at = percent + 1;
    const flags: Flags = { ...PLAIN };
    for (; '-+# 0'.includes(format[at] ?? 'x'); at += 1) {
      if (format[at] === '-') flags.minus = true;
      if (format[at] === '+') flags.plus = true;
      if (format[at] === '#') flags.sharp = true;
      if (format[at] === ' ') flags.space = true;
      if (format[at] === '0') flags.zero = true;
    }
    if (flags.minus) flags.zero = false;
    if (format[at] === '*') {
      at += 1;
      flags.width = integer();
      if (flags.width === undefined) text += '%!(BADWIDTH)';
      else if (flags.width < 0) {
        flags.minus = true;
        flags.zero = false;
        flags.width = -flags.width;
      }
    } else flags.width = digits();
    if (format[at] === '.') {
      at += 1;
      if (format[at] === '*') {
        at += 1;
        flags.precision = integer();
        if (flags.precision === undefined || flags.precision < 0)
          throw new UnsupportedFormat('a bad precision is not supported');
      } else flags.precision = digits() ?? 0;
    }
    if (format[at] === '[') throw new UnsupportedFormat('explicit argument indexes, %[1]…, are not supported');
    if ((flags.width ?? 0) > WIDTH_MAX || (flags.precision ?? 0) > WIDTH_MAX) {
      throw new UnsupportedFormat(`a width or precision above ${WIDTH_MAX} is not supported`);
    }
    const verb = format.codePointAt(at);
    if (verb === undefined) return finish(`${text}%!(NOVERB)`);
    const name = String.fromCodePoint(verb);
    at += name.length;
    if (name === '%') text += '%';
    else if (argument >= values.length) text += `%!${name}(MISSING)`;
    else text += formatValue(values[argument++], name, flags);
  }
  return finish(text);

  function finish(done: string): string {
    if (argument >= values.length) return done;
    const extra = values.slice(argument).map((value) => {
      if (value === null || value === undefined) return '<nil>';
      return `${typeName(value)}=${sprintOne(value)}`;
    });
    return `${done}%!(EXTRA ${extra.join(', ')})`;
  }
}
