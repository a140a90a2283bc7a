/** Stored events, newest last. */
import { isObject, type JsonObject } from '../manifest/json-value.ts';
import type { Database } from '../resources/store.ts';

export interface EventQuery {
  readonly org: string;
  readonly object?: { readonly kind: string; readonly name: string };
  readonly reason?: string;
  /** Not older than this. */
  readonly since?: Date;
  /** The newest so many. */
  readonly limit?: number;
}

export interface StoredEvent {
  readonly event_number: string;
  readonly body: JsonObject;
}

export const EVENTS_LIMIT = 500;

export async function listEvents(database: Database, query: EventQuery): Promise<StoredEvent[]> {
  const values: unknown[] = [query.org, query.limit ?? EVENTS_LIMIT];
  const conditions = ['org = $1'];
  const where = (condition: (parameter: string) => string, value: unknown): void => {
    conditions.push(condition(`$${values.push(value)}`));
  };
  if (query.object !== undefined) {
    where((kind) => `object_kind = ${kind}`, query.object.kind);
    where((name) => `object_name = ${name}`, query.object.name);
  }
  if (query.reason !== undefined) where((reason) => `reason = ${reason}`, query.reason);
  if (query.since !== undefined) where((since) => `created_at >= ${since}`, query.since);
  const { rows } = await database.query<StoredEvent>(
    `SELECT event_number, body FROM flight_control.event WHERE ${conditions.join(' AND ')}
      ORDER BY event_number DESC LIMIT $2`,
    values,
  );
  return rows.reverse();
}

export function formatEvent({ body }: StoredEvent): string {
  const metadata = isObject(body.metadata) ? body.metadata : {};
  const object = isObject(body.involvedObject) ? body.involvedObject : {};
  const at = String(metadata.creationTimestamp ?? '-');
  return `${at}  ${String(body.type).padEnd(7)}  ${String(body.reason).padEnd(28)}  ${object.kind}/${object.name}  ${body.message}\n`;
}
