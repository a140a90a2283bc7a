/** A long outage of the KV store as its clients see it. */
import { expect, test } from 'vitest';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { clientOf, eventually, idsIn, startSidecar } from '../support/sidecar.ts';

const OUTAGE_MS = 30_000;
const PRODUCERS = 4;
/** Between two XADDs of a producer. */
const PAUSE_MS = 20;
/** That a producer waits for one XADD, on a machine that does other things as well. */
const XADD_MS_MAX = 5_000;

test('30 s without the KV store: XADDs go on, a blocked worker sees empty reads, and then all is there, in order', {
  timeout: 120_000,
}, async () => {
  // What it had it forgets.
  const kv = await startKv(kvKinds[0]!);
  const database = await startTestPostgres();
  const sidecar = await startSidecar({ kvPort: kv.port, databaseUrl: database.url, holdMs: 1000 });
  const client = sidecar.client();
  await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
  await client.xgroup('CREATE', 's', 'patient', '0');
  // Connected before: the sidecar of this test has nothing that answers the INFO of a new client meanwhile.
  const other = sidecar.client();
  await other.ping();

  let producing = true;
  // The worker is to be blocked when the KV store goes.
  let paused = false;
  let slowestMs = 0;
  const produced: string[][] = Array.from({ length: PRODUCERS }, () => []);
  const producers = produced.map(async (own, at) => {
    const producer = sidecar.client();
    while (producing) {
      if (paused) {
        await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
        continue;
      }
      const began = performance.now();
      own.push((await producer.xadd('s', '*', 'producer', String(at), 'n', String(own.length)))!);
      slowestMs = Math.max(slowestMs, performance.now() - began);
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    }
  });
  const count = () => produced.reduce((sum, own) => sum + own.length, 0);

  const delivered: string[] = [];
  let emptyReads = 0;
  let working = true;
  const worker = (async () => {
    const own = sidecar.client();
    while (working) {
      const ids = idsIn(await own.xreadgroup('GROUP', 'g', 'c', 'BLOCK', 500, 'STREAMS', 's', '>'));
      if (ids.length === 0) emptyReads += 1;
      delivered.push(...ids);
      if (ids.length > 0) await own.xack('s', 'g', ...ids);
    }
  })();
  await eventually('events flow', () => delivered.length > 50);

  paused = true;
  await eventually('the worker has read all', () => delivered.length === count());
  const emptyAtFirst = emptyReads;
  await eventually('the worker is blocked', () => emptyReads > emptyAtFirst);
  await kv.kill9();
  await eventually('down', () => sidecar.recovery.gate.state === 'down');
  paused = false;
  const [before, emptyBefore] = [count(), emptyReads];
  const patient = other.xreadgroup('GROUP', 'patient', 'c', 'BLOCK', 0, 'STREAMS', 's', '>');
  await new Promise((resolve) => setTimeout(resolve, OUTAGE_MS));
  expect(count() - before).toBeGreaterThan(PRODUCERS * 100);
  expect(emptyReads - emptyBefore).toBeGreaterThan(OUTAGE_MS / 1000);
  expect(delivered).toHaveLength(before);

  await kv.restart();
  await eventually('all is well', () => sidecar.recovery.status().troubled.length === 0, 30_000);
  const whileAway = count();
  await eventually('producers go on', () => count() > whileAway + PRODUCERS, 20_000);
  producing = false;
  await Promise.all(producers);
  await eventually('all is delivered', () => new Set(delivered).size >= count(), 30_000);
  working = false;
  await worker;

  expect(slowestMs).toBeLessThan(XADD_MS_MAX);
  const entries = await clientOf(kv.port).xrange('s', '-', '+');
  for (const [at, own] of produced.entries()) {
    const theirs = entries.filter(([, fields]) => fields[1] === String(at));
    expect(theirs.map(([id]) => id)).toEqual(own);
    expect(theirs.map(([, fields]) => Number(fields[3]))).toEqual(own.map((_, n) => n));
    expect([...new Set(delivered)].filter((id) => own.includes(id))).toEqual(own);
  }
  expect(entries).toHaveLength(count());
  expect(idsIn(await patient)[0]).toBe(entries[0]![0]);
});
