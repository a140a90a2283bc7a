/** Whoever empties a scope empties it of what the KV store lost a moment ago as well. */
import { afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import type { LedgerContext } from '../../src/intercept/ledger/context.ts';
import { ledgerInterceptors } from '../../src/intercept/ledger/interceptors.ts';
import { StreamLimit } from '../../src/intercept/ledger/stream-limit.ts';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { clientOf, eventually, type Sidecar, startSidecar } from '../support/sidecar.ts';
import { type Ask, asking, type ScopedProxy, startScopedProxy } from './scoped-proxy.ts';

const NEVER_MS = 60_000;

describe.each(kvKinds)('a ledgered stream of a scope that the KV store has just lost, with %s,', (kind) => {
  let kv: KvServer;
  let sidecar: Sidecar;
  let proxy: ScopedProxy;
  let ask: Ask;

  beforeAll(async () => {
    kv = await startKv(kind);
  });

  beforeEach(async () => {
    await clientOf(kv.port).flushall();
    const database = await startTestPostgres();
    sidecar = await startSidecar({ kvPort: kv.port, databaseUrl: database.url, lookIntervalMs: NEVER_MS });
    const { ledger, recovery } = sidecar;
    const streamLimit = new StreamLimit(ledger.streams, { streamsMax: 9, scopeStreamsMax: 5 });
    const context: LedgerContext = {
      ledger,
      recovery,
      streamLimit,
      holdMs: 5000,
      entryBytesMax: 1024,
      onFailure: 'refuse',
    };
    proxy = await startScopedProxy(kv.port, {
      users: {
        tenant: { scope: 'tenant:' },
        other: { scope: 'other:' },
        worker: { scope: 'v1/{orgId}/{fleet}/{templateVersion}/', may: ['set-scope'] },
      },
      fence: 'none',
      interceptors: ledgerInterceptors(context),
      ledgered: () => ledger.streams.all(),
    });
    ask = asking(await proxy.login('tenant'));
  });

  afterEach(async () => {
    await sidecar.stop();
  });

  function names(): string[] {
    return [...sidecar.ledger.streams.all()].map(({ database, name }) => `${database} ${name}`).sort();
  }

  /** Nothing comes back but what was not removed. */
  async function comesBack(expected: readonly string[]): Promise<void> {
    expect(names()).toEqual(expected);
    await sidecar.recovery.look();
    await eventually('all that is left is back', () => sidecar.recovery.status().troubled.length === 0);
    const direct = clientOf(kv.port);
    const found: string[] = [];
    for (const database of [0, 3]) {
      await direct.select(database);
      for (const key of await direct.keys('*')) if (!key.startsWith('holdfast:')) found.push(`${database} ${key}`);
    }
    expect(found.sort()).toEqual(expected);
  }

  test('does not come back after FLUSHDB', async () => {
    await ask('XADD', 'lost', '*', 'n', '1');
    await ask('XADD', 'there', '*', 'n', '1');
    await asking(await proxy.login('other'))('XADD', 'lost', '*', 'n', '1');
    await clientOf(kv.port).del('tenant:lost', 'other:lost');
    expect(await ask('FLUSHDB')).toBe('OK');
    await comesBack(['0 other:lost']);
  });

  test('does not come back after FLUSHALL, in whatever database', async () => {
    await ask('XADD', 'lost', '*', 'n', '1');
    await ask('SELECT', 3);
    await ask('XADD', 'lost', '*', 'n', '1');
    await asking(await proxy.login('other'))('XADD', 'lost', '*', 'n', '1');
    await clientOf(kv.port).flushall();
    expect(await ask('FLUSHALL')).toBe('OK');
    await comesBack(['0 other:lost']);
  });

  test('does not come back after HOLDFAST SCOPE INVALIDATE', async () => {
    const worker = asking(await proxy.login('worker'));
    for (const fleet of ['one', 'two']) {
      await worker('HOLDFAST', 'SCOPE', 'SET', 'org', fleet, '1');
      await worker('XADD', 'lost', '*', 'n', '1');
    }
    await clientOf(kv.port).flushall();
    // It is found to be lost, comes back, and is removed.
    expect(await worker('HOLDFAST', 'SCOPE', 'INVALIDATE', 'org', 'one')).toBe(1);
    await comesBack(['0 v1/org/two/1/lost']);
  });

  test('a scope may have so many streams, all together may have so many, and what is refused writes nothing', async () => {
    for (let n = 0; n < 5; n += 1) expect(await ask('XADD', `s${n}`, '*', 'n', '1')).toMatch(/^\d+-0$/);
    expect(await ask('XADD', 's5', '*', 'n', '1')).toMatch(/^!LIMIT this scope .*ledger.scopeStreamsMax \(5\)/);
    expect(await ask('XGROUP', 'CREATE', 's5', 'g', '$', 'MKSTREAM')).toMatch(/^!LIMIT/);
    await ask('MULTI');
    await ask('XADD', 's5', '*', 'n', '1');
    expect(await ask('EXEC')).toMatch(/^!LIMIT/);
    // What it has goes on, and others do not notice.
    expect(await ask('XADD', 's0', '*', 'n', '2')).toMatch(/^\d+-0$/);
    const other = asking(await proxy.login('other'));
    for (let n = 0; n < 4; n += 1) expect(await other('XADD', `s${n}`, '*', 'n', '1')).toMatch(/^\d+-0$/);
    expect(await other('XADD', 's4', '*', 'n', '1')).toMatch(/^!LIMIT the ledger .*ledger.streamsMax \(9\)/);
    expect(names().length).toBe(9);
    expect(await clientOf(kv.port).exists('tenant:s5', 'other:s4')).toBe(0);
    // One that is gone makes room.
    expect(await other('DEL', 's0')).toBe(1);
    expect(await other('XADD', 's4', '*', 'n', '1')).toMatch(/^\d+-0$/);
  });

  test.each(['KEYS[1]', "string.sub(KEYS[1], 1, -2) .. 't'"])(
    "does not come back after a script deleted %s, nor is another scope's touched",
    async (key) => {
      const fenced = await startScopedProxy(kv.port, {
        users: { tenant: { scope: 'tenant:' }, other: { scope: 'other:' } },
        interceptors: ledgerInterceptors({
          ledger: sidecar.ledger,
          recovery: sidecar.recovery,
          streamLimit: new StreamLimit(sidecar.ledger.streams, { streamsMax: 9, scopeStreamsMax: 5 }),
          holdMs: 5000,
          entryBytesMax: 1024,
          onFailure: 'refuse',
        }),
        ledgered: () => sidecar.ledger.streams.all(),
      });
      const [tenant, other] = [asking(await fenced.login('tenant')), asking(await fenced.login('other'))];
      for (const one of [tenant, other]) await one('XADD', 'lost', '1-1', 'n', '1');
      expect(await tenant('EVAL', `return redis.call('del', ${key})`, '1', 'lost')).toBe(1);
      await comesBack(['0 other:lost']);
    },
  );
});
