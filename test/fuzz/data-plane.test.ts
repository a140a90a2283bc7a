/** Short forms of `npm run fuzz`, against the data plane alone: what differs here is the proxy's own. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { connectRaw } from '../support/raw-client.ts';
import { seed } from '../support/seed.ts';
import { describeCommandMismatch, fuzzCommands } from './command-differential.ts';
import { readCommandDocs } from './command-generator.ts';
import { runCrossTalk } from './cross-talk.ts';
import { describeMismatch, fuzzFrames } from './differential.ts';
import { footprint, runLifecycles } from './lifecycles.ts';
import { startTwins, type Twins } from './twins.ts';

describe.each(['transaction', 'session'] as const)('pooling %s', (pooling) => {
  let twins: Twins;

  beforeAll(async () => {
    twins = await startTwins({ server: 'redis-server', front: 'data-plane', pooling });
  });

  afterAll(async () => {
    await twins.stop();
  });

  test('whole and broken frames are answered with the bytes of a direct server', async () => {
    const report = await fuzzFrames({ ...twins, seed, frames: 10_000, concurrency: 8, mismatchesMax: 3 });
    expect(report.mismatches.map(describeMismatch)).toEqual([]);
  });

  test('documented commands are answered as by a direct server', async () => {
    const client = await connectRaw(twins.directPort);
    const commands = await readCommandDocs(client);
    await client.close();
    const report = await fuzzCommands({ ...twins, seed, requests: 4000, commands, mismatchesMax: 3 });
    expect(report.mismatches.map(describeCommandMismatch)).toEqual([]);
  });

  test('every client gets its own replies, whatever the others do', async () => {
    const report = await runCrossTalk({ port: twins.throughPort, clients: 60, seconds: 3, seed });
    expect(report.violations).toEqual([]);
    expect(report.actions).toBeGreaterThan(100);
  });

  test('clients that vanish in every state leave nothing behind', async () => {
    const settle = () => new Promise((resolve) => setTimeout(resolve, 1500));
    await runLifecycles(twins.throughPort, 300, 50, seed);
    await settle();
    const before = await footprint(twins.front.pid, twins.behind.port);
    await runLifecycles(twins.throughPort, 1000, 100, seed + 1);
    await settle();
    const after = await footprint(twins.front.pid, twins.behind.port);
    expect(after.descriptors - before.descriptors).toBeLessThanOrEqual(10);
    expect(after.upstreamClients - before.upstreamClients).toBeLessThanOrEqual(10);
  });
});
