/**
 * Flight Control as an app of the worker: events of `task-queue` routed to tasks. Events of one resource are handled one
 * after the other. Tasks run in the worker's own process: they wait for Postgres and for sources, and compute little.
 */
import type pg from 'pg';
import type { Logger } from 'pino';
import { HoldfastError, messageOf } from '../errors.ts';
import { type App, defineApp, type FailedAttempt, type HandlerDefinition } from '../worker/app.ts';
import { addEvents, TASK_QUEUE } from './events/event.ts';
import { eventIdOf } from './events/event-id.ts';
import { failureEvents } from './events/failure-events.ts';
import { field, isList } from './manifest/json-value.ts';
import { openStore } from './resources/store.ts';
import { parseBody, type QueueBody } from './routing/parse-body.ts';
import { routeEvent } from './routing/route-event.ts';
import { TASK_LIST } from './tasks/registry.ts';
import type { Task } from './tasks/task.ts';

const GROUP = 'task-queue-group';
const CONCURRENCY = 16;

export interface FlightControlOptions {
  readonly pool: pg.Pool;
  readonly log: Logger;
  readonly tasks: readonly Task[];
}

export function flightControlApp({ pool, log, tasks }: FlightControlOptions): App {
  const handlers: Record<string, HandlerDefinition<QueueBody>> = {};
  for (const task of tasks) {
    handlers[task.name] = {
      run: 'in-process',
      ...(task.timeoutMs === undefined ? {} : { timeoutMs: task.timeoutMs }),
      handle: ({ orgId, event }, { signal, stream, id }) =>
        task.run({
          orgId,
          event,
          pool,
          log,
          signal,
          // The event's own name, so that the same event in two entries tells once; the entry's ID where it has none.
          eventId: (...words) => eventIdOf([event.name ?? `${stream} ${id}`, task.name, ...words]),
        }),
    };
  }
  return defineApp<QueueBody>({
    streams: TASK_QUEUE,
    group: GROUP,
    concurrency: CONCURRENCY,
    handlers,
    decode: ({ body }) => parseBody(body),
    route: ({ event }) => {
      const updated = field(event.details, 'updatedFields');
      if (updated !== undefined && !isList(updated)) {
        log.warn(
          { event: event.name, reason: event.reason },
          'updatedFields of an event is no list, and asks for no task',
        );
      }
      return routeEvent(event);
    },
    orderBy: ({ orgId, event }) => `${orgId} ${event.involvedObject.kind}/${event.involvedObject.name}`,
    async onFailure(attempt: FailedAttempt) {
      const { org, events } = failureEvents(attempt);
      try {
        await addEvents(pool, org, events);
      } catch (error) {
        // Refused for what it is: it would be refused for ever, and the entry must come to its end.
        if (!isRefusedValue(error)) throw error;
        log.error({ id: attempt.id, error: messageOf(error) }, 'the event of a failure cannot be stored');
      }
    },
  });
}

/** SQLSTATE classes 22 (data) and 54 (limits). */
function isRefusedValue(error: unknown): boolean {
  const code = error instanceof Error && 'code' in error ? String(error.code) : '';
  return code.startsWith('22') || code.startsWith('54');
}

/** The app with all tasks. Throws `CONFIG` where there is no database. */
export async function loadFlightControl({
  database,
  log,
}: {
  readonly database: string | undefined;
  readonly log: Logger;
}): Promise<{ readonly app: App; readonly module: string; close(): Promise<void> }> {
  if (database === undefined)
    throw new HoldfastError('CONFIG', 'ledger.database: Flight Control keeps its resources there');
  const pool = await openStore(database, CONCURRENCY);
  pool.on('error', (error) => log.debug({ error: messageOf(error) }, 'idle connection to Postgres lost'));
  return {
    app: flightControlApp({ pool, log, tasks: TASK_LIST }),
    module: import.meta.url,
    close: () => pool.end(),
  };
}
