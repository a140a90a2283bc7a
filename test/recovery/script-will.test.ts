/** What a script or a function does to streams, when it came through Holdfast, is a client's will: nothing of it is taken back. */
import { Queue } from 'bullmq';
import type { Redis } from 'ioredis';
import { beforeAll, describe, expect, test } from 'vitest';
import type { KvServer } from '../../src/embedded/kv-server.ts';
import { startTcpProxy } from '../chaos/tcp-proxy.ts';
import { ledgerRows } from '../support/ledger-rows.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { eventually, idsIn, restored, type Sidecar, startAnew } from '../support/sidecar.ts';

const NEVER_MS = 600_000;
/** Scripts whose first key is the stream. */
const DELETING: Readonly<Record<string, string>> = {
  DEL: "return redis.call('del', KEYS[1])",
  UNLINK: "return redis.call('UNLINK', KEYS[1])",
  'DEL of a key that the script builds': "return redis.call('del', 's' .. '')",
  'DEL by another name': "local rcall = redis.call local key = string.lower('S') return rcall('DEL', key)",
  'DEL by a name that is an argument': "return redis.call(ARGV[1], 's')",
  'DEL by a protected call': "return redis.pcall('del', unpack(redis.call('keys', '*')))",
  RENAME: "return redis.call('rename', KEYS[1], 'elsewhere')",
  'PEXPIRE that is over at once': "return redis.call('pexpire', KEYS[1], -1)",
  FLUSHDB: "return redis.call('flushdb')",
  FLUSHALL: "return redis.call('FLUSHALL')",
};

type Runner = (client: Redis, script: string) => Promise<unknown>;
const library = (script: string): string =>
  `#!lua name=lib\nredis.register_function('f', function(keys, args) local KEYS, ARGV = keys, args ${script} end)`;
const FORMS: Readonly<Record<string, Runner>> = {
  EVAL: (client, script) => client.eval(script, 1, 's', 'del'),
  EVALSHA: async (client, script) => client.evalsha(String(await client.script('LOAD', script)), 1, 's', 'del'),
  'EVAL in MULTI': async (client, script) => {
    await client.call('MULTI');
    await client.call('EVAL', script, '1', 's', 'del');
    return client.call('EXEC');
  },
  FCALL: async (client, script) => {
    await client.function('LOAD', 'REPLACE', library(script));
    return client.fcall('f', 1, 's', 'del');
  },
};

