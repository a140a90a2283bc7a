/** A replica that lags takes over from the primary: what it never got comes back, and what it does not know as done stays done. */
import { describe, expect, onTestFinished, test } from 'vitest';
import { startTcpProxy } from '../chaos/tcp-proxy.ts';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { clientOf, eventually, idsIn, looks, restored, startSidecar } from '../support/sidecar.ts';

describe.each(kvKinds)('a failover to a replica that lags, with %s,', (kind) => {
  test.each([
    ['dead', true],
    ['alive, and a replica itself', false],
  ])('the old primary being %s, loses nothing and repeats nothing', async (_, isDead) => {
    const old = await startKv(kind, { extraArgs: ['--repl-diskless-sync-delay', '0'] });
    const replica = await startKv(kind);
    const replication = await startTcpProxy(() => old.port);
    let primary = old;
    // Where clients are sent, as by Sentinel or by a name.
    const front = await startTcpProxy(() => primary.port);
    onTestFinished(async () => {
      for (const link of [replication, front]) await link.close();
    });
    const [toOld, toReplica] = [clientOf(old.port), clientOf(replica.port)];
    await toReplica.replicaof('127.0.0.1', replication.port);
    await eventually('in step', async () => /master_link_status:up/.test(await toReplica.info('replication')));

    const { url: databaseUrl } = await startTestPostgres();
    const sidecar = await startSidecar({ kvPort: front.port, databaseUrl, lookIntervalMs: 50 });
    const other = await startSidecar({ kvPort: front.port, databaseUrl, lookIntervalMs: 50 });
    let client = sidecar.client();
    const add = async (count: number): Promise<string[]> => {
      const ids: string[] = [];
      for (let n = 0; n < count; n += 1) ids.push((await client.xadd('s', '*', 'n', String(n)))!);
      return ids;
    };
    const read = async (count: number): Promise<string[]> =>
      idsIn(await client.call('XREADGROUP', 'GROUP', 'g', 'c', 'COUNT', count, 'BLOCK', 20_000, 'STREAMS', 's', '>'));
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    const known = await add(4);
    expect(await read(2)).toEqual(known.slice(0, 2));
    await eventually('the replica has it', async () => (await toReplica.xlen('s')) === 4);

    // From here on the replica hears nothing.
    replication.hold(['toClient']);
    const unknown = await add(4);
    expect(await read(4)).toEqual([...known.slice(2), ...unknown.slice(0, 2)]);
    // One of what the replica knows as delivered, one of what it has never delivered, and one that it has never had.
    const done = [known[1]!, known[3]!, unknown[1]!];
    expect(await client.xack('s', 'g', ...done)).toBe(3);
    await sidecar.ledger.acknowledgements.flush();
    await looks(sidecar, 2);
    expect(await toReplica.xlen('s')).toBe(4);

    if (isDead) await old.kill9();
    await toReplica.replicaof('NO', 'ONE');
    primary = replica;
    if (!isDead) await toOld.replicaof('127.0.0.1', replica.port);
    front.reset();
    await restored(sidecar);
    await eventually('open', () => other.recovery.gate.state === 'open');

    client = other.client();
    expect((await client.xrange('s', '-', '+')).map(([id]) => id)).toEqual(
      [...known, ...unknown].filter((id) => !done.slice(2).includes(id)),
    );
    const later = await add(1);
    const again: string[] = [];
    while (again.at(-1) !== later[0]) again.push(...(await read(100)));
    const pending = ((await client.xpending('s', 'g', '-', '+', 100)) as [string][]).map(([id]) => id);
    // Each of what is not done is in hand or comes now, and nothing else does.
    expect([...new Set([...pending, ...again])].sort()).toEqual(
      [...known, ...unknown, ...later].filter((id) => !done.includes(id)).sort(),
    );
    expect(again).toHaveLength(new Set(again).size);
  });
});
