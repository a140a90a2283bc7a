/** The field `body` of a queue entry: `{"orgId", "event"}`, ours or that of the reference. */
import { messageOf } from '../../errors.ts';
import { field, isObject, type JsonObject, type JsonValue } from '../manifest/json-value.ts';

export interface QueueEvent {
  /** UUID of the event, where its producer gave one. */
  readonly name: string | undefined;
  readonly annotations: JsonValue | undefined;
  readonly involvedObject: { readonly kind: string; readonly name: string };
  readonly reason: string;
  readonly details: JsonValue | undefined;
  /** As it came. */
  readonly raw: JsonObject;
}

export interface QueueBody {
  readonly orgId: string;
  readonly event: QueueEvent;
}

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

/** Throws where it is no event: there is no use in trying again. */
export function parseBody(body: string | undefined): QueueBody {
  if (body === undefined) throw new Error('the entry has no field body');
  const parsed = parseJson(body);
  if (!isObject(parsed)) throw new Error('body is no JSON object');
  const orgId = field(parsed, 'orgId');
  if (typeof orgId !== 'string' || !UUID.test(orgId)) throw new Error('orgId is no UUID');
  const event = field(parsed, 'event');
  if (!isObject(event)) throw new Error('event is missing');
  const reason = field(event, 'reason');
  if (typeof reason !== 'string') throw new Error('event.reason is missing');
  const object = field(event, 'involvedObject');
  const kind = field(object, 'kind');
  const name = field(object, 'name');
  if (typeof kind !== 'string' || typeof name !== 'string')
    throw new Error('event.involvedObject has no kind and name');
  const metadata = field(event, 'metadata');
  const uuid = field(metadata, 'name');
  return {
    orgId: orgId.toLowerCase(),
    event: {
      name: typeof uuid === 'string' ? uuid : undefined,
      annotations: field(metadata, 'annotations'),
      involvedObject: { kind, name },
      reason,
      details: field(event, 'details'),
      raw: event,
    },
  };
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`body is no JSON: ${messageOf(error).slice(0, 200)}`);
  }
}
