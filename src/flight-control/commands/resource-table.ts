/** One line for each resource, and the columns of its kind. */
import { field, isList, isObject, type JsonValue } from '../manifest/json-value.ts';
import type { Resource } from '../resources/resource.ts';
import { maskSecrets } from '../resources/secrets.ts';

const NAME_WIDTH = 32;
const WIDTH = 16;

type Column = readonly [title: string, value: (resource: Resource) => JsonValue | undefined];

const COLUMNS: Readonly<Record<string, readonly Column[]>> = {
  Device: [
    ['OWNER', ({ owner }) => owner],
    ['SUMMARY', ({ status }) => field(field(status, 'summary'), 'status')],
    ['RENDERED', ({ annotations }) => annotations['device-controller/renderedVersion']],
    ['REPORTED', ({ status }) => field(field(status, 'config'), 'renderedVersion')],
  ],
  Fleet: [
    ['SELECTOR', ({ spec }) => labelsText(field(field(spec, 'selector'), 'matchLabels'))],
    ['VALID', ({ status }) => conditionStatus(status, 'Valid')],
  ],
  Repository: [
    ['TYPE', ({ spec }) => field(spec, 'type')],
    ['URL', ({ spec }) => field(maskSecrets('Repository', spec), 'url') ?? field(spec, 'registry')],
  ],
};

export function tableHead(kind: string): string {
  const titles = [...(COLUMNS[kind] ?? []).map(([title]) => title), 'GENERATION', 'LABELS'];
  return `${'NAME'.padEnd(NAME_WIDTH)}  ${titles.map((title) => title.padEnd(WIDTH)).join('  ')}`
    .trimEnd()
    .concat('\n');
}

export function tableRow(resource: Resource): string {
  const cells = (COLUMNS[resource.kind] ?? []).map(([, value]) => String(value(resource) ?? '-'));
  cells.push(resource.generation, labelsText(resource.labels) || '-');
  const line = `${resource.name.padEnd(NAME_WIDTH)}  ${cells.map((cell) => cell.padEnd(WIDTH)).join('  ')}`;
  return `${line.trimEnd()}\n`;
}

export function labelsText(labels: JsonValue | undefined): string {
  return isObject(labels)
    ? Object.entries(labels)
        .map(([key, value]) => `${key}=${value}`)
        .join(',')
    : '';
}

function conditionStatus(status: JsonValue, type: string): JsonValue | undefined {
  const conditions = field(status, 'conditions');
  return isList(conditions)
    ? field(
        conditions.find((one) => field(one, 'type') === type),
        'status',
      )
    : undefined;
}
