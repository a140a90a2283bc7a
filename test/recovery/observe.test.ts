/** What clients that go past Holdfast write to a stream that has lost something is in the ledger once the stream is restored. */
import type { Redis } from 'ioredis';
import { beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { type Events, looks, restored, type Sidecar, startAnew } from '../support/sidecar.ts';

const NEVER_MS = 600_000;

describe.each(kvKinds)('an entry that a direct client writes after a loss, with %s,', (kind) => {
  let kv: KvServer;
  let sidecar: Sidecar;
  let client: Redis;
  let direct: Redis;

  beforeAll(async () => {
    kv = await startKv(kind);
  });

  beforeEach(() => begin(50));

  async function begin(lookIntervalMs: number): Promise<void> {
    ({ sidecar, client, direct } = await startAnew(kv.port, { lookIntervalMs }));
  }

  async function add(...ids: string[]): Promise<void> {
    for (const id of ids) await client.xadd('s', id, 'by', `holdfast ${id}`);
    // The reconciler has seen them: it will not look there again.
    await looks(sidecar);
  }

  /** In place of what the stream had it has this, before anybody looks. */
  async function loseTo(...ids: string[]): Promise<void> {
    const steps = direct.multi().del('s');
    for (const id of ids) steps.xadd('s', id, 'by', `direct ${id}`);
    const restores = sidecar.recovery.status().restoresTotal;
    await steps.exec();
    await restored(sidecar, restores + 1);
    await looks(sidecar);
  }

  const written = async (): Promise<string[]> => (await direct.xrange('s', '-', '+')).map(([, [, by]]) => by!);

  const read = async (group: string): Promise<string[]> => {
    const events = (await client.xreadgroup('GROUP', group, 'c', 'STREAMS', 's', '>')) as Events;
    return (events ?? []).flatMap(([, entries]) => entries.map(([, [, by]]) => by!));
  };

  test('among the lost ones, comes back after the next loss', async () => {
    await add('5-1', '7-1');
    await loseTo('6-1', '6-2');
    const all = ['holdfast 5-1', 'direct 6-1', 'direct 6-2', 'holdfast 7-1'];
    expect(await written()).toEqual(all);
    expect(sidecar.recovery.status().observedTotal).toBe(2);
    await loseTo();
    expect(await written()).toEqual(all);
    expect(sidecar.recovery.status().lossesTotal).toBe(2);
  });

  test('under the ID of a lost one, comes back after the next loss, and so does that', async () => {
    await add('5-1', '6-1', '7-1');
    await loseTo('6-1');
    const all = ['holdfast 5-1', 'direct 6-1', 'holdfast 7-1', 'holdfast 6-1'];
    expect(await written()).toEqual(all);
    await loseTo();
    expect(await written()).toEqual(all);
    expect(sidecar.recovery.status()).toMatchObject({ lossesTotal: 2, aliasesTotal: 1, observedTotal: 1 });
  });

  test('under an ID that was deleted, is not taken for what was deleted', async () => {
    await add('5-1', '6-1', '7-1');
    await client.xdel('s', '6-1');
    await loseTo('6-1');
    const all = ['holdfast 5-1', 'direct 6-1', 'holdfast 7-1'];
    expect(await written()).toEqual(all);
    await loseTo();
    expect(await written()).toEqual(all);
  });

  test('below what was trimmed, stays, and what was trimmed goes', async () => {
    await add('5-1', '6-1', '7-1', '8-1');
    await client.xtrim('s', 'MINID', '7-1');
    await looks(sidecar);
    await direct.multi().del('s').xadd('s', '5-1', 'by', 'holdfast 5-1').xadd('s', '6-1', 'by', 'direct 6-1').exec();
    await restored(sidecar);
    expect(await written()).toEqual(['direct 6-1', 'holdfast 7-1', 'holdfast 8-1']);
  });

  describe('where acknowledgements are recorded above a checkpoint,', () => {
    beforeEach(async () => {
      for (const group of ['a', 'b']) await client.xgroup('CREATE', 's', group, '0', 'MKSTREAM');
      await add('5-1', '6-1', '7-1');
      for (const group of ['a', 'b']) expect(await read(group)).toHaveLength(3);
    });

    test('under an ID whose lost entry every group has acknowledged, is delivered to all, after the next loss as well', async () => {
      for (const group of ['a', 'b']) await client.xack('s', group, '6-1', '7-1');
      await sidecar.ledger.acknowledgements.flush();
      await loseTo('6-1');
      expect(await read('a')).toEqual(['holdfast 5-1', 'direct 6-1']);
      await loseTo();
      for (const group of ['a', 'b']) expect(await read(group)).toEqual(['holdfast 5-1', 'direct 6-1']);
      expect(await written()).toEqual(['holdfast 5-1', 'direct 6-1']);
      expect(sidecar.recovery.status().lossesTotal).toBe(2);
    });

    test('under an ID whose lost entry one group has acknowledged, is delivered to it, and the lost one only to the other', async () => {
      await client.xack('s', 'a', '6-1');
      await sidecar.ledger.acknowledgements.flush();
      await loseTo('6-1');
      expect(await read('a')).toEqual(['holdfast 5-1', 'direct 6-1', 'holdfast 7-1']);
      expect(await read('b')).toEqual(['holdfast 5-1', 'direct 6-1', 'holdfast 7-1', 'holdfast 6-1']);
    });

    test('among entries of which pages say that they are acknowledged, is delivered', async () => {
      for (const group of ['a', 'b']) await direct.xack('s', group, '6-1', '7-1');
      await looks(sidecar);
      await loseTo('6-2');
      expect(await written()).toEqual(['holdfast 5-1', 'direct 6-2']);
      for (const group of ['a', 'b']) expect(await read(group)).toEqual(['holdfast 5-1', 'direct 6-2']);
    });
  });

  test('under an ID at or below all checkpoints, stays, and is not restored again and again', async () => {
    await sidecar.stop();
    await begin(NEVER_MS);
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    for (const id of ['5-1', '6-1']) await client.xadd('s', id, 'by', `holdfast ${id}`);
    await read('g');
    await client.xack('s', 'g', '5-1', '6-1');
    // The checkpoint is saved before the reconciler has come that far.
    await sidecar.recovery.look();
    await direct.multi().del('s').xadd('s', '5-1', 'by', 'direct 5-1').xadd('s', '5-2', 'by', 'direct 5-2').exec();
    await sidecar.recovery.look();
    await restored(sidecar);
    for (let look = 0; look < 3; look += 1) await sidecar.recovery.look();
    await restored(sidecar);
    expect(await written()).toEqual(['direct 5-1', 'direct 5-2']);
    expect(sidecar.recovery.status().lossesTotal).toBe(1);
  });
});
