/** What one process is not told, or is told too late, of what another one noticed first. */
import pg from 'pg';
import { afterEach, beforeEach, describe, expect, onTestFinished, test } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import type { TcpProxy } from '../chaos/tcp-proxy.ts';
import { startLedgerLink } from '../support/ledger-link.ts';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { clientOf, eventually, idsIn, restored, type Sidecar, startSidecar } from '../support/sidecar.ts';

/** Above what a silent session is given, and the time of a leader without a sign of life. */
const PATIENCE_MS = 30_000;

describe.each(kvKinds)('with %s,', (kind) => {
  let kv: KvServer;
  let databaseUrl: string;
  let link: TcpProxy;
  let linkedUrl: string;

  beforeEach(async () => {
    kv = await startKv(kind);
    databaseUrl = (await startTestPostgres()).url;
    ({ link, url: linkedUrl } = await startLedgerLink(databaseUrl));
  });

  afterEach(async () => {
    await link.close();
  });

  /** One of its sessions with Postgres may be made to fall silent. */
  function startBehindLink(): Promise<Sidecar> {
    return startSidecar({ kvPort: kv.port, databaseUrl: linkedUrl });
  }

  async function session(): Promise<pg.Client> {
    const client = new pg.Client({ connectionString: databaseUrl });
    await client.connect();
    onTestFinished(() => client.end());
    return client;
  }

  /** Resolves when the sidecar waits for another one's transaction with its own word of a loss. */
  async function raiseWaits(): Promise<pg.Client> {
    const watcher = await session();
    await eventually('its own notice waits for the other one', async () => {
      const { rows } = await watcher.query(
        "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%raise_epoch%'",
      );
      return rows.length > 0;
    });
    return watcher;
  }

  test('a lost group is kept from its readers, too, by who noticed it a moment after another one', async () => {
    const sidecar = await startSidecar({ kvPort: kv.port, databaseUrl, lookIntervalMs: 600_000 });
    const client = sidecar.client();
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    const id = await client.xadd('s', '*', 'n', '1');
    await sidecar.recovery.look();
    const stream = sidecar.ledger.streams.find(0, Buffer.from('s'))!;
    const other = await session();
    await clientOf(kv.port).xgroup('DESTROY', 's', 'g');
    await other.query('BEGIN');
    await other.query("SELECT holdfast.raise_epoch($1, $2, 'restoring', 'noticed by another one', NULL)", [
      stream.streamId,
      stream.epoch,
    ]);
    const reading = client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', '>');
    const watcher = await raiseWaits();
    // So that it does not hear of it in the same instant.
    await watcher.query(
      "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'LISTEN holdfast' AND datname = current_database()",
    );
    await other.query('COMMIT');
    await sidecar.recovery.look();
    expect(idsIn(await reading)).toEqual([id]);
  });

  test('a loss that is noticed while an outage begins is not passed over', async () => {
    const sidecar = await startSidecar({ kvPort: kv.port, databaseUrl, lookIntervalMs: 600_000 });
    const client = sidecar.client();
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    const id = (await client.xadd('s', '*', 'n', '1'))!;
    expect(idsIn(await client.xreadgroup('GROUP', 'g', 'c', 'STREAMS', 's', '>'))).toEqual([id]);
    expect(await client.xack('s', 'g', id)).toBe(1);
    await sidecar.ledger.acknowledgements.flush();
    await sidecar.recovery.look();
    const stream = sidecar.ledger.streams.find(0, Buffer.from('s'))!;
    await clientOf(kv.port).xgroup('SETID', 's', 'g', '0');
    const other = await session();
    await other.query('BEGIN');
    await other.query("SELECT holdfast.raise_epoch($1, $2, 'outage', 'another one lost its connection', NULL)", [
      stream.streamId,
      stream.epoch,
    ]);
    sidecar.recovery.upstreamLost();
    const reading = client.xreadgroup('GROUP', 'g', 'c', 'BLOCK', 1000, 'STREAMS', 's', '>');
    await raiseWaits();
    await other.query('COMMIT');
    expect(await reading).toBeNull();
    expect(sidecar.recovery.status().restoresTotal).toBe(1);
  });

  test('who leads and whose sessions fall silent is replaced, and goes on as one of the others', async () => {
    const first = await startBehindLink();
    const second = await startSidecar({ kvPort: kv.port, databaseUrl });
    expect([first.recovery.status().leads, second.recovery.status().leads]).toEqual([true, false]);
    const added = await first.client().xadd('s', '*', 'n', '1');
    await first.client().xgroup('CREATE', 's', 'g', '0');
    link.silence();
    await eventually('another one leads', () => second.recovery.status().leads, PATIENCE_MS);
    await clientOf(kv.port).flushall();
    await restored(second);
    const client = first.client();
    await eventually(
      'it takes entries again',
      () => client.xadd('s', '*', 'n', '2').then(Boolean, () => false),
      PATIENCE_MS,
    );
    const read = await client.xreadgroup('GROUP', 'g', 'c', 'COUNT', '1', 'STREAMS', 's', '>');
    expect(idsIn(read)).toEqual([added]);
    expect([first.recovery.status().leads, second.recovery.status().leads]).toEqual([false, true]);
  }, 90_000);

  test('what nobody tells it any more it sees by looking', async () => {
    const leader = await startSidecar({ kvPort: kv.port, databaseUrl });
    const deaf = await startBehindLink();
    const client = deaf.client();
    const added = await client.xadd('s', '*', 'n', '1');
    await client.xgroup('CREATE', 's', 'g', '0');
    link.silence();
    // Connections of the pool are given up as soon as they are used; the session that listens says nothing by itself.
    await eventually('it looks again', () => client.xadd('s', '*', 'n', '2').then(Boolean, () => false), PATIENCE_MS);
    await clientOf(kv.port).flushall();
    await restored(leader);
    const known = ({ ledger }: Sidecar) => {
      const { epoch, restoredEpoch, mode } = ledger.streams.find(0, Buffer.from('s'))!;
      return { epoch, restoredEpoch, mode };
    };
    const current = known(leader);
    expect(current.restoredEpoch).toBeGreaterThan(0);
    await eventually(
      'it knows',
      () => known(deaf).epoch === current.epoch && known(deaf).mode === 'normal',
      PATIENCE_MS,
    );
    expect(known(deaf)).toEqual(current);
    const read = await client.xreadgroup('GROUP', 'g', 'c', 'COUNT', '1', 'STREAMS', 's', '>');
    expect(idsIn(read)).toEqual([added]);
  }, 90_000);
});
