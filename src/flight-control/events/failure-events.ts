/** Events that tell of failed tasks, each once, whoever tells of the same failure again. */
import type { FailedAttempt } from '../../worker/app.ts';
import type { JsonValue } from '../manifest/json-value.ts';
import { parseBody, type QueueBody } from '../routing/parse-body.ts';
import type { NewEvent } from './event.ts';
import { eventIdOf } from './event-id.ts';

const ORG_OF_NOBODY = '00000000-0000-0000-0000-000000000000';
const MESSAGE_MAX = 4096;
const DEPTH_MAX = 50;
const TEXT_MAX = 64 * 1024;
const MEMBERS_MAX = 1000;

/** What is stored of a failed attempt, and for which organization. */
export function failureEvents(attempt: FailedAttempt): { readonly org: string; readonly events: readonly NewEvent[] } {
  const body = bodyOf(attempt);
  return {
    org: body?.orgId ?? ORG_OF_NOBODY,
    events: [
      ...(body === undefined ? [] : attempt.failures.map((failure) => taskFailed(attempt, body, failure))),
      ...(attempt.forGood ? [permanentlyFailed(attempt, body)] : []),
    ],
  };
}

function bodyOf({ fields }: FailedAttempt): QueueBody | undefined {
  try {
    return parseBody(fields.body);
  } catch {
    return undefined;
  }
}

function taskFailed(
  { stream, group, id }: FailedAttempt,
  { event }: QueueBody,
  { task, errorMessage }: FailedAttempt['failures'][number],
): NewEvent {
  const message = shortened(errorMessage);
  return {
    id: eventIdOf([stream, group, id, 'InternalTaskFailed', task]),
    ...event.involvedObject,
    reason: 'InternalTaskFailed',
    type: 'Warning',
    message: `Task ${task} for ${event.reason} failed: ${message}`,
    details: { taskType: task, errorMessage: message },
    actor: `task:${task}`,
  };
}

function permanentlyFailed(attempt: FailedAttempt, body: QueueBody | undefined): NewEvent {
  const { stream, group, id, failures, fields } = attempt;
  const errorMessage = shortened(failures.map((one) => `${one.task || 'entry'}: ${one.errorMessage}`).join('\n'));
  return {
    id: eventIdOf([stream, group, id, 'InternalTaskPermanentlyFailed']),
    kind: 'System',
    name: 'queue',
    reason: 'InternalTaskPermanentlyFailed',
    type: 'Warning',
    message: `The event ${id} of ${stream} failed for good: ${errorMessage}`,
    details: {
      errorMessage,
      retryCount: attempt.attempt,
      originalEvent: body !== undefined && isStorable(body.event.raw, 0) ? body.event.raw : storable(fields.body ?? ''),
    },
    actor: 'system:queue',
  };
}

/** Without stacks, which are in the log. */
function shortened(text: string): string {
  return storable(text.replace(/\n {4}at [^\n]*/g, ''));
}

/** An event that nobody can read as a whole is told of by its beginning. */
function isStorable(value: JsonValue, depth: number): boolean {
  if (depth > DEPTH_MAX) return false;
  if (typeof value === 'string') return value.length <= TEXT_MAX;
  if (typeof value !== 'object' || value === null) return true;
  const members = Object.values(value);
  return members.length <= MEMBERS_MAX && members.every((member) => isStorable(member, depth + 1));
}

/** What came in as no event may be anything. */
function storable(text: string): string {
  return text
    .slice(0, MESSAGE_MAX)
    .replaceAll('\0', '\ufffd')
    .replace(/\p{Surrogate}/gu, '\ufffd');
}
