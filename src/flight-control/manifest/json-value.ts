/** What JSON can say. Objects come without inherited properties in mind: ask them with `Object.hasOwn` or `field`. */
export type JsonValue = string | number | boolean | null | readonly JsonValue[] | JsonObject;
export interface JsonObject {
  readonly [key: string]: JsonValue;
}

export function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** The object's own member; labels may be called `constructor`. */
export function field(value: unknown, key: string): JsonValue | undefined {
  return isObject(value) && Object.hasOwn(value, key) ? value[key] : undefined;
}

export function isList(value: unknown): value is readonly JsonValue[] {
  return Array.isArray(value);
}
