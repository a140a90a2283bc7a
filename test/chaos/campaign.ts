/**
 * Many runs one after the other, over both servers and with one and three sidecars, each in a process of its own, and one
 * table of what they came to. The reports of runs made before in the same directory count as well, so that a campaign can be
 * stopped and gone on with.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { ChaosResult } from './chaos-run.ts';
import { table } from './report.ts';

export interface CampaignOptions {
  readonly runs: number;
  readonly minutes: string;
  /** Run n has the seed `seed-n`. */
  readonly seed: string;
  readonly rate: string;
  readonly root: string;
  /** Takes `NAME.json` and `NAME.log` of each run, and `summary.txt`. */
  readonly directory: string;
  say(line: string): void;
}

const KINDS = [
  { kv: 'valkey', sidecars: 3 },
  { kv: 'redis', sidecars: 1 },
  { kv: 'redis', sidecars: 3 },
  { kv: 'valkey', sidecars: 1 },
] as const;
const RUN = fileURLToPath(new URL('./run.ts', import.meta.url));

/** Gives whether every report in the directory is of a run that passed. */
export async function runCampaign(options: CampaignOptions): Promise<boolean> {
  const { directory, say } = options;
  await mkdir(directory, { recursive: true });
  for (let n = 0; n < options.runs; n += 1) {
    const { kv, sidecars } = KINDS[n % KINDS.length]!;
    const seed = `${options.seed}-${n}`;
    const name = join(directory, `${seed}-${kv}-${sidecars}`);
    const log = openSync(`${name}.log`, 'a');
    const child = spawn(
      process.execPath,
      [
        ...[
          '--import',
          'tsx',
          RUN,
          '--kv',
          kv,
          '--sidecars',
          String(sidecars),
          '--seed',
          seed,
          '--report',
          `${name}.json`,
        ],
        ...['--minutes', options.minutes, '--rate', options.rate, '--root', options.root],
      ],
      { stdio: ['ignore', log, log] },
    );
    const [code] = (await once(child, 'exit')) as [number | null];
    closeSync(log);
    say(
      `run ${n + 1}/${options.runs}: ${kv}, ${sidecars} sidecar(s), seed ${seed}: ${code === 0 ? 'passed' : `FAILED, see ${name}.log`}`,
    );
  }
  const results = await readResults(directory);
  const summary = renderCampaign(results);
  await writeFile(join(directory, 'summary.txt'), `${summary}\n`);
  say(`\n${summary}`);
  return results.length > 0 && results.every((result) => result.violations.length === 0);
}

async function readResults(directory: string): Promise<ChaosResult[]> {
  const files = (await readdir(directory)).filter((file) => file.endsWith('.json')).sort();
  return Promise.all(
    files.map(async (file) => JSON.parse(await readFile(join(directory, file), 'utf8')) as ChaosResult),
  );
}

function renderCampaign(results: readonly ChaosResult[]): string {
  const seconds = (milliseconds: readonly (number | undefined)[]): string =>
    (Math.max(0, ...milliseconds.map((value) => value ?? 0)) / 1000).toFixed(1);
  const row = (result: ChaosResult): string[] => {
    const { verdict, phases } = result;
    return [
      ...[result.seed, result.kv, String(result.sidecars), (result.seconds / 60).toFixed(1)],
      ...[result.faults.length, verdict.acknowledged, verdict.delivered, verdict.lost].map(String),
      ...[`${verdict.redelivered}/${verdict.redeliveredMax}`, String(verdict.doubled)],
      ...[phases.filter((phase) => phase.stalled.length > 0).length, result.recoveries.length].map(String),
      ...[
        seconds(phases.map((phase) => phase.readsMs)),
        seconds(result.recoveries.map((record) => record.milliseconds)),
      ],
      Math.max(0, ...phases.map((phase) => phase.load)).toFixed(1),
      result.violations.length === 0 ? 'passed' : 'FAILED',
    ];
  };
  const sum = (count: (result: ChaosResult) => number): number =>
    results.reduce((total, result) => total + count(result), 0);
  return [
    ...table([
      [
        ...[
          'seed',
          'kv',
          'sidecars',
          'minutes',
          'faults',
          'acknowledged',
          'delivered',
          'lost',
          'again/bound',
          'two IDs',
        ],
        ...['stalls', 'recoveries', 'worst to move, s', 'worst recovery, s', 'load', 'verdict'],
      ],
      ...results.map(row),
    ]),
    '',
    `${results.length} runs, ${(sum((result) => result.seconds) / 60).toFixed(0)} minutes, ${sum((result) => result.faults.length)} faults, ` +
      `${sum((result) => result.verdict.acknowledged)} acknowledged, ${sum((result) => result.verdict.lost)} lost, ` +
      `${results.filter((result) => result.violations.length > 0).length} runs failed`,
    ...results.flatMap((result) =>
      result.violations.map((violation) => `  ${result.seed} ${result.kv}: ${violation.slice(0, 300)}`),
    ),
  ].join('\n');
}
