/** What a group had acknowledged before a loss does not come again, in whichever way the group reads on. */
import { beforeAll, describe, expect, test } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { idsIn, looks, restored, startAnew } from '../support/sidecar.ts';

const NEVER_MS = 600_000;

describe.each(kvKinds)('a group that reads on after a restore, with %s,', (kind) => {
  let kv: KvServer;

  beforeAll(async () => {
    kv = await startKv(kind);
  });

  test('is given nothing again where it reads another stream of what is pending in one command', async () => {
    const { sidecar, client, direct } = await startAnew(kv.port, {});
    for (const stream of ['s', 'other']) await client.xgroup('CREATE', stream, 'g', '0', 'MKSTREAM');
    // It wants all of them, so that they are restored.
    await client.xgroup('CREATE', 's', 'second', '0');
    const ids = Array.from({ length: 60 }, (_, at) => `1-${at + 1}`);
    for (const id of ids) await client.xadd('s', id, 'n', id);
    await client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', '>');
    await client.xack('s', 'g', ...ids.slice(1));
    await looks(sidecar);
    await direct.flushall();
    await sidecar.recovery.look();
    await restored(sidecar);
    const mixed = await client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 'other', 's', '0', '>');
    expect(idsIn(mixed)).toEqual(['1-1']);
    // It is pending now, and read as that.
    expect(idsIn(await client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', 'other', '0', '>'))).toEqual(['1-1']);
  });

  test('has its turn although two others have very much pending, and change all the time', async () => {
    const { sidecar, client, direct } = await startAnew(kv.port, { lookIntervalMs: NEVER_MS });
    const counts = { a: 99_000, b: 99_000, c: 60 };
    for (const [stream, count] of Object.entries(counts)) {
      await client.xgroup('CREATE', stream, 'g', '0', 'MKSTREAM');
      await direct.eval("for n = 1, ARGV[1] do redis.call('xadd', KEYS[1], '1-' .. n, 'n', n) end", 1, stream, count);
      await direct.eval("redis.call('xreadgroup', 'group', 'g', 'c', 'streams', KEYS[1], '>')", 1, stream);
    }
    const acknowledge = (ids: readonly number[], streams: readonly string[]) =>
      Promise.all(streams.map((stream) => direct.xack(stream, 'g', ...ids.map((n) => `1-${n}`))));
    await acknowledge(
      Array.from({ length: 59 }, (_, at) => at + 2),
      ['c'],
    );
    for (let look = 0; look < 3; look += 1) {
      await sidecar.recovery.look();
      await acknowledge([99_000 - look], ['a', 'b']);
    }
    const { rows } = await sidecar.ledger.pool.query<{ name: Buffer }>(
      `SELECT DISTINCT stream.name FROM holdfast.pending_page JOIN holdfast.consumer_group USING (group_id)
         JOIN holdfast.stream USING (stream_id) ORDER BY 1`,
    );
    expect(rows.map(({ name }) => name.toString())).toEqual(['a', 'b', 'c']);
  }, 120_000);
});
