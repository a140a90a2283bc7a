import { expect, test } from 'vitest';
import { calledCommands } from '../../src/scope/lua/lua-calls.ts';
import { needsNoWrapper } from '../../src/scope/lua/lua-wrapper.ts';

const HARMLESS = ['error_reply', 'log', 'LOG_WARNING'];

function called(source: string): string[] | undefined {
  const names = calledCommands(source, HARMLESS);
  return names === undefined ? undefined : [...names].sort();
}

test.each([
  ["return redis.call('get', KEYS[1])", ['get']],
  ['local v = redis.pcall("GET", KEYS[1]) return v', ['GET']],
  ["if redis.call('exists','a')==1 then server.call('del','a') end", ['del', 'exists']],
  ["redis . call ( 'get' --[[ redis.call(x) ]] , KEYS[1] )", ['get']],
  ["-- redis[x]\nreturn redis.call('get', 'k')", ['get']],
  ["--[==[ redis[x] ]] ]==] return redis.call('get', 'k')", ['get']],
  ["return [[ redis[x] ]]..'redis.call(x)'..\"don't say redis[x]\"..redis.call('get','k')", ['get']],
  ["return 'it''s'..redis.call('get', 'a\\'redis[')", ['get']],
  ["redis.log(redis.LOG_WARNING,'x') return redis.error_reply('y')", []],
  ["local t={} t.redis=2 return t.redis + redis.call('incr','k')", ['incr']],
  ["return 1e5 .. 0x1F .. redis.call('get')", ['get']],
  ['return 1', []],
] as const)('all calls are seen in %s', (source, names) => {
  expect(called(source)).toEqual(names);
});

test.each([
  'local r = redis return r.call("get","k")',
  'local call = redis.call return call("get","k")',
  'return redis["call"]("get","k")',
  'return redis.call(ARGV[1],"k")',
  'return redis.call("get".."set","k")',
  'return redis.call"get"',
  'return redis.call[[get]]',
  'return redis.call("g\\101t","k")',
  'return redis.call("client|list")',
  'return pcall(redis.call,"get","k")',
  'redis.log = print return redis.call("get","k")',
  'redis.call = nil',
  'return redis:call("get")',
  'return _G.redis.call("get","k")',
  'return getfenv().redis',
  'loadstring("return redis")()',
  'return redis.sha1hex("x")',
  'for k in pairs(redis) do end',
  'local redis = {}',
])('something is left open in %s', (source) => {
  expect(called(source)).toBeUndefined();
});

test.each([
  "return redis.call('GET',KEYS[1])",
  "if redis.call('get',KEYS[1]) == ARGV[1] then return redis.call('del',KEYS[1]) else return 0 end",
  "for i=1,#KEYS do redis.pcall('UNLINK' , KEYS [ i ] , KEYS[1]) end return #KEYS",
  "local t=redis.call('TIME') return redis.call('INCRBY',KEYS[1],t[1])",
  "return redis.call('RENAME',KEYS[1],KEYS[2])",
  "local t={} t.KEYS=1 function t:redis() end return redis.call('GET',KEYS[1])",
  "return 'KEYS[1]' .. redis.call('GET',KEYS[1]) -- .. KEYS[2]",
  "return redis.call('GET',KEYS[1]..':x'..ARGV[1] .. i .. 2)",
  "local key = KEYS[1] local n = redis.call('INCR', key) if n == 1 then redis.call('PEXPIRE',key,ARGV[1]) end return n",
  "local key=KEYS[1]; return redis.call('GET',key..':x')",
  "return redis.error_reply('x')",
  'return ARGV[1]',
])('keys are only passed on in %s', (source) => {
  expect(needsNoWrapper(source, [])).toBe(true);
});

