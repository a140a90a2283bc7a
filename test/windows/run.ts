/**
 * `npm run test:windows`: the matrix, or a part of it. Exit code 1 where a case is red.
 */
import { appendFile, readFile } from 'node:fs/promises';
import { parseArgs } from 'node:util';
import { messageOf } from '../../src/errors.ts';
import { playCases } from './lanes.ts';
import { caseNamed, idOf, matrixOf, shuffled } from './matrix.ts';
import { SUBJECTS } from './subjects.ts';
import { renderSummary, type Told } from './summary.ts';

const USAGE = `usage: npm run test:windows -- [options]
  --minutes N       a random part, for so long (default: all of the matrix)
  --seed S          the order of the cases (default: the clock)
  --case ID,ID      only these; an ID is command/state/form/fault/sender/sidecars
  --only REGEXP     only cases whose ID matches
  --kv redis|valkey (default valkey)
  --jobs N          lanes, each with a KV server of its own (default 4)
  --postgres URL    a Postgres that runs already, as a superuser (default: one of its own)
  --report FILE     a line of JSON for each case, appended; cases that stand there already are left out
  --list            the IDs, and nothing is played
`;

function fail(message: string): never {
  process.stderr.write(`${message}\n${USAGE}`);
  process.exit(2);
}

function readOptions() {
  const { values } = parseArgs({
    options: {
      minutes: { type: 'string' },
      seed: { type: 'string', default: String(Date.now() % 1_000_000) },
      case: { type: 'string' },
      only: { type: 'string', default: '' },
      kv: { type: 'string', default: 'valkey' },
      jobs: { type: 'string', default: '4' },
      postgres: { type: 'string' },
      report: { type: 'string' },
      list: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  });
  if (values.help) fail('');
  return values;
}

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

let values: ReturnType<typeof readOptions>;
try {
  values = readOptions();
} catch (thrown) {
  fail(messageOf(thrown));
}
const { kv, seed } = values;
if (kv !== 'redis' && kv !== 'valkey') fail('--kv is redis or valkey');
const jobs = Number(values.jobs);
if (!Number.isInteger(jobs) || jobs < 1 || jobs > 64) fail('--jobs is a number from 1 to 64');
const minutes = values.minutes === undefined ? Number.POSITIVE_INFINITY : Number(values.minutes);
if (!(minutes > 0)) fail('--minutes is a number above 0');

function wantedIds(): string[] {
  if (values.case !== undefined) return values.case.split(',').map((id) => idOf(caseNamed(id)));
  const only = new RegExp(values.only);
  return shuffled(
    matrixOf(SUBJECTS)
      .map(idOf)
      .filter((id) => only.test(id)),
    seed,
  );
}

const told: Told[] = [];
const known = new Set<string>();
if (values.report !== undefined) {
  const lines = (await readFile(values.report, 'utf8').catch(() => '')).split('\n').filter((line) => line !== '');
  for (const line of lines) known.add((JSON.parse(line) as Told).id);
}
let ids: string[];
try {
  ids = wantedIds().filter((id) => !known.has(id));
} catch (thrown) {
  fail(messageOf(thrown));
}
if (values.list) {
  for (const id of ids) say(id);
  process.exit(0);
}
say(`seed ${seed}: ${ids.length} cases on ${kv}, ${jobs} lanes`);
const began = Date.now();
await playCases({
  ids,
  kv,
  jobs,
  untilMs: began + minutes * 60_000,
  postgresUrl: values.postgres,
  onVerdict(verdict, red) {
    told.push({ ...verdict, red });
    if (red !== 'green') {
      say(`${red === 'again' ? 'RED ' : 'once'} ${verdict.id}`);
      for (const violation of verdict.violations) say(`       ${violation}`);
      say(`       told: ${verdict.answers.join(', ')}`);
    }
    if (values.case !== undefined && red === 'green') say(`ok   ${verdict.id} (${verdict.answers.join(', ')})`);
    if (told.length % 200 === 0) say(`  ${told.length} of ${ids.length}, ${Math.round((Date.now() - began) / 1000)} s`);
    if (values.report !== undefined) {
      appendFile(values.report, `${JSON.stringify({ ...verdict, red })}\n`).catch((thrown) => say(messageOf(thrown)));
    }
  },
});
say(`\n${renderSummary(told, Date.now() - began)}`);
process.exit(told.some(({ red }) => red === 'again') ? 1 : 0);
