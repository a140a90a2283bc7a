/** Sets up OpenTelemetry, as an app would, in the process and in each thread; spans go to the file SPANS as JSON lines. */
import { appendFileSync } from 'node:fs';
import { isMainThread } from 'node:worker_threads';
import { context, propagation } from '@opentelemetry/api';
import { NodeTracerProvider, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-node';

const tell = (line) => appendFileSync(process.env.SPANS, `${JSON.stringify(line)}\n`);
const exporter = {
  export(spans, done) {
    for (const span of spans) {
      const { 'holdfast.task': task, 'holdfast.attempt': attempt } = span.attributes;
      const { traceId, spanId } = span.spanContext();
      const failed = span.status.code === 2;
      tell({ kind: 'span', task, attempt, traceId, spanId, parent: span.parentSpanContext?.spanId, failed });
    }
    done({ code: 0 });
  },
  async shutdown() {},
};
new NodeTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] }).register();

function handle(_event, { task, attempt }) {
  const carried = {};
  propagation.inject(context.active(), carried);
  tell({ kind: 'handler', task, attempt, thread: !isMainThread, traceparent: carried.traceparent });
  if (attempt === 1) throw new Error('once');
}

export default {
  streams: 'events',
  threads: 1,
  retry: { baseMs: 50 },
  handlers: { here: { run: 'in-process', handle }, there: { run: 'thread', handle } },
};
