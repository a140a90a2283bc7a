/** A handler that is done in a moment beside one that keeps its thread until it is told to stop. */
import { setTimeout as sleep } from 'node:timers/promises';
import { defineApp } from '../../../src/worker/app.ts';

export default defineApp({
  streams: 'events',
  threads: 1,
  timeoutMs: 60_000,
  handlers: {
    fast: { run: 'in-process', handle() {} },
    slow: (_event, { signal }) => sleep(60_000, undefined, { signal }),
  },
});
