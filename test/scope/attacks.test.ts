/** What a tenant tries against its neighbours. Each attempt gives nothing, on both reference servers. */
import { describe, expect, it } from 'vitest';
import { request } from '../../src/resp/encode.ts';
import { until } from '../proxy/through-proxy.ts';
import { startKv } from '../support/servers.ts';
import { type Ask, asking, plain, type ScopedProxy, startScopedProxy } from './scoped-proxy.ts';

const USERS = {
  a: { scope: 'a:', may: ['migrate'] as const },
  b: { scope: 'b:' },
  star: { scope: '*:' },
  class: { scope: '[ab]:' },
};
const extraArgs = ['--enable-debug-command', 'yes'];
const kvs = { redis: await startKv('redis', { extraArgs }), valkey: await startKv('valkey', { extraArgs }) };
const proxies: Record<string, ScopedProxy> = {
  redis: await startScopedProxy(kvs.redis.port, { users: USERS }),
  valkey: await startScopedProxy(kvs.valkey.port, { users: USERS }),
};

/** Lua that reaches for what is not the script's, beside those of script-attacks.ts. */
const HOSTILE_LUA: readonly string[] = [
  // Errors that carry or fake what the server says.
  "error({err='NOGROUP No such key \\'b:secret\\''})",
  "return redis.error_reply('NOGROUP b')",
  "return {pcall(error,redis.pcall('GET','secret'))}",
  "return pcall(error,setmetatable({},{__index=function(t,k) return redis.call('GET','secret') end}))",
  // Coroutines and callbacks in the middle of a call.
  "local co=coroutine.create(function(...) coroutine.yield(redis.call(...)) end) return {coroutine.resume(co,'GET','secret')}",
  'return {pcall(coroutine.wrap(function() return debug.traceback() end))}',
  'local f=coroutine.running and coroutine.running() return type(f)',
  // Metatables of strings and of the tables that calls return.
  "local m=getmetatable('') return m and m.__index and tostring(m.__index.call)",
  "local r=redis.call('KEYS','*') return getmetatable(r)==nil and #r or -1",
  "string.rep=nil table.concat=nil return redis.call('KEYS','*')",
  "local s=string.gsub string.gsub=function(v,p,r) return '*' end return redis.call('KEYS','x')",
  "string.sub=function(v) return v end return redis.call('KEYS','*')",
  "string.match=function() return 'p' end return redis.call('FLUSHALL')",
  "unpack=function() return 'GET','secret' end return redis.call('mget','x')",
  "select=function() return 1 end return redis.call('mget','secret')",
  "tonumber=function() return 0 end return redis.call('zunion',1,'secret')",
  "table.insert=function() end return redis.call('SCAN',0,'COUNT',1000)",
  "math.min=function() return 1000 end return redis.call('LMPOP',1,'secret','LEFT')",
  // Libraries.
  'return cjson.encode(redis)',
  'return cmsgpack.pack(redis.call)',
  "return struct.pack('s',redis.call('GET','secret'))",
  "return cmsgpack.unpack(cmsgpack.pack({redis.call('GET','secret')}))",
  "return redis.sha1hex(redis.call('GET','secret') or '')=='' and 1 or 0",
  "redis.setresp(3) return redis.call('GET','secret')",
  "redis.set_repl(redis.REPL_NONE) return redis.call('SET','b:secret','x')",
  "redis.breakpoint() return redis.call('GET','secret')",
  "redis.debug('x') return redis.call('GET','secret')",
  "redis.log(redis.LOG_WARNING,KEYS[1] or 'none') return redis.call('GET','secret')",
  "redis.replicate_commands() return redis.call('RANDOMKEY')",
  "return redis.call('SELECT',1) and redis.call('KEYS','*')",
  "return redis.call('HELLO',3,'AUTH','default','')",
  "return redis.call('RESET')",
  '#!lua flags=allow-cross-slot-keys,allow-stale\nreturn redis.call("GET","secret")',
  '#!lua name=x\nreturn redis.call("GET","secret")',
];

