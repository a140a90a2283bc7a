/** Plays cases on several lanes at once, each a process of its own, before one Postgres. */
import { type ChildProcess, fork } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { startPostgres } from '../../src/embedded/postgres.ts';
import type { KvKind } from '../chaos/kv-node.ts';
import type { LaneJob, LaneSettings } from './lane-process.ts';
import type { Verdict } from './play.ts';

export interface PlayOptions {
  readonly ids: readonly string[];
  readonly kv: KvKind;
  readonly jobs: number;
  /** No case begins later than this. */
  readonly untilMs: number;
  /** A superuser's URL, where a Postgres runs already. */
  readonly postgresUrl?: string | undefined;
  /** Told of each case, in the order in which they end. A red one is played again alone first. */
  onVerdict(verdict: Verdict, red: Redness): void;
}

/** `again`: red on a lane of its own as well. `once`: only the first time. */
export type Redness = 'green' | 'again' | 'once';

/** The databases are of no use after a power cut. */
const FAST_SETTINGS = { fsync: 'off', full_page_writes: 'off', synchronous_commit: 'on', max_connections: '300' };
const CASE_MS_MAX = 180_000;
const LANE_PROCESS = fileURLToPath(new URL('lane-process.ts', import.meta.url));

function startLane(settings: LaneSettings): ChildProcess {
  return fork(LANE_PROCESS, [JSON.stringify(settings)], {
    execArgv: ['--import', 'tsx'],
    stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
  });
}

/** A verdict also where the process ends or hangs over it. */
function ask(child: ChildProcess, job: LaneJob): Promise<Verdict> {
  return new Promise((resolve) => {
    const failed = (text: string) => resolve({ id: job.id, violations: [text], fell: false, answers: [], tookMs: 0 });
    const timer = setTimeout(() => {
      child.kill('SIGKILL');
      failed('the case has no end');
    }, CASE_MS_MAX);
    const ended = () => failed('the process of the lane ended');
    child.once('exit', ended);
    child.once('message', (verdict: Verdict) => {
      clearTimeout(timer);
      child.off('exit', ended);
      resolve(verdict);
    });
    child.once('exit', () => clearTimeout(timer));
    child.send(job);
  });
}

export async function playCases(options: PlayOptions): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), 'holdfast-windows-'));
  const postgres =
    options.postgresUrl === undefined
      ? await startPostgres({ dataDir: join(directory, 'postgres'), settings: FAST_SETTINGS })
      : undefined;
  const postgresUrl = options.postgresUrl ?? postgres!.url;
  const waiting = [...options.ids];

  async function work(): Promise<void> {
    let child: ChildProcess | undefined;
    const run = async (job: LaneJob): Promise<Verdict> => {
      if (child === undefined || child.exitCode !== null || child.signalCode !== null) {
        child = startLane({ kv: options.kv, postgresUrl, directory });
      }
      return ask(child, job);
    };
    for (let id = waiting.shift(); id !== undefined && Date.now() < options.untilMs; id = waiting.shift()) {
      const first = await run({ id, alone: false });
      if (first.violations.length === 0) {
        options.onVerdict(first, 'green');
        continue;
      }
      const second = await run({ id, alone: true });
      if (second.violations.length > 0) options.onVerdict(second, 'again');
      else options.onVerdict(first, 'once');
    }
    const ending = child;
    if (ending === undefined || ending.exitCode !== null || ending.signalCode !== null) return;
    await new Promise<void>((resolve) => {
      ending.once('exit', () => resolve());
      ending.send('stop');
    });
  }
  try {
    await Promise.all(Array.from({ length: Math.min(options.jobs, waiting.length) }, work));
  } finally {
    await postgres?.stop();
    await rm(directory, { recursive: true, force: true });
  }
}
