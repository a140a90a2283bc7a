import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { loadApp } from '../../src/worker/load-app.ts';
import { kvKinds, startKv, temporaryDirectory } from '../support/servers.ts';
import { addAll, client, drained, runWorker, until } from './worker-harness.ts';

const TRACE = '0af7651916cd43dd8448eb211c80319c';
const PARENT = 'b7ad6b7169203331';

interface Line {
  readonly kind: 'span' | 'handler';
  readonly task: string;
  readonly attempt: number;
  readonly traceId: string;
  readonly spanId: string;
  readonly parent: string;
  readonly failed: boolean;
  readonly traceparent: string;
}

test('every attempt is a span of the trace that its entry carries, in the process and in threads', async () => {
  const kv = await startKv(kvKinds[0]!);
  const redis = client(kv.url);
  const file = join(await temporaryDirectory(), 'spans');
  process.env.SPANS = file;
  const traced = await loadApp(fileURLToPath(new URL('./apps/traced.mjs', import.meta.url)));
  const ctx_traceparent = `00-${TRACE}-${PARENT}-01`;
  await addAll(redis, 'events', [
    { task: 'here', ctx_traceparent },
    { task: 'there', ctx_traceparent },
  ]);
  await runWorker(traced.app, { kv: kv.url, module: traced.module });
  await until('done', () => drained(redis, 'events'));
  const lines = (await readFile(file, 'utf8'))
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Line);
  for (const task of ['here', 'there']) {
    for (const attempt of [1, 2]) {
      const of = lines.filter((line) => line.task === task && line.attempt === attempt);
      const span = of.find((line) => line.kind === 'span');
      expect(span, `${task} ${attempt}`).toMatchObject({ traceId: TRACE, parent: PARENT, failed: attempt === 1 });
      const handler = of.find((line) => line.kind === 'handler');
      expect(handler).toMatchObject({ thread: task === 'there', traceparent: `00-${TRACE}-${span!.spanId}-01` });
    }
  }
});
