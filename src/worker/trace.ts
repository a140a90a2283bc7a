/**
 * Trace context in entries: a header `traceparent` travels as the field `ctx_traceparent`, as Flight Control writes it.
 * Everything here does nothing until the program sets up an OpenTelemetry SDK.
 */
import { type Context, context, propagation, ROOT_CONTEXT, SpanKind, SpanStatusCode, trace } from '@opentelemetry/api';
import type { Fields } from './app.ts';
import { failureOf } from './handler-failure.ts';

const PREFIX = 'ctx_';
const NONE: Readonly<Record<string, string>> = Object.freeze({});

/** The `ctx_…` fields alone. */
export function traceFields(fields: Fields): Readonly<Record<string, string>> {
  let found: Record<string, string> | undefined;
  for (const name in fields) {
    if (name.startsWith(PREFIX)) {
      found ??= {};
      found[name] = fields[name]!;
    }
  }
  return found ?? NONE;
}

function extract(carried: Readonly<Record<string, string>>): Context {
  if (carried === NONE) return ROOT_CONTEXT;
  const headers: Record<string, string> = {};
  for (const [name, value] of Object.entries(carried)) headers[name.slice(PREFIX.length)] = value;
  return propagation.extract(ROOT_CONTEXT, headers);
}

export interface TracedTask {
  readonly task: string;
  readonly stream: string;
  readonly group: string;
  readonly id: string;
  readonly attempt: number;
}

/** Runs `handle` inside a consumer span that continues the entry's trace. */
export async function runTraced(
  carried: Readonly<Record<string, string>>,
  task: TracedTask,
  handle: () => unknown,
): Promise<void> {
  const parent = extract(carried);
  const span = trace.getTracer('holdfast').startSpan(
    `process ${task.stream}`,
    {
      kind: SpanKind.CONSUMER,
      attributes: {
        'messaging.system': 'redis',
        'messaging.destination.name': task.stream,
        'messaging.consumer.group.name': task.group,
        'messaging.message.id': task.id,
        'holdfast.task': task.task,
        'holdfast.attempt': task.attempt,
      },
    },
    parent,
  );
  try {
    await context.with(trace.setSpan(parent, span), handle);
  } catch (error) {
    span.setStatus({ code: SpanStatusCode.ERROR, message: failureOf(error).message });
    throw error;
  } finally {
    span.end();
  }
}
