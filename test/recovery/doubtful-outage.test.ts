import { describe, expect, test } from 'vitest';
import { startTcpProxy } from '../chaos/tcp-proxy.ts';
import { startLedgerLink } from '../support/ledger-link.ts';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { clientOf, eventually, startSidecar } from '../support/sidecar.ts';

describe.each(kvKinds)('an entry that the ledger accepted alone, with %s,', (kind) => {
  test('and whose reply was lost, is counted as a possible duplicate', async () => {
    const kv = await startKv(kind);
    const database = await startTestPostgres();
    const kvLink = await startTcpProxy(() => kv.port);
    const { link: ledgerLink, url } = await startLedgerLink(database.url);
    const sidecar = await startSidecar({ kvPort: kvLink.port, databaseUrl: url, lookIntervalMs: 50 });
    const other = await startSidecar({ kvPort: kvLink.port, databaseUrl: database.url, lookIntervalMs: 50 });
    const client = sidecar.client();
    await client.xadd('s', '*', 'n', '1');
    kvLink.cut();
    await client.xadd('s', '*', 'n', '2');

    ledgerLink.hold(['toClient']);
    const doubtful = client.xadd('s', '*', 'n', '3');
    const backlog = async (): Promise<number> =>
      (await other.ledger.pool.query('SELECT 1 FROM holdfast.backlog')).rows.length;
    await eventually('it is accepted', async () => (await backlog()) === 2);
    ledgerLink.reset();
    ledgerLink.heal();
    await doubtful;
    // Whether the first time counted it could not know.
    expect(await backlog()).toBe(3);

    kvLink.heal();
    await eventually('all is published', async () => (await backlog()) === 0, 30_000);
    const entries = (await clientOf(kv.port).xrange('s', '-', '+')).map(([, [, n]]) => n);
    expect(entries).toEqual(['1', '2', '3', '3']);
    await eventually('it is in a record', async () => {
      const { rows } = await other.ledger.pool.query<{ entries: string; possible: string }>(
        'SELECT sum(entries_restored) AS entries, sum(possible_duplicates) AS possible FROM holdfast.recovery',
      );
      return Number(rows[0]!.entries) === 3 && Number(rows[0]!.possible) === 1;
    });
    await sidecar.stop();
    await other.stop();
    await kvLink.close();
    await ledgerLink.close();
  });
});
