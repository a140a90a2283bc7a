/**
 * Scripts that are put together at random, whether they need a wrapper or not: a tenant gets what a client without a scope gets for
 * the same keys, and nothing leaves the scope. Nothing but the wrapper keeps scopes apart here.
 */
import { describe, expect, it } from 'vitest';
import { sha1 } from '../../src/scope/lua/script-registry.ts';
import { type Random, seededRandom } from '../fuzz/random.ts';
import { seed } from '../support/seed.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { asking, startScopedProxy } from './scoped-proxy.ts';

const SCRIPTS = 1500;
const PIECES = [
  "redis.call('SET',KEYS[1],ARGV[1])",
  "redis.call('GET',KEYS[1])",
  "redis.call('del',KEYS[2])",
  "redis.call('DEL',KEYS[1],KEYS[2])",
  "redis.pcall('INCR',KEYS[2])",
  "redis.call('RENAME',KEYS[1],KEYS[2])",
  "redis.call('SET','k1',ARGV[1])",
  "redis.call('GET',KEYS[1]..'1')",
  "redis.call('MGET',KEYS[1],KEYS[2])",
  "redis.call('EXISTS',KEYS[1],'k1')",
  "redis.call('SET',KEYS[1],KEYS[2])",
  "redis.call('LPUSH',KEYS[1],#KEYS)",
  "redis.call('ECHO',KEYS[1])",
  'redis.sha1hex(KEYS[1])',
  "redis.call('SET',KEYS[1]..ARGV[1]..'x',1)",
  "redis.call('STRLEN',key)",
  "redis.call('SET',key..':x'..#ARGV,key)",
  "redis.call('APPEND',key,'x')",
  'key',
  'KEYS[1]',
  '#KEYS',
  '#KEYS[1]',
  'ARGV[1]',
  '#ARGV',
  "'KEYS[1]'",
  '0xe+1',
  '[[KEYS[1]]]',
  'cjson.encode(KEYS)',
];
const JOINS = ['..', ',', ' or ', ' and ', '==', '+'];
const GAPS = [
  '',
  '',
  '',
  ' ',
  '\n',
  '\r',
  '\r\n',
  '--\n',
  '-- KEYS[1]\r',
  "--'\n",
  '--[[KEYS]]',
  '--[==[ ]] ]==]',
  '\\\r\n',
  "'",
  '"',
  '[[',
  ']]',
];
const TOKENS = /[A-Za-z_]\w*|'[^']*'|\d+|\.\.|[^\s]/g;

/** A script of a few pieces, its tokens apart in odd ways, and some of them lost or twice. */
function scriptOf(random: Random): string {
  const statements = Array.from({ length: 1 + random.below(3) }, (_, at) => {
    const value = random.chance(0.3)
      ? `${random.pick(PIECES)}${random.pick(JOINS)}${random.pick(PIECES)}`
      : random.pick(PIECES);
    return `local v${at}={${value}}`;
  });
  const names = statements.map((_, at) => `v${at}`).join(',');
  const start = random.pick([
    'local key=KEYS[1]',
    'local key=KEYS[2];',
    "local key='x'",
    'local key,other=KEYS[1]',
    'do local key=KEYS[1] end',
  ]);
  const source = `${start} ${statements.join(' ')} return {${names}}`;
  const odd = random.chance(0.7) ? 0.06 : 0;
  return (source.match(TOKENS) ?? [])
    .map((token) => {
      const kept = random.chance(odd / 4) ? '' : random.chance(odd / 4) ? token + token : token;
      return `${kept}${random.chance(odd) ? random.pick(GAPS) : ' '}`;
    })
    .join('');
}

describe.each(kvKinds)('random scripts on %s', async (kind) => {
  const kv = await startKv(kind);
  const proxy = await startScopedProxy(kv.port, { users: { a: { scope: 'scope-a:' } }, fence: 'open' });

  it('do in a scope what they do without one', async () => {
    const direct = asking(await proxy.unscoped());
    const tenant = asking(await proxy.login('a'));
    const random = seededRandom(seed);
    await direct('FLUSHALL');
    let bare = 0;
    let run = 0;
    for (let round = 0; round < SCRIPTS; round += 1) {
      const script = scriptOf(random);
      const call = ['EVAL', script, 2, 'k', 'k1', 'value'] as const;
      await direct('SCRIPT', 'FLUSH');
      const reply = await tenant(...call);
      bare += Number(((await direct('SCRIPT', 'EXISTS', sha1(script))) as number[])[0]);
      await direct('SELECT', 1);
      const expected = await direct(...call);
      await direct('SELECT', 0);
      // What a Lua error says of the place is the wrapper's for some.
      const isRefused = /NOPERM|Error compiling|user_script/.test(JSON.stringify([reply, expected]));
      if (!isRefused) {
        expect(reply, script).toEqual(expected);
        run += 1;
      }
      expect(JSON.stringify(reply), script).not.toContain('scope-a');
    }
    const keys = (await direct('KEYS', '*')) as string[];
    expect(keys.filter((key) => !key.startsWith('scope-a:'))).toEqual([]);
    expect(bare).toBeGreaterThan(SCRIPTS / 20);
    expect(run).toBeGreaterThan(SCRIPTS / 8);
  });
});
