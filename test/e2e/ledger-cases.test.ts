/** Cases of the ledger that are named nowhere else: each is one that was seen, or that an earlier design got wrong. */
import type { Redis } from 'ioredis';
import { beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import {
  clientOf,
  type Events,
  eventually,
  idsIn,
  looks,
  restored,
  type Sidecar,
  startAnew,
} from '../support/sidecar.ts';

const LOOK_MS = 50;

describe.each(kvKinds)('with %s', (kind) => {
  let kv: KvServer;
  let sidecar: Sidecar;
  let client: Redis;
  let direct: Redis;

  beforeAll(async () => {
    kv = await startKv(kind);
  });

  beforeEach(async () => {
    ({ sidecar, client, direct } = await startAnew(kv.port, { lookIntervalMs: LOOK_MS }));
  });

  /** The KV store is away while `then` runs. */
  async function whileAway(then: () => Promise<unknown>): Promise<void> {
    await kv.kill9();
    await eventually('down', () => sidecar.recovery.gate.state === 'down');
    await then();
    await kv.restart();
    direct = clientOf(kv.port);
    await eventually('open', () => sidecar.recovery.gate.state === 'open');
    await eventually('nothing waits', () => sidecar.recovery.status().troubled.length === 0);
  }

  const read = (...more: (string | number)[]) =>
    client.call('XREADGROUP', 'GROUP', 'g', 'c', ...more, 'STREAMS', 's', '>').then(idsIn);

  test('[16] IDs up to the greatest that there is come back as they were', async () => {
    const ids = ['1-18446744073709551615', '9223372036854775808-0', '18446744073709551615-18446744073709551614'];
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    for (const id of ids) expect(await client.xadd('s', id, 'n', id)).toBe(id);
    expect(await read('COUNT', 2)).toEqual(ids.slice(0, 2));
    expect(await client.xack('s', 'g', ids[0]!)).toBe(1);
    await looks(sidecar);
    await direct.flushall();
    await restored(sidecar);
    expect(await read('BLOCK', 20_000)).toEqual(ids.slice(1));
    // None can be greater than the last.
    await client.xadd('s', '18446744073709551615-18446744073709551615', 'n', 'last');
    await expect(client.xadd('s', '*', 'n', 'more')).rejects.toThrow(/exhausted|equal or smaller/);
  });

  test('a pending entry that was deleted is neither delivered again nor held on to', async () => {
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    const ids: string[] = [];
    for (let n = 0; n < 3; n += 1) ids.push((await client.xadd('s', '*', 'n', String(n)))!);
    await read();
    await client.xdel('s', ids[0]!);
    await looks(sidecar);
    await direct.flushall();
    await restored(sidecar);
    expect(await read('BLOCK', 20_000)).toEqual(ids.slice(1));
    expect(await client.xack('s', 'g', ...ids)).toBe(2);
    await eventually('the checkpoint has passed all', async () => {
      const { rows } = await sidecar.ledger.pool.query<{ checkpoint_id: Buffer }>(
        'SELECT checkpoint_id FROM holdfast.consumer_group WHERE ended_at IS NULL',
      );
      const { checkpoint_id: at } = rows[0]!;
      return `${at.readBigUInt64BE(0)}-${at.readBigUInt64BE(8)}` === ids[2];
    });
  });

  test('an entry that the reconciler takes in before its own commit is one event', async () => {
    await client.xadd('s', '*', 'n', 'first');
    const session = await sidecar.ledger.postgres.connect();
    try {
      // The client's commit waits at the server, and may come before or after the reconciler's.
      await session.query('SELECT pg_advisory_lock(holdfast.lock_key(0))');
      const adding = client.xadd('s', '*', 'n', 'both');
      await eventually('the KV store has it', async () => (await direct.xlen('s')) === 2);
      await eventually('both wait', async () => {
        const { rows } = await session.query('SELECT FROM pg_locks WHERE NOT granted AND database IS NOT NULL');
        return rows.length >= 2;
      });
      await session.query('SELECT pg_advisory_unlock_all()');
      await adding;
    } finally {
      await session.end();
    }
    await looks(sidecar, 5);
    const { rows } = await sidecar.ledger.pool.query('SELECT observed FROM holdfast.entry ORDER BY id');
    expect(rows).toEqual([{ observed: false }, { observed: false }]);
    expect(sidecar.recovery.status().lossesTotal).toBe(0);
  });

  test('XADD inside EXEC while the KV store is away: the transaction fails or is held, and nothing is half done', async () => {
    await client.xadd('s', '*', 'n', 'before');
    let during: unknown;
    await whileAway(async () => {
      during = client
        .multi()
        .xadd('s', '*', 'n', 'in EXEC')
        .set('k', 'v')
        .exec()
        .catch((thrown: Error) => thrown);
    });
    const outcome = (await during) as [Error | null, unknown][] | Error;
    const done = Array.isArray(outcome) && outcome.every(([error]) => error === null);
    const values = (await client.xrange('s', '-', '+')).map(([, [, value]]) => value);
    expect(values).toEqual(done ? ['before', 'in EXEC'] : ['before']);
    expect(await client.get('k')).toBe(done ? 'v' : null);
  });

  test("an outage as its clients see it: producers go on, a blocked worker sees empty reads, then all in the producers' order", async () => {
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    const first = (await client.xadd('s', '*', 'n', 'first'))!;
    expect(await read()).toEqual([first]);
    const producers = [sidecar.client(), sidecar.client()];
    const produced: [string[], string[]] = [[], []];
    const delivered: string[] = [];
    let away = true;
    const consumer = sidecar.client();
    const consuming = (async () => {
      while (away || delivered.length < produced[0].length + produced[1].length) {
        const events = await consumer.xreadgroup('GROUP', 'g', 'c', 'BLOCK', 100, 'STREAMS', 's', '>');
        const ids = idsIn(events);
        delivered.push(...ids);
        if (ids.length > 0) await consumer.xack('s', 'g', ...ids);
      }
    })();
    for (const producer of producers) await producer.ping();
    await whileAway(async () => {
      const until = Date.now() + 3000;
      await Promise.all(
        producers.map(async (producer, at) => {
          while (Date.now() < until || produced[at]!.length < 20) {
            produced[at]!.push((await producer.xadd('s', '*', 'n', String(produced[at]!.length)))!);
          }
        }),
      );
    });
    away = false;
    await consuming;
    const again = delivered.filter((id) => id !== first);
    expect(new Set(again)).toEqual(new Set(produced.flat()));
    expect(again).toHaveLength(produced.flat().length);
    for (const own of produced) expect(again.filter((id) => own.includes(id))).toEqual(own);
  });

  test("streams that scripts trim, as BullMQ's event streams, lose nothing and are no loss", async () => {
    const script = "return redis.call('XADD', KEYS[1], 'MAXLEN', '~', 100, '*', 'event', ARGV[1])";
    for (let round = 0; round < 20; round += 1) {
      await Promise.all(Array.from({ length: 50 }, (_, n) => client.eval(script, 1, 'bull:q:events', String(n))));
      await sidecar.recovery.look();
    }
    await looks(sidecar, 5);
    expect(sidecar.recovery.status().lossesTotal).toBe(0);
    const there = (await direct.xrange('bull:q:events', '-', '+')).map(([id]) => id);
    await looks(sidecar, 5);
    await direct.del('bull:q:events');
    await restored(sidecar);
    expect((await direct.xrange('bull:q:events', '-', '+')).map(([id]) => id)).toEqual(there);
  });

  test('XACK under the ID that an entry had before it got another one counts', async () => {
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    const id = (await client.xadd('s', '*', 'n', 'ours'))!;
    expect(await read()).toEqual([id]);
    await looks(sidecar);
    await direct.multi().del('s').xadd('s', id, 'n', 'direct').exec();
    await restored(sidecar);
    expect(sidecar.recovery.status().aliasesTotal).toBe(1);
    await client.xack('s', 'g', id);
    await eventually('it is recorded', async () => {
      const { rows } = await sidecar.ledger.pool.query('SELECT FROM holdfast.acknowledgement');
      return rows.length > 0;
    });
    const events = (await client.xreadgroup('GROUP', 'g', 'c', 'BLOCK', 20_000, 'STREAMS', 's', '>')) as Events;
    const values = events!.flatMap(([, entries]) => entries.map(([, [, value]]) => value));
    expect(values).toEqual(['direct']);
    // What has the old ID is delivered now, and it alone is meant from here on.
    expect(await client.xack('s', 'g', id)).toBe(1);
    expect(await direct.xpending('s', 'g', '-', '+', 10)).toEqual([]);
  });

  test.each([
    [
      'in a script',
      (id: string) => client.eval("return redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])", 1, 's', 'g', id),
    ],
    ['by a direct client', (id: string) => direct.xack('s', 'g', id)],
  ])('XACK of such an entry %s counts at the next loss, and only for it', async (_, acknowledge) => {
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    const id = (await client.xadd('s', '*', 'n', 'ours'))!;
    const held = (await client.xadd('s', '*', 'n', 'held'))!;
    await looks(sidecar);
    await direct.multi().del('s').xadd('s', id, 'n', 'direct').exec();
    await restored(sidecar);
    const entries = await direct.xrange('s', '-', '+');
    expect(entries.map(([, [, value]]) => value)).toEqual(['direct', 'held', 'ours']);
    const alias = entries[2]![0];
    expect(await read()).toEqual([id, held, alias]);
    expect(await acknowledge(alias)).toBe(1);
    // Two entries before it are pending: it is found by comparing what was delivered with what is.
    await looks(sidecar, 3);
    await direct.flushall();
    await restored(sidecar, 2);
    expect(await read()).toEqual([id, held]);
  });
});
