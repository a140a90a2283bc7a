/** What users of the configuration may do, with a scope and without one, and what `may` adds. */
import { describe, expect, it } from 'vitest';
import { kvKinds, startKv } from '../support/servers.ts';
import { type Ask, asking, startScopedProxy } from './scoped-proxy.ts';

const USERS = {
  tenant: { scope: 'tenant:' },
  mover: { scope: 'mover:', may: ['migrate'] as const },
  chooser: { scope: 'v1/{orgId}/', may: ['set-scope'] as const },
  app: {},
  carrier: { may: ['migrate'] as const },
  root: { may: ['admin'] as const },
};

describe.each(kvKinds)('the users of the configuration on %s', async (kind) => {
  const kv = await startKv(kind, { extraArgs: ['--requirepass', 'the-password', '--enable-debug-command', 'yes'] });
  const proxy = await startScopedProxy(kv.port, { users: USERS, kvPassword: 'the-password' });
  const as = async (user: string): Promise<Ask> => asking(await proxy.login(user));

  it('have MIGRATE where they may, by whatever way it is asked', async () => {
    const migrate = ['MIGRATE', '127.0.0.1', '1', 'k', '0', '10'] as const;
    for (const user of ['tenant', 'chooser', 'app', 'root']) {
      const ask = await as(user);
      if (user === 'chooser') expect(await ask('HOLDFAST', 'SCOPE', 'SET', 'o')).toBe('OK');
      await ask('SET', 'k', 'v');
      const expected = user === 'root' ? /^!IOERR/ : /^!NOPERM/;
      expect(await ask(...migrate), user).toMatch(expected);
      expect(await ask('MULTI')).toBe('OK');
      const queued = await ask(...migrate);
      if (user === 'root') expect(await ask('DISCARD')).toBe('OK');
      else {
        expect(queued, user).toMatch(/^!NOPERM/);
        expect(await ask('EXEC'), user).toMatch(/^!EXECABORT/);
      }
      if (user === 'chooser') expect(await ask('HOLDFAST', 'WITH', 'o', ...migrate)).toMatch(/^!NOPERM/);
      if (user !== 'root') {
        const script = "return redis.call('MIGRATE','127.0.0.1',1,KEYS[1],0,10)";
        expect(await ask('EVAL', script, 1, 'k'), user).toMatch(
          /NOPERM|ACL failure|not allowed|can't run this command/,
        );
      }
    }
    for (const user of ['mover', 'carrier']) {
      const ask = await as(user);
      await ask('SET', 'k', 'v');
      expect(await ask(...migrate), user).toMatch(/^!IOERR/);
    }
  });

  it('do not administer the KV store without a scope either, and use all of its data', async () => {
    const app = await as('app');
    const root = await as('root');
    for (const args of [
      ['CONFIG', 'GET', 'requirepass'],
      ['CONFIG', 'SET', 'maxmemory', '1'],
      ['ACL', 'LIST'],
      ['ACL', 'SETUSER', 'app', 'on'],
      ['DEBUG', 'SLEEP', '0'],
      ['SHUTDOWN', 'NOSAVE'],
      ['REPLICAOF', 'NO', 'ONE'],
      ['MODULE', 'LIST'],
      ['SLOWLOG', 'GET'],
      ['LATENCY', 'LATEST'],
      ['SAVE'],
      ['SWAPDB', '0', '1'],
      ['CLIENT', 'KILL', 'TYPE', 'normal'],
      ['CLIENT', 'PAUSE', '1'],
      ['CLIENT', 'NO-EVICT', 'ON'],
    ] as [string, ...string[]][]) {
      expect(await app(...args), args.join(' ')).toMatch(/^!NOPERM/);
    }
    for (const command of ['MONITOR', 'SYNC']) expect(await (await as('app'))(command)).toMatch(/^!NOPERM/);
    expect(await app('EVAL', "return redis.call('CONFIG','GET','requirepass')", 0)).toMatch(/^!ERR/);
    expect(await root('CONFIG', 'GET', 'requirepass')).toEqual(['requirepass', 'the-password']);
    await root('FLUSHALL');
    for (const [args, reply] of [
      [['SET', 'anywhere', '1'], 'OK'],
      [['KEYS', '*'], ['anywhere']],
      [['ACL', 'WHOAMI'], expect.stringMatching(/^holdfast-/)],
      [['INFO', 'server'], expect.stringContaining('_version:')],
      [['XADD', 's', '1-1', 'f', 'v'], '1-1'],
      [['XREAD', 'STREAMS', 's', '0'], [['s', [['1-1', ['f', 'v']]]]]],
      [['RPUSH', 'l', '2', '1'], 2],
      [
        ['SORT', 'l', 'BY', 'w_*', 'GET', '#'],
        ['1', '2'],
      ],
      [['EVAL', "return redis.call('GET',KEYS[1])", '1', 'anywhere'], '1'],
      [['PUBLISH', 'c', 'm'], 0],
      [['CLIENT', 'SETNAME', 'me'], 'OK'],
      [['CLIENT', 'LIST'], expect.stringContaining('name=me')],
      [['CLIENT', 'TRACKING', 'OFF'], 'OK'],
      [['WATCH', 'anywhere'], 'OK'],
      [['MULTI'], 'OK'],
      [['SELECT', '1'], 'QUEUED'],
      [['EXEC'], ['OK']],
      [['FLUSHALL'], 'OK'],
    ] as [[string, ...string[]], unknown][]) {
      expect(await app(...args), args.join(' ')).toEqual(reply);
    }
  });

  it('keep what they watch over AUTH: EXEC fails where the watching connection is left', async () => {
    const root = await as('root');
    for (const [from, to] of [
      ['root', 'app'],
      ['app', 'app'],
      ['root', 'tenant'],
    ] as const) {
      const ask = await as(from);
      expect(await ask('WATCH', 'watched')).toBe('OK');
      expect(await ask('AUTH', to, to)).toBe('OK');
      await root('SET', 'watched', from + to);
      expect(await ask('MULTI')).toBe('OK');
      expect(await ask('SET', 'written', '1')).toBe('QUEUED');
      expect(await ask('EXEC'), `${from} to ${to}`).toBe(null);
      expect(await ask('EXISTS', 'written')).toBe(0);
      // And no longer than that.
      expect(await ask('MULTI')).toBe('OK');
      expect(await ask('EXEC')).toEqual([]);
    }
  });
});
