/** Which settings differ between two configurations, by their dotted names; lists and users are named as a whole. */
import { isDeepStrictEqual } from 'node:util';
import type { Config } from './config.ts';
import { Secret } from './secret.ts';

/** Secrets hide what they hold from every comparison, so it is done on what they reveal. */
function revealed(value: unknown): unknown {
  if (value instanceof Secret) return value.reveal();
  if (value instanceof Map) return new Map([...value].map(([key, member]) => [key, revealed(member)]));
  if (Array.isArray(value)) return value.map(revealed);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, member]) => [key, revealed(member)]));
}

function isGroup(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof Map);
}

export function changedSettings(before: Config, after: Config): string[] {
  const changed: string[] = [];
  const compare = (name: string, one: unknown, other: unknown): void => {
    if (isDeepStrictEqual(one, other)) return;
    if (!isGroup(one) || !isGroup(other)) {
      changed.push(name);
      return;
    }
    for (const key of new Set([...Object.keys(one), ...Object.keys(other)])) {
      compare(name === '' ? key : `${name}.${key}`, one[key], other[key]);
    }
  };
  compare('', revealed(before), revealed(after));
  return changed;
}
