/** A handler that succeeds and then blocks its thread, so that the next call never begins in it. */
import { defineApp } from '../../../src/worker/app.ts';

export default defineApp({
  streams: 'events',
  threads: 1,
  timeoutMs: 500,
  graceMs: 100,
  retry: { attempts: 1 },
  handlers: {
    lingers() {
      setImmediate(() => {
        for (;;);
      });
    },
    fine: { timeoutMs: 1500, handle() {} },
  },
});
