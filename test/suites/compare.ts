/** Compares a run through Holdfast with the run directly at the server. */
import type { KnownDifference } from './known-differences.ts';
import type { TestResult, UnitResult } from './suite-run.ts';

export interface Difference {
  readonly unit: string;
  readonly test: string;
  /** `failed`: it ran and failed; `missing`: it was not reached. */
  readonly kind: 'failed' | 'missing';
  readonly detail: string;
  /** The reason, where the difference is a reviewed one. */
  readonly known?: string;
}

export interface Tally {
  readonly ok: number;
  readonly err: number;
  readonly skipped: number;
  readonly unitsBroken: number;
}

export function tally(units: readonly UnitResult[]): Tally {
  const count = (status: TestResult['status']) =>
    units.reduce((sum, unit) => sum + unit.tests.filter((test) => test.status === status).length, 0);
  return {
    ok: count('ok'),
    err: count('err'),
    skipped: count('skip') + count('ignore'),
    unitsBroken: units.filter((unit) => unit.outcome !== 'done').length,
  };
}

/** Numbers in a name can come from the machine (a seed, a size): names are compared without those of four digits up. */
function comparable(name: string): string {
  return name.replace(/\d{4,}/g, 'N');
}

function countOk(unit: UnitResult): Map<string, number> {
  const counts = new Map<string, number>();
  for (const test of unit.tests) {
    if (test.status !== 'ok') continue;
    const name = comparable(test.name);
    counts.set(name, (counts.get(name) ?? 0) + 1);
  }
  return counts;
}

/** What passed directly and did not pass through Holdfast. A name that stands several times counts as often. */
export function differences(
  direct: readonly UnitResult[],
  through: readonly UnitResult[],
  known: readonly KnownDifference[],
): Difference[] {
  const found: Difference[] = [];
  const throughByUnit = new Map(through.map((unit) => [unit.unit, unit]));
  for (const unit of direct) {
    const other = throughByUnit.get(unit.unit);
    if (other === undefined) continue;
    const passed = countOk(other);
    const failures = other.tests.filter((test) => test.status === 'err');
    for (const [test, count] of countOk(unit)) {
      const lacking = count - (passed.get(test) ?? 0);
      if (lacking <= 0) continue;
      const failure = failures.find((each) => comparable(each.name) === test);
      const reason = known.find((each) => each.unit === unit.unit && comparable(each.test) === test)?.reason;
      found.push({
        unit: unit.unit,
        test,
        kind: failure === undefined ? 'missing' : 'failed',
        detail: failure?.detail ?? (other.outcome === 'done' ? 'not run' : `${other.outcome}: ${other.tail ?? ''}`),
        ...(reason === undefined ? {} : { known: reason }),
      });
    }
  }
  return found;
}
