/** Selectors over labels: of fleets by equality alone, of rollout batches and of `get -l` with expressions too. */
import { field, isList, isObject, type JsonObject, type JsonValue } from '../manifest/json-value.ts';

export type Labels = Readonly<Record<string, string>>;

function label(labels: Labels | null | undefined, key: string): string | undefined {
  return labels !== null && labels !== undefined && Object.hasOwn(labels, key) ? labels[key] : undefined;
}

/** Every pair is there, byte for byte. An empty selector matches nothing. */
export function matchesLabels(matchLabels: JsonValue | undefined, labels: Labels | null | undefined): boolean {
  if (!isObject(matchLabels)) return false;
  const pairs = Object.entries(matchLabels);
  return pairs.length > 0 && pairs.every(([key, value]) => label(labels, key) === value);
}

/** Whether a selector with labels and expressions holds. One that asks nothing selects all. */
export function selects(selector: JsonValue | undefined, labels: Labels | null | undefined): boolean {
  const wanted = field(selector, 'matchLabels');
  const pairs = Object.entries(isObject(wanted) ? wanted : {});
  if (!pairs.every(([key, value]) => label(labels, key) === value)) return false;
  const expressions = field(selector, 'matchExpressions');
  return (isList(expressions) ? expressions : []).every((expression) => holds(expression as JsonObject, labels));
}

/** A missing label is in no list. */
function holds(expression: JsonObject, labels: Labels | null | undefined): boolean {
  const value = label(labels, String(field(expression, 'key')));
  const listed = field(expression, 'values');
  const values: readonly JsonValue[] = isList(listed) ? listed : [];
  switch (field(expression, 'operator')) {
    case 'In':
      return value !== undefined && values.includes(value);
    case 'NotIn':
      return value === undefined || !values.includes(value);
    case 'Exists':
      return value !== undefined;
    case 'DoesNotExist':
      return value === undefined;
    default:
      return false;
  }
}
