/** What the server's Lua keeps for all scripts, a script in a scope neither changes nor reads. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { needsNoWrapper } from '../../src/scope/lua/lua-wrapper.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { asking, startScopedProxy } from './scoped-proxy.ts';
import { STATE_CHANGES } from './script-attacks.ts';

/** Each says what the server would. */
const RANDOM = [
  'math.randomseed(7) return {tostring(math.random()),math.random(10),math.random(5,9),tostring(math.random())}',
  'local m=math m.randomseed(-3) return {tostring(m.random()),m.random(1000000)}',
  'local m=math m.randomseed(4294967297) return {tostring(m.random()),m.floor(2.5),tostring(m.pi)}',
  'local m=math m.randomseed("12") local t={} for i=1,50 do t[i]=m.random(i) end return t',
  'local n=math.random(0) return n',
  'local n=math.random(3,2) return n',
  'local n=math.random(1,2,3) return n',
  'local m=math m.randomseed(1) return {m.max(1,2),tostring(m.huge),m.random(1)}',
];

function functionsOf(name: string, code: string): string {
  return `#!lua name=${name}\nredis.register_function('${name}',function(keys,args) ${code} end)`;
}

describe.each(kvKinds)('the libraries of scripts in a scope on %s', async (kind) => {
  const directory = mkdtempSync(join(tmpdir(), 'holdfast-lua-'));
  afterAll(() => rmSync(directory, { recursive: true, force: true }));
  const log = join(directory, 'kv.log');
  const kv = await startKv(kind, { extraArgs: ['--logfile', log] });
  const proxy = await startScopedProxy(kv.port, { users: { a: { scope: 'a:' }, b: { scope: 'b:' } }, fence: 'open' });
  const direct = asking(await proxy.unscoped());
  const a = asking(await proxy.login('a'));
  const b = asking(await proxy.login('b'));

  it.each(STATE_CHANGES)('are as they were for others after: %s', async (change, shows) => {
    await direct('FLUSHALL');
    await direct('DEL', 'h');
    const before = [await direct('EVAL', shows, 0), await b('EVAL', shows, 0)];
    const keyed = `${change} return redis.call('GET',KEYS[1])`;
    await a('EVAL', change, 0);
    await a('EVAL', keyed, 1, 'k');
    expect(await a('FUNCTION', 'LOAD', 'REPLACE', functionsOf('change', change))).toBe('change');
    await a('FCALL', 'change', 0);
    await a('FUNCTION', 'LOAD', 'REPLACE', `#!lua name=change\n${change} redis.register_function('x',function() end)`);
    expect([await direct('EVAL', shows, 0), await b('EVAL', shows, 0)]).toEqual(before);
  });

  it.each(RANDOM)('give the random numbers that the server would: %s', async (script) => {
    expect(await a('EVAL', script, 0)).toEqual(await direct('EVAL', script, 0));
  });

  it('keep one sequence of random numbers for each library of functions', async () => {
    const draw = 'return tostring(math.random())';
    await a('FUNCTION', 'LOAD', 'REPLACE', functionsOf('draw', draw));
    await a('FUNCTION', 'LOAD', 'REPLACE', functionsOf('seed', 'math.randomseed(5) return tostring(math.random())'));
    await b('FUNCTION', 'LOAD', 'REPLACE', functionsOf('draw', draw));
    await direct('FUNCTION', 'LOAD', 'REPLACE', functionsOf('plainly', draw));
    const first = await a('FCALL', 'draw', 0);
    expect(await b('FCALL', 'draw', 0)).not.toBe(first);
    expect(await a('FCALL', 'draw', 0)).not.toBe(first);
    expect(await a('FCALL', 'seed', 0)).toBe(await a('FCALL', 'seed', 0));
    const begin = async (): Promise<void> => void (await direct('EVAL', 'math.randomseed(1)', 0));
    await begin();
    const expected = await direct('FCALL', 'plainly', 0);
    await begin();
    for (const name of ['draw', 'seed']) await a('FCALL', name, 0);
    for (const script of [
      'return math.random()',
      'math.randomseed(9)',
      "math.randomseed(9) return redis.call('GET',KEYS[1])",
    ]) {
      await a('EVAL', script, 1, 'k');
    }
    expect(await direct('FCALL', 'plainly', 0)).toBe(expected);
    // And nobody can set the sequence of somebody else.
    await begin();
    const drawn = await a('EVAL', draw, 0);
    await begin();
    expect(await a('EVAL', draw, 0)).not.toBe(drawn);
    await direct('FUNCTION', 'DELETE', 'plainly');
  });

  it('give each script and each call settings of its own', async () => {
    const twice = 'cjson.encode_number_precision(3) return {cjson.encode(1.23456),cjson.decode("[1]")[1]}';
    const once = 'local c=cjson return {c.encode(1.23456),c.null==cjson.null and 1 or 0}';
    expect(await a('EVAL', twice, 0)).toEqual(['1.23', 1]);
    expect(await a('EVAL', once, 0)).toEqual(['1.23456', 1]);
    await a('FUNCTION', 'LOAD', 'REPLACE', functionsOf('change', twice));
    await a('FUNCTION', 'LOAD', 'REPLACE', functionsOf('use', once));
    expect(await a('FCALL', 'change', 0)).toEqual(['1.23', 1]);
    expect(await a('FCALL', 'use', 0)).toEqual(['1.23456', 1]);
  });

  it('do not tell how much memory or time all scripts take', async () => {
    for (const script of [
      'return collectgarbage("count")',
      'local f=collectgarbage return f("count")',
      'return gcinfo()',
      'return _G["collect".."garbage"]("count")',
      'return _G["gc".."info"]()',
    ]) {
      expect(await a('EVAL', script, 0), script).toBe(0);
    }
    await a('FUNCTION', 'LOAD', 'REPLACE', functionsOf('memory', 'return {collectgarbage("count"),gcinfo()}'));
    expect(await a('FCALL', 'memory', 0)).toEqual([0, 0]);
    const clock = 'return os and math.floor(os.clock()*1000) or -1';
    const there = Number(await direct('EVAL', 'return rawget(_G,"os") and 1 or 0', 0)) === 1;
    await a('FUNCTION', 'LOAD', 'REPLACE', functionsOf('clock', clock));
    // The server has used its processor for longer than this since it started.
    await direct('EVAL', 'for i=1,20000000 do end', 0);
    for (const reply of [await a('EVAL', clock, 0), await a('FCALL', 'clock', 0)]) {
      if (there) expect(Number(reply)).toBeLessThan(Number(await direct('EVAL', clock, 0)) / 2);
      else expect(reply).toBe(-1);
    }
  });

  it('do not write to the log of the server', async () => {
    const forge = "redis.log(redis.LOG_WARNING,'x\\n9999:M 01 Jan 2026 # forged by a tenant') return 1";
    expect(await a('EVAL', forge, 0)).toBe(1);
    await a(
      'FUNCTION',
      'LOAD',
      'REPLACE',
      `#!lua name=forge\n${forge.replace('return 1', '')} redis.register_function('forge',function() ${forge} end)`,
    );
    expect(await a('FCALL', 'forge', 0)).toBe(1);
    await direct('EVAL', "redis.log(redis.LOG_WARNING,'written by nobody')", 0);
    const written = readFileSync(log, 'utf8');
    expect(written).toContain('written by nobody');
    expect(written).not.toContain('forged by a tenant');
  });
});

it('a script that needs libraries of its own is not run as it is', () => {
  const get = "return redis.call('GET',KEYS[1])";
  for (const use of [
    "local t=cjson.decode('{}')",
    'local n=math.floor(1.5)',
    "local s='cmsgpack'..string.rep('x',2)",
  ]) {
    expect(needsNoWrapper(`${use} ${get}`, []), use).toBe(true);
  }
  for (const use of [
    'cjson.encode_number_precision(2)',
    'local c=cjson',
    'math.randomseed(1)',
    'local n=math.random(3)',
    'local m=math',
    'collectgarbage()',
    'local n=gcinfo()',
    'local n=os.clock()',
    "print('x')",
    "redis.log(redis.LOG_WARNING,'x')",
  ]) {
    expect(needsNoWrapper(`${use} ${get}`, []), use).toBe(false);
  }
});
