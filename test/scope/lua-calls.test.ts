import { expect, test } from 'vitest';
import { calledCommands } from '../../src/scope/lua-calls.ts';

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
