/**
 * `npm test`: from a fresh clone to all tests run, against Redis and, where the platform has it, Valkey. Arguments behind
 * `--` go to vitest.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { buildIfStale } from './build.mjs';
import { installDependencies } from './dependencies.mjs';
import { commandToInstall, installServer, installTestTools, versionOf } from './kv-servers.mjs';
import { giveUp, ROOT, requireNode, run, say } from './project.mjs';

/** The versions that the promises are made for. */
const WANTED_MAJOR = { redis: '7', valkey: '8' };

/** More than these are no accident. */
const FILES_RUN_AGAIN_MAX = 3;

async function findServers() {
  const found = [];
  for (const kind of ['redis', 'valkey']) {
    const version = versionOf(`${kind}-server`) ?? (await installServer(kind));
    if (version === undefined) say(`${kind}-server not found; skipping its tests`);
    else if (version.split('.', 1)[0] !== WANTED_MAJOR[kind]) {
      say(`the tests are meant for ${kind} ${WANTED_MAJOR[kind]}, this is ${version}`);
    }
    if (version !== undefined) found.push(`${kind} ${version}`);
  }
  if (found.length === 0) giveUp(`the tests need a redis-server or valkey-server: ${commandToInstall()}`);
  say(`testing against ${found.join(' and ')}`);
}

/** `tests`: what the JSON report says, with the names of the tests that failed, by file; `undefined` where there is none. */
async function runVitest(args) {
  const directory = mkdtempSync(join(tmpdir(), 'holdfast-report-'));
  const report = join(directory, 'report.json');
  try {
    const vitest = join(ROOT, 'node_modules', 'vitest', 'vitest.mjs');
    const options = ['run', '--config', 'test/vitest.config.ts', '--reporter=default', '--reporter=json'];
    const code = await run(process.execPath, [vitest, ...options, `--outputFile.json=${report}`, ...args]);
    return { code, tests: readReport(report) };
  } catch {
    return { code: 1, tests: undefined };
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

function readReport(file) {
  const { numPassedTests, numFailedTests, numPendingTests, testResults } = JSON.parse(readFileSync(file, 'utf8'));
  const failures = testResults
    .filter(({ status }) => status === 'failed')
    .map(({ name, assertionResults }) => ({
      file: relative(ROOT, name),
      tests: assertionResults.filter(({ status }) => status === 'failed').map(({ fullName }) => fullName),
    }));
  return { passed: numPassedTests, failed: numFailedTests, skipped: numPendingTests, failures };
}

/**
 * Tests kill servers and wait for what comes of it: on a machine that is busy with other things one may fail that would
 * not by itself. Files with failures are run once more, alone; what passes then is named, so that it is looked into.
 */
async function runAgain({ failures }) {
  say(`running again, one at a time: ${failures.map(({ file }) => file).join(' ')}`);
  const again = await runVitest(['--maxWorkers=1', ...failures.map(({ file }) => file)]);
  const still = new Set(again.tests?.failures.flatMap(({ tests }) => tests));
  for (const { file, tests } of failures) {
    for (const test of tests)
      if (!still.has(test)) say(`unstable: failed, and passed when run again: ${file}: ${test}`);
  }
  return again;
}

requireNode();
await findServers();
for (const name of await installTestTools()) say(`${name} not found; skipping its tests`);
await installDependencies();
await buildIfStale();
let { code, tests } = await runVitest(process.argv.slice(2));
if (tests === undefined) giveUp('vitest did not come to its end');
process.stdout.write(`tests: ${tests.passed} passed, ${tests.failed} failed, ${tests.skipped} skipped\n`);
if (tests.failures.length > 0 && tests.failures.length <= FILES_RUN_AGAIN_MAX)
  ({ code, tests } = await runAgain(tests));
process.exitCode = tests === undefined || tests.passed === 0 ? 1 : code;
