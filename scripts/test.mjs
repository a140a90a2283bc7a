/**
 * `npm test`: from a fresh clone to all tests run, against Redis and, where the platform has it, Valkey. Arguments behind
 * `--` go to vitest.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buildIfStale } from './build.mjs';
import { installDependencies } from './dependencies.mjs';
import { commandToInstall, installServer, versionOf } from './kv-servers.mjs';
import { giveUp, ROOT, requireNode, run, say } from './project.mjs';

/** The versions that the promises are made for. */
const WANTED_MAJOR = { redis: '7', valkey: '8' };

async function findServers() {
  const found = [];
  for (const kind of ['redis', 'valkey']) {
    const version = versionOf(`${kind}-server`) ?? (await installServer(kind));
    if (version === undefined) say(`no ${kind}-server is to be had here: its tests are left out`);
    else if (version.split('.', 1)[0] !== WANTED_MAJOR[kind]) {
      say(`the tests are meant for ${kind} ${WANTED_MAJOR[kind]}, this is ${version}`);
    }
    if (version !== undefined) found.push(`${kind} ${version}`);
  }
  if (found.length === 0) giveUp(`the tests need a redis-server or valkey-server: ${commandToInstall()}`);
  say(`testing against ${found.join(' and ')}`);
}

async function runVitest(args) {
  const directory = mkdtempSync(join(tmpdir(), 'holdfast-report-'));
  const report = join(directory, 'report.json');
  try {
    const vitest = join(ROOT, 'node_modules', 'vitest', 'vitest.mjs');
    const options = ['run', '--config', 'test/vitest.config.ts', '--reporter=default', '--reporter=json'];
    const code = await run(process.execPath, [vitest, ...options, `--outputFile.json=${report}`, ...args]);
    return { code, counts: JSON.parse(readFileSync(report, 'utf8')) };
  } catch {
    return { code: 1, counts: undefined };
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

requireNode();
await findServers();
await installDependencies();
await buildIfStale();
const { code, counts } = await runVitest(process.argv.slice(2));
if (counts === undefined) giveUp('vitest did not come to its end');
const { numPassedTests, numFailedTests, numPendingTests } = counts;
process.stdout.write(`tests: ${numPassedTests} passed, ${numFailedTests} failed, ${numPendingTests} skipped\n`);
process.exitCode = numPassedTests === 0 ? 1 : code;
