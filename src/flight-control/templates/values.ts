/**
 * Go's values as far as templates can make them. Strings are UTF-8 in Go: what counts bytes says so. There is no object of JavaScript among
 * them whose properties a template could name.
 */

export class GoNumber {
  readonly kind: 'int' | 'uint' | 'float';
  readonly value: bigint | number;

  constructor(kind: 'int' | 'uint', value: bigint);
  constructor(kind: 'float', value: number);
  constructor(kind: 'int' | 'uint' | 'float', value: bigint | number) {
    this.kind = kind;
    this.value = value;
  }
}

/** `.metadata.labels`: a pointer to a map there, which is true even when it is empty. */
export class GoLabels {
  readonly entries: ReadonlyMap<string, string>;

  constructor(entries: ReadonlyMap<string, string>) {
    this.entries = entries;
  }
}

/** `.` and `.metadata`: maps of string to anything. */
export class GoMap {
  readonly entries: ReadonlyMap<string, GoValue>;

  constructor(entries: ReadonlyMap<string, GoValue>) {
    this.entries = entries;
  }
}

/** `null` is nil, `undefined` no value at all. */
export type GoValue = string | boolean | GoNumber | GoLabels | GoMap | null | undefined;

/** As Go names it in its messages. */
export function typeName(value: GoValue): string {
  if (typeof value === 'string') return 'string';
  if (typeof value === 'boolean') return 'bool';
  if (value instanceof GoNumber) return { int: 'int', uint: 'uint8', float: 'float64' }[value.kind];
  if (value instanceof GoLabels) return '*map[string]string';
  if (value instanceof GoMap) return 'map[string]interface {}';
  return '<nil>';
}

/** What `if`, `with`, `and`, `or` and `not` make of it. */
export function isTrue(value: GoValue): boolean {
  if (typeof value === 'string') return value !== '';
  if (typeof value === 'boolean') return value;
  if (value instanceof GoNumber) return value.kind === 'float' ? value.value !== 0 : value.value !== 0n;
  if (value instanceof GoMap) return value.entries.size > 0;
  return value instanceof GoLabels;
}

export function byteLength(text: string): number {
  return Buffer.byteLength(text);
}
