/**
 * One call of one handler, from its start to its outcome, in a thread or in this process.
 *
 *   start ──▶ (timeout) abort signal ──▶ (grace) thread ended / given up ──▶ outcome
 *
 * Never rejects and never throws: whatever a handler does is an outcome.
 */

import { HoldfastError } from '../../errors.ts';
import type { HandlerSpec, TaskContext } from '../app.ts';
import { failureOf, type HandlerFailure } from '../handler-failure.ts';
import { runTraced } from '../trace.ts';
import type { ThreadContext } from './thread.ts';
import type { ThreadDeath, ThreadPool } from './thread-pool.ts';

export type CallOutcome =
  | { readonly kind: 'succeeded' }
  | { readonly kind: 'failed'; readonly message: string; readonly permanent: boolean }
  /** Cut off by `abort`: says nothing about the handler. */
  | { readonly kind: 'interrupted' }
  /** Its thread did not get to call it within its time: nothing was tried. */
  | { readonly kind: 'not begun' };

export interface HandlerCall {
  abort(reason: string): void;
}

export interface CallOptions {
  readonly handler: HandlerSpec;
  readonly event: unknown;
  readonly context: ThreadContext;
  readonly graceMs: number;
  readonly pool: ThreadPool | undefined;
  /** Called once. */
  onOutcome(outcome: CallOutcome): void;
  /** Called once, when the slot is free again: with the outcome, or later for a handler that ignores its signal. */
  onReleased(): void;
  onThreadDeath(cause: ThreadDeath): void;
}

const PERMANENT = 'PERMANENT';

interface RunningCall {
  readonly done: Promise<HandlerFailure | undefined>;
  begun(): boolean;
  abort(reason: string): void;
  kill(): void;
}

export function callHandler(options: CallOptions): HandlerCall {
  const { handler, graceMs } = options;
  let decided = false;
  let cutOff: 'timeout' | 'interruption' | undefined;
  let grace: NodeJS.Timeout | undefined;
  const timer = setTimeout(() => cut('timeout', `timed out after ${handler.timeoutMs} ms`), handler.timeoutMs);

  function decide(outcome: CallOutcome): void {
    if (decided) return;
    decided = true;
    clearTimeout(timer);
    clearTimeout(grace);
    options.onOutcome(outcome);
  }
  function failed(failure: HandlerFailure): CallOutcome {
    // What a handler throws after it was told to stop is the consequence, not the cause.
    if (cutOff === 'interruption') return { kind: 'interrupted' };
    if (cutOff === 'timeout') return timedOut();
    const message = failure.stack ?? failure.message;
    return { kind: 'failed', message, permanent: failure.code === PERMANENT };
  }
  function timedOut(): CallOutcome {
    if (!running.begun()) return { kind: 'not begun' };
    return { kind: 'failed', message: `timed out after ${handler.timeoutMs} ms`, permanent: false };
  }
  function cut(why: 'timeout' | 'interruption', reason: string): void {
    if (decided || cutOff !== undefined) return;
    cutOff = why;
    running.abort(reason);
    grace = setTimeout(() => {
      const outcome: CallOutcome = why === 'timeout' ? timedOut() : { kind: 'interrupted' };
      running.kill();
      decide(outcome);
    }, graceMs);
  }

  const running = handler.run === 'thread' ? inThread() : inProcess();
  running.done.then(
    (failure) => {
      decide(failure === undefined ? { kind: 'succeeded' } : failed(failure));
      options.onReleased();
    },
    (error: HoldfastError) => {
      if (error.code !== PERMANENT) options.onThreadDeath(error.code as ThreadDeath);
      decide(failed({ message: error.message, stack: undefined, code: error.code }));
      options.onReleased();
    },
  );
  return { abort: (reason) => cut('interruption', reason) };

  function inThread(): RunningCall {
    const call = options.pool!.call(options.event, options.context);
    return { done: call.outcome, begun: call.begun, abort: call.abort, kill: call.kill };
  }
  function inProcess(): RunningCall {
    const { context, signalled } = contextWithSignal(options.context);
    const handle = handler.handle!;
    const done = runTraced(context.trace, context, () => handle(options.event, context)).then(
      () => undefined,
      failureOf,
    );
    // Nothing can end a function of this process: it keeps its slot until it returns.
    return { done, begun: () => true, abort: signalled, kill: () => undefined };
  }
}

/** The signal is made when it is first asked for: most handlers that are done in a moment never do. */
function contextWithSignal(base: ThreadContext): { context: TaskContext; signalled(reason: string): void } {
  let controller: AbortController | undefined;
  let aborted: HoldfastError | undefined;
  const context = {
    ...base,
    get signal(): AbortSignal {
      if (controller === undefined) {
        controller = new AbortController();
        if (aborted !== undefined) controller.abort(aborted);
      }
      return controller.signal;
    },
  };
  return {
    context,
    signalled(reason) {
      aborted = new HoldfastError('ABORTED', reason);
      controller?.abort(aborted);
    },
  };
}
