/** What an event says of a change: which parts of a resource are another thing now. */
import { isDeepStrictEqual } from 'node:util';
import { field, isList, isObject, type JsonValue } from '../manifest/json-value.ts';

/** The parts of a resource that events speak of. */
export interface Comparable {
  readonly labels?: JsonValue | undefined;
  readonly owner?: string | null | undefined;
  readonly spec?: JsonValue | undefined;
}

export interface Change {
  readonly reason: 'ResourceCreated' | 'ResourceUpdated';
  readonly updatedFields?: readonly string[];
  readonly previousOwner?: string;
  readonly newOwner?: string;
}

/** Nothing where nothing of meaning changed. */
export function changeOf(kind: string, before: Comparable | null, after: Comparable): Change | null {
  if (before === null) return { reason: 'ResourceCreated' };
  const updatedFields: string[] = [];
  if ((before.owner ?? null) !== (after.owner ?? null)) updatedFields.push('owner');
  if (!sameMeaning(before.labels, after.labels)) updatedFields.push('labels');
  updatedFields.push(...specFields(kind, before.spec, after.spec));
  if (updatedFields.length === 0) return null;
  return {
    reason: 'ResourceUpdated',
    updatedFields,
    ...(updatedFields.includes('owner') && before.owner ? { previousOwner: before.owner } : {}),
    ...(updatedFields.includes('owner') && after.owner ? { newOwner: after.owner } : {}),
  };
}

function specFields(kind: string, before: JsonValue | undefined, after: JsonValue | undefined): string[] {
  if (sameMeaning(before, after)) return [];
  if (kind !== 'Fleet') return ['spec'];
  const parts = ['selector', 'template'].filter((part) => !sameMeaning(field(before, part), field(after, part)));
  return parts.length === 0 ? ['spec'] : parts.map((part) => `spec.${part}`);
}

/** The order of keys means nothing, and an empty list, an empty map, null and nothing at all are the same. */
export function sameMeaning(a: JsonValue | undefined, b: JsonValue | undefined): boolean {
  return isDeepStrictEqual(essence(a), essence(b));
}

function essence(value: JsonValue | undefined): JsonValue | undefined {
  if (value === null || value === undefined) return undefined;
  if (isList(value)) return value.length === 0 ? undefined : value.map((item) => essence(item) ?? null);
  if (!isObject(value)) return value;
  const members = Object.entries(value).flatMap(([key, member]): [string, JsonValue][] => {
    const kept = essence(member);
    return kept === undefined ? [] : [[key, kept]];
  });
  return members.length === 0 ? undefined : Object.fromEntries(members);
}
