/**
 * `npm run test:redis-suite`: the official tests of Redis 7.0.15, directly and through Holdfast, compared.
 * Exit code 0: nothing that passes directly fails through Holdfast, beyond the reviewed list. 1: something does.
 * 2: the suite could not be run.
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { startLedgerDatabases } from '../../bench/ledger-databases.ts';
import { isInstalled, type KvBinary } from '../../bench/processes.ts';
import { type Difference, differences, tally } from './compare.ts';
import { KNOWN_DIFFERENCES } from './known-differences.ts';
import { cacheDirectory, obtainRedisSources, type RedisSources } from './redis-sources.ts';
import { listUnits, runUnits, type SuiteOptions, type Target, type UnitResult, type Variant } from './suite-run.ts';

const USAGE = `usage: npm run test:redis-suite -- [options]
  --short              the units that matter most to a proxy, RESP2, one server: under two minutes
  --server LIST        redis-server,valkey-server (default: both that are installed)
  --target LIST        transaction,session, or direct alone (default: transaction,session)
  --variant LIST       resp2,resp3,singledb (default: all)
  --data-plane         Holdfast without ledger and interceptors
  --units LIST         units such as unit/multi (default: all)
  --tags TAGS          as the suite has it (default: -slow)
  --jobs N             units at a time (default: 2)
  --unit-timeout S     a unit that takes longer is stopped (default: 240)
  --retries N          runs again what differs, to tell flaky from different (default: 2)
  --fresh-baseline     do not take direct results from the cache
  --results FILE       writes each unit's result there as it ends, and runs no unit again that is done there
  --out FILE           all results as JSON
`;

/** The units that exercise connection state, blocking, pushes and streams rather than data types. */
const SHORT_UNITS = [
  'unit/auth',
  'unit/protocol',
  'unit/quit',
  'unit/multi',
  'unit/pubsub',
  'unit/pubsubshard',
  'unit/tracking',
  'unit/acl',
  'unit/type/stream',
  'unit/type/stream-cgroups',
  'unit/wait',
  'unit/info',
];

interface Comparison {
  server: KvBinary;
  variant: Variant;
  target: Target;
  units: readonly UnitResult[];
  differences: readonly Difference[];
  flaky: readonly Difference[];
}

function list<Value extends string>(text: string | undefined, allowed: readonly Value[], fallback: readonly Value[]) {
  if (text === undefined) return fallback;
  return text.split(',').map((each) => {
    const value = allowed.find((candidate) => candidate === each);
    if (value === undefined) throw new Error(`${each} is none of ${allowed.join(', ')}`);
    return value;
  });
}

function progress(label: string) {
  return (unit: UnitResult) => {
    const passed = unit.tests.filter((test) => test.status === 'ok').length;
    const failed = unit.tests.filter((test) => test.status === 'err').length;
    process.stderr.write(`${label} ${unit.unit}: ${unit.outcome}, ${passed} ok, ${failed} err (${unit.seconds} s)\n`);
  };
}

type KeptUnits = Record<string, UnitResult>;

/** The results kept in `file`, by a key of the caller's; none where it does not exist yet. */
function readKept(file: string): KeptUnits {
  try {
    return JSON.parse(readFileSync(file, 'utf8')) as KeptUnits;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return {};
    throw new Error(`${file}: ${String(error)}`);
  }
}

/** Written whole or not at all: a run that is stopped leaves what was there. */
function writeKept(file: string, kept: KeptUnits): void {
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(`${file}.new`, JSON.stringify(kept));
  renameSync(`${file}.new`, file);
}

/** Runs the units that did not come to their end in `file`, and writes each there as it ends. */
async function runKept(
  sources: RedisSources,
  options: SuiteOptions,
  file: string | undefined,
  label: string,
): Promise<UnitResult[]> {
  const kept = file === undefined ? {} : readKept(file);
  const keyOf = (unit: string) => `${label} ${unit}`;
  const missing = options.units.filter((unit) => kept[keyOf(unit)]?.outcome !== 'done');
  const save = (result: UnitResult) => {
    kept[keyOf(result.unit)] = result;
    if (file !== undefined) writeKept(file, kept);
    progress(label)(result);
  };
  await runUnits(sources, { ...options, units: missing, onUnit: save });
  return options.units.map((unit) => kept[keyOf(unit)]!);
}

/** Direct results change only with the server and the suite: they are kept beside the sources. */
function baseline(sources: RedisSources, options: SuiteOptions, fresh: boolean): Promise<UnitResult[]> {
  const serverVersion = execFileSync(options.server, ['--version'], { encoding: 'utf8' });
  const version = `${sources.version}-${/v=(\S+)/.exec(serverVersion)?.[1]}`.replace(/[^\w.-]/g, '_');
  const tags = options.tags.replace(/[^\w-]/g, '_');
  const file = join(cacheDirectory(), 'baseline', `${options.server}-${options.variant}-${tags}-${version}.json`);
  if (fresh) rmSync(file, { force: true });
  return runKept(sources, { ...options, target: 'direct' }, file, `${options.server} ${options.variant} direct`);
}

