/** A stream for each device, room or job is many streams: what concerns all of them is done in parts, each of bounded size. */
import { describe, expect, test } from 'vitest';
import { kvKinds, startKv } from '../support/servers.ts';
import { type Sidecar, startAnew } from '../support/sidecar.ts';

/** More than Postgres has room for in its table of locks. */
const STREAMS = 20_000;
const NO_LOOKS = { lookIntervalMs: 3_600_000 };

/** Streams of one entry each that both have, as if they had been written and compared one by one. */
async function makeStreams({ ledger }: Sidecar, direct: { eval(...args: unknown[]): Promise<unknown> }): Promise<void> {
  await direct.eval(`for n = 1, ARGV[1] do redis.call('XADD', 's' .. n, '1-1', 'n', n) end`, 0, STREAMS);
  await ledger.pool.query(
    `WITH made AS (
       INSERT INTO holdfast.stream (database, name, present) SELECT 0, ('s' || n)::bytea, true FROM generate_series(1, $1) AS n
       RETURNING stream_id
     ), added AS (
       INSERT INTO holdfast.stream_progress (stream_id, slot, added, last_id)
       SELECT stream_id, 0, 1, int8send(1) || int8send(1) FROM made
     )
     INSERT INTO holdfast.entry (part, stream_id, id, epoch, committed_at, fields)
     SELECT 1, stream_id, int8send(1) || int8send(1), 1, clock_timestamp() - interval '1 minute', '' FROM made`,
    [STREAMS],
  );
  await ledger.streams.reload();
}

describe.each(kvKinds)('with %s', (kind) => {
  test(`FLUSHALL with ${STREAMS} streams ends them all, and nothing comes back`, async () => {
    const kv = await startKv(kind);
    const { sidecar, client, direct } = await startAnew(kv.port, NO_LOOKS);
    await makeStreams(sidecar, direct as never);
    expect(sidecar.ledger.streams.size).toBe(STREAMS);
    // Two of them at once share the streams.
    expect(await Promise.all([client.flushall(), sidecar.client().flushall()])).toEqual(['OK', 'OK']);
    expect(sidecar.ledger.streams.size).toBe(0);
    const { rows } = await sidecar.ledger.pool.query(
      `SELECT count(*) FILTER (WHERE ended_by = 'flushall')::integer AS ended, count(*)::integer AS streams,
              (SELECT count(*) FROM holdfast.intention)::integer AS intentions FROM holdfast.stream`,
    );
    expect(rows).toEqual([{ ended: STREAMS, streams: STREAMS, intentions: 0 }]);
    await sidecar.recovery.look();
    expect(await direct.keys('*')).toEqual(['holdfast:epoch']);
    expect(sidecar.recovery.status()).toMatchObject({ state: 'open', lossesTotal: 0, troubled: [] });
    // What is added from then on belongs to new streams.
    const id = await client.xadd('s1', '*', 'n', 'again');
    await direct.flushall();
    await sidecar.recovery.look();
    expect((await client.xrange('s1', '-', '+')).map(([own]) => own)).toEqual([id]);
  }, 60_000);

  test('a part that finds a stream in trouble cancels those before it', async () => {
    const kv = await startKv(kind);
    const { sidecar, client, direct } = await startAnew(kv.port, { ...NO_LOOKS, holdMs: 1000 });
    await makeStreams(sidecar, direct as never);
    const last = sidecar.ledger.streams.find(0, Buffer.from(`s${STREAMS}`))!;
    await sidecar.ledger.pool.query(`UPDATE holdfast.stream SET mode = 'restoring' WHERE stream_id = $1`, [
      last.streamId,
    ]);
    await expect(client.flushall()).rejects.toThrow(/^RECOVERING/);
    expect(await direct.dbsize()).toBe(STREAMS + 1);
    const { rows } = await sidecar.ledger.pool.query('SELECT FROM holdfast.intention');
    expect(rows).toEqual([]);
  }, 60_000);
});
