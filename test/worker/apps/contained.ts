/** Handlers that misbehave in a thread, each in its own way. */
import { setTimeout as sleep } from 'node:timers/promises';
import { defineApp } from '../../../src/worker/app.ts';

export default defineApp({
  streams: 'events',
  threads: 2,
  threadMemoryMb: 48,
  // How long a heap takes to fill, and a thread to end, is the machine's matter.
  timeoutMs: 30_000,
  graceMs: 150,
  retry: { attempts: 2, baseMs: 20 },
  handlers: {
    fine() {},
    'in-process': { run: 'in-process', handle() {} },
    blocks: {
      timeoutMs: 200,
      handle() {
        for (;;);
      },
    },
    ignores: { timeoutMs: 200, handle: () => new Promise(() => setInterval(() => {}, 1000)) },
    obeys: {
      timeoutMs: 200,
      async handle(_event, { signal }) {
        await sleep(60_000, undefined, { signal });
      },
    },
    leaks: {
      handle() {
        const kept: unknown[] = [];
        for (;;) kept.push(new Array(1000).fill(kept.length));
      },
    },
    exits() {
      process.exit(3);
    },
    'throws null'() {
      throw null;
    },
    'throws an object'() {
      throw { reason: 'odd' };
    },
    'throws a trap'() {
      throw new Proxy(
        {},
        {
          get() {
            throw new Error('gotcha');
          },
          has() {
            throw new Error('gotcha');
          },
        },
      );
    },
    async 'throws later'() {
      setTimeout(() => {
        throw new Error('out of band');
      }, 10);
      await sleep(1000);
    },
    async 'rejects later'() {
      void Promise.reject(new Error('unhandled'));
      await sleep(1000);
    },
    'rejects with undefined': () => Promise.reject(undefined),
    'throws an uncloneable'() {
      throw Object.assign(new Error('with a function'), { callback: () => {} });
    },
    'returns much': () => 'x'.repeat(24 * 1024 * 1024),
    returns: () => () => 'a function cannot be sent',
  },
});
