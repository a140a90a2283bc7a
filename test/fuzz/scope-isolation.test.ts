/** Short form of `npm run fuzz -- --scope N`. */
import { expect, test } from 'vitest';
import { runIsolation } from './scope-isolation.ts';

const seed = Date.now() % 1_000_000;
console.log(`seed ${seed}`);

test.each(['redis-server', 'valkey-server'] as const)('scopes stay apart on %s', async (server) => {
  const report = await runIsolation({ server, seed, commands: 12_000, violationsMax: 3 });
  expect(report.violations).toEqual([]);
  expect(report.commands).toBeGreaterThanOrEqual(12_000);
  expect(report.pushes).toBeGreaterThan(100);
  expect(report.keysSeen).toBeGreaterThan(200);
  // Most of what is asked is asked rightly.
  expect(report.errors / report.replies).toBeLessThan(0.35);
});
