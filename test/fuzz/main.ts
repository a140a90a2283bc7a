/**
 * `npm run fuzz`: the long forms. Prints the seed, what was done, and every difference with the seed that replays it.
 * Exit code 1 when there was one.
 */
import { parseArgs } from 'node:util';
import type { KvBinary } from '../../bench/processes.ts';
import { DEFAULT_LIMITS } from '../../src/proxy/limits.ts';
import { connectRaw } from '../support/raw-client.ts';
import { describeCommandMismatch, fuzzCommands } from './command-differential.ts';
import { readCommandDocs } from './command-generator.ts';
import { runCrossTalk } from './cross-talk.ts';
import { describeMismatch, fuzzFrames } from './differential.ts';
import { footprint, runLifecycles } from './lifecycles.ts';
import { idleClients, openAtOnce, stalledReader } from './memory.ts';
import { fuzzScanner } from './scanner-frames.ts';
import { runIsolation } from './scope-isolation.ts';
import { MUTATIONS, runMutation } from './scope-mutations.ts';
import { startTwins, type TwinOptions, type Twins } from './twins.ts';

const USAGE = `usage: npm run fuzz -- [options]; each part runs when it is asked for
  --frames N        request frames, whole and broken, compared byte for byte with a direct server
  --scanner N       mutated request frames, to the scanner alone in this process, compared with redis-parser
  --commands N      requests of every documented command, compared with a direct server
  --cross-talk S    seconds of clients that verify that each reply is their own
  --clients N       how many of those (default: 200)
  --lifecycles N    connections that come and vanish in every state
  --open N          connections that open all at once, each with a PING
  --idle N          idle clients, and what they cost
  --stall           a reader that stalls with 1 GB owed to it
  --seed S          (default: from the clock)
  --server NAME     redis-server or valkey-server (default: redis-server)
  --pooling MODE    transaction or session (default: transaction)
  --front NAME      holdfast, data-plane, or none to try the tests themselves (default: holdfast)
  --mismatches N    stops after so many (default: 20)
`;
const MEGABYTE = 1024 * 1024;

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

function megabytes(bytes: number): string {
  return `${Math.round(bytes / MEGABYTE)} MB`;
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      frames: { type: 'string' },
      scanner: { type: 'string' },
      commands: { type: 'string' },
      'cross-talk': { type: 'string' },
      clients: { type: 'string', default: '200' },
      lifecycles: { type: 'string' },
      open: { type: 'string' },
      idle: { type: 'string' },
      stall: { type: 'boolean', default: false },
      scope: { type: 'string' },
      'scope-leaks': { type: 'boolean', default: false },
      seed: { type: 'string' },
      server: { type: 'string', default: 'redis-server' },
      pooling: { type: 'string', default: 'transaction' },
      front: { type: 'string', default: 'holdfast' },
      mismatches: { type: 'string', default: '20' },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) {
    process.stdout.write(USAGE);
    return 0;
  }
  const seed = Number(values.seed ?? Date.now() % 1_000_000_000);
  say(`seed ${seed}`);
  const server = values.server as KvBinary;
  if (values.scanner !== undefined) return scannerFrames(seed, Number(values.scanner)) ? 0 : 1;
  if (values['scope-leaks']) return (await plantedLeaks(server, seed)) ? 0 : 1;
  if (values.scope !== undefined) return (await isolation(server, seed, Number(values.scope))) ? 0 : 1;
  const twins = await startTwins({
    server,
    front: values.front as TwinOptions['front'],
    pooling: values.pooling as TwinOptions['pooling'],
  });
  const mismatchesMax = Number(values.mismatches);
  let failed = 0;
  let passed = 0;
  const settle = (ok: boolean) => {
    if (ok) passed += 1;
    else failed += 1;
  };
  try {
    if (values.frames !== undefined) settle(await frames(twins, seed, Number(values.frames), mismatchesMax));
    if (values.commands !== undefined) settle(await commands(twins, seed, Number(values.commands), mismatchesMax));
    if (values['cross-talk'] !== undefined) {
      const seconds = Number(values['cross-talk']);
      const clients = Number(values.clients);
      const report = await runCrossTalk({ port: twins.throughPort, clients, seconds, seed });
      say(`${report.actions} actions on ${report.connections} connections, ${report.violations.length} violations`);
      for (const violation of report.violations) say(`  ${violation}`);
      settle(report.violations.length === 0);
    }
    if (values.lifecycles !== undefined) settle(await lifecycles(twins, seed, Number(values.lifecycles)));
    if (values.open !== undefined) {
      const clients = Number(values.open);
      const { answered, milliseconds } = await openAtOnce(twins.throughPort, clients);
      say(`${clients} connections opened at once: ${answered} answered in ${Math.round(milliseconds)} ms`);
      settle(answered === clients);
    }
    if (values.idle !== undefined) {
      const cost = await idleClients(twins.throughPort, twins.front.pid, Number(values.idle));
      say(
        `${cost.clients} idle clients: ${megabytes(cost.beforeBytes)} before, ${megabytes(cost.afterBytes)} with them`,
      );
      settle(cost.afterBytes < 200 * MEGABYTE);
    }
    if (values.stall) settle(await stall(twins));
    if (!twins.front.running()) {
      say(`the front ended:\n${twins.front.output()}`);
      failed += 1;
    }
  } finally {
    await twins.stop();
  }
  say(`${passed} passed, ${failed} failed`);
  return failed === 0 ? 0 : 1;
}

