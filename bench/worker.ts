/**
 * The worker beside BullMQ on the same KV server, in interleaved rounds, each measurement in a process of its own.
 * Figures are medians over the rounds; ratios are ratios of medians. Holdfast's worker runs with its ledger on: through a
 * sidecar, attempts in Postgres; and directly, for comparison.
 */
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs, promisify } from 'node:util';
import { startPostgres } from '../src/embedded/postgres.ts';
import { median } from './bench.ts';
import { startHoldfast, startKv, temporaryDirectory } from './processes.ts';
import type { Run, System, Work } from './worker-run.ts';

interface Case {
  readonly work: Work;
  readonly concurrency: number;
  /** For the fastest; the slower ones get a share of it, so that all take about as long. */
  readonly jobs: number;
  readonly peers: readonly System[];
}

const CASES: readonly Case[] = [
  { work: 'in-process', concurrency: 1, jobs: 20_000, peers: ['bullmq'] },
  { work: 'in-process', concurrency: 8, jobs: 40_000, peers: ['bullmq'] },
  { work: 'in-process', concurrency: 32, jobs: 40_000, peers: ['bullmq'] },
  { work: 'thread', concurrency: 2, jobs: 8000, peers: ['bullmq processes', 'bullmq threads'] },
  { work: 'thread-1ms', concurrency: 2, jobs: 2000, peers: ['bullmq processes', 'bullmq threads'] },
];
const PEER_SHARE: Readonly<Record<Work, number>> = { 'in-process': 0.3, thread: 0.4, 'thread-1ms': 1 };
const SCRIPT = fileURLToPath(new URL('./worker-run.ts', import.meta.url));

async function measure(run: Run): Promise<number> {
  const { stdout } = await promisify(execFile)(
    process.execPath,
    ['--import', import.meta.resolve('tsx'), SCRIPT, JSON.stringify(run)],
    { timeout: 180_000 },
  );
  return (JSON.parse(stdout.trim().split('\n').at(-1)!) as { rate: number }).rate;
}

/** `npm run bench -- worker [--rounds N] [--case 'in-process 8']`: the table goes to standard output. */
export async function runWorkerBench(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: { rounds: { type: 'string', default: '3' }, case: { type: 'string' } },
  });
  const rounds = Number(values.rounds);
  const cases = CASES.filter((each) => values.case === undefined || `${each.work} ${each.concurrency}` === values.case);
  const undo: (() => Promise<unknown>)[] = [];
  try {
    const kv = await startKv('redis-server');
    undo.push(() => kv.stop());
    const postgres = await startPostgres({ dataDir: join(temporaryDirectory('worker-bench'), 'postgres') });
    undo.push(() => postgres.stop());
    // A server of its own for the peers, so that the ledger never sees what passes it by.
    const plain = await startKv('redis-server');
    undo.push(() => plain.stop());
    const sidecar = await startHoldfast({ kvUrl: `redis://127.0.0.1:${kv.port}`, databaseUrl: postgres.url });
    undo.push(() => sidecar.stop());
    const urls = { ledger: `redis://127.0.0.1:${sidecar.port}`, plain: `redis://127.0.0.1:${plain.port}` };

    process.stdout.write(
      '| handlers | concurrency | with ledger | directly | peer | with ledger : peer |\n|---|---|---|---|---|---|\n',
    );
    for (const each of cases) {
      const rates = new Map<string, number[]>();
      const contenders: { name: string; run: Run }[] = [
        ...(['ledger', 'directly'] as const).map((name) => ({
          name,
          run: {
            system: 'holdfast' as const,
            ...each,
            kv: name === 'ledger' ? urls.ledger : urls.plain,
            database: name === 'ledger' ? postgres.url : undefined,
          },
        })),
        ...each.peers.map((system) => ({
          name: system,
          run: { ...each, system, jobs: each.jobs * PEER_SHARE[each.work], kv: urls.plain, database: undefined },
        })),
      ];
      for (let round = 0; round < rounds; round += 1) {
        for (let i = 0; i < contenders.length; i += 1) {
          const { name, run } = contenders[(round + i) % contenders.length]!;
          rates.set(name, [...(rates.get(name) ?? []), await measure(run)]);
          process.stderr.write(
            `${each.work} ${each.concurrency}, round ${round + 1}, ${name}: ${Math.round(rates.get(name)!.at(-1)!)}/s\n`,
          );
        }
      }
      const of = (name: string): number => median(rates.get(name) ?? []);
      for (const peer of each.peers) {
        const ratio = (of('ledger') / of(peer)).toFixed(2);
        const cells = [
          each.work,
          each.concurrency,
          ...['ledger', 'directly'].map((name) => `${Math.round(of(name))}/s`),
        ];
        process.stdout.write(`| ${cells.join(' | ')} | ${peer} ${Math.round(of(peer))}/s | ${ratio} |\n`);
      }
    }
  } finally {
    for (const step of undo.reverse()) await step();
  }
}
