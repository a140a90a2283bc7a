/**
 * A stream is lost and made anew by a client that goes past Holdfast, before anybody looked. An XADD through Holdfast may get an
 * ID there that groups have passed long ago, or that is below what was trimmed.
 */
import { setTimeout } from 'node:timers/promises';
import { beforeAll, describe, expect, test } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { clientOf, type Events, restored, type SidecarOptions, startAnew, startSidecar } from '../support/sidecar.ts';

const NEVER_MS = 600_000;

describe.each(kvKinds)('XADD to a stream that begins anew with smaller IDs, with %s,', (kind) => {
  let kv: KvServer;

  beforeAll(async () => {
    kv = await startKv(kind);
  });

  const values = (events: unknown): string[] =>
    ((events as Events) ?? []).flatMap(([, entries]) => entries.map(([, [, value]]) => value!));

  /** Two sidecars with one ledger. */
  async function startTwo() {
    const { url: databaseUrl } = await startTestPostgres();
    const direct = clientOf(kv.port);
    await direct.flushall();
    const options: SidecarOptions = { kvPort: kv.port, databaseUrl, lookIntervalMs: NEVER_MS };
    const [one, other] = [await startSidecar(options), await startSidecar(options)];
    const [client, otherClient] = [one.client(), other.client()];
    const read = async () => values(await client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', '>'));
    return { one, other, client, otherClient, direct, read };
  }

  test.each(['acknowledged', 'trimmed'])('is not lost where what it had was %s', async (how) => {
    const { sidecar, client, direct } = await startAnew(kv.port, { lookIntervalMs: NEVER_MS });
    const read = async () => values(await client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', '>'));
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    // As of a clock that is ahead of the KV store's.
    const future = `${Date.now() + 3_600_000}-1`;
    await client.xadd('s', future, 'n', 'old');
    if (how === 'acknowledged') {
      await read();
      await client.xack('s', 'g', future);
    } else await client.xtrim('s', 'MAXLEN', '0');
    for (let look = 0; look < 2; look += 1) await sidecar.recovery.look();
    await direct.multi().del('s').xadd('s', '*', 'n', 'direct').exec();
    const id = await client.xadd('s', '*', 'n', 'new');
    await sidecar.recovery.look();
    await restored(sidecar);
    expect((await direct.xrange('s', '-', '+')).map(([at]) => at)).toContain(id);
    expect(await read()).toContain('new');
    await direct.flushall();
    await sidecar.recovery.look();
    await restored(sidecar, 2);
    expect(await read()).toContain('new');
  });

  test('is answered however many were on their way', async () => {
    const { sidecar, client, direct } = await startAnew(kv.port, { lookIntervalMs: NEVER_MS });
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    await client.xadd('s', `${Date.now() + 3_600_000}-1`, 'n', 'old');
    for (let look = 0; look < 2; look += 1) await sidecar.recovery.look();
    await direct.multi().del('s').xadd('s', '*', 'n', 'direct').exec();
    const stream = sidecar.ledger.streams.find(0, Buffer.from('s'))!;
    const { epoch } = stream;
    // Until the loss is known the stream is open, and the last of these are answered by the KV store after that.
    const adding: Promise<string | null>[] = [];
    while (stream.epoch === epoch) {
      for (let n = 0; n < 2; n += 1) adding.push(client.xadd('s', '*', 'n', String(adding.length)));
      await setTimeout(1);
    }
    const added = await Promise.all(adding);
    const numbers = added.map((_, at) => String(at));
    await restored(sidecar);
    const there = await direct.xrange('s', '-', '+');
    const byId = new Map(there.map(([id, [, value]]) => [id, value]));
    expect(added.map((id) => byId.get(id!))).toEqual(numbers);
    expect(values(await client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', '>'))).toEqual(
      expect.arrayContaining(['old', ...numbers]),
    );
  });

  test('is refused under an ID of its own, as if nothing had been lost, and leaves nothing behind', async () => {
    const { sidecar, client, direct } = await startAnew(kv.port, { lookIntervalMs: NEVER_MS });
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    await client.xadd('s', '100-1', 'n', 'old');
    await direct.multi().del('s').xadd('s', '1-1', 'n', 'direct').exec();
    await expect(client.xadd('s', '50-1', 'n', 'new')).rejects.toThrow('equal or smaller');
    await restored(sidecar);
    expect(values([['s', await direct.xrange('s', '-', '+')]])).toEqual(['direct', 'old']);
  });

  test('shows the loss also where that was made up for in number and by its last ID', async () => {
    const { sidecar, client, direct } = await startAnew(kv.port, { lookIntervalMs: NEVER_MS });
    await client.xadd('s', '3-1', 'n', 'first');
    await client.xadd('s', '5-1', 'n', 'last');
    await direct.multi().del('s').xadd('s', '1-1', 'n', 'direct').exec();
    await expect(client.xadd('s', '5-1', 'n', 'new')).rejects.toThrow('equal or smaller');
    await restored(sidecar);
    expect(values([['s', await direct.xrange('s', '-', '+')]])).toEqual(['direct', 'first', 'last']);
  });

  test('is not lost where another sidecar had added what was acknowledged', async () => {
    const { one, other, client, otherClient, direct, read } = await startTwo();
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    await client.xadd('s', '*', 'n', 'first');
    const future = `${Date.now() + 3_600_000}-1`;
    await otherClient.xadd('s', future, 'n', 'old');
    expect(await read()).toEqual(['first', 'old']);
    await client.xack('s', 'g', ...(await direct.xrange('s', '-', '+')).map(([id]) => id));
    for (const { recovery } of [other, one, other, one]) await recovery.look();
    await direct.multi().del('s').xadd('s', '*', 'n', 'direct').exec();
    await client.xadd('s', '*', 'n', 'new');
    await one.recovery.look();
    await restored(one);
    expect(await read()).toContain('new');
  });

  test('is taken as it is where a client set them back, through whichever sidecar', async () => {
    const { one, other, client, otherClient, direct, read } = await startTwo();
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    await client.xadd('s', '100-1', 'n', 'old');
    expect(await read()).toEqual(['old']);
    await client.xack('s', 'g', '100-1');
    await client.xtrim('s', 'MAXLEN', '0');
    for (const { recovery } of [one, other]) await recovery.look();
    const pipeline = client
      .pipeline()
      .call('XSETID', 's', '0-0')
      .xgroup('SETID', 's', 'g', '0')
      .xadd('s', '2-1', 'n', 'new');
    expect((await pipeline.exec())?.map(([, reply]) => reply)).toEqual(['OK', 'OK', '2-1']);
    await client.xtrim('s', 'MAXLEN', '0');
    await client.call('XSETID', 's', '0-0');
    // Nothing has told the other one yet. The ID is that of an entry which was acknowledged.
    expect(await otherClient.xadd('s', '100-1', 'n', 'newer')).toBe('100-1');
    for (const { recovery } of [one, other, one, other]) await recovery.look();
    for (const { recovery } of [one, other]) expect(recovery.status().lossesTotal).toBe(0);
    await direct.flushall();
    await one.recovery.look();
    await restored(one);
    expect(await direct.xrange('s', '-', '+')).toEqual([['100-1', ['n', 'newer']]]);
    expect(await read()).toEqual(['newer']);
  });
});
