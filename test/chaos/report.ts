/** A run's result as a table for people. */
import type { ChaosResult, FaultReport } from './chaos-run.ts';
import type { Mutation } from './mutations.ts';
import type { RecoveryRecord } from './recovery-records.ts';

function seconds(milliseconds: number | undefined): string {
  return milliseconds === undefined ? '-' : (milliseconds / 1000).toFixed(2);
}

function median(values: readonly number[]): number | undefined {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];
}

/** The first column to the left, the others to the right. */
export function table(rows: readonly (readonly string[])[]): string[] {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  return rows.map((row) =>
    row
      .map((cell, column) => (column === 0 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!)))
      .join('  '),
  );
}

function nemesisRow(nemesis: string, faults: readonly FaultReport[]): string[] {
  const writes = faults.flatMap((fault) => (fault.writesMs === undefined ? [] : [fault.writesMs]));
  const reads = faults.flatMap((fault) => (fault.readsMs === undefined ? [] : [fault.readsMs]));
  const lasted = faults.map((fault) => fault.healedMs - fault.beginMs);
  return [
    ...[nemesis, String(faults.length), seconds(median(lasted))],
    ...[
      seconds(median(writes)),
      seconds(Math.max(...writes, 0)),
      seconds(median(reads)),
      seconds(Math.max(...reads, 0)),
    ],
  ];
}

function recoveryRow(cause: string, records: readonly RecoveryRecord[]): string[] {
  const durations = records.flatMap((record) => (record.milliseconds === undefined ? [] : [record.milliseconds]));
  const sum = (count: (record: RecoveryRecord) => number): string =>
    String(records.reduce((total, record) => total + count(record), 0));
  return [
    ...[cause, String(records.length), seconds(median(durations)), seconds(Math.max(...durations, 0))],
    ...[sum((record) => record.entriesRestored), sum((record) => record.aliases)],
    ...[sum((record) => record.possibleDuplicates), sum((record) => record.attempts)],
  ];
}

export function renderReport(result: ChaosResult): string {
  const { verdict, faults, phases, recoveries, errors } = result;
  const causes = [...new Set(recoveries.map((record) => record.cause))].sort();
  const names = [...new Set(faults.map((fault) => fault.nemesis))].sort();
  const writes = phases.flatMap((phase) => (phase.writesMs === undefined ? [] : [phase.writesMs]));
  const reads = phases.flatMap((phase) => (phase.readsMs === undefined ? [] : [phase.readsMs]));
  const figures: [string, number][] = [
    ['XADDs asked for', verdict.invoked],
    ['acknowledged', verdict.acknowledged],
    ['refused', verdict.failed],
    ['outcome unknown', verdict.unknown],
    ['  of these delivered', verdict.unknownDelivered],
    ['deliveries', verdict.delivered],
    ['handled (event and group)', verdict.handled],
    ['LOST', verdict.lost],
    ['observed in calm times and lost', verdict.observedLost],
    ['observed in faults and lost (not promised)', verdict.observedUnsettledLost],
    ['wrong fields', verdict.wrongFields],
    ['never added, yet delivered', verdict.phantoms + verdict.foreign],
    ['redelivered after losses', verdict.redelivered],
    ['  bound (in flight + last flush interval)', verdict.redeliveredMax],
    ['  after a recorded acknowledgement', verdict.redeliveredUnbounded],
    ['deleted, yet delivered', verdict.reborn],
    ['one event under two IDs', verdict.doubled],
    ['delivered under another ID', verdict.renamed],
    ['IDs out of order', verdict.idOrderBroken],
    ['deliveries out of order in calm times', verdict.deliveryOrderBroken],
    ['faults', faults.length],
    ['phases', phases.length],
    ['stalls over 5 s', phases.filter((phase) => phase.stalled.length > 0).length],
    ['sidecar crashes', result.sidecarCrashes],
    ["crashes of the run's own clients", result.clientCrashes],
  ];
  const errorRows = Object.entries(errors)
    .toSorted(([, a], [, b]) => b.inFaults + b.inCalm - a.inFaults - a.inCalm)
    .map(([what, { inFaults, inCalm }]) => [what, String(inFaults), String(inCalm)]);
  return [
    `chaos: seed ${result.seed}, ${result.kv}, ${result.sidecars} sidecar(s), ${result.seconds.toFixed(0)} s, ` +
      `load for each processor: median ${median(phases.map((phase) => phase.load))?.toFixed(1) ?? '-'}, ` +
      `worst ${Math.max(0, ...phases.map((phase) => phase.load)).toFixed(1)}`,
    '',
    ...table(figures.map(([name, count]) => [name, String(count)])),
    '',
    `calm to all streams written: median ${seconds(median(writes))} s, worst ${seconds(Math.max(...writes, 0))} s`,
    `calm to all groups with backlog read: median ${seconds(median(reads))} s, worst ${seconds(Math.max(...reads, 0))} s`,
    '',
    'Seconds from the healing of one fault (others may still last) until all streams are written and all groups read:',
    ...table([
      ['nemesis', 'faults', 'lasted', 'writes', 'worst', 'reads', 'worst'],
      ...names.map((name) =>
        nemesisRow(
          name,
          faults.filter((fault) => fault.nemesis === name),
        ),
      ),
    ]),
    '',
    'Recoveries of streams, as Holdfast recorded them:',
    ...table([
      ['cause', 'streams', 'seconds', 'worst', 'restored', 'aliases', 'doubtful', 'attempts'],
      ...causes.map((cause) =>
        recoveryRow(
          cause,
          recoveries.filter((record) => record.cause === cause),
        ),
      ),
    ]),
    '',
    'What clients were told:',
    ...table([['operation and error', 'in faults', 'in calm'], ...errorRows]),
    ...(verdict.findings.length === 0 ? [] : ['', 'Findings:']),
    ...verdict.findings.map(
      ({ what, stream, group, event, id, atMs }) =>
        `  ${what}: ${stream} ${group} event ${event} ID ${id} at ${atMs} ms`,
    ),
    '',
    ...(result.violations.length === 0 ? ['PASSED'] : ['FAILED:', ...result.violations.map((line) => `  ${line}`)]),
    ...(result.directory === undefined ? [] : [`logs and history: ${result.directory}`]),
  ].join('\n');
}

/** A mutation and what its two runs came to. */
export interface Proof {
  readonly mutation: Mutation;
  readonly control: ChaosResult;
  readonly controlPassed: boolean;
  readonly mutated: ChaosResult;
  readonly caught: boolean;
}

export function renderProofs(proofs: readonly Proof[]): string {
  const row = ({ mutation, control, controlPassed, mutated, caught }: Proof): string[] => [
    mutation.name,
    controlPassed ? 'passed' : `FAILED: ${control.violations.join('; ')}`,
    caught ? 'caught' : 'MISSED',
    ...[mutated.verdict.lost + mutated.verdict.observedLost, mutated.verdict.redeliveredUnbounded].map(String),
    ...[mutated.verdict.doubled, mutated.verdict.reborn].map(String),
  ];
  return table([
    ['mutation', 'control', 'mutated', 'lost', 'after a recorded XACK', 'under two IDs', 'deleted, yet delivered'],
    ...proofs.map(row),
  ]).join('\n');
}
