/** A short run against `holdfast serve` with its real processes. Seconds are for the long runs, on a machine of one's own. */
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { runChaos } from './chaos-run.ts';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));

test('serve loses nothing when the KV store restarts empty and is flushed while workers are killed', {
  timeout: 300_000,
}, async () => {
  const { verdict, faults, recoveries } = await runChaos({
    ...{ seed: 'serve', kv: 'valkey', sidecars: 1, root: ROOT, ratePerSecond: 150, keep: false },
    plan: [
      {
        faults: [
          { nemesis: 'consumer-kill', atMs: 500, durationMs: 1000, index: 0, fraction: 0 },
          { nemesis: 'kv-empty-restart', atMs: 1000, durationMs: 200, index: 0, fraction: 0 },
          { nemesis: 'kv-flushall', atMs: 4000, durationMs: 0, index: 0, fraction: 0 },
        ],
        quietMs: 3000,
      },
    ],
    drainStillMs: 20_000,
    say: () => {},
  });
  expect(faults.map((fault) => fault.nemesis).sort()).toEqual(['consumer-kill', 'kv-empty-restart', 'kv-flushall']);
  expect(verdict.acknowledged).toBeGreaterThan(300);
  expect(recoveries.length).toBeGreaterThan(0);
  const { lost, wrongFields, phantoms, foreign, reborn } = verdict;
  expect({ lost, wrongFields, phantoms, foreign, reborn }).toEqual({
    ...{ lost: 0, wrongFields: 0, phantoms: 0, foreign: 0, reborn: 0 },
  });
});