describe.each(kvKinds)('what a script does is not taken back, with %s:', (kind) => {
  let kv: KvServer;

  beforeAll(async () => {
    kv = await startKv(kind);
  });

  async function added(options: Parameters<typeof startAnew>[1]) {
    const { sidecar, client, direct } = await startAnew(kv.port, options);
    await client.xgroup('CREATE', 's', 'g', '0', 'MKSTREAM');
    for (const id of ['1-1', '1-2']) await client.xadd('s', id, 'n', id);
    return { sidecar, client, direct };
  }

  async function staysAway(sidecar: Sidecar, direct: Redis): Promise<void> {
    for (let look = 0; look < 3; look += 1) await sidecar.recovery.look();
    expect(sidecar.recovery.status()).toMatchObject({ lossesTotal: 0, restoresTotal: 0 });
    expect(await direct.exists('s')).toBe(0);
  }

  for (const [form, run] of Object.entries(FORMS)) {
    test.each(Object.entries(DELETING))(`${form}: %s`, async (_, script) => {
      const { sidecar, client, direct } = await added({ lookIntervalMs: 20 });
      await run(client, script);
      await staysAway(sidecar, direct);
      // What comes next is the next stream's, and only that is lost.
      expect(await client.xadd('s', '1-1', 'n', 'new')).toBe('1-1');
      await direct.flushall();
      await sidecar.recovery.look();
      await restored(sidecar);
      expect(await direct.xrange('s', '-', '+')).toEqual([['1-1', ['n', 'new']]]);
    });
  }

  test('an XADD right behind it begins the next stream', async () => {
    const { sidecar, client, direct } = await added({ lookIntervalMs: NEVER_MS });
    const [, id] = await Promise.all([
      client.eval("return redis.call('del', 's' .. '')", 0),
      client.xadd('s', '1-1', 'n', 'new'),
    ]);
    expect(id).toBe('1-1');
    for (let look = 0; look < 3; look += 1) await sidecar.recovery.look();
    expect(await ledgerRows(sidecar, 's')).toEqual([['1-1', ['n', 'new']]]);
    expect(await direct.xrange('s', '-', '+')).toEqual([['1-1', ['n', 'new']]]);
  });

  test('one that deletes the stream and begins it anew', async () => {
    const { sidecar, client, direct } = await added({ lookIntervalMs: NEVER_MS });
    await client.eval("redis.call('del', KEYS[1]) redis.call('xadd', KEYS[1], '5-1', 'n', 'new')", 1, 's');
    for (let look = 0; look < 3; look += 1) await sidecar.recovery.look();
    expect(await direct.xrange('s', '-', '+')).toEqual([['5-1', ['n', 'new']]]);
    expect(await ledgerRows(sidecar, 's')).toEqual([['5-1', ['n', 'new']]]);
  });

  test('XGROUP CREATE, SETID and DESTROY', async () => {
    const { sidecar, client, direct } = await added({ lookIntervalMs: NEVER_MS });
    await client.xgroup('CREATE', 's', 'back', '1-2');
    await sidecar.recovery.look();
    await client.eval(
      `redis.call('xgroup', 'destroy', KEYS[1], 'g')
       redis.call('xgroup', 'setid', KEYS[1], 'back', '0')
       redis.call('xgroup', 'create', KEYS[1], 'new', '1-1')`,
      1,
      's',
    );
    await sidecar.recovery.look();
    expect(sidecar.recovery.status().lossesTotal).toBe(0);
    await direct.flushall();
    await sidecar.recovery.look();
    await restored(sidecar);
    const read = async (group: string) =>
      idsIn(await client.xreadgroup('GROUP', group, 'c', 'STREAMS', 's', '>').catch(String));
    expect(await client.xinfo('GROUPS', 's')).toHaveLength(2);
    expect(await read('back')).toEqual(['1-1', '1-2']);
    expect(await read('new')).toEqual(['1-2']);
  });

  test.each(['before', 'after'])('but what another client deletes right %s it comes back', async (when) => {
    const { sidecar, client, direct } = await added({ lookIntervalMs: NEVER_MS });
    await client.set('lock', 'mine');
    if (when === 'before') await direct.del('s');
    await client.eval("return redis.call('del', 'lo' .. 'ck')", 0);
    if (when === 'after') await direct.del('s');
    await sidecar.recovery.look();
    await restored(sidecar);
    expect((await direct.xrange('s', '-', '+')).map(([id]) => id)).toEqual(['1-1', '1-2']);
  });

  test('whoever may not ask EXISTS has the same', async () => {
    const { sidecar, direct } = await added({ lookIntervalMs: NEVER_MS });
    await direct.call('ACL', 'SETUSER', 'limited', 'on', '>secret', '~*', '+@all', '-exists');
    const limited = sidecar.client();
    await limited.auth('limited', 'secret');
    await limited.eval("return redis.call('del', 's' .. '')", 0);
    await staysAway(sidecar, direct);
  });

  test('the other database that a script selects', async () => {
    const { sidecar, client, direct } = await added({ lookIntervalMs: NEVER_MS });
    await client.select(2);
    await client.eval("redis.call('select', 0) redis.call('del', 's')", 0);
    await staysAway(sidecar, direct);
  });

  test('its streams are known at the next look, however many keys there are', async () => {
    const { sidecar, client, direct } = await startAnew(kv.port, { lookIntervalMs: NEVER_MS });
    await direct.eval("for n = 1, 200000 do redis.call('set', 'k' .. n, '') end", 0);
    await client.eval("redis.call('xadd', KEYS[1], '1-1', 'n', '1')", 1, 'declared');
    await client.eval("redis.call('xadd', 'built', '1-1', 'n', '1')", 0);
    await sidecar.recovery.look();
    expect(sidecar.ledger.streams.find(0, Buffer.from('declared'))).toBeDefined();
    await eventually('found', async () => {
      await sidecar.recovery.look();
      return sidecar.ledger.streams.find(0, Buffer.from('built')) !== undefined;
    });
    expect(sidecar.recovery.status().looksTotal).toBeLessThan(60);
  });

  test.each(['ended it', 'ended nothing'])('a script whose reply is lost and that %s', async (what) => {
    const link = await startTcpProxy(() => kv.port);
    try {
      const { sidecar, client, direct } = await startAnew(kv.port, { kvPort: link.port, lookIntervalMs: NEVER_MS });
      await client.xadd('s', '1-1', 'n', '1');
      // The session knows already what it may ask.
      await client.eval("return redis.call('del', 'not' .. 'hing')", 0);
      const script = what === 'ended it' ? "redis.call('del', 's' .. '')" : "redis.call('del', 'not' .. 'hing')";
      await direct.call('CLIENT', 'PAUSE', '100000', 'WRITE');
      const answered = client.eval(script, 0).catch(String);
      await eventually('it waits', async () => String(await direct.client('LIST')).includes('cmd=eval'));
      link.hold(['toClient']);
      await direct.call('CLIENT', 'UNPAUSE');
      await eventually('it ran', async () => (await direct.exists('s')) === (what === 'ended it' ? 0 : 1));
      link.reset();
      link.heal();
      expect(String(await answered)).toMatch(/^Error/);
      if (what === 'ended nothing') {
        await sidecar.recovery.scripts.settled(sidecar.ledger.streams.find(0, Buffer.from('s'))!.streamId);
        await direct.del('s');
      }
      await eventually('judged', async () => {
        await sidecar.recovery.look();
        const rows = await ledgerRows(sidecar, 's');
        return what === 'ended it' ? rows.length === 0 : sidecar.recovery.status().restoresTotal > 0;
      });
      expect(await direct.exists('s')).toBe(what === 'ended it' ? 0 : 1);
    } finally {
      await link.close();
    }
  });

  test("BullMQ's obliterate", async () => {
    const { sidecar, direct } = await startAnew(kv.port, { lookIntervalMs: 50 });
    const queue = new Queue('jobs', { connection: { port: sidecar.port, maxRetriesPerRequest: null } });
    try {
      await queue.addBulk(Array.from({ length: 20 }, (_, n) => ({ name: 'job', data: { n } })));
      await eventually(
        'its events are known',
        () => sidecar.ledger.streams.find(0, Buffer.from('bull:jobs:events'))?.present,
      );
      await queue.obliterate();
      for (let look = 0; look < 3; look += 1) await sidecar.recovery.look();
      expect(sidecar.recovery.status()).toMatchObject({ lossesTotal: 0, restoresTotal: 0 });
      expect(await direct.keys('bull:jobs:events')).toEqual([]);
      await queue.add('job', { n: 'again' });
      expect(await direct.xlen('bull:jobs:events')).toBeGreaterThan(0);
    } finally {
      await queue.close();
    }
  });
});
