/** Reads and claims whose answer comes from a state of the KV store that nobody has compared, or that is gone by then. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Redis } from 'ioredis';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import { startTcpProxy, type TcpProxy } from '../chaos/tcp-proxy.ts';
import { startLedgerLink } from '../support/ledger-link.ts';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { clientOf, eventually, idsIn, restored, type Sidecar, startSidecar } from '../support/sidecar.ts';

/** Each way: together less than what a sidecar waits for the KV store, alone more than another one takes to restore. */
const DELAY_MS = 650;

describe.each(kvKinds)('with %s,', (kind) => {
  let kv: KvServer;
  let kvLink: TcpProxy;
  let ledgerLink: TcpProxy;
  /** Behind both links; the other one leads. */
  let sidecar: Sidecar;
  let leader: Sidecar;
  let client: Redis;
  let direct: Redis;

  beforeEach(async () => {
    kv = await startKv(kind);
    kvLink = await startTcpProxy(() => kv.port);
    const { url } = await startTestPostgres();
    const linked = await startLedgerLink(url);
    ledgerLink = linked.link;
    leader = await startSidecar({ kvPort: kv.port, databaseUrl: url, lookIntervalMs: 50 });
    sidecar = await startSidecar({ kvPort: kvLink.port, databaseUrl: linked.url, lookIntervalMs: 100 });
    client = sidecar.client();
    direct = clientOf(kv.port);
  });

  afterEach(async () => {
    await sidecar.stop();
    await leader.stop();
    await kvLink.close();
    await ledgerLink.close();
  });

  async function groupWith(count: number): Promise<string[]> {
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    const ids: string[] = [];
    for (let n = 0; n < count; n += 1) ids.push((await client.xadd('s', '*', 'n', String(n)))!);
    return ids;
  }

  test('a read that was answered before the loss was noticed gives nothing that is acknowledged', async () => {
    const ids = await groupWith(2);
    expect(idsIn(await client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', '>'))).toEqual(ids);
    expect(await client.xack('s', 'g', ...ids)).toBe(2);
    await sidecar.ledger.acknowledgements.flush();
    await leader.recovery.look();
    const reading = client.xreadgroup('GROUP', 'g', 'c', 'COUNT', 1, 'BLOCK', 20_000, 'STREAMS', 's', '>');
    await eventually('blocked', async () => /blocked_clients:1/.test(await direct.info('clients')));
    kvLink.delay(DELAY_MS);
    // In one step, so that no look comes between: what is read is the first once more.
    const replies = await direct.multi().xgroup('SETID', 's', 'g', '0').xadd('s', '*', 'n', 'direct').exec();
    await restored(leader);
    expect(idsIn(await reading)).toEqual([replies![1]![1]]);
  }, 60_000);

  test('a read that was answered before a restore says nothing of how far its group is since', async () => {
    const [pending, acknowledged] = await groupWith(2);
    await client.xgroup('CREATE', 's', 'other', '0');
    await client.xreadgroup('GROUP', 'g', 'gone', 'STREAMS', 's', '>');
    expect(await client.xack('s', 'g', acknowledged!)).toBe(1);
    await sidecar.ledger.acknowledgements.flush();
    await leader.recovery.look();
    const reading = client.xreadgroup('GROUP', 'g', 'c', 'BLOCK', 20_000, 'STREAMS', 's', '>');
    await eventually('blocked', async () => /blocked_clients:1/.test(await direct.info('clients')));
    kvLink.delay(DELAY_MS);
    const added = await leader.client().xadd('s', '*', 'n', 'new');
    await direct.flushall();
    await restored(leader);
    expect(idsIn(await reading)).toEqual([added]);
    kvLink.delay(0);
    expect(idsIn(await client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', '>'))).toEqual([pending, added]);
  }, 60_000);

  test('a claim that a restore has made void is made again', async () => {
    await groupWith(2);
    await client.xreadgroup('GROUP', 'g', 'gone', 'STREAMS', 's', '>');
    await leader.recovery.look();
    kvLink.delay(DELAY_MS);
    const claiming = client.xautoclaim('s', 'g', 'c', 0, '0');
    await eventually('claimed there', async () => {
      const pending = (await direct.xpending('s', 'g', '-', '+', 10)) as [string, string][];
      return pending.every(([, consumer]) => consumer === 'c');
    });
    await direct.flushall();
    await restored(leader);
    expect(((await claiming) as [string, unknown[]])[1]).toEqual([]);
    expect(await direct.xpending('s', 'g')).toEqual([0, null, null, null]);
  }, 60_000);

  test('a KV store that becomes another one while a look waits for Postgres is not believed', async () => {
    const [first] = await groupWith(1);
    await client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', '>');
    expect(await client.xack('s', 'g', first!)).toBe(1);
    await sidecar.ledger.acknowledgements.flush();
    await leader.recovery.look();
    const older = await startKv(kind);
    await clientOf(older.port).xadd('s', first!, 'n', '0');
    await clientOf(older.port).xgroup('CREATE', 's', 'g', '0');
    ledgerLink.hold(['toClient']);
    // One whose answers had come by then may still end; the next one waits.
    await sleep(300);
    const { looksTotal } = sidecar.recovery.status();
    // Stops the others from looking: what this one does by itself is to be seen.
    await leader.stop();
    await direct.replicaof('127.0.0.1', older.port);
    await eventually('in step', async () => /master_link_status:up/.test(await direct.info('replication')));
    await direct.replicaof('NO', 'ONE');
    // Sooner than the statement of the look is given up.
    await eventually('not believed', () => sidecar.recovery.gate.state !== 'open', 2000);
    expect(sidecar.recovery.status().looksTotal).toBe(looksTotal);
    const reading = client.xreadgroup('GROUP', 'g', 'c', 'BLOCK', 500, 'STREAMS', 's', '>');
    expect(await reading).toBeNull();
    ledgerLink.heal();
    await eventually('believed', () => sidecar.recovery.gate.state === 'open', 30_000);
    expect(await client.xreadgroup('GROUP', 'g', 'c', 'BLOCK', 500, 'STREAMS', 's', '>')).toBeNull();
  }, 60_000);
});
