/** What a task is given and what it must do: one file for each, listed in registry.ts. */
import type pg from 'pg';
import type { Logger } from 'pino';
import type { QueueEvent } from '../routing/parse-body.ts';
import type { TaskName } from '../routing/route-event.ts';

export interface TaskContext {
  readonly orgId: string;
  readonly event: QueueEvent;
  readonly pool: pg.Pool;
  readonly log: Logger;
  /** Aborted when the task is out of time or the entry is another worker's now. */
  readonly signal: AbortSignal;
  /**
   * The UUID of an event that this task tells of: the same for the same words in every attempt and on every worker, so that
   * handling an event twice stores it once.
   */
  eventId(...words: readonly string[]): string;
}

/**
 * Must give the same state however often an event is handled, in any order with others. Rejecting is a failed attempt;
 * `permanentFailure` of the worker's API is one that is not tried again.
 */
export interface Task {
  readonly name: TaskName;
  /** Default: the app's. */
  readonly timeoutMs?: number;
  run(context: TaskContext): Promise<void>;
}
