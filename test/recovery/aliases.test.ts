/**
 * Entries that a restore or a publication gave another ID. Clients that read them know that one; what they acknowledge past
 * Holdfast, in scripts or directly, counts as for any other entry.
 */
import type { Redis } from 'ioredis';
import { beforeAll, describe, expect, test } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import { startTcpProxy } from '../chaos/tcp-proxy.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import {
  type Events,
  eventually,
  looks,
  restored,
  type Sidecar,
  type SidecarOptions,
  startAnew,
} from '../support/sidecar.ts';

const XACK = "return redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])";

describe.each(kvKinds)('what has another ID than before, with %s,', (kind) => {
  let kv: KvServer;
  let sidecar: Sidecar;
  let client: Redis;
  let direct: Redis;

  beforeAll(async () => {
    kv = await startKv(kind);
  });

  async function begin(options: Partial<SidecarOptions> = {}): Promise<void> {
    ({ sidecar, client, direct } = await startAnew(kv.port, { lookIntervalMs: 50, ...options }));
  }

  /** What is given to the group: values, and the IDs by them. */
  async function read(group = 'g'): Promise<Map<string, string>> {
    const events = (await client.xreadgroup('GROUP', group, 'c', 'BLOCK', 20_000, 'STREAMS', 's', '>')) as Events;
    return new Map(events!.flatMap(([, entries]) => entries.map(([id, [, value]]) => [value!, id])));
  }

  /** All is lost at one stroke, and another client's entries have the IDs of ours. */
  async function loseTo(ids: readonly string[]): Promise<void> {
    const { restoresTotal } = sidecar.recovery.status();
    const replacing = direct.multi().del('s');
    for (const id of ids) replacing.xadd('s', id, 'n', `direct ${id}`);
    await replacing.exec();
    await restored(sidecar, restoresTotal + 1);
  }

  test('is acknowledged under it where a backlog was published so, in scripts and directly', async () => {
    const link = await startTcpProxy(() => kv.port);
    await begin({ kvPort: link.port });
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    await client.xadd('s', '*', 'n', 'first');
    await looks(sidecar);
    link.cut();
    await eventually('down', () => sidecar.recovery.gate.state === 'down');
    const accepted = await Promise.all(['1', '2', '3', '4'].map((n) => client.xadd('s', '*', 'n', n)));
    await direct.xadd('s', `${Date.now() + 60_000}-0`, 'n', 'direct');
    link.heal();
    await eventually('published', async () => (await direct.xlen('s')) === 6);
    await eventually('open', () => sidecar.recovery.status().troubled.length === 0);
    expect(sidecar.recovery.status().aliasesTotal).toBe(4);
    const given = await read();
    expect([...given.keys()]).toEqual(['first', 'direct', '1', '2', '3', '4']);
    expect(accepted).not.toContain(given.get('2'));
    await client.eval(XACK, 1, 's', 'g', given.get('2')!);
    await direct.xack('s', 'g', given.get('3')!);
    await looks(sidecar);
    await direct.flushall();
    await restored(sidecar);
    expect([...(await read()).keys()]).toEqual(['first', 'direct', '1', '4']);
    await link.close();
  });

  test('comes once more to who acknowledges in a script under the ID that it had, and no more once that is done under the new one', async () => {
    await begin();
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    await client.xadd('s', '1-1', 'n', 'ours');
    await read();
    await looks(sidecar);
    await loseTo(['1-1']);
    expect(await client.eval(XACK, 1, 's', 'g', '1-1')).toBe(0);
    const given = await read();
    expect([...given.keys()]).toEqual(['direct 1-1', 'ours']);
    await client.eval(XACK, 1, 's', 'g', given.get('ours')!);
    await looks(sidecar);
    await direct.flushall();
    await restored(sidecar, 2);
    expect([...(await read()).keys()]).toEqual(['direct 1-1']);
  });

  test.each(['in a script', 'directly'])(
    'stays acknowledged by a group that had done so %s, and what has its old ID is delivered',
    async (way) => {
      await begin();
      await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
      await client.xgroup('CREATE', 's', 'other', '0');
      for (const n of ['1', '2', '3']) await client.xadd('s', `${n}-1`, 'n', n);
      await read();
      // The first one stays pending, and holds the checkpoint.
      if (way === 'in a script') await client.eval(XACK, 1, 's', 'g', '2-1');
      else await direct.xack('s', 'g', '2-1');
      await looks(sidecar);
      await loseTo(['2-1']);
      expect([...(await read()).keys()]).toEqual(['1', 'direct 2-1', '3']);
      expect([...(await read('other')).keys()]).toEqual(['1', 'direct 2-1', '3', '2']);
      // And so after the next loss.
      await looks(sidecar);
      await direct.flushall();
      await restored(sidecar, 2);
      expect([...(await read()).keys()]).toEqual(['1', 'direct 2-1', '3']);
    },
  );
});
