import { expect, test } from 'vitest';
import { NEMESIS_NAMES, nemesisOf } from './nemeses.ts';
import { planRun } from './schedule.ts';

const SEEDS = Array.from({ length: 50 }, (_, i) => `seed-${i}`);
const HOUR_MS = 3_600_000;

function plan(seed: string, sidecars = 3, durationMs = HOUR_MS / 6) {
  return planRun({ seed, durationMs, nemeses: NEMESIS_NAMES, sidecars });
}

test('a seed gives the same plan every time, and another seed another one', () => {
  expect(plan('a')).toEqual(plan('a'));
  expect(plan('a')).not.toEqual(plan('b'));
});

test('faults on one resource do not overlap, and every index has something to strike', () => {
  for (const seed of SEEDS) {
    for (const { faults } of plan(seed)) {
      const places = faults.map((fault) => `${nemesisOf(fault.nemesis).resource} ${fault.index}`);
      for (const [i, fault] of faults.entries()) {
        expect(fault.index, seed).toBeLessThan(3);
        for (const [j, other] of faults.entries()) {
          if (i >= j || places[i] !== places[j]) continue;
          const apart = fault.atMs + fault.durationMs <= other.atMs || other.atMs + other.durationMs <= fault.atMs;
          expect(apart, `${seed}: ${fault.nemesis} and ${other.nemesis}`).toBe(true);
        }
      }
    }
  }
});

test('an hour meets every nemesis, with faults of different resources at the same time', () => {
  for (const seed of SEEDS) {
    const phases = plan(seed, 3, HOUR_MS);
    const faults = phases.flatMap((phase) => phase.faults);
    expect(new Set(faults.map((fault) => fault.nemesis)).size, seed).toBe(NEMESIS_NAMES.length);
    const overlapping = phases.filter((phase) =>
      phase.faults.some((fault, i) => {
        const next = phase.faults[i + 1];
        return next !== undefined && next.atMs < fault.atMs + fault.durationMs;
      }),
    );
    expect(overlapping.length, seed).toBeGreaterThan(phases.length / 5);
  }
});

test('without sidecars nothing strikes them, or Postgres', () => {
  const struck = new Set(SEEDS.flatMap((seed) => plan(seed, 0)).flatMap(({ faults }) => faults.map((f) => f.nemesis)));
  expect([...struck].filter((name) => /^(sidecar|ledger)/.test(name))).toEqual([]);
  expect(struck).toContain('kv-kill');
});
