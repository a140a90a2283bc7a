/**
 * `npm run chaos -- --minutes N --seed S`: one run from the command line. Exit code 1 when a promise was broken.
 */
import { rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { messageOf } from '../../src/errors.ts';
import { runCampaign } from './campaign.ts';
import { type ChaosOptions, type ChaosResult, runChaos } from './chaos-run.ts';
import { type Edit, editedTree, isCaught, MUTATIONS, type Mutation, mutationNamed } from './mutations.ts';
import { NEMESIS_NAMES, type NemesisName } from './nemeses.ts';
import { type Proof, renderProofs, renderReport } from './report.ts';
import { planRun } from './schedule.ts';

const USAGE = `usage: npm run chaos -- [options]
  --minutes N        length of the run (default 5)
  --seed S           what the faults are drawn from (default: the clock)
  --kv redis|valkey  (default valkey)
  --sidecars N       1 to 3; 0 runs the clients against the KV store alone (default 1)
  --nemeses A,B      only these; a name may end in * (default: all)
  --rate N           XADDs per second of all producers (default 400)
  --root DIRECTORY   source tree to run the sidecars from (default: this one)
  --campaign N       N runs one after the other, over both servers and 1 and 3 sidecars, and one table
  --directory PATH   where a campaign keeps its reports; those that are there count as well
  --mutations        copies of Holdfast without one of its safeguards each, under faults that must show it, and Holdfast under the same
  --mutation NAME    only this one of them
  --report FILE      JSON result; the table goes to standard output
  --keep             keep logs and history of a run that passed, too
nemeses: ${NEMESIS_NAMES.join(', ')}`;

function fail(message: string): never {
  process.stderr.write(`${message}\n${USAGE}\n`);
  process.exit(2);
}

function numberOf(name: string, text: string, min: number, max: number): number {
  const value = Number(text);
  if (!(value >= min && value <= max)) fail(`--${name} must be a number from ${min} to ${max}`);
  return value;
}

function nemesesOf(text: string): NemesisName[] {
  const patterns = text.split(',').filter((pattern) => pattern !== '');
  return patterns.flatMap((pattern) => {
    const names = NEMESIS_NAMES.filter((name) =>
      pattern.endsWith('*') ? name.startsWith(pattern.slice(0, -1)) : name === pattern,
    );
    return names.length > 0 ? names : fail(`no nemesis is called ${pattern}`);
  });
}

function readOptions() {
  const { values } = parseArgs({
    options: {
      minutes: { type: 'string', default: '5' },
      seed: { type: 'string', default: String(Date.now() % 1_000_000) },
      kv: { type: 'string', default: 'valkey' },
      sidecars: { type: 'string', default: '1' },
      nemeses: { type: 'string', default: '*' },
      rate: { type: 'string', default: '400' },
      root: { type: 'string', default: fileURLToPath(new URL('../../', import.meta.url)) },
      campaign: { type: 'string' },
      directory: { type: 'string', default: join(tmpdir(), 'holdfast-chaos-campaign') },
      mutations: { type: 'boolean', default: false },
      mutation: { type: 'string' },
      report: { type: 'string' },
      keep: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  });
  if (values.help) fail('');
  return values;
}

let values: ReturnType<typeof readOptions>;
try {
  values = readOptions();
} catch (error) {
  fail(messageOf(error));
}
if (values.kv !== 'redis' && values.kv !== 'valkey') fail('--kv is redis or valkey');

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

const { seed, kv, keep } = values;
const ratePerSecond = numberOf('rate', values.rate, 1, 100_000);
const common = { seed, kv, keep, ratePerSecond, drainStillMs: 40_000, say } as const;

/** Runs, and leaves the report beside logs and history where these are kept. */
async function run(options: ChaosOptions): Promise<ChaosResult> {
  const result = await runChaos(options);
  if (result.directory !== undefined)
    await writeFile(join(result.directory, 'report.txt'), `${renderReport(result)}\n`);
  return result;
}

/** Under its plan, Holdfast must pass and the mutated copy must be found out. */
async function prove(mutation: Mutation): Promise<Proof> {
  const { name, without, plan, sidecars, widened = [], edits } = mutation;
  async function runEdited(what: string, treeEdits: readonly Edit[]): Promise<ChaosResult> {
    say(`\n${name}: ${what}`);
    const root = await editedTree(values.root, mutation, treeEdits);
    try {
      return await run({ ...common, drainStillMs: 15_000, plan, sidecars, root });
    } finally {
      await rm(root, { recursive: true, force: true });
    }
  }
  const control = await runEdited('Holdfast as it is', widened);
  for (const violation of control.violations) say(`  ${violation}`);
  const mutated = await runEdited(`without ${without}`, [...widened, ...edits]);
  for (const violation of mutated.violations) say(`  ${violation}`);
  if (mutated.directory !== undefined && !keep) await rm(mutated.directory, { recursive: true, force: true });
  const controlPassed = control.violations.length === 0 && !isCaught(mutation, control);
  return { mutation, control, controlPassed, mutated, caught: isCaught(mutation, mutated) };
}

say(`seed ${seed}`);
let passed = true;
if (values.campaign !== undefined) {
  const runs = numberOf('campaign', values.campaign, 0, 1000);
  const { minutes, rate, root, directory } = values;
  passed = await runCampaign({ runs, minutes, rate, root, directory, seed, say });
} else if (values.mutations || values.mutation !== undefined) {
  const wanted = values.mutations ? MUTATIONS : [mutationNamed(values.mutation!)];
  const proofs: Proof[] = [];
  for (const mutation of wanted) proofs.push(await prove(mutation));
  say(`\n${renderProofs(proofs)}`);
  passed = proofs.every((proof) => proof.caught && proof.controlPassed);
} else {
  const durationMs = numberOf('minutes', values.minutes, 0, 24 * 60) * 60_000;
  const sidecars = numberOf('sidecars', values.sidecars, 0, 3);
  const plan = planRun({ seed, durationMs, nemeses: nemesesOf(values.nemeses), sidecars });
  const result = await run({ ...common, sidecars, plan, root: values.root });
  say(`\n${renderReport(result)}`);
  if (values.report !== undefined) await writeFile(values.report, `${JSON.stringify(result, null, 2)}\n`);
  passed = result.violations.length === 0;
}
process.exit(passed ? 0 : 1);
