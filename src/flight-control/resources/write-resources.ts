/**
 * Writes what documents say, some hundreds with each statement, with the events that tell of it in the same transaction.
 * Compares and sets: what was read is locked until the commit, and a resource that somebody else creates meanwhile fails the
 * whole, to be tried again.
 */
import type pg from 'pg';
import { HoldfastError } from '../../errors.ts';
import { addEvents, type NewEvent } from '../events/event.ts';
import { field, isObject, type JsonObject, type JsonValue } from '../manifest/json-value.ts';
import type { Problem } from '../validation/problems.ts';
import { type Change, changeOf, sameMeaning } from './compare-resources.ts';
import { RESOURCE_COLUMNS, type Resource } from './resource.ts';
import { keepSecrets, serverOf } from './secrets.ts';

/** A document that was found valid. */
export interface Wanted {
  readonly document: JsonObject;
  readonly kind: string;
  readonly name: string;
}

export type Outcome = 'created' | 'configured' | 'unchanged';
export type Written = { readonly outcome: Outcome } | { readonly problem: Problem };

/** Somebody else wrote meanwhile: the same again may succeed. */
export class WrittenMeanwhile extends HoldfastError {
  constructor() {
    super('CONFLICT', 'somebody else applied the same resources at the same time; try again');
  }
}

interface Row {
  readonly kind: string;
  readonly name: string;
  readonly api_version: string;
  readonly labels: JsonValue;
  readonly spec: JsonValue;
  readonly generation: number;
}

/** `wanted` names each resource once. Gives what became of each, in their order; where one has a problem, write nothing. */
export async function writeResources(
  client: pg.PoolClient,
  org: string,
  actor: string,
  wanted: readonly Wanted[],
): Promise<Written[]> {
  const stored = await lockStored(client, org, wanted);
  const created: Row[] = [];
  const updated: Row[] = [];
  const events: NewEvent[] = [];
  const written = wanted.map((one): Written => {
    const before = stored.get(keyOf(one));
    const judged = judge(one, before);
    if ('problem' in judged) return judged;
    const { row, change } = judged;
    if (change === null) return { outcome: 'unchanged' };
    (before === undefined ? created : updated).push(row);
    events.push(eventOf(one, change, actor));
    return { outcome: before === undefined ? 'created' : 'configured' };
  });
  if (written.some((one) => 'problem' in one)) return written;
  await insert(client, org, created);
  await update(client, org, updated);
  await addEvents(client, org, events);
  return written;
}

function keyOf({ kind, name }: { readonly kind: string; readonly name: string }): string {
  return `${kind}/${name}`;
}

async function lockStored(
  client: pg.PoolClient,
  org: string,
  wanted: readonly Wanted[],
): Promise<ReadonlyMap<string, Resource>> {
  const { rows } = await client.query<Resource>({
    name: 'flight-control-lock',
    // In one order, so that two who apply the same wait for each other and not in a circle.
    text: `SELECT ${RESOURCE_COLUMNS} FROM flight_control.resource
            WHERE (org, kind, name) IN (SELECT $1::uuid, * FROM unnest($2::text[], $3::text[]))
            ORDER BY kind, name FOR UPDATE`,
    values: [org, wanted.map(({ kind }) => kind), wanted.map(({ name }) => name)],
  });
  return new Map(rows.map((row) => [keyOf(row), row]));
}

/** What a document makes of a resource; labels or spec that it leaves out stay. */
function judge(
  { document, kind, name }: Wanted,
  before: Resource | undefined,
): { readonly row: Row; readonly change: Change | null } | { readonly problem: Problem } {
  const metadata = field(document, 'metadata');
  const version = field(metadata, 'resourceVersion');
  if (version !== undefined && String(version) !== before?.resource_version) {
    const reason = before === undefined ? 'there is no such resource' : `it is ${before.resource_version} by now`;
    return refused('metadata.resourceVersion', `${reason}; get it again, or leave it out`, version);
  }
  const givenSpec = field(document, 'spec') ?? undefined;
  const { value: spec, unknown, kept } = keepSecrets(givenSpec ?? before?.spec ?? {}, before?.spec);
  if (unknown.length > 0) return refused(unknown[0]!, 'no secret is stored that ***** could stand for');
  if (kept && serverOf(spec) !== serverOf(before?.spec)) {
    return refused('spec', 'is for another server: give its secrets anew, ***** stands for those of the old one');
  }
  const labels = field(metadata, 'labels') ?? before?.labels ?? {};
  if (kind === 'Device' && before?.owner?.startsWith('Fleet/') === true && !sameMeaning(before.spec, spec)) {
    return refused('spec', `belongs to ${before.owner}: only the labels of this device can be applied`);
  }
  const owner = before?.owner ?? null;
  const change = changeOf(kind, before === undefined ? null : { labels: before.labels, owner, spec: before.spec }, {
    labels,
    owner,
    spec,
  });
  const grows = before !== undefined && !sameMeaning(before.spec, spec) ? 1 : 0;
  const generation = Number(before?.generation ?? 1) + grows;
  return { row: { kind, name, api_version: String(field(document, 'apiVersion')), labels, spec, generation }, change };
}

function refused(at: string, reason: string, value?: JsonValue): { readonly problem: Problem } {
  return { problem: { field: at, reason, value: value === undefined ? undefined : JSON.stringify(value) } };
}

function eventOf({ kind, name }: Wanted, change: Change, actor: string): NewEvent {
  const { reason, ...details } = change;
  const verb = reason === 'ResourceCreated' ? 'created' : 'updated';
  return {
    kind,
    name,
    reason,
    message: `${kind} was ${verb} successfully`,
    ...(isObject(details) && Object.keys(details).length > 0 ? { details } : {}),
    actor,
  };
}

const GIVEN = `unnest($2::text[], $3::text[], $4::text[], $5::jsonb[], $6::jsonb[], $7::bigint[])
  AS given (kind, name, api_version, labels, spec, generation)`;

function values(org: string, rows: readonly Row[]): unknown[] {
  return [
    org,
    rows.map(({ kind }) => kind),
    rows.map(({ name }) => name),
    rows.map(({ api_version: version }) => version),
    rows.map(({ labels }) => JSON.stringify(labels)),
    rows.map(({ spec }) => JSON.stringify(spec)),
    rows.map(({ generation }) => generation),
  ];
}

async function insert(client: pg.PoolClient, org: string, rows: readonly Row[]): Promise<void> {
  if (rows.length === 0) return;
  const { rowCount } = await client.query({
    name: 'flight-control-insert',
    text: `INSERT INTO flight_control.resource (org, kind, name, api_version, labels, spec, generation)
           SELECT $1, * FROM ${GIVEN} ORDER BY kind, name ON CONFLICT DO NOTHING`,
    values: values(org, rows),
  });
  if (rowCount !== rows.length) throw new WrittenMeanwhile();
}

async function update(client: pg.PoolClient, org: string, rows: readonly Row[]): Promise<void> {
  if (rows.length === 0) return;
  await client.query({
    name: 'flight-control-update',
    text: `UPDATE flight_control.resource AS r
              SET api_version = given.api_version, labels = given.labels, spec = given.spec,
                  generation = given.generation, resource_version = r.resource_version + 1
             FROM ${GIVEN} WHERE r.org = $1 AND r.kind = given.kind AND r.name = given.name`,
    values: values(org, rows),
  });
}
