/** Events: what happened to a resource, as they are stored, shown and, for some reasons, queued. */
import { randomUUID } from 'node:crypto';
import type { JsonObject, JsonValue } from '../manifest/json-value.ts';
import { API_VERSION } from '../resources/kinds.ts';
import type { Database } from '../resources/store.ts';
import { QUEUED_REASONS } from '../routing/route-event.ts';

export const TASK_QUEUE = 'task-queue';

export interface NewEvent {
  readonly kind: string;
  readonly name: string;
  readonly reason: string;
  readonly message: string;
  readonly type?: 'Normal' | 'Warning';
  readonly details?: JsonObject;
  readonly annotations?: Readonly<Record<string, string>>;
  /** Who did it, such as `user:anna` or `task:fleetRollout`. */
  readonly actor: string;
  /** A UUID; the same one again is the same event. A new one by default. */
  readonly id?: string;
}

export function eventBody(event: NewEvent, now: Date): JsonObject {
  return {
    apiVersion: API_VERSION,
    kind: 'Event',
    metadata: {
      name: event.id ?? randomUUID(),
      creationTimestamp: now.toISOString(),
      ...(event.annotations === undefined ? {} : { annotations: event.annotations }),
    },
    involvedObject: { kind: event.kind, name: event.name },
    reason: event.reason,
    message: event.message,
    ...(event.details === undefined ? {} : { details: { detailType: event.reason, ...event.details } as JsonValue }),
    type: event.type ?? 'Normal',
    source: { component: 'holdfast' },
    actor: event.actor,
  };
}

/** As JSON that Postgres can hold: NUL and lone surrogates, which come with what others sent, are replaced. */
function eventJson(event: NewEvent, now: Date): string {
  return JSON.stringify(eventBody(event, now)).replace(
    /(?<!\\)((?:\\\\)*)\\u(?:0000|d[89ab][0-9a-f]{2}|d[c-f][0-9a-f]{2})/g,
    '$1\ufffd',
  );
}

/** In the transaction of the change that they tell of. Gives how many were not stored before. */
export async function addEvents(client: Database, org: string, events: readonly NewEvent[]): Promise<number> {
  if (events.length === 0) return 0;
  const now = new Date();
  const { rows } = await client.query<{ stored: string }>({
    name: 'flight-control-add-events',
    text: 'SELECT flight_control.add_events($1, $2, $3::jsonb[], $4::boolean[]) AS stored',
    values: [
      org,
      TASK_QUEUE,
      events.map((event) => eventJson(event, now)),
      events.map(({ reason }) => QUEUED_REASONS.has(reason)),
    ],
  });
  return Number(rows[0]!.stored);
}
