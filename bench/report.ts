/** A bench result as a text table. */
import type { BenchResult, BenchRow } from './bench.ts';

function figure(value: number | undefined, digits: number): string {
  return value === undefined ? '–' : value.toFixed(digits);
}

const COLUMNS: readonly (readonly [string, (row: BenchRow) => string])[] = [
  ['case', (row) => row.case],
  ['placement', (row) => row.placement],
  ['target', (row) => row.target],
  ['requests/s', (row) => figure(row.requestsPerSecond, 0)],
  ['to nutcracker', (row) => figure(row.ratioToNutcracker, 2)],
  ['to direct', (row) => figure(row.ratioToDirect, 2)],
  ['CPU µs/request', (row) => figure(row.cpuMicrosPerRequest, 2)],
  ['p50 ms', (row) => figure(row.p50Ms, 3)],
  ['p99 ms', (row) => figure(row.p99Ms, 3)],
  ['added p50 ms', (row) => figure(row.addedP50Ms, 3)],
];
const TEXT_COLUMNS = 3;

export function benchTable(result: BenchResult): string {
  const { machine, seconds, rows, notes } = result;
  const cells = [COLUMNS.map(([name]) => name), ...rows.map((row) => COLUMNS.map(([, text]) => text(row)))];
  const widths = COLUMNS.map((_, column) => Math.max(...cells.map((line) => line[column]!.length)));
  const lines = cells.map((line) =>
    line
      .map((text, column) => (column < TEXT_COLUMNS ? text.padEnd(widths[column]!) : text.padStart(widths[column]!)))
      .join('  ')
      .trimEnd(),
  );
  const head = `${machine.cores} cores (${machine.cpu}), Node ${machine.node}, ${machine.server}, ${seconds} s`;
  return [head, '', ...lines, ...notes.map((note) => `note: ${note}`), ''].join('\n');
}