/** Runs differing units again, directly too: what passes in any run through, or fails in a direct one, is flaky. */
async function settle(
  sources: RedisSources,
  options: SuiteOptions,
  first: readonly Difference[],
  retries: number,
): Promise<{ real: Difference[]; flaky: Difference[] }> {
  let real = [...first];
  const flaky: Difference[] = [];
  for (let attempt = 0; attempt < retries && real.some((each) => each.known === undefined); attempt += 1) {
    const units = [...new Set(real.filter((each) => each.known === undefined).map((each) => each.unit))];
    const direct = await runUnits(sources, { ...options, target: 'direct', units });
    const through = await runUnits(sources, { ...options, units });
    const again = differences(direct, through, KNOWN_DIFFERENCES);
    const holds = (each: Difference) =>
      each.known !== undefined || again.some((other) => other.unit === each.unit && other.test === each.test);
    flaky.push(...real.filter((each) => !holds(each)));
    real = real.filter(holds);
  }
  return { real, flaky };
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      short: { type: 'boolean', default: false },
      server: { type: 'string' },
      target: { type: 'string' },
      variant: { type: 'string' },
      'data-plane': { type: 'boolean', default: false },
      units: { type: 'string' },
      tags: { type: 'string', default: '-slow' },
      jobs: { type: 'string', default: '2' },
      'unit-timeout': { type: 'string', default: '240' },
      retries: { type: 'string', default: '2' },
      'fresh-baseline': { type: 'boolean', default: false },
      results: { type: 'string' },
      out: { type: 'string' },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) {
    process.stdout.write(USAGE);
    return 0;
  }
  const installed = (['redis-server', 'valkey-server'] as const).filter(isInstalled);
  const servers = list(values.server, installed, values.short ? installed.slice(0, 1) : installed);
  if (servers.length === 0) throw new Error('no redis-server or valkey-server on PATH');
  const targets = list<Target>(values.target, ['direct', 'transaction', 'session'], ['transaction', 'session']);
  const variants = list<Variant>(
    values.variant,
    ['resp2', 'resp3', 'singledb'],
    values.short ? ['resp2'] : ['resp2', 'resp3', 'singledb'],
  );
  const sources = obtainRedisSources();
  const units = values.units?.split(',') ?? (values.short ? SHORT_UNITS : listUnits(sources));
  const dataPlaneOnly = values['data-plane'];
  const ledger =
    targets.some((target) => target !== 'direct') && !dataPlaneOnly ? await startLedgerDatabases() : undefined;
  const comparisons: Comparison[] = [];
  for (const server of servers) {
    for (const variant of variants) {
      const options: SuiteOptions = {
        server,
        variant,
        target: 'direct',
        units,
        tags: values.tags,
        jobs: Number(values.jobs),
        unitTimeoutSeconds: Number(values['unit-timeout']),
        dataPlaneOnly,
        ...(ledger === undefined ? {} : { createDatabase: () => ledger.create() }),
      };
      const direct = await baseline(sources, options, values['fresh-baseline']);
      comparisons.push({ server, variant, target: 'direct', units: direct, differences: [], flaky: [] });
      for (const target of targets) {
        if (target === 'direct') continue;
        const label = `${server} ${variant} ${target}${dataPlaneOnly ? ' data-plane' : ''} ${values.tags}`;
        const through = await runKept(sources, { ...options, target }, values.results, label);
        const known = KNOWN_DIFFERENCES.filter((each) => each.target === undefined || each.target === target);
        const first = differences(direct, through, known);
        const { real, flaky } = await settle(sources, { ...options, target }, first, Number(values.retries));
        comparisons.push({ server, variant, target, units: through, differences: real, flaky });
      }
    }
  }
  await ledger?.stop();
  if (values.out !== undefined) writeFileSync(values.out, JSON.stringify(comparisons, null, 1));
  return report(comparisons);
}

function missingByUnit(found: readonly Difference[]): Map<string, number> {
  const counts = new Map<string, number>();
  for (const { unit, kind } of found) if (kind === 'missing') counts.set(unit, (counts.get(unit) ?? 0) + 1);
  return counts;
}

/** Prints the table and what differs; gives the exit code. */
function report(comparisons: readonly Comparison[]): number {
  let passed = 0;
  let failed = 0;
  for (const each of comparisons) {
    const { ok, err, skipped, unitsBroken } = tally(each.units);
    const unknown = each.differences.filter((difference) => difference.known === undefined);
    passed += ok;
    failed += unknown.length;
    process.stdout.write(
      `${each.server} ${each.variant} ${each.target}: ${ok} ok, ${err} err, ${skipped} ignored, ` +
        `${unitsBroken} units broken off; ${unknown.length} pass directly only, ` +
        `${each.differences.length - unknown.length} known, ${each.flaky.length} flaky\n`,
    );
    for (const { unit, test, detail, known } of each.differences.filter(({ kind }) => kind === 'failed')) {
      process.stdout.write(`  failed ${unit}: ${test}${known === undefined ? '' : ` (known: ${known})`}\n`);
      if (known === undefined) process.stdout.write(`${detail.slice(0, 600).replace(/^/gm, '      ')}\n`);
    }
    for (const [unit, count] of missingByUnit(each.differences)) {
      const tail = each.units.find((result) => result.unit === unit)?.tail ?? '';
      process.stdout.write(`  ${unit}: ${count} tests not reached\n${tail.slice(-1500).replace(/^/gm, '      ')}\n`);
    }
    for (const { unit, test } of each.flaky) process.stdout.write(`  flaky ${unit}: ${test}\n`);
  }
  process.stdout.write(`${passed} passed, ${failed} failed\n`);
  return failed === 0 ? 0 : 1;
}

main().then(
  (code) => process.exit(code),
  (error: unknown) => {
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
    process.exit(2);
  },
);
