/**
 * When which fault strikes: a pure function of seed, length, nemeses and number of sidecars. A run alternates between
 * turbulent phases, in which faults overlap, and quiet ones, in which everything must be well again.
 *
 *   |-- turbulence --|-- quiet --|---- turbulence ----|-- quiet --| … | drain
 *
 * Invariant: two faults of one phase never hold the same resource at the same time.
 */
import { type NemesisName, nemesisOf, type Resource } from './nemeses.ts';
import { seededRandom } from './seeded-random.ts';
import { CONSUMERS, PRODUCERS } from './workload.ts';

export interface Fault {
  readonly nemesis: NemesisName;
  /** From the start of its phase. */
  readonly atMs: number;
  /** How long it lasts before it is healed; healing itself takes what it takes. */
  readonly durationMs: number;
  /** Which sidecar, link, producer or consumer. */
  readonly index: number;
  /** In [0, 1): where to truncate, how much to evict, which direction to cut. */
  readonly fraction: number;
}

export interface Phase {
  readonly faults: readonly Fault[];
  /** At least this long without a fault afterwards. */
  readonly quietMs: number;
}

export interface ScheduleOptions {
  readonly seed: string;
  readonly durationMs: number;
  readonly nemeses: readonly NemesisName[];
  /** 0: no Holdfast, and no Postgres. Nemeses without anything to strike are left out. */
  readonly sidecars: number;
}

const PHASE_MS = { min: 6000, max: 20_000 };
const QUIET_MS = { min: 6500, max: 9000 };
const FAULTS_MAX = 6;
/** What starting servers again and settling costs a phase, on average: only for the number of phases in a run. */
const HEALING_MS = 2500;

export function planRun(options: ScheduleOptions): Phase[] {
  const random = seededRandom(`${options.seed}/schedule`);
  const { sidecars } = options;
  const counts: Readonly<Record<Resource, number>> = {
    ...{ kv: 1, ledger: Math.min(1, sidecars), sidecar: sidecars },
    ...{ 'kv-link': Math.max(1, sidecars), 'ledger-link': sidecars },
    ...{ producer: PRODUCERS.length, consumer: CONSUMERS.length },
  };
  const nemeses = options.nemeses.filter((name) => counts[nemesisOf(name).resource] > 0);
  if (nemeses.length === 0) return [{ faults: [], quietMs: options.durationMs }];
  const phases: Phase[] = [];
  for (let plannedMs = 0; plannedMs < options.durationMs; ) {
    const phaseMs = random.integer(PHASE_MS.min, PHASE_MS.max);
    const quietMs = random.integer(QUIET_MS.min, QUIET_MS.max);
    const wanted = random.integer(1, FAULTS_MAX);
    const busy: { readonly place: string; readonly fromMs: number; readonly toMs: number }[] = [];
    const faults: Fault[] = [];
    for (let i = 0; i < wanted; i += 1) {
      const nemesis = random.pick(nemeses);
      const { resource, durationMs: bounds } = nemesisOf(nemesis);
      const fault: Fault = {
        nemesis,
        atMs: random.integer(500, phaseMs),
        // Most are short, some are long: outages of both kinds take other ways through the code.
        durationMs: Math.round(bounds.min + (bounds.max - bounds.min) * random.next() ** 2),
        index: random.integer(0, counts[resource] - 1),
        fraction: random.next(),
      };
      const place = `${resource}-${fault.index}`;
      const [fromMs, toMs] = [fault.atMs, fault.atMs + fault.durationMs];
      if (busy.some((other) => other.place === place && other.fromMs < toMs && fromMs < other.toMs)) continue;
      busy.push({ place, fromMs, toMs });
      faults.push(fault);
    }
    faults.sort((a, b) => a.atMs - b.atMs);
    phases.push({ faults, quietMs });
    plannedMs += Math.max(phaseMs, ...busy.map((fault) => fault.toMs)) + HEALING_MS + quietMs;
  }
  return phases;
}
