/** Sidecars as an operator runs them: one stands still or dies while it holds leases. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { replyValue } from '../../src/resp/reply.ts';
import { type Sidecar, serve } from '../support/program.ts';
import type { RawClient } from '../support/raw-client.ts';
import { kvKinds, startKv, startTestPostgres, temporaryDirectory } from '../support/servers.ts';
import { eventually } from '../support/sidecar.ts';
import { rawClient } from './cache-sidecar.ts';

const KEY = 'v1/org/fleet/v1/git-data/x';
let one: Sidecar;
let two: Sidecar;

let started: Promise<void> | undefined;
/** Within the first test: it polls. */
const startBoth = (): Promise<void> => (started ??= start());

async function start(): Promise<void> {
  const kv = await startKv(kvKinds[0]!);
  const { url } = await startTestPostgres();
  const directory = await temporaryDirectory();
  const config = join(directory, 'holdfast.yaml');
  const leases = [{ pattern: 'v1/*', waitMs: 60_000, leaseMs: 60_000 }];
  await writeFile(
    config,
    JSON.stringify({ kv: { url: `redis://127.0.0.1:${kv.port}` }, ledger: { database: url }, leases }),
  );
  one = await serve(['--config', config, '--data-dir', join(directory, 'one')]);
  two = await serve(['--config', config, '--data-dir', join(directory, 'two')]);
}

const waiting = async (): Promise<number> => (await two.status()).cache.leases?.waiting ?? 0;
const heldBack = async (): Promise<number> => (await one.status()).cache.leases?.waiting ?? 0;
const get = async (client: RawClient, key: string): Promise<unknown> => replyValue(await client.send('GET', key));

it("gives the lease to another sidecar where the holder's stands still, and fences what it writes late", {
  timeout: 120_000,
}, async () => {
  await startBoth();
  const key = `${KEY}-still`;
  const holder = await rawClient(one.port);
  expect(await get(holder, key)).toBeNull();
  const next = await rawClient(two.port);
  const waits = get(next, key);
  await eventually('it waits', async () => (await waiting()) === 1);
  one.child.kill('SIGSTOP');
  try {
    expect(await waits).toBeNull();
    expect(replyValue(await next.send('GETORSET', key, 'fresh'))).toBe('fresh');
  } finally {
    one.child.kill('SIGCONT');
  }
  expect(replyValue(await holder.send('GETORSET', key, 'late'))).toBe('fresh');
});

it('fences what was sent to a sidecar that stood still, before it knows that its lease is gone', {
  timeout: 120_000,
}, async () => {
  await startBoth();
  const key = `${KEY}-sent`;
  const holder = await rawClient(one.port);
  expect(await get(holder, key)).toBeNull();
  const next = await rawClient(two.port);
  const waits = get(next, key);
  await eventually('it waits', async () => (await waiting()) === 1);
  let late: Promise<unknown>;
  one.child.kill('SIGSTOP');
  try {
    late = holder.send('GETORSET', key, 'late').then(replyValue);
    expect(await waits).toBeNull();
  } finally {
    one.child.kill('SIGCONT');
  }
  await eventually('it waits for the value of the next', async () => (await heldBack()) === 1);
  expect(replyValue(await next.send('GETORSET', key, 'fresh'))).toBe('fresh');
  expect(await late).toBe('fresh');
});

it('gives the leases of a sidecar that was killed to another one', { timeout: 60_000 }, async () => {
  await startBoth();
  const key = `${KEY}-killed`;
  expect(await get(await rawClient(one.port), key)).toBeNull();
  const next = await rawClient(two.port);
  const waits = get(next, key);
  await eventually('it waits', async () => (await waiting()) === 1);
  one.child.kill('SIGKILL');
  expect(await waits).toBeNull();
});
