/** `npm run bench`. */
import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { BENCH_CASES, type Placement, runBench, type TargetName } from './bench.ts';
import { runLeasesBench } from './leases.ts';
import { runLedgerSizeBench } from './ledger-size.ts';
import type { KvBinary } from './processes.ts';
import { benchTable } from './report.ts';
import { runRestoreBench } from './restore.ts';
import { runScopeBench } from './scope.ts';
import { runWorkerBench } from './worker.ts';

const USAGE = `usage: npm run bench -- [options]
       npm run bench -- worker [--rounds N] [--case 'in-process 8']
       npm run bench -- leases [--rounds N]
       npm run bench -- ledger-size [--rows N] [--partition-rows N]
       npm run bench -- restore [--entries LIST] [--rounds N] [--server LIST]
       npm run bench -- scope [--rounds N] [--seconds S] [--server NAME] [--case 'script']
  --quick             three rounds, unpinned, about a minute
  --seconds N         time for the whole run (default: 420; --quick: 60)
  --rounds N          rounds that count (default: 5; --quick: 3)
  --target LIST       of direct,holdfast,data-plane,nutcracker,haproxy (default: all installed but data-plane)
  --case LIST         of ${BENCH_CASES.map((each) => each.name).join(', ')}
  --placement LIST    of pinned,unpinned (default: both)
  --server NAME       redis-server or valkey-server (default: redis-server)
  --database URL      Holdfast's ledger (default: its embedded Postgres)
  --other DIR         a second checkout of Holdfast, as target "other"
  --out FILE          the result as JSON
`;

async function main(): Promise<void> {
  if (process.argv[2] === 'scope') return runScopeBench(process.argv.slice(3));
  if (process.argv[2] === 'leases') return runLeasesBench(process.argv.slice(3));
  if (process.argv[2] === 'ledger-size') return runLedgerSizeBench(process.argv.slice(3));
  if (process.argv[2] === 'restore') return runRestoreBench(process.argv.slice(3));
  if (process.argv[2] === 'worker') return runWorkerBench(process.argv.slice(3));
  const { values } = parseArgs({
    options: {
      quick: { type: 'boolean', default: false },
      seconds: { type: 'string' },
      rounds: { type: 'string' },
      target: { type: 'string' },
      case: { type: 'string' },
      placement: { type: 'string' },
      server: { type: 'string', default: 'redis-server' },
      database: { type: 'string' },
      other: { type: 'string' },
      out: { type: 'string' },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) {
    process.stdout.write(USAGE);
    return;
  }
  const placements = (values.placement?.split(',') ??
    (values.quick ? ['unpinned'] : ['unpinned', 'pinned'])) as Placement[];
  const targets = (values.target?.split(',') ?? [
    'direct',
    'holdfast',
    'other',
    'nutcracker',
    'haproxy',
  ]) as TargetName[];
  const result = await runBench({
    server: values.server as KvBinary,
    targets,
    placements,
    rounds: Number(values.rounds ?? (values.quick ? 3 : 5)),
    secondsMax: Number(values.seconds ?? (values.quick ? 60 : 420)),
    ...(values.case === undefined ? {} : { cases: values.case.split(',').map((each) => each.trim()) }),
    ...(values.database === undefined ? {} : { databaseUrl: values.database }),
    ...(values.other === undefined ? {} : { otherCheckout: values.other }),
    onProgress: (line) => process.stderr.write(`${line}\n`),
  });
  if (values.out !== undefined) writeFileSync(values.out, `${JSON.stringify(result, null, 1)}\n`);
  process.stdout.write(benchTable(result));
}

main().catch((error: unknown) => {
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
  process.exit(1);
});
