/** The leading sidecar, a process of its own, stands still in the middle of a restore and goes on long after another one has done it [6]. */
import type { Redis } from 'ioredis';
import { describe, expect, onTestFinished, test } from 'vitest';
import { startTcpProxy } from '../chaos/tcp-proxy.ts';
import { type Sidecar, serve } from '../support/program.ts';
import { kvKinds, startKv, startTestPostgres, temporaryDirectory } from '../support/servers.ts';
import { clientOf, eventually, idsIn } from '../support/sidecar.ts';

const STEP_MS = 150;

describe.each(kvKinds)('a leader that is stopped while it restores, with %s,', (kind) => {
  interface Stopped {
    /** Of the one that has taken over and restored the stream. */
    readonly client: Redis;
    readonly direct: Redis;
    readonly leader: Sidecar;
    readonly other: Sidecar;
    /** What was lost and came back. */
    readonly ids: readonly string[];
    read(): Promise<string[]>;
    /** The leader goes on; resolves once it has cleared away what it had half made, and follows. */
    resume(): Promise<void>;
  }

  async function stopped(): Promise<Stopped> {
    const kv = await startKv(kind);
    const link = await startTcpProxy(() => kv.port);
    onTestFinished(() => link.close());
    const { url } = await startTestPostgres();
    const start = async (port: number) =>
      serve(['--kv', `redis://127.0.0.1:${port}`, '--database', url, '--data-dir', await temporaryDirectory()]);
    const leader = await start(link.port);
    const other = await start(kv.port);
    expect((await leader.status()).ledger.leads).toBe(true);
    const direct = clientOf(kv.port);
    const client = clientOf(other.port);
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    const ids: string[] = [];
    for (let n = 0; n < 20; n += 1) ids.push((await client.xadd('s', '*', 'n', String(n)))!);

    // Each of its steps takes so long that it can be stopped between building the stream and naming it.
    link.delay(STEP_MS);
    await direct.flushall();
    const built = async (): Promise<string[]> => direct.keys('holdfast:epoch:restore:*');
    await eventually('its side key is there', async () => (await built()).length > 0);
    leader.child.kill('SIGSTOP');
    onTestFinished(() => void leader.child.kill('SIGCONT'));
    expect(await direct.exists('s')).toBe(0);
    await eventually('another one has restored it', async () => (await other.status()).ledger.restoresTotal === 1);
    return {
      ...{ client, direct, leader, other, ids },
      read: async () => idsIn(await client.call('XREADGROUP', 'GROUP', 'g', 'c', 'STREAMS', 's', '>')),
      async resume() {
        expect(await built()).not.toEqual([]);
        leader.child.kill('SIGCONT');
        await eventually('it has cleared away', async () => (await built()).length === 0);
        await eventually('it follows', async () => {
          const { leads, state } = (await leader.status()).ledger;
          return !leads && state === 'open';
        });
        // Both look once more.
        await new Promise((resolve) => setTimeout(resolve, 2500));
      },
    };
  }

  test('is replaced, and does no harm when it goes on', { timeout: 120_000 }, async () => {
    const { client, direct, leader, other, ids, read, resume } = await stopped();
    expect(await read()).toEqual(ids);
    await client.xack('s', 'g', ...ids.slice(0, 15));
    await client.xdel('s', ids[0]!);
    const later = await client.xadd('s', '*', 'n', 'later');
    await resume();
    const [was, is] = [(await leader.status()).ledger, (await other.status()).ledger];
    expect(was).toMatchObject({ leads: false, state: 'open', restoresTotal: 0 });
    expect(is).toMatchObject({ leads: true, state: 'open', restoresTotal: 1 });
    expect(was.lossesTotal + is.lossesTotal).toBe(1);
    expect((await direct.xrange('s', '-', '+')).map(([id]) => id)).toEqual([...ids.slice(1), later]);
    expect(await read()).toEqual([later]);
    const pending = (await client.xpending('s', 'g', '-', '+', 100)) as [string][];
    expect(pending.map(([id]) => id)).toEqual([...ids.slice(15), later]);
  });

  // Nothing but the fence tells it that the name which it finds free is not free for it.
  test('does not bring back what was deleted since', { timeout: 120_000 }, async () => {
    const { client, direct, leader, other, resume } = await stopped();
    await client.del('s');
    const { lossesTotal } = (await other.status()).ledger;
    await resume();
    expect(await direct.exists('s')).toBe(0);
    expect((await other.status()).ledger).toMatchObject({ leads: true, restoresTotal: 1, lossesTotal });
    expect((await leader.status()).ledger).toMatchObject({ restoresTotal: 0 });
  });
});
