/** Handlers that take `ms` and tell in the KV store that they began and ended. For worker processes. */
import { setTimeout as sleep } from 'node:timers/promises';
import { Redis } from 'ioredis';
import { defineApp } from '../../../src/worker/app.ts';

const redis = new Redis(process.env.TELL_URL!, { lazyConnect: true });
redis.on('error', () => {});

export default defineApp({
  streams: 'events',
  concurrency: 4,
  retry: { attempts: 3, baseMs: 50 },
  handlers: {
    slow: {
      run: 'in-process',
      async handle(event, { id, attempt, signal }) {
        await redis.rpush('told', `begin ${id} ${attempt} ${process.pid}`);
        await sleep(Number(event.ms), undefined, { signal });
        await redis.rpush('told', `end ${id} ${attempt} ${process.pid}`);
      },
    },
  },
});
