/** Case 10: scripts and functions in a scope. */
import { createHash } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { startKv } from '../support/servers.ts';
import { type Ask, asking, type ScopedProxy, startScopedProxy } from './scoped-proxy.ts';
import { SCRIPT_ATTACKS } from './script-attacks.ts';

const USERS = { a: { scope: 'a:' }, b: { scope: 'b:' }, shares: { scope: 's:', shared: ['common', 'queue'] } };
const kvs = { redis: await startKv('redis'), valkey: await startKv('valkey') };
/** Nothing but the wrapper keeps scopes apart here. */
const open: Record<string, ScopedProxy> = {
  redis: await startScopedProxy(kvs.redis.port, { users: USERS, fence: 'open' }),
  valkey: await startScopedProxy(kvs.valkey.port, { users: USERS, fence: 'open' }),
};

const sha1 = (text: string): string => createHash('sha1').update(text).digest('hex');

describe.each(['redis', 'valkey'] as const)('scripts in a scope on %s', (server) => {
  const proxy = open[server]!;
  let direct: Ask;
  let a: Ask;
  let b: Ask;
  async function begin(): Promise<void> {
    direct = asking(await proxy.unscoped());
    a = asking(await proxy.login('a'));
    b = asking(await proxy.login('b', 3));
    await direct('FLUSHALL');
  }

  it.each(SCRIPT_ATTACKS)('no way out: %s', async (body) => {
    await begin();
    await direct('SET', 'secret', 'the-secret');
    await direct('SET', 'b:secret', 'the-secret');
    await a('RPUSH', 'l', 't');
    const before = await direct('DUMP', 'secret');
    const reply = JSON.stringify(await a('EVAL', body, 0));
    expect(reply).not.toContain('the-secret');
    expect(reply).not.toMatch(/^"(found|allowed|secret)"$/);
    expect(reply).not.toMatch(/a:|b:/);
    expect(await direct('DUMP', 'secret')).toEqual(before);
    expect(((await direct('KEYS', '*')) as string[]).every((key) => /^(a:|b:secret$|secret$)/.test(key))).toBe(true);
    // The server's Lua is as it was for everybody else.
    expect(
      await direct('EVAL', "return redis.call('GET',KEYS[1])..string.lower('X')..('y'):upper()", 1, 'secret'),
    ).toBe('the-secretxY');
    expect(await b('EVAL', "return redis.call('GET',KEYS[1])", 1, 'secret')).toBe('the-secret');
  });

  it('scopes keys that are built inside, once', async () => {
    await begin();
    const body = [
      "local prefix=KEYS[1]..':'",
      "redis.call('HSET',prefix..ARGV[1],'f',ARGV[2])",
      "redis.call('SET','a:x',KEYS[1])",
      "local r={redis.call('HGET',prefix..ARGV[1],'f'),#ARGV,#KEYS}",
      'return r',
    ].join('\n');
    expect(await a('EVAL', body, 1, 'bull', '7', 'v')).toEqual(['v', 2, 1]);
    expect(((await direct('KEYS', '*')) as string[]).sort()).toEqual(['a:a:x', 'a:bull:7']);
    expect(await direct('GET', 'a:a:x')).toBe('bull');
  });

  it('takes a script that leaves no room for a wrapper and needs none, and passes its own errors on', async () => {
    await begin();
    const names = Array.from({ length: 200 }, (_, at) => `v${at}`).join(',');
    await a('SET', 'k', 'v');
    expect(await a('EVAL', `local ${names} return redis.call('GET',KEYS[1])`, 1, 'k')).toBe('v');
    const fails = 'return redis.error_reply(ARGV[1])';
    const said = `ERR x script: ${sha1(fails)}, on @user_script:0.`;
    expect(await a('EVAL', fails, 0, said)).toBe(await direct('EVAL', fails, 0, said));
  });

  it('gives the same replies as a bare script, command by command', async () => {
    await begin();
    const calls: readonly string[] = [
      'redis.call()',
      'redis.pcall()',
      "redis.call('SET','k','v')",
      "redis.call('set','k',1.5)",
      "redis.call('SET',12,1e15)",
      "redis.call('GET','12')",
      "redis.call('GET','k')",
      "redis.call('SE'..'T','k2','w')",
      "redis.call('MSET','m1',1,'m2',2)",
      "redis.call('MGET','m1','k','none')",
      "redis.call('DEL','m1','none')",
      "redis.call('rpush','l',3,1,2)",
      "redis.call('LMPOP',2,'none','l','LEFT','COUNT',1)",
      "redis.call('SORT','l','DESC')",
      "redis.call('SORT','l','BY','nosort','STORE','ls')",
      "redis.call('SORT','l','BY','w_*','GET','#','GET','k*')",
      "redis.call('RPOPLPUSH','l','l2')",
      "redis.call('LRANGE','l2',0,-1)",
      "redis.call('ZADD','z',1,'a',2,'b')",
      "redis.call('ZUNIONSTORE','zz',2,'z','none')",
      "redis.call('ZRANGE','zz',0,-1,'WITHSCORES')",
      "redis.call('ZMPOP',1,'zz','MIN')",
      "redis.call('GEOADD','g',13.3,38.1,'P')",
      "redis.call('GEORADIUS','g',13,38,200,'km','STORE','gs')",
      "redis.call('XADD','s','1-1','f','v')",
      "redis.call('XGROUP','CREATE','s','STREAMS','0')",
      "redis.call('XREADGROUP','GROUP','STREAMS','c','STREAMS','s','>')",
      "redis.call('XREAD','COUNT',1,'STREAMS','s','0')",
      "redis.call('XPENDING','s','STREAMS')",
      "redis.call('XACK','s','STREAMS','1-1')",
      "redis.call('XINFO','GROUPS','s')",
      "redis.call('OBJECT','ENCODING','k')",
      "redis.call('TYPE','s')",
      "redis.call('EXISTS','k','k','none')",
      "redis.call('EXPIRE','k',1000)",
      "redis.call('DBSIZE')",
      "#redis.call('KEYS','*')",
      "redis.call('KEYS','m*')",
      "redis.call('SCAN',0,'MATCH','m*','COUNT',1000)",
      "redis.call('PUBLISH','c','m')",
      "redis.call('PING')",
      "redis.call('ECHO','x')",
      "redis.call('INCR','s')",
      "redis.pcall('INCR','s')",
      "redis.pcall('INCR','s').err",
      "pcall(redis.call,'INCR','s')",
      "{pcall(redis.call,'INCR','s')}",
      "redis.call('XPENDING','none','g')",
      "redis.call('XGROUP','SETID','s','nog','0')",
      "redis.pcall('XCLAIM','none','g','c',0,'1-1').err",
      "redis.call('GET')",
      "redis.call('GET','k','k')",
      "redis.call('SET','k')",
      "redis.call('GET',{})",
      "redis.call('GET',true)",
      "redis.call('ZUNION','x','z')",
      "redis.call('ZUNION',5,'z')",
      "redis.call('LMPOP',0,'l','LEFT')",
      "redis.call('SORT','l','NEW')",
      "redis.call('XREAD','STREAMS','s')",
      "redis.error_reply('MY own')",
      "redis.status_reply('FINE')",
      "redis.sha1hex('x')",
      'redis.REPL_ALL',
      'redis.LOG_WARNING',
      'redis.setresp(3)',
      "{redis.setresp(3),redis.call('HGETALL','none')}",
      "(function() redis.setresp(3) return redis.call('XREAD','STREAMS','s','0') end)()",
      "(function() redis.setresp(3) return redis.call('XREAD','STREAMS','s','0').map.s[1][1] end)()",
      "(function() redis.setresp(3) return redis.call('ZRANGE','z',0,-1,'WITHSCORES') end)()",
      "(function() redis.setresp(3) return redis.call('SMEMBERS','none') end)()",
      'unknown',
      'nil + 1',
      '({}).x.y',
      "error('text')",
      "error({err='TABLE error'})",
      "error('text',0)",
      "redis.call('FLUSHDB')",
      "redis.call('RANDOMKEY')",
    ];
    // The same on one connection without a scope, in a database of its own.
    const bare = asking(await proxy.unscoped());
    await bare('SELECT', 9);
    for (const call of calls) {
      for (const body of [`local r=${call} return r`, `\n\nlocal r=${call}\nreturn r`, `\nreturn ${call}`]) {
        const wanted = await bare('EVAL', body, 0);
        expect(await a('EVAL', body, 0), body).toEqual(wanted);
      }
    }
  });

  it("keeps the client's SHA1 for EVALSHA, SCRIPT LOAD, EXISTS, SHOW and in errors", async () => {
    await begin();
    const body = "local x = 1\nreturn {KEYS[1], redis.call('INCR', KEYS[1])}";
    const sha = sha1(body);
    const noScript = await direct('EVALSHA', sha, 0);
    expect(noScript).toMatch(/^!NOSCRIPT No matching script/);
    expect(await a('EVALSHA', sha, 1, 'n')).toBe(noScript);
    expect(await a('SCRIPT', 'EXISTS', sha)).toEqual([0]);
    expect(await a('SCRIPT', 'LOAD', body)).toBe(sha);
    expect(await a('SCRIPT', 'EXISTS', sha, sha1('other'), sha.toUpperCase())).toEqual([1, 0, 1]);
    expect(await a('EVALSHA', sha, 1, 'n')).toEqual(['n', 1]);
    expect(await a('evalsha', sha.toUpperCase(), '1', 'n')).toEqual(['n', 2]);
    // Another identity has not loaded it.
    expect(await b('EVALSHA', sha, 1, 'n')).toBe(noScript);
    expect(await b('SCRIPT', 'EXISTS', sha)).toEqual([0]);
    expect(await b('EVAL', body, 1, 'n')).toEqual(['n', 1]);
    expect(await b('EVALSHA', sha, 1, 'n')).toEqual(['n', 2]);
    await a('SET', 'n', 'text');
    const error = `!ERR value is not an integer or out of range script: ${sha}, on @user_script:2.`;
    expect(await a('EVALSHA', sha, 1, 'n')).toBe(error);
    expect(await a('EVAL', body, 1, 'n')).toBe(error);
    await a('MULTI');
    await a('EVALSHA', sha, 1, 'n');
    await a('EVALSHA', sha1('none'), 0);
    await a('EVAL', 'this does not compile', 0);
    await a('SET', 'after', 1);
    expect(await a('EXEC')).toEqual([
      error,
      noScript,
      "!ERR Error compiling script (new function): user_script:1: '=' expected near 'does'",
      'OK',
    ]);
    expect(await a('SCRIPT', 'FLUSH', 'NOW')).toMatch(/^!ERR SCRIPT FLUSH only support/);
    expect(await a('SCRIPT', 'FLUSH')).toBe('OK');
    expect(await a('EVALSHA', sha, 1, 'n')).toBe(noScript);
    expect(await b('EVALSHA', sha, 1, 'n')).toEqual(['n', 3]);
    // The server forgot: the client is told, as without Holdfast.
    await direct('SCRIPT', 'FLUSH');
    expect(await b('EVALSHA', sha, 1, 'n')).toBe(noScript);
    expect(await b('EVAL', body, 1, 'n')).toEqual(['n', 4]);
    if (server === 'valkey') expect(await b('SCRIPT', 'SHOW', sha)).toBe(body);
  });

  it("keeps shebang lines and flags, and says what does not compile in the server's words", async () => {
    await begin();
    const bare = asking(await proxy.unscoped());
    for (const body of [
      '#!lua flags=no-writes\nreturn 1',
      "#!lua flags=no-writes\nreturn redis.call('SET','k','v')",
      "#!lua\n\nerror('line three')",
      '#!lua flags=nosuch\nreturn 1',
      '#!python\nreturn 1',
      '#!lua',
      'if 1 then',
      'return 1 end do',
      'return 1 end redis.call("SET","out","1") do',
      'end)() redis.call("SET","out","1") ;(function()',
      '\n\nlocal = 1',
      `${Array.from({ length: 201 }, (_, i) => `local v${i}=1`).join('\n')}`,
      '--[[ unfinished',
      "return 'unfinished",
      'goto x',
    ]) {
      const wanted = String(await bare('EVAL', body, 0)).replace(/'<eof>'|script: [0-9a-f]{40}/g, '…');
      const given = String(await a('EVAL', body, 0)).replace(/'<eof>'|script: [0-9a-f]{40}/g, '…');
      expect(given, body).toBe(wanted);
    }
    expect(await a('EVAL_RO', "return redis.call('SET','k','v')", 0)).toMatch(/^!ERR Write commands are not allowed/);
    expect(await a('EVAL_RO', "return redis.call('GET','k')", 0)).toBe(null);
    const locals = Array.from({ length: 199 }, (_, i) => `local v${i}=redis.call('INCR','n')`).join('\n');
    expect(await a('EVAL', `${locals}\nreturn v198`, 0)).toBe(199);
    expect((await direct('KEYS', '*')) as string[]).toEqual(['a:n']);
  });

  it('knows shared keys, as KEYS and inside', async () => {
    await begin();
    const ask = asking(await proxy.login('shares'));
    const body =
      "redis.call('SET',KEYS[1],'1') redis.call('SET',KEYS[2],'2') redis.call('SET','queue','3') " +
      "return {KEYS[1],KEYS[2],redis.call('GET','common'),#ARGV,ARGV[1],redis.call('DEL','common','own')}";
    expect(await ask('EVAL', body, 2, 'common', 'own', 'x')).toEqual(['common', 'own', '1', 1, 'x', 2]);
    expect((await direct('KEYS', '*')) as string[]).toEqual(['queue']);
  });

  it('runs functions of its own under their own names', async () => {
    await begin();
    await direct(
      'FUNCTION',
      'LOAD',
      'REPLACE',
      "#!lua name=global\nredis.register_function('everybody',function() return redis.call('GET','secret') end)",
    );
    const code = [
      '#!lua name=tools',
      'local count=0',
      'local function get(keys,args)',
      '  count=count+1',
      "  redis.call('SET',keys[1],args[1])",
      "  return {keys[1],#args,redis.call('GET',keys[1]),redis.call('KEYS','*'),count,redis.sha1hex('')}",
      'end',
      "redis.register_function('get',get)",
      "redis.register_function{function_name='ro',callback=function(keys,args) return redis.call('INCR',keys[1]) end,flags={'no-writes'},description='d'}",
      "redis.register_function('fails',function(keys)\n  return redis.call('INCR',keys[1]) end)",
      "redis.register_function('peek',function() return _G and _G.redis or tostring(getmetatable('')) end)",
    ].join('\n');
    expect(await a('FUNCTION', 'LOAD', code)).toBe('tools');
    expect(await a('FUNCTION', 'LOAD', code)).toMatch(/^!ERR Library 'tools' already exists/);
    expect(await b('FUNCTION', 'LOAD', code)).toBe('tools');
    expect(await a('FCALL', 'get', 1, 'k', 'v')).toEqual(['k', 1, 'v', ['k'], 1, sha1('')]);
    expect(await b('FCALL', 'get', 1, 'q', 'w', 'x')).toEqual(['q', 2, 'w', ['q'], 1, sha1('')]);
    expect(await a('FCALL_RO', 'ro', 1, 'k')).toMatch(/^!ERR/);
    const failed = String(await a('FCALL', 'fails', 1, 'k'));
    expect(failed).toMatch(/^!ERR value is not an integer or out of range script: fails, on @user_function:\d+\.$/);
    expect(await a('FCALL', 'peek', 0)).toBe('nil');
    expect(await a('FCALL', 'everybody', 0)).toBe('!ERR Function not found');
    expect(await a('FCALL', 'get', 9, 'k')).toMatch(/^!ERR/);
    const listed = JSON.stringify(await a('FUNCTION', 'LIST', 'WITHCODE'));
    expect(listed).toContain('"tools"');
    expect(listed).toContain(JSON.stringify(code));
    expect(listed).not.toMatch(/hf[0-9a-f]{16}|global/);
    expect(await a('FUNCTION', 'LIST', 'LIBRARYNAME', 'none*')).toEqual([]);
    expect(await a('FUNCTION', 'LIST', 'LIBRARYNAME', 'to*')).toHaveLength(1);
    expect(await a('FUNCTION', 'DELETE', 'global')).toMatch(/^!ERR Library not found/);
    expect(await a('FUNCTION', 'FLUSH', 'bad')).toBe('!ERR FUNCTION FLUSH only supports SYNC|ASYNC option');
    expect(await a('FUNCTION', 'FLUSH', 'SYNC', 'x')).toMatch(/^!ERR unknown subcommand or wrong number of arguments/);
    expect(await a('FUNCTION', 'LIST')).toHaveLength(1);
    expect(await a('FUNCTION', 'FLUSH', 'async')).toBe('OK');
    expect(await a('FUNCTION', 'LIST')).toEqual([]);
    expect(await b('FUNCTION', 'LIST')).toHaveLength(1);
    expect(await b('FUNCTION', 'DELETE', 'tools')).toBe('OK');
    expect(await direct('FUNCTION', 'LIST')).toHaveLength(1);
    for (const bad of [
      'return 1',
      '#!lua name=x',
      '#!lua nome=x\n',
      '#!lua name=x\nend do',
      "#!lua name=x\nredis.call('SET','k','v')",
      '#!lua name=x\nreturn 1 end (function()',
      "#!lua name=y\nredis.register_function('f',function() end) redis.register_function('f',function() end)",
    ]) {
      const error = String(await a('FUNCTION', 'LOAD', bad));
      expect(error, bad).toMatch(/^!ERR/);
      expect(error).not.toMatch(/hf[0-9a-f]{16}/);
    }
    expect(((await direct('KEYS', '*')) as string[]).sort()).toEqual(['a:k', 'b:q']);
    await direct('FUNCTION', 'FLUSH');
  });

  it('refuses scripts where there is no second fence', async () => {
    const { login } = await startScopedProxy(kvs[server].port, { users: USERS, fence: 'none' });
    const ask = asking(await login('a'));
    for (const args of [
      ['EVAL', 'return 1', '0'],
      ['EVALSHA', sha1(''), '0'],
      ['SCRIPT', 'LOAD', 'return 1'],
      ['FCALL', 'f', '0'],
      ['FUNCTION', 'LOAD', '#!lua name=x\n'],
    ]) {
      expect(await ask(...(args as [string]))).toMatch(/^!NOPERM scripts cannot be used in scopes here/);
    }
    expect(await ask('SET', 'k', 'v')).toBe('OK');
  });
});
