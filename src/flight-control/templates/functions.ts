/**
 * The functions that templates may call: Go's builtins (https://pkg.go.dev/text/template#hdr-Functions) and upper, lower, replace and
 * getOrDefault. Each gets values that were checked against its parameters.
 */
import { sprint, sprintf, sprintln } from './format.ts';
import { byteLength, GoLabels, GoMap, GoNumber, type GoValue, isTrue, typeName } from './values.ts';

/** `any` takes everything, `string` strings only, `labels` the labels or nil. */
export type Parameter = 'any' | 'string' | 'labels';

export interface TemplateFunction {
  readonly parameters: readonly Parameter[];
  /** All further arguments. */
  readonly rest?: Parameter;
  call(...args: GoValue[]): GoValue;
}

/** An error that Go's function would return; `compare` and `argCount` are told apart from others. */
export class FunctionFault extends Error {
  readonly reason: 'functionError' | 'compare' | 'argCount';

  constructor(reason: 'functionError' | 'compare' | 'argCount', message: string) {
    super(message);
    this.reason = reason;
  }
}

function fail(message: string): never {
  throw new FunctionFault('functionError', message);
}

/** Of one character each, without the mappings to several characters, as Go's unicode package has them. */
const SIMPLE_UPPER: ReadonlyMap<string, string> = new Map([
  ...[0x1f80, 0x1f90, 0x1fa0].flatMap((first) =>
    Array.from({ length: 8 }, (_, index): [string, string] => [
      String.fromCodePoint(first + index),
      String.fromCodePoint(first + index + 8),
    ]),
  ),
  ['\u1fb3', '\u1fbc'],
  ['\u1fc3', '\u1fcc'],
  ['\u1ff3', '\u1ffc'],
]);

function mapCharacters(text: string, map: (character: string) => string): string {
  let mapped = '';
  for (const character of text) mapped += map(character);
  return mapped;
}

function upperOne(character: string): string {
  const simple = SIMPLE_UPPER.get(character);
  if (simple !== undefined) return simple;
  const upper = character.toUpperCase();
  return [...upper].length === 1 ? upper : character;
}

function lowerOne(character: string): string {
  if (character === '\u0130') return 'i';
  const lower = character.toLowerCase();
  return [...lower].length === 1 ? lower : character;
}

function textOf(value: GoValue): string {
  return typeof value === 'string' ? value : '';
}

/** The greatest result of one function, in bytes. */
export const TEXT_BYTES_MAX = 1024 * 1024;

function replace(from: string, to: string, input: string): string {
  const pieces = from === '' ? [...input].length + 1 : input.split(from).length - 1;
  const bytes = byteLength(input) + pieces * (byteLength(to) - byteLength(from));
  // Before it is made: a few of these in a row would fill the memory.
  if (bytes > TEXT_BYTES_MAX) throw new RangeError('replace');
  if (from === '') return [...input].reduce((text, character) => text + character + to, to);
  return input.split(from).join(to);
}

type Kind = 'bool' | 'number' | 'string' | 'other';

function kindOf(value: GoValue): Kind | 'float' | 'int' | 'uint' {
  if (typeof value === 'string') return 'string';
  if (typeof value === 'boolean') return 'bool';
  return value instanceof GoNumber ? value.kind : 'other';
}

function isInteger(kind: string): boolean {
  return kind === 'int' || kind === 'uint';
}

function equal(first: GoValue, second: GoValue): boolean {
  const [a, b] = [kindOf(first), kindOf(second)];
  if (a !== b && !(isInteger(a) && isInteger(b))) {
    if (first === null || first === undefined || second === null || second === undefined) return false;
    throw new FunctionFault('compare', `incompatible types for comparison: ${typeName(first)} and ${typeName(second)}`);
  }
  if (first instanceof GoNumber) return first.value === (second as GoNumber).value;
  if (first instanceof GoMap && second instanceof GoMap) {
    throw new FunctionFault('compare', `non-comparable type ${typeName(first)}`);
  }
  if (a === 'other' && first instanceof GoLabels !== second instanceof GoLabels) {
    if (first !== null && first !== undefined && second !== null && second !== undefined) {
      throw new FunctionFault(
        'compare',
        `incompatible types for comparison: ${typeName(first)} and ${typeName(second)}`,
      );
    }
    return false;
  }
  return (first ?? null) === (second ?? null);
}

function less(first: GoValue, second: GoValue): boolean {
  const [a, b] = [kindOf(first), kindOf(second)];
  for (const value of [first, second]) {
    if (kindOf(value) === 'other')
      throw new FunctionFault('compare', `invalid type for comparison: ${typeName(value)}`);
  }
  if (a !== b && !(isInteger(a) && isInteger(b))) {
    throw new FunctionFault('compare', `incompatible types for comparison: ${typeName(first)} and ${typeName(second)}`);
  }
  if (typeof first === 'boolean') throw new FunctionFault('compare', 'invalid type for comparison: bool');
  if (first instanceof GoNumber) return first.value < (second as GoNumber).value;
  return Buffer.compare(Buffer.from(first as string), Buffer.from(second as string)) < 0;
}

function indexNumber(value: GoValue, length: number, upTo: number): number {
  if (value === null || value === undefined) return fail('cannot index slice/array with nil');
  if (!(value instanceof GoNumber) || value.kind === 'float') {
    return fail(`cannot index slice/array with type ${typeName(value)}`);
  }
  const at = value.value as bigint;
  if (at < 0n || at > BigInt(upTo)) return fail(`index out of range: ${at} of ${length}`);
  return Number(at);
}

