/**
 * Plain scalars as YAML 1.1 has them, in the dialect of the library that existing manifests were written for
 * (sigs.k8s.io/yaml): `0644` is 420, `no` is false, `12:30` and `2024-01-01` are text.
 */
const CONSTANTS: ReadonlyMap<string, boolean | null> = new Map<string, boolean | null>([
  ...['', '~', 'null', 'Null', 'NULL'].map((word): [string, null] => [word, null]),
  ...words(['y', 'yes', 'on', 'true']).map((word): [string, boolean] => [word, true]),
  ...words(['n', 'no', 'off', 'false']).map((word): [string, boolean] => [word, false]),
]);
const DECIMAL = /^[-+]?(0|[1-9][0-9]*)$/;
const OCTAL = /^([-+]?)0o?([0-7]+)$/;
const HEXADECIMAL = /^([-+]?)0[xX]([0-9a-fA-F]+)$/;
const BINARY = /^([-+]?)0[bB]([01]+)$/;
const FLOAT = /^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$/;
const NO_NUMBER = /^([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$/;

function words(lower: readonly string[]): string[] {
  return lower.flatMap((word) => [word, word[0]!.toUpperCase() + word.slice(1), word.toUpperCase()]);
}

/** Throws where it is a number that JSON cannot say. */
export function resolvePlain(text: string): string | number | boolean | null {
  const constant = CONSTANTS.get(text);
  if (constant !== undefined) return constant;
  return resolveNumber(text) ?? text;
}

/** `undefined` for what is no number. */
export function resolveNumber(text: string): number | undefined {
  if (NO_NUMBER.test(text)) throw new Error(`${text} is no number that JSON can say; quote it`);
  if (!/^[-+.0-9]/.test(text)) return undefined;
  const digits = /^[-+]?[0-9][0-9a-fA-FxXoObB_]*$/.test(text) ? text.replaceAll('_', '') : text;
  if (DECIMAL.test(digits)) return exact(Number(digits), text);
  const based: [RegExp, number][] = [
    [OCTAL, 8],
    [HEXADECIMAL, 16],
    [BINARY, 2],
  ];
  for (const [pattern, base] of based) {
    const match = pattern.exec(digits);
    if (match !== null) return exact(Number.parseInt(match[2]!, base) * (match[1] === '-' ? -1 : 1), text);
  }
  if (!FLOAT.test(digits)) return undefined;
  const value = Number(digits);
  if (!Number.isFinite(value)) throw new Error(`${text} is no number that JSON can say; quote it`);
  return value;
}

function exact(value: number, text: string): number {
  if (!Number.isSafeInteger(value))
    throw new Error(`${text} is beyond the whole numbers that are kept exactly; quote it`);
  return value === 0 ? 0 : value;
}