describe.each(['redis', 'valkey'] as const)('a tenant on %s', (server) => {
  const proxy = proxies[server]!;
  let direct: Ask;
  let a: Ask;
  let b: Ask;
  async function begin(): Promise<void> {
    direct = asking(await proxy.unscoped());
    await direct('FLUSHALL');
    await direct('ACL', 'LOG', 'RESET');
    a = asking(await proxy.login('a'));
    b = asking(await proxy.login('b'));
    for (const database of [1, 0]) {
      await direct('SELECT', database);
      for (const key of ['secret', 'b:secret', 'ab:secret', 'x:secret']) await direct('SET', key, 'the-secret');
    }
  }

  it.each(HOSTILE_LUA)('reaches nothing with %s', async (body) => {
    await begin();
    const ids = await direct('MGET', 'secret', 'b:secret');
    const reply = JSON.stringify(await a('EVAL', body, 0));
    expect(reply).not.toContain('the-secret');
    // What the script says itself it may hear.
    if (!body.includes('b:secret')) expect(reply).not.toMatch(/[ab]:/);
    expect(await direct('MGET', 'secret', 'b:secret')).toEqual(ids);
    const keys = (await direct('KEYS', '*')) as string[];
    expect(keys.filter((key) => !/^a:/.test(key)).sort()).toEqual(['ab:secret', 'b:secret', 'secret', 'x:secret']);
    expect(await direct('EVAL', "return string.upper('ok')..#redis.call('KEYS','secret')", 0)).toBe('OK1');
  });

  it('finds nobody by a name of glob characters', async () => {
    await begin();
    for (const user of ['star', 'class']) {
      for (const protocol of [2, 3] as const) {
        const ask = asking(await proxy.login(user, protocol));
        expect(await ask('KEYS', '*')).toEqual([]);
        expect(await ask('SCAN', 0, 'COUNT', 1000)).toEqual(['0', []]);
        expect(await ask('DBSIZE')).toBe(0);
        expect(await ask('RANDOMKEY')).toBe(null);
        expect(
          await ask('EVAL', "return {redis.call('KEYS','*'),redis.call('DBSIZE'),redis.call('SCAN','0')[2]}", 0),
        ).toEqual([[], 0, []]);
        expect(await ask('FLUSHALL')).toBe('OK');
        expect(await ask('EVAL', "return redis.call('FLUSHDB')", 0)).toMatchObject(expect.anything());
        expect(await ask('PUBSUB', 'CHANNELS')).toEqual([]);
      }
    }
    expect(await direct('DBSIZE')).toBe(4);
  });

  it('gets no copy of a key into its scope, and none of its own out', async () => {
    await begin();
    await a('RPUSH', 'l', 'secret');
    for (const args of [
      ['COPY', 'secret', 'mine'],
      ['RENAME', 'secret', 'mine'],
      ['SORT', 'l', 'BY', 'nosort', 'GET', '*'],
      ['SORT', 'l', 'BY', 'nosort', 'GET', '../*', 'GET', '*->f'],
      ['SORT_RO', 'l', 'BY', '*', 'GET', 'b:*'],
      ['BITOP', 'OR', 'mine', 'secret', 'b:secret'],
      ['OBJECT', 'ENCODING', 'secret'],
      ['DUMP', 'b:secret'],
      ['DEBUG', 'OBJECT', 'secret'],
      ['MEMORY', 'USAGE', 'secret'],
      ['TOUCH', 'secret', 'b:secret'],
      ['MIGRATE', '127.0.0.1', '1', 'secret', '0', '10'],
      ['MOVE', 'secret', '2'],
    ] as const) {
      const reply = JSON.stringify(await a(...(args as unknown as [string])));
      expect(reply, args.join(' ')).toMatch(
        /^(null|0|"!.*(no such key|NOKEY|WRONGTYPE).*"|\[null(,null)?\]|"NOKEY")$/i,
      );
    }
    expect(await direct('KEYS', 'a:*')).toEqual(['a:l']);
  });

  it('hears nothing of another by tracking, notifications or a redirection', async () => {
    await begin();
    await direct('CONFIG', 'SET', 'notify-keyspace-events', 'KEA');
    const client = await proxy.login('a', 3);
    const target = await proxy.login('b', 3);
    const id = String(plain(await target.send('CLIENT', 'ID')));
    const ask = asking(client);
    expect(await ask('CLIENT', 'TRACKING', 'ON', 'REDIRECT', id)).toMatch(/^!ERR The client ID/);
    expect(await ask('CLIENT', 'TRACKING', 'ON', 'BCAST')).toBe('OK');
    client.socket.write(
      Buffer.concat([
        request(['SUBSCRIBE', '__keyspace@0__:b:k', '__keyevent@0__:set', '__keyspace@0__:secret', 'b:c']),
        request(['PSUBSCRIBE', '__keyspace@*__:*', '*', 'b:*']),
      ]),
    );
    await until(() => client.pushes.length === 7);
    await b('SET', 'k', 'v');
    await b('PUBLISH', 'c', 'm');
    await b('PUBLISH', '__keyevent@0__:set', 'a:forged');
    await direct('SET', 'secret', 'changed');
    await direct('PUBLISH', 'b:c', 'm');
    await a('SET', 'own', 'v');
    await until(() => client.pushes.some((push) => JSON.stringify(plain(push)).includes('own')));
    for (const push of client.pushes.map(plain).filter((one) => !/subscribe/.test(String((one as unknown[])[0])))) {
      expect(JSON.stringify(push)).toMatch(/own/);
    }
    client.socket.destroy();
    target.socket.destroy();
  });

  it('learns of nobody by what the server keeps of everybody', async () => {
    await begin();
    await direct('CONFIG', 'SET', 'slowlog-log-slower-than', 0);
    await b('SET', 'k', 'the-secret');
    for (const args of [
      ['SLOWLOG', 'GET'],
      ['ACL', 'LOG'],
      ['ACL', 'GETUSER', 'default'],
      ['MONITOR'],
      ['LATENCY', 'HISTORY', 'command'],
      ['MEMORY', 'STATS'],
      ['CLUSTER', 'COUNTKEYSINSLOT', '0'],
      ['FUNCTION', 'DUMP'],
      ['DEBUG', 'DIGEST'],
      ['CONFIG', 'GET', '*'],
    ] as const) {
      expect(await a(...(args as unknown as [string])), args.join(' ')).toMatch(/^!NOPERM/);
    }
    expect(JSON.stringify(await a('CLIENT', 'LIST'))).not.toMatch(/user=(b|holdfast-)/);
    expect(await a('WAIT', 0, 10)).toBe(0);
    await direct('CONFIG', 'SET', 'slowlog-log-slower-than', 10_000);
  });
});
