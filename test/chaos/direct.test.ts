/** The runner against a KV store without Holdfast: a store that loses data must be found out, a healthy one must pass. */
import { fileURLToPath } from 'node:url';
import { test } from 'vitest';
import { type ChaosResult, runChaos } from './chaos-run.ts';
import type { NemesisName } from './nemeses.ts';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));

function runDirect(nemesis: NemesisName): Promise<ChaosResult> {
  return runChaos({
    ...{ seed: 'direct', kv: 'valkey', sidecars: 0, root: ROOT, ratePerSecond: 200, keep: false },
    plan: [{ faults: [{ nemesis, atMs: 1000, durationMs: 300, index: 0, fraction: 0.5 }], quietMs: 3000 }],
    drainStillMs: 4000,
    say: () => {},
  });
}

test.concurrent('a KV store that restarts empty loses acknowledged events', { timeout: 60_000 }, async ({ expect }) => {
  const result = await runDirect('kv-empty-restart');
  expect(result.verdict.acknowledged).toBeGreaterThan(500);
  expect(result.verdict.lost).toBeGreaterThan(0);
  expect(result.violations.join()).toContain('acknowledged events lost');
});

test.concurrent('a consumer that is killed loses nothing', { timeout: 60_000 }, async ({ expect }) => {
  const result = await runDirect('consumer-kill');
  // Stalls are for the long runs: they need a machine of one's own.
  expect(result.violations.filter((violation) => !violation.startsWith('stalled'))).toEqual([]);
  expect(result.verdict.acknowledged).toBeGreaterThan(500);
  expect(result.faults.map((fault) => fault.nemesis)).toEqual(['consumer-kill']);
});
