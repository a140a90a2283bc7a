/** Reads resources in pages, by kind, name and labels. */
import { HoldfastError } from '../../errors.ts';
import { badLabelKey, badLabelValue } from '../validation/formats.ts';
import { RESOURCE_COLUMNS, type Resource } from './resource.ts';
import type { Database } from './store.ts';

/** One condition on labels. `values`: of In and NotIn. */
export interface LabelCondition {
  readonly key: string;
  readonly operator: 'In' | 'NotIn' | 'Exists' | 'DoesNotExist';
  readonly values: readonly string[];
}

export interface ResourceQuery {
  readonly org: string;
  readonly kind: string;
  readonly labels: readonly LabelCondition[];
  /** In all; no limit where it is left out. */
  readonly limit: number | undefined;
}

export const PAGE_ROWS = 500;

export async function findResource(
  database: Database,
  org: string,
  kind: string,
  name: string,
): Promise<Resource | undefined> {
  const { rows } = await database.query<Resource>(
    `SELECT ${RESOURCE_COLUMNS} FROM flight_control.resource WHERE org = $1 AND kind = $2 AND name = $3`,
    [org, kind, name],
  );
  return rows[0];
}

/** In order of their names, in pages that each see the database of their own moment. */
export async function* queryResources(database: Database, query: ResourceQuery): AsyncGenerator<Resource[]> {
  let left = query.limit ?? Number.POSITIVE_INFINITY;
  for (let after = ''; left > 0; ) {
    const { text, values } = pageStatement(query, after, Math.min(PAGE_ROWS, left));
    const { rows } = await database.query<Resource>(text, values);
    if (rows.length > 0) yield rows;
    if (rows.length < PAGE_ROWS) return;
    left -= rows.length;
    after = rows.at(-1)!.name;
  }
}

/** One page behind the name `after`. */
export function pageStatement(query: ResourceQuery, after: string, rows: number): { text: string; values: unknown[] } {
  const values: unknown[] = [query.org, query.kind, after, rows];
  const parameter = (value: unknown): string => `$${values.push(value)}`;
  const conditions = query.labels.map((condition) => conditionText(condition, parameter));
  const text = `SELECT ${RESOURCE_COLUMNS} FROM flight_control.resource
    WHERE org = $1 AND kind = $2 AND name > $3 ${conditions.map((condition) => `AND ${condition}`).join(' ')}
    ORDER BY name LIMIT $4`;
  return { text, values };
}

function conditionText({ key, operator, values }: LabelCondition, parameter: (value: unknown) => string): string {
  // Containment is what the index of labels answers.
  if (operator === 'In' && values.length === 1) return `labels @> ${parameter({ [key]: values[0] })}::jsonb`;
  const label = `labels ->> ${parameter(key)}`;
  if (operator === 'In') return `${label} = ANY (${parameter(values)}::text[])`;
  if (operator === 'NotIn') return `coalesce(${label} <> ALL (${parameter(values)}::text[]), true)`;
  return `${label} IS ${operator === 'Exists' ? 'NOT ' : ''}NULL`;
}

/** As in `site=berlin,env!=prod,tier in (a, b),!old`. Throws `CONFIG`. */
export function parseLabelSelector(text: string): LabelCondition[] {
  const conditions: LabelCondition[] = [];
  // Commas inside of parentheses separate values.
  for (const part of text.split(/,(?![^(]*\))/)) {
    const condition = parseCondition(part.trim());
    const bad =
      condition === undefined
        ? 'is not understood'
        : (badLabelKey(condition.key) ?? condition.values.map(badLabelValue).find((reason) => reason !== undefined));
    if (condition === undefined || bad !== undefined) {
      throw new HoldfastError(
        'CONFIG',
        `-l: ${JSON.stringify(part)} ${bad}; say site=berlin, env!=prod, tier in (a, b), site or !site`,
      );
    }
    conditions.push(condition);
  }
  return conditions;
}

function parseCondition(part: string): LabelCondition | undefined {
  const listed = /^(\S+)\s+(in|notin)\s*\(([^)]*)\)$/.exec(part);
  if (listed !== null) {
    const values = listed[3]!.split(',').map((value) => value.trim());
    return { key: listed[1]!, operator: listed[2] === 'in' ? 'In' : 'NotIn', values };
  }
  const compared = /^([^\s=!]+)\s*(==?|!=)\s*(\S*)$/.exec(part);
  if (compared !== null) {
    return { key: compared[1]!, operator: compared[2] === '!=' ? 'NotIn' : 'In', values: [compared[3]!] };
  }
  const named = /^(!?)\s*([^\s=!]+)$/.exec(part);
  if (named === null) return undefined;
  return { key: named[2]!, operator: named[1] === '!' ? 'DoesNotExist' : 'Exists', values: [] };
}
