/** A handler that keeps its processor busy for longer than a silent worker counts as alive. */
import { defineApp } from '../../../src/worker/app.ts';

export default defineApp({
  streams: 'events',
  // More than most machines for tests have processors.
  threads: 4,
  handlers: {
    busy() {
      const until = performance.now() + 4000;
      while (performance.now() < until);
    },
  },
});
