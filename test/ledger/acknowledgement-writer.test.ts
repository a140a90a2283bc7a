import pg from 'pg';
import pino from 'pino';
import { expect, test } from 'vitest';
import { openLedger } from '../../src/ledger/ledger.ts';
import { startTestPostgres } from '../support/servers.ts';

const COMMIT_TIMEOUT_MS = 700;
const WAITERS = 20;

test('a Postgres that does not answer fails all that wait for it at once, and nothing recorded is forgotten', async () => {
  const { url } = await startTestPostgres();
  const ledger = await openLedger({
    databaseUrl: url,
    name: 'test',
    log: pino({ level: 'silent' }),
    limits: { commitTimeoutMs: COMMIT_TIMEOUT_MS },
    acknowledgementFlushMs: 600_000,
  });
  const blocker = new pg.Client(url);
  await blocker.connect();
  try {
    const { rows } = await ledger.pool.query<{ stream_id: string; group_id: string }>(
      `WITH s AS (INSERT INTO holdfast.stream (database, name) VALUES (0, 's') RETURNING stream_id)
       INSERT INTO holdfast.consumer_group (stream_id, name, checkpoint_id, last_delivered_id)
       SELECT stream_id, 'g', decode(repeat('00', 16), 'hex'), decode(repeat('00', 16), 'hex') FROM s
       RETURNING stream_id, group_id`,
    );
    await ledger.streams.reload();
    const stream = ledger.streams.find(0, Buffer.from('s'))!;
    const group = { ...[...stream.groups.values()][0]!, groupId: Number(rows[0]!.group_id) };
    const record = (sequence: number) => {
      const id = Buffer.alloc(16);
      id.writeBigUInt64BE(BigInt(sequence), 8);
      ledger.acknowledgements.record(stream, group, stream.epoch, [id]);
      return ledger.acknowledgements.flush();
    };

    await blocker.query('BEGIN; LOCK TABLE holdfast.acknowledgement');
    const began = performance.now();
    await expect(record(1)).rejects.toThrow();
    const oneMs = performance.now() - began;
    const outcomes = await Promise.allSettled(Array.from({ length: WAITERS }, (_, n) => record(n + 2)));
    expect(outcomes.map(({ status }) => status)).toEqual(outcomes.map(() => 'rejected'));
    // Two flushes at most: the one that took the first record, and the one that all others share.
    expect(performance.now() - began - oneMs).toBeLessThan((oneMs * WAITERS) / 2);

    await blocker.query('ROLLBACK');
    await ledger.acknowledgements.flush();
    const { rows: written } = await ledger.pool.query<{ ids: string }>(
      'SELECT sum(length(ids) / 16)::text AS ids FROM holdfast.acknowledgement',
    );
    expect(written[0]!.ids).toBe(String(WAITERS + 1));
  } finally {
    await blocker.end();
    await ledger.close();
  }
});
