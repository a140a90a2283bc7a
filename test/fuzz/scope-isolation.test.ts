/** Short form of `npm run fuzz -- --scope N`. */
import { expect, test } from 'vitest';
import { seed } from '../support/seed.ts';
import { runIsolation } from './scope-isolation.ts';

test.each(['redis-server', 'valkey-server'] as const)('scopes stay apart on %s', async (server) => {
  const report = await runIsolation({ server, seed, commands: 12_000, violationsMax: 3 });
  expect(report.violations).toEqual([]);
  expect(report.commands).toBeGreaterThanOrEqual(12_000);
  expect(report.pushes).toBeGreaterThan(100);
  expect(report.keysSeen).toBeGreaterThan(200);
  // What tenants must not hear of each other was there to be told.
  expect(report.errorsNamed).toBeGreaterThan(0);
  // Most of what is asked is asked rightly.
  expect(report.errors / report.replies).toBeLessThan(0.35);
});