test.each([
  'return KEYS[1]',
  'return KEYS',
  'return #KEYS[1]',
  'return #KEYS.x',
  "return #KEYS'x'",
  'return {KEYS}',
  "return redis.call('GET',KEYS[1]..':x' and 'y')",
  "return redis.call('GET',KEYS[1]..KEYS[2])",
  "return redis.call('GET',KEYS[1]..f())",
  "return redis.call('GET',KEYS[1]..f'x')",
  "return redis.call('GET',KEYS[1]..t.x)",
  "return redis.call('GET',KEYS[1]..{})",
  "return redis.call('GET',KEYS[1]..-1)",
  "return redis.call('GET','x'..KEYS[1])",
  "return redis.call('GET',KEYS[1]..x) .. tostring(setmetatable({},{}))",
  'local key=KEYS[1] return key',
  "local key=KEYS[1] key='x' return redis.call('GET',key)",
  "local key=KEYS[1] or 'x' return redis.call('GET',key)",
  "local key=KEYS[1]..'x' return redis.call('GET',key)",
  "local key=KEYS[1],2 return redis.call('GET',key)",
  "local key=KEYS[1] ('x') return redis.call('GET',key)",
  "local key=KEYS[1] local t={key=1} return redis.call('GET',key)",
  "local key=KEYS[1] return redis.call('SET',key,key)",
  "local key=KEYS[1] return redis.call('SET',key..key,1)",
  "local a,key='x',KEYS[1] return redis.call('GET',key)",
  "local key='x' return redis.call('GET',key)",
  "key=KEYS[1] return redis.call('GET',key)",
  "redis.call('SET',_VERSION,1) local _VERSION=KEYS[1]",
  "local self=KEYS[1] local t={} function t:m() return redis.call('GET',self) end return t.m('x')",
  "local arg=KEYS[1] return redis.call('GET',arg)",
  'local x="local" foo=KEYS[1] return redis.call(\'GET\',foo)',
  `return redis.call('GET',KEYS[1]) --${'x'.repeat(70_000)}`,
  "return redis.call('GET',KEYS[1]or'x')",
  "return redis.call('GET',(KEYS[1]))",
  "return redis.call('GET',KEYS[KEYS[1]])",
  "return redis.call('GET',KEYS[[1]])",
  "return redis.call('GET','x')",
  "return redis.call('GET',ARGV[1])",
  "return redis.call('SET',KEYS[1],KEYS[2])",
  "return redis.call('RENAME',KEYS[1],'x')",
  "return redis.call('DEL',KEYS[1],'x')",
  "return redis.call('MSET',KEYS[1],KEYS[2])",
  "return redis.call('ECHO',KEYS[1])",
  "return redis.call('KEYS','*')",
  "return redis.call('XACK',KEYS[1],'g','1-1')",
  "return redis.call('GET',unpack(KEYS))",
  "KEYS[1]='x' return redis.call('GET',KEYS[1])",
  "local KEYS={'x'} return redis.call('GET',KEYS[1])",
  "for KEYS=1,2 do redis.call('GET',KEYS[1]) end",
  "local function f(KEYS) return redis.call('GET',KEYS[1]) end return f({'x'})",
  "local redis={} return redis.call('GET',KEYS[1])",
  "return getmetatable('').__index",
  'return newproxy(true)',
  'return __redis__err__handler',
  // The line ends at the carriage return.
  '-- x\rreturn KEYS[1]',
  "return redis.call('GET',KEYS[1]) -- x\r..KEYS[1]",
  // The string goes on behind the two bytes of a line break that is escaped.
  "return 'a\\\r\n'..KEYS[1]..'b'",
  // The number ends before the sign.
  'return 0xe+KEYS[1]',
  "return 0xe+redis.call('GET','x')",
  'return 1 .. KEYS[1]',
  "return redis.call('GET',KEYS[1]) \u00a0",
])('keys are seen or made in %s', (source) => {
  expect(needsNoWrapper(source, [])).toBe(false);
});

test('a script that names a global of the server which nobody knows is wrapped', () => {
  const source = "return redis.call('GET',KEYS[1])..oracle()";
  expect(needsNoWrapper(source, [])).toBe(true);
  expect(needsNoWrapper(source, ['oracle'])).toBe(false);
  expect(needsNoWrapper("redis.call('SET',oracle,1) local oracle=KEYS[1]", ['oracle'])).toBe(false);
});
