/** While FRAGILE is set, a new thread ends before it is ready. */
import { isMainThread } from 'node:worker_threads';
import { defineApp } from '../../../src/worker/app.ts';

if (!isMainThread && process.env.FRAGILE !== undefined) process.exit(1);

export default defineApp({
  streams: 'events',
  threads: 1,
  retry: { baseMs: 100 },
  handlers: {
    exits(_event, { attempt }) {
      if (attempt === 1) process.exit(1);
    },
  },
});
