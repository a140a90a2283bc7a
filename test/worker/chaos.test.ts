import { expect, test } from 'vitest';
import { runWorkerChaos } from '../chaos/worker-chaos.ts';
import { seed } from '../support/seed.ts';
import { startTestPostgres } from '../support/servers.ts';

// The short form of `npm run chaos:worker -- --mode direct`. Stalls are for the long one: they need a machine of one's own.
test('under kills of workers and of the KV store every event succeeds or is reported once', async () => {
  const report = await runWorkerChaos({
    seed: String(seed),
    events: 1500,
    mode: 'direct',
    kv: 'redis',
    workers: 2,
    killWorkerMs: 3000,
    // The first kill comes within 3 s, while events are still added: those take 5 s.
    killKvMs: 2000,
    rate: 300,
    limitMs: 100_000,
    database: (await startTestPostgres()).url,
    judgeStalls: false,
    say: () => {},
  });
  expect(report.findings, `seed ${seed}`).toEqual([]);
  expect(report.added).toBe(1500);
  expect(report.permanentlyFailed).toBeGreaterThan(0);
  expect(report.workerKills).toBeGreaterThan(0);
  expect(report.kvKills).toBeGreaterThan(0);
}, 120_000);
