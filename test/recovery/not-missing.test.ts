/** What another KV store in the old one's place may lack without having lost anything. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import { startTcpProxy, type TcpProxy } from '../chaos/tcp-proxy.ts';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { eventually, restored, type Sidecar, startSidecar } from '../support/sidecar.ts';

const NEVER_MS = 600_000;

describe.each(kvKinds)('after a restore, with %s,', (kind) => {
  let current: KvServer;
  let link: TcpProxy;
  let otherLink: TcpProxy;
  let leader: Sidecar;
  let other: Sidecar;

  beforeEach(async () => {
    current = await startKv(kind);
    link = await startTcpProxy(() => current.port);
    otherLink = await startTcpProxy(() => current.port);
    const { url: databaseUrl } = await startTestPostgres();
    leader = await startSidecar({ kvPort: link.port, databaseUrl, lookIntervalMs: 50 });
    other = await startSidecar({ kvPort: otherLink.port, databaseUrl, lookIntervalMs: NEVER_MS });
  });

  afterEach(async () => {
    await leader.stop();
    await other.stop();
    await link.close();
    await otherLink.close();
  });

  test('a sidecar that looks later does not miss what every group had acknowledged', async () => {
    const client = leader.client();
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    for (let n = 0; n < 10; n += 1) await client.xadd('s', '*', 'n', String(n));
    const read = (await client.xreadgroup('GROUP', 'g', 'c', 'COUNT', '10', 'STREAMS', 's', '>')) as [
      string,
      [string, string[]][],
    ][];
    const ids = read[0]![1].map(([id]) => id);
    // The first stays pending, so that no checkpoint goes past the others, and comes back.
    expect(await client.xack('s', 'g', ...ids.slice(1))).toBe(9);
    await leader.ledger.acknowledgements.flush();
    await other.recovery.look();

    otherLink.cut();
    current = await startKv(kind);
    link.reset();
    await restored(leader);
    otherLink.heal();
    const again = leader.client();
    expect((await again.xrange('s', '-', '+')).map(([id]) => id)).toEqual(ids.slice(0, 1));
    await eventually('it looks at the new one', () => other.recovery.runId === leader.recovery.runId);
    expect(other.recovery.status()).toMatchObject({ state: 'open', lossesTotal: 0 });
  });
});
