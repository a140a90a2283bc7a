/** What is queued behind a SELECT of the same transaction is done in that database, and is the ledger's of that database. */
import type { Redis } from 'ioredis';
import { beforeAll, describe, expect, test } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { clientOf, looks, restored, type Sidecar, startAnew } from '../support/sidecar.ts';

/** EXEC's reply. */
async function transaction(client: Redis, commands: readonly string[][]): Promise<unknown[]> {
  await client.call('MULTI');
  for (const [command, ...args] of commands) expect(await client.call(command!, ...args)).toBe('QUEUED');
  return (await client.call('EXEC')) as unknown[];
}

const NEVER_MS = 600_000;

describe.each(kvKinds)('in MULTI behind SELECT, with %s,', (kind) => {
  let kv: KvServer;

  beforeAll(async () => {
    kv = await startKv(kind);
  });

  const lose = async (sidecar: Sidecar): Promise<void> => {
    await clientOf(kv.port).flushall();
    await sidecar.recovery.look();
    await restored(sidecar);
  };

  test('an XADD and an XGROUP CREATE are of that database', async () => {
    const { sidecar, client, direct } = await startAnew(kv.port, {});
    await client.xadd('s', '1-1', 'n', 'zero');
    const replies = await transaction(client, [
      ['SELECT', '3'],
      ['XADD', 's', '2-1', 'n', 'three'],
      ['XGROUP', 'CREATE', 's', 'g', '0'],
      ['SELECT', '0'],
      ['XADD', 's', '3-1', 'n', 'zero again'],
    ]);
    expect(replies.map(String)).toEqual(['OK', '2-1', 'OK', 'OK', '3-1']);
    await lose(sidecar);
    expect(await direct.xrange('s', '-', '+')).toEqual([
      ['1-1', ['n', 'zero']],
      ['3-1', ['n', 'zero again']],
    ]);
    expect(await direct.xinfo('GROUPS', 's')).toEqual([]);
    await direct.select(3);
    expect(await direct.xrange('s', '-', '+')).toEqual([['2-1', ['n', 'three']]]);
    expect(await direct.xinfo('GROUPS', 's')).toHaveLength(1);
  });

  test.each([
    ['DEL', ['DEL', 's']],
    ['RENAME', ['RENAME', 's', 't']],
    ['FLUSHDB', ['FLUSHDB']],
    ['XDEL', ['XDEL', 's', '1-1']],
    ['PEXPIRE', ['PEXPIRE', 's', '1']],
    ['XTRIM', ['XTRIM', 's', 'MAXLEN', '0']],
    ['XGROUP DESTROY', ['XGROUP', 'DESTROY', 's', 'g']],
  ])('a %s touches that database alone', async (_, [command, ...args]) => {
    const { sidecar, client, direct } = await startAnew(kv.port, { lookIntervalMs: NEVER_MS });
    for (const database of [0, 3]) {
      await client.select(database);
      await client.xadd('s', '1-1', 'n', String(database));
      await client.xgroup('CREATE', 's', 'g', '0');
    }
    await client.select(0);
    await transaction(client, [
      ['SELECT', '3'],
      [command!, ...args],
    ]);
    // The key is gone before anybody looks.
    for (const database of [0, 3]) {
      await direct.select(database);
      while (command === 'PEXPIRE' && database === 3 && (await direct.exists('s')) === 1);
    }
    await direct.select(0);
    await lose(sidecar);
    expect(await direct.xrange('s', '-', '+')).toEqual([['1-1', ['n', '0']]]);
    expect(await direct.xinfo('GROUPS', 's')).toHaveLength(1);
    await direct.select(3);
    if (command === 'XGROUP') expect(await direct.xinfo('GROUPS', 's')).toEqual([]);
    else expect(await direct.xrange('s', '-', '+')).toEqual([]);
  });

  test('a number that no database has leaves the transaction where it was', async () => {
    const { sidecar, client, direct } = await startAnew(kv.port, {});
    const replies = await transaction(client, [
      ['SELECT', '99'],
      ['XADD', 's', '1-1', 'n', 'zero'],
    ]);
    expect(replies.map(String)).toEqual([expect.stringContaining('out of range'), '1-1']);
    await looks(sidecar, 2);
    await lose(sidecar);
    expect(await direct.xrange('s', '-', '+')).toEqual([['1-1', ['n', 'zero']]]);
  });

  test('what DISCARD takes back says nothing of the next transaction', async () => {
    const { sidecar, client, direct } = await startAnew(kv.port, {});
    await client.call('MULTI');
    await client.call('SELECT', '3');
    await client.call('DISCARD');
    await transaction(client, [['XADD', 's', '1-1', 'n', 'zero']]);
    await lose(sidecar);
    expect(await direct.xrange('s', '-', '+')).toEqual([['1-1', ['n', 'zero']]]);
  });
});
