/** What one tenant asks for costs the others no more than a piece of it. */
import { describe, expect, it } from 'vitest';
import { hideOwnKeysInterceptor } from '../../src/intercept/hide-own-keys.ts';
import { connectScopeAdmin } from '../../src/scope/scope-admin.ts';
import { front, until } from '../proxy/through-proxy.ts';
import { connectRaw } from '../support/raw-client.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { asking, startScopedProxy } from './scoped-proxy.ts';

const KEYS = 20_000;
const FILL = "for i=1,tonumber(ARGV[2]) do redis.call('SET', ARGV[1]..i, '') end return 'OK'";

describe.each(kvKinds)('behind %s', async (kind) => {
  const kv = await startKv(kind);
  const direct = await connectRaw(kv.port);
  const proxy = await startScopedProxy(kv.port, { users: { acme: { scope: 'acme:' } } });
  await direct.send('EVAL', FILL, '0', 'acme:', String(KEYS));
  await direct.send('SET', 'holdfast:epoch', 'x');

  it('KEYS with a long reply names the scope’s keys, alone and in MULTI', async () => {
    const ask = asking(await proxy.login('acme'));
    const wanted = Array.from({ length: KEYS }, (_, n) => `${n + 1}`).sort();
    expect(((await ask('KEYS', '*')) as string[]).sort()).toEqual(wanted);
    await ask('MULTI');
    await ask('KEYS', '*');
    const [keys] = (await ask('EXEC')) as [string[]];
    expect(keys.sort()).toEqual(wanted);
  });

  it('KEYS with a long reply leaves Holdfast’s own keys out', async () => {
    const { client } = await front(kv.port, { interceptors: [hideOwnKeysInterceptor()] });
    const ask = asking(await client());
    const keys = (await ask('KEYS', '*')) as string[];
    expect(keys.filter((key) => !key.startsWith('acme:'))).toEqual([]);
    expect(keys.length).toBe(KEYS);
  });

  it('a client in a scope has a limit of patterns, and keeps those that it had', async () => {
    const client = await proxy.login('acme');
    const ask = asking(client);
    const patterns = Array.from({ length: 1000 }, (_, n) => `p${n}:*`);
    await ask('PSUBSCRIBE', ...patterns);
    for (let n = 1; n < patterns.length; n += 1) await client.next();
    expect(await ask('PSUBSCRIBE', 'one-more')).toMatch(/^!LIMIT .*1000 patterns/);
    expect(await direct.send('PUBLISH', 'acme:p999:x', 'm').then(({ bytes }) => bytes.toString())).toBe('1');
    expect((await client.next()).items?.map(({ bytes }) => bytes.toString())).toEqual([
      'pmessage',
      'p999:*',
      'p999:x',
      'm',
    ]);
  });

  it('a script of 30 MB is refused before anybody compiles it', async () => {
    const ask = asking(await proxy.login('acme'));
    const script = `return '${'x'.repeat(30 * 1024 * 1024)}'`;
    const calls = async (): Promise<number> => {
      const stats = (await direct.send('INFO', 'commandstats')).bytes.toString();
      return Number(/cmdstat_eval:calls=(\d+)/.exec(stats)?.[1]);
    };
    const before = await calls();
    for (const args of [
      ['EVAL', script, '0'],
      ['SCRIPT', 'LOAD', script],
    ]) {
      expect(await ask(...args)).toMatch(/^!LIMIT the script has 3\d{7} bytes, and limits.scopedScriptBytesMax/);
    }
    expect(await ask('FUNCTION', 'LOAD', `#!lua name=l\n${script}`)).toMatch(/^!LIMIT/);
    expect(await calls()).toBe(before);
    expect(await ask('EVAL', `return ${' '.repeat(500_000)} 7`, '0')).toBe(7);
  });

  it('what takes one request too long does not end the connection of the others', async () => {
    const admin = connectScopeAdmin({ port: kv.port }, 300);
    expect(String(await admin.command(['PING']))).toBe('PONG');
    const { generation } = admin;
    await direct.send('CLIENT', 'PAUSE', '600', 'WRITE');
    await expect(admin.command(['SET', 'acme:1', ''])).rejects.toThrow(/did not answer/);
    await until(async () => (await admin.command(['PING']).catch(() => '')) !== '');
    expect(admin.generation).toBe(generation);
    admin.close();
  });
});
