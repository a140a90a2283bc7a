/**
 * A process that plays one case after the other, as its parent names them. A lane lives until a case was red on it, or for so many
 * cases; whether a case is red is only said where it was red on a lane of its own as well.
 */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { messageOf } from '../../src/errors.ts';
import type { KvKind } from '../chaos/kv-node.ts';
import { BackgroundStatements } from './faults.ts';
import { Lane } from './lane.ts';
import { caseNamed } from './matrix.ts';
import { play, type Verdict } from './play.ts';

export interface LaneJob {
  readonly id: string;
  /** On a lane of its own. */
  readonly alone: boolean;
}

export interface LaneSettings {
  readonly kv: KvKind;
  readonly postgresUrl: string;
  readonly directory: string;
}

const CASES_PER_LANE = 150;

const settings = JSON.parse(process.argv[2]!) as LaneSettings;
const background = new BackgroundStatements();
let lane: Lane | undefined;
let played = 0;
let lanes = 0;

async function renew(): Promise<Lane> {
  const old = lane;
  lane = undefined;
  await old?.stop().catch(() => undefined);
  if (old !== undefined) await rm(old.directory, { recursive: true, force: true });
  lanes += 1;
  played = 0;
  lane = await Lane.start({ ...settings, directory: join(settings.directory, `lane-${process.pid}-${lanes}`) });
  return lane;
}

async function playJob({ id, alone }: LaneJob): Promise<Verdict> {
  const began = Date.now();
  let verdict: Verdict;
  try {
    const on = lane === undefined || alone || played >= CASES_PER_LANE ? await renew() : lane;
    played += 1;
    verdict = await play(caseNamed(id), on, background);
  } catch (thrown) {
    const violations = [`the case could not be played: ${messageOf(thrown)}`];
    verdict = { id, violations, fell: false, answers: [], tookMs: Date.now() - began };
  }
  if (verdict.violations.length > 0) await renew();
  return verdict;
}

// What a dead sidecar still does here ends in errors that are nobody's.
process.on('unhandledRejection', () => undefined);
process.on('message', (job: LaneJob | 'stop') => {
  if (job === 'stop') {
    void (lane?.stop() ?? Promise.resolve()).catch(() => undefined).then(() => process.exit(0));
    return;
  }
  void playJob(job).then((verdict) => process.send!(verdict));
});
process.on('disconnect', () => process.exit(0));
