import { setTimeout as delay } from 'node:timers/promises';
import type pg from 'pg';
import pino from 'pino';
import { beforeEach, expect, onTestFinished, test } from 'vitest';
import { type Ledger, openLedger } from '../../src/ledger/ledger.ts';
import { StreamRegistry } from '../../src/ledger/stream-registry.ts';
import { startTestPostgres } from '../support/servers.ts';

let ledger: Ledger;

beforeEach(async () => {
  const { url } = await startTestPostgres();
  ledger = await openLedger({ databaseUrl: url, name: 'test', log: pino({ level: 'silent' }) });
  onTestFinished(() => ledger.close());
});

/** The ledger's own pool, but that the first answer about groups is kept back until `release`. */
function slowOnce(pool: pg.Pool): { readonly slow: pg.Pool; readonly held: Promise<void>; release(): void } {
  let release = (): void => undefined;
  const released = new Promise<void>((resolve) => (release = resolve));
  let nowHeld = (): void => undefined;
  const held = new Promise<void>((resolve) => (nowHeld = resolve));
  let first = true;
  const slow = Object.create(pool) as pg.Pool;
  slow.query = (async (text: string, values: unknown[]) => {
    const answer = await pool.query(text, values);
    if (first && text.includes('holdfast.consumer_group')) {
      first = false;
      nowHeld();
      await released;
    }
    return answer;
  }) as typeof pool.query;
  return { slow, held, release };
}

test('an answer that comes late does not bring back what was before', async () => {
  const { streamId } = await ledger.streams.resolve(0, Buffer.from('s'));
  await ledger.pool.query(`UPDATE holdfast.stream SET mode = 'outage'`);
  const { slow, held, release } = slowOnce(ledger.pool);
  const registry = new StreamRegistry(slow);
  const early = registry.refresh(streamId);
  await held;
  await ledger.pool.query(`UPDATE holdfast.stream SET mode = 'normal'`);
  const late = registry.refresh(streamId);
  await Promise.race([late, delay(200)]);
  release();
  await Promise.all([early, late]);
  expect(registry.byId(streamId)?.mode).toBe('normal');
});

test('a stream that another process began is there, and one that it ended is gone, while everything is read again', async () => {
  const { streamId } = await ledger.streams.resolve(0, Buffer.from('old'));
  const { slow, held, release } = slowOnce(ledger.pool);
  const registry = new StreamRegistry(slow);
  const reload = registry.reload();
  await held;
  await ledger.pool.query('SELECT holdfast.end_stream($1, $2)', [streamId, 'del']);
  const [begun, ended] = [registry.resolve(0, Buffer.from('new')), registry.refresh(streamId)];
  await Promise.race([Promise.all([begun, ended]), delay(200)]);
  release();
  await Promise.all([reload, begun, ended]);
  expect(registry.find(0, Buffer.from('new'))).toBe(await begun);
  expect(registry.find(0, Buffer.from('old'))).toBeUndefined();
});
