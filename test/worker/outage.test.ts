import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { defineApp } from '../../src/worker/app.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { addAll, client, drained, runWorker, until } from './worker-harness.ts';

describe.each(kvKinds)('an outage of %s', (kind) => {
  test('ends for a worker when the server has loaded its data, not when it had expected to have', async () => {
    // A quarter of a second to load, and in that time it says that it needs another whole one.
    const slowly = ['--aof-use-rdb-preamble', 'no', '--key-load-delay', '50'];
    const kv = await startKv(kind, { extraArgs: ['--appendonly', 'yes', '--appendfsync', 'no', ...slowly] });
    const redis = client(kv.url);
    await addAll(redis, 'much', Array(3000).fill({ n: '1' }));
    let running = false;
    let away = false;
    const app = defineApp({
      streams: 'events',
      timeoutMs: 60_000,
      handlers: {
        any: {
          run: 'in-process',
          async handle({ n }) {
            if (n === 'new') return;
            running = true;
            await until('the KV store is away', () => away);
          },
        },
      },
    });
    await runWorker(app, { kv: kv.url });
    const afterMs: number[] = [];
    for (let round = 0; round < 6; round += 1) {
      running = away = false;
      await addAll(redis, 'events', [{ n: 'held' }]);
      await until('it runs', () => running);
      await kv.kill9();
      away = true;
      await sleep(500);
      const restarted = kv.restart();
      // Waits for an answer.
      await addAll(redis, 'events', [{ n: 'new' }]);
      const answeredAt = performance.now();
      // What ended meanwhile is written down, and what is new is read.
      await until('all acknowledged', () => drained(redis, 'events'));
      afterMs.push(performance.now() - answeredAt);
      await restarted;
    }
    expect(Math.max(...afterMs)).toBeLessThan(450);
  });
});
