/** A Postgres that answers and takes nothing: entries are refused before the KV store has them, until it takes them again. */
import type { Redis } from 'ioredis';
import { afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import type { EmbeddedServer } from '../../src/embedded/server-process.ts';
import { retryContention } from '../../src/ledger/retry-contention.ts';
import { agreed } from '../support/ledger-rows.ts';
import { kvKinds, startKv, startOwnPostgres } from '../support/servers.ts';
import { clientOf, eventually, looks, type Sidecar, startSidecar } from '../support/sidecar.ts';

describe.each(kvKinds)('with %s', (kind) => {
  let kv: KvServer;
  let postgres: EmbeddedServer;
  let sidecar: Sidecar;
  let client: Redis;
  let direct: Redis;

  beforeAll(async () => {
    [kv, postgres] = await Promise.all([startKv(kind), startOwnPostgres()]);
  });

  beforeEach(async () => {
    direct = clientOf(kv.port);
    await direct.flushall();
    sidecar = await startSidecar({
      kvPort: kv.port,
      databaseUrl: postgres.url,
      lookIntervalMs: 50,
      limits: { commitTimeoutMs: 1000 },
    });
    client = sidecar.client();
  });

  afterEach(async () => {
    await sidecar.ledger.pool.query('DROP SCHEMA holdfast CASCADE');
  });

  const add = (n: number, stream = 's') => client.xadd(stream, '*', 'n', String(n));
  const values = async (stream = 's') => (await direct.xrange(stream, '-', '+')).map(([, [, value]]) => value);
  /** Commits and probes go on, and hold the locks that it needs. */
  const sql = (text: string) => retryContention(() => sidecar.ledger.pool.query(text));

  async function refused(): Promise<void> {
    await expect(add(1)).rejects.toThrow(/^LEDGERDOWN .*nothing was written/);
    await expect(add(1, 'new')).rejects.toThrow(/^LEDGERDOWN .*nothing was written/);
    await expect(client.multi().set('k', 'in EXEC').xadd('s', '*', 'n', '1').exec()).rejects.toThrow(/EXECABORT/);
    expect(await client.set('other', 'v')).toBe('OK');
    expect(await direct.exists('new', 'k')).toBe(0);
  }

  async function takesAgain(before: readonly string[]): Promise<void> {
    await eventually('entries are taken again', () => sidecar.ledger.writer.accepting);
    await add(2);
    expect(await values()).toEqual([...before, '2']);
    await agreed(sidecar, direct, 's');
    await looks(sidecar, 1);
    expect(sidecar.recovery.status()).toMatchObject({ state: 'open', lossesTotal: 0 });
  }

  test('read-only: found out without an XADD, each is refused before the KV store has it, and goes on by itself', async () => {
    await add(0);
    await sql('ALTER SYSTEM SET default_transaction_read_only = on');
    await sql('SELECT pg_reload_conf()');
    await eventually('it is found out', () => !sidecar.ledger.writer.accepting);
    for (let n = 0; n < 3; n += 1) await refused();
    expect(await values()).toEqual(['0']);
    await sql('ALTER SYSTEM RESET default_transaction_read_only');
    await sql('SELECT pg_reload_conf()');
    await takesAgain(['0']);
  });

  test('disk full for entries alone: one XADD finds it out, each after it is refused before the KV store has it', async () => {
    await add(0);
    await sql(`
      CREATE FUNCTION disk_full() RETURNS trigger LANGUAGE plpgsql AS $$
      BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$;
      CREATE TRIGGER disk_full BEFORE INSERT ON holdfast.entry FOR EACH ROW EXECUTE FUNCTION disk_full()`);
    await expect(add(1)).rejects.toThrow(/^LEDGERDOWN .*outcome is unknown/);
    for (let n = 0; n < 3; n += 1) await refused();
    expect(await values()).toEqual(['0', '1']);
    await sql('DROP FUNCTION disk_full CASCADE');
    await takesAgain(['0', '1']);
  });
});
