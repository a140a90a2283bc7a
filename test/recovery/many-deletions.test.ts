/** A worker deletes what it has done: a stream's deletions of a week are many millions, of which a restore reads none that it need not. */
import { afterEach, describe, expect, test } from 'vitest';
import { ledgerFigures } from '../../src/operations/ledger-figures.ts';
import type { TcpProxy } from '../chaos/tcp-proxy.ts';
import { startLedgerLink } from '../support/ledger-link.ts';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { clientOf, eventually, restored, type Sidecar, startAnew, startSidecar } from '../support/sidecar.ts';

const DELETIONS = 100_000;

describe.each(kvKinds)('with %s', (kind) => {
  let link: TcpProxy | undefined;

  afterEach(async () => {
    await link?.close();
  });

  /** Entries that clients deleted, above the ID 1-0 and below all others, as if the stream had had and lost them. */
  async function makeDeleted({ ledger }: Sidecar, entriesToo: boolean): Promise<void> {
    if (entriesToo) {
      await ledger.pool.query(
        `INSERT INTO holdfast.entry (part, stream_id, id, epoch, fields)
         SELECT 1, (SELECT stream_id FROM holdfast.stream), int8send(1) || int8send(n), 1, '' FROM generate_series(1, $1) AS n`,
        [DELETIONS],
      );
    }
    await ledger.pool.query(
      `INSERT INTO holdfast.deletion (stream_id, id)
       SELECT (SELECT stream_id FROM holdfast.stream), int8send(1) || int8send(n) FROM generate_series(1, $1) AS n`,
      [DELETIONS],
    );
  }

  test.each([
    ['below the checkpoint', false],
    ['above a checkpoint that is held', true],
  ])(
    `${DELETIONS} deletions %s are not read`,
    async (_, held) => {
      const kv = await startKv(kind);
      const direct = clientOf(kv.port);
      await direct.flushall();
      const { url } = await startTestPostgres();
      const ledgerLink = await startLedgerLink(url);
      link = ledgerLink.link;
      // Looks only where the test wants them: reading is what is counted.
      const sidecar = await startSidecar({ kvPort: kv.port, databaseUrl: ledgerLink.url, lookIntervalMs: 3_600_000 });
      const client = sidecar.client();
      await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
      if (held) await client.xadd('s', '1-0', 'n', 'held');
      else await client.xgroup('SETID', 's', 'g', '2-0');
      await makeDeleted(sidecar, held);
      const ids = [await client.xadd('s', '*', 'n', '0'), await client.xadd('s', '*', 'n', '1')];
      await client.xdel('s', ids[0]!);
      await sidecar.recovery.look();

      await direct.flushall();
      const before = link.bytesFromServers;
      await sidecar.recovery.look();
      await restored(sidecar);
      expect(link.bytesFromServers - before).toBeLessThan(256 * 1024);
      const back = (await direct.xrange('s', '-', '+')).map(([id]) => id);
      expect(back).toEqual(held ? ['1-0', ids[1]] : [ids[1]]);

      // What a client that goes past Holdfast puts back is deleted all the same, but for an ID that holds something else now.
      await direct.del('s');
      await direct.xadd('s', '1-5', 'n', 'something else');
      await direct.xadd('s', ids[0]!, 'n', '0');
      await sidecar.recovery.look();
      await restored(sidecar, 2);
      const merged = (await direct.xrange('s', '-', '+')).map(([id]) => id);
      expect(merged).not.toContain(ids[0]);
      expect(merged).toContain(ids[1]);
      if (held) expect(merged).toContain('1-5');
    },
    60_000,
  );

  test('whatever stops a restore is shown: also what Postgres may get over by itself', async () => {
    const kv = await startKv(kind);
    const { sidecar, client, direct } = await startAnew(kv.port, { lookIntervalMs: 50 });
    const id = await client.xadd('s', '*', 'n', '0');
    const { rows } = await sidecar.ledger.pool.query<{ definition: string }>(
      "SELECT pg_get_functiondef('holdfast.complete_restore'::regproc) AS definition",
    );
    const { definition } = rows[0]!;
    await sidecar.ledger.pool.query(
      `${definition.slice(0, definition.indexOf('AS $function$'))} AS $function$
       BEGIN RAISE EXCEPTION 'too much to read' USING ERRCODE = 'query_canceled'; END $function$`,
    );
    await direct.del('s');
    const status = () => sidecar.recovery.status();
    const figure = (name: string) =>
      ledgerFigures(sidecar.ledger, sidecar.recovery)
        .find((one) => one.name === `holdfast_${name}`)!
        .read();
    await eventually('it is shown', () => status().troubled[0]?.cause.includes('too much to read'));
    expect(status()).toMatchObject({ failing: 1, restoresTotal: 0, lastError: 'too much to read' });
    expect(figure('recovery_failing_streams')).toBe(1);
    expect(figure('recovery_failures_total')).toBeGreaterThan(0);
    await eventually('it is noted', async () => {
      const recoveries = await sidecar.ledger.pool.query('SELECT last_error FROM holdfast.recovery');
      return recoveries.rows[0]?.last_error === 'too much to read';
    });

    await sidecar.ledger.pool.query(definition);
    await restored(sidecar);
    await eventually('it is over', () => status().failing === 0);
    expect((await direct.xrange('s', '-', '+')).map(([own]) => own)).toEqual([id]);
  });
});