function indexOne(item: GoValue, key: GoValue): GoValue {
  if (typeof item === 'string') {
    const bytes = Buffer.from(item);
    return new GoNumber('uint', BigInt(bytes[indexNumber(key, bytes.length, bytes.length - 1)]!));
  }
  if (item instanceof GoLabels || item instanceof GoMap) {
    if (typeof key !== 'string') return fail(`value has type ${typeName(key)}; should be string`);
    return item.entries.get(key) ?? (item instanceof GoLabels ? '' : undefined);
  }
  if (item === null || item === undefined) return fail('index of untyped nil');
  return fail(`can't index item of type ${typeName(item)}`);
}

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

function slice(item: GoValue, ...indexes: GoValue[]): GoValue {
  if (item === null || item === undefined) return fail('slice of untyped nil');
  if (typeof item !== 'string') return fail(`can't slice item of type ${typeName(item)}`);
  if (indexes.length > 2) return fail('cannot 3-index slice a string');
  const bytes = Buffer.from(item);
  const [from = 0, to = bytes.length] = indexes.map((index) => indexNumber(index, bytes.length, bytes.length));
  if (from > to) return fail(`invalid slice index: ${from} > ${to}`);
  try {
    return utf8.decode(bytes.subarray(from, to));
  } catch {
    return fail('a slice that cuts a character is not supported');
  }
}

function lengthOf(item: GoValue): GoValue {
  if (typeof item === 'string') return new GoNumber('int', BigInt(byteLength(item)));
  if (item instanceof GoLabels || item instanceof GoMap) return new GoNumber('int', BigInt(item.entries.size));
  if (item === null || item === undefined) return fail('len of nil pointer');
  return fail(`len of type ${typeName(item)}`);
}

/** What html, js and urlquery escape. */
function escapable(values: readonly GoValue[]): string {
  if (values.length === 1 && typeof values[0] === 'string') return values[0];
  if (values.some((value) => value instanceof GoLabels)) return fail('labels cannot be escaped: name one of them');
  return sprint(values);
}

const HTML: Readonly<Record<string, string>> = {
  '"': '&#34;',
  "'": '&#39;',
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '\0': '\ufffd',
};

function jsEscape(text: string): string {
  return mapCharacters(text, (character) => {
    if (character === '\\' || character === "'" || character === '"') return `\\${character}`;
    const code = character.codePointAt(0)!;
    const isPlain =
      code < 0x80
        ? code >= 0x20 && code !== 0x7f && !'<>&='.includes(character)
        : /[\p{L}\p{M}\p{N}\p{P}\p{S}]/u.test(character);
    return isPlain || code === 0x7f ? character : `\\u${code.toString(16).toUpperCase().padStart(4, '0')}`;
  });
}

function queryEscape(text: string): string {
  return mapCharacters(text, (character) => {
    if (/[A-Za-z0-9\-_.~]/.test(character)) return character;
    if (character === ' ') return '+';
    return [...Buffer.from(character)].map((byte) => `%${byte.toString(16).toUpperCase().padStart(2, '0')}`).join('');
  });
}

/** `and` and `or` are the evaluator's: they do not evaluate all their arguments. */
export const FUNCTIONS: ReadonlyMap<string, TemplateFunction> = new Map<string, TemplateFunction>([
  ['upper', { parameters: ['any'], call: (value) => mapCharacters(textOf(value), upperOne) }],
  ['lower', { parameters: ['any'], call: (value) => mapCharacters(textOf(value), lowerOne) }],
  [
    'replace',
    {
      parameters: ['string', 'string', 'any'],
      call: (from, to, input) => replace(textOf(from), textOf(to), textOf(input)),
    },
  ],
  [
    'getOrDefault',
    {
      parameters: ['labels', 'string', 'string'],
      call: (labels, key, byDefault) => (labels as GoLabels | null)?.entries.get(textOf(key)) ?? byDefault,
    },
  ],
  ['and', { parameters: ['any'], rest: 'any', call: () => undefined }],
  ['or', { parameters: ['any'], rest: 'any', call: () => undefined }],
  ['not', { parameters: ['any'], call: (value) => !isTrue(value) }],
  [
    'eq',
    {
      parameters: ['any'],
      rest: 'any',
      call(first, ...others) {
        if (others.length === 0) throw new FunctionFault('argCount', 'missing argument for comparison');
        return others.some((other) => equal(first, other));
      },
    },
  ],
  ['ne', { parameters: ['any', 'any'], call: (first, second) => !equal(first, second) }],
  ['lt', { parameters: ['any', 'any'], call: less }],
  ['le', { parameters: ['any', 'any'], call: (first, second) => less(first, second) || equal(first, second) }],
  ['gt', { parameters: ['any', 'any'], call: (first, second) => !(less(first, second) || equal(first, second)) }],
  ['ge', { parameters: ['any', 'any'], call: (first, second) => !less(first, second) }],
  ['len', { parameters: ['any'], call: lengthOf }],
  ['index', { parameters: ['any'], rest: 'any', call: (item, ...keys) => keys.reduce(indexOne, item) }],
  ['slice', { parameters: ['any'], rest: 'any', call: slice }],
  ['print', { parameters: [], rest: 'any', call: (...values) => sprint(values) }],
  ['println', { parameters: [], rest: 'any', call: (...values) => sprintln(values) }],
  ['printf', { parameters: ['string'], rest: 'any', call: (format, ...values) => sprintf(textOf(format), values) }],
  [
    'html',
    { parameters: [], rest: 'any', call: (...values) => mapCharacters(escapable(values), (one) => HTML[one] ?? one) },
  ],
  ['js', { parameters: [], rest: 'any', call: (...values) => jsEscape(escapable(values)) }],
  ['urlquery', { parameters: [], rest: 'any', call: (...values) => queryEscape(escapable(values)) }],
  ['call', { parameters: ['any'], rest: 'any', call: (value) => fail(`non-function of type ${typeName(value)}`) }],
]);