async function frames(twins: Twins, seed: number, count: number, mismatchesMax: number): Promise<boolean> {
  const startedAt = performance.now();
  let said = 0;
  const report = await fuzzFrames({
    ...twins,
    seed,
    frames: count,
    concurrency: 12,
    mismatchesMax,
    onProgress: (done) => {
      if (done - said < 500_000) return;
      said = done;
      say(`  ${done} frames, ${Math.round(done / ((performance.now() - startedAt) / 1000))} a second`);
    },
  });
  say(`${report.frames} frames in ${report.payloads} connections, ${report.mismatches.length} answered otherwise`);
  for (const mismatch of report.mismatches) say(describeMismatch(mismatch));
  return report.mismatches.length === 0;
}

function scannerFrames(seed: number, count: number): boolean {
  const startedAt = performance.now();
  let said = 0;
  const report = fuzzScanner({
    seed,
    frames: count,
    failuresMax: 10,
    onProgress: (done) => {
      if (done - said < 500_000) return;
      said = done;
      say(`  ${done} frames, ${Math.round(done / ((performance.now() - startedAt) / 1000))} a second`);
    },
  });
  for (const failure of report.failures) say(failure);
  say(
    `${report.frames} frames in ${report.mutants} mutants (${report.malformed} malformed) in the scanner alone, ` +
      `${report.failures.length} read otherwise`,
  );
  return report.failures.length === 0;
}

async function commands(twins: Twins, seed: number, requests: number, mismatchesMax: number): Promise<boolean> {
  const client = await connectRaw(twins.directPort);
  const documented = await readCommandDocs(client);
  await client.close();
  const report = await fuzzCommands({ ...twins, seed, requests, commands: documented, mismatchesMax });
  say(`${report.requests} requests of ${report.commands} commands, ${report.mismatches.length} answered otherwise`);
  for (const mismatch of report.mismatches) say(describeCommandMismatch(mismatch));
  return report.mismatches.length === 0;
}

async function lifecycles(twins: Twins, seed: number, count: number): Promise<boolean> {
  // The first thousand let pools and heaps grow to their size.
  await runLifecycles(twins.throughPort, 1000, 100, seed);
  const look = async () => {
    await new Promise((resolve) => setTimeout(resolve, 2000));
    return footprint(twins.front.pid, twins.behind.port);
  };
  const before = await look();
  await runLifecycles(twins.throughPort, count, 200, seed + 1);
  const after = await look();
  for (const [when, each] of Object.entries({ before, after })) {
    say(
      `  ${when}: ${megabytes(each.rssBytes)}, ${each.descriptors} descriptors, ${each.upstreamClients} at the KV server`,
    );
  }
  const grown = after.descriptors - before.descriptors > 5 || after.upstreamClients - before.upstreamClients > 5;
  say(`${count} lifecycles, ${grown ? 'something stayed' : 'nothing stayed'}`);
  return !grown;
}

async function stall(twins: Twins): Promise<boolean> {
  const options = { valueBytes: 256 * MEGABYTE, times: 4, seconds: 8 };
  const cost = await stalledReader(twins.throughPort, twins.front.pid, twins.behind.port, options);
  say(
    `stalled reader with 1 GB owed: ${megabytes(cost.beforeBytes)} before, ${megabytes(cost.peakBytes)} at most, ` +
      `${cost.closed ? 'closed' : 'kept'}; slowest PING of another ${Math.round(cost.slowestPingMs)} ms`,
  );
  return cost.closed && cost.peakBytes - cost.beforeBytes < DEFAULT_LIMITS.outputBytesMax + 50 * MEGABYTE;
}

async function isolation(server: KvBinary, seed: number, commands: number): Promise<boolean> {
  const startedAt = performance.now();
  const report = await runIsolation({
    server,
    seed,
    commands,
    violationsMax: 10,
    onProgress: (done) =>
      say(`  ${done} commands, ${Math.round(done / ((performance.now() - startedAt) / 1000))} a second`),
  });
  for (const [kind, count] of report.errorKinds) say(`  ${count} times ${kind}`);
  for (const violation of report.violations) say(`violation: ${violation}`);
  say(
    `${report.commands} commands on ${report.connections} connections of ${server}, ${report.replies} replies ` +
      `(${((100 * report.errors) / report.replies).toFixed(1)} % errors), ${report.pushes} pushes, ` +
      `${report.looks} looks at ${report.keysSeen} keys: ${report.violations.length} violations`,
  );
  return report.violations.length === 0;
}

async function plantedLeaks(server: KvBinary, seed: number): Promise<boolean> {
  let missed = 0;
  for (const mutation of [undefined, ...MUTATIONS]) {
    const report = await runMutation(mutation, { server, seed, commands: 100_000 });
    const found = report.violations.length > 0;
    if (found !== (mutation !== undefined)) missed += 1;
    const verdict = found
      ? `found after ${report.commands} commands: ${report.violations[0]!.slice(0, 160)}`
      : 'nothing found';
    say(`${mutation?.name ?? 'nothing planted'}: ${verdict}`);
  }
  say(missed === 0 ? 'every planted leak was found' : `${missed} of ${MUTATIONS.length + 1} were judged wrongly`);
  return missed === 0;
}

main().then(
  (code) => process.exit(code),
  (error: unknown) => {
    process.stderr.write(`${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`);
    process.exit(2);
  },
);
