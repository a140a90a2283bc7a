/**
 * Long pipelines in a scope, in which scripts and plain requests follow each other in any order: replies are those that
 * a client without a scope gets for the same, to the byte, wherever the stream of requests is cut.
 */
import { createHash } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { hideOwnKeysInterceptor } from '../../src/intercept/hide-own-keys.ts';
import { request } from '../../src/resp/encode.ts';
import { splitPayload } from '../fuzz/frame-generator.ts';
import { type Random, seededRandom } from '../fuzz/random.ts';
import { connectRaw, type RawClient } from '../support/raw-client.ts';
import { seed } from '../support/seed.ts';
import { startKv } from '../support/servers.ts';
import { startScopedProxy } from './scoped-proxy.ts';

const PREFIX = 'organisation/fleet/7/';
const USERS = { a: { scope: PREFIX }, chooser: { scope: 'v1/{orgId}/', may: ['set-scope' as const] } };
const ROUNDS = 40;
const REQUESTS = 120;

const SCRIPTS = [
  "return redis.call('GET',KEYS[1])",
  "return redis.call('INCR',KEYS[1])",
  "local r={KEYS,ARGV} for i=1,#KEYS do r[i+2]=redis.call('EXISTS',KEYS[i]..':x') end return r",
  "redis.call('SET',KEYS[1]..':x',ARGV[1]) return {ok='done'}",
  "return redis.error_reply('ERR about '..KEYS[1])",
  "return redis.call('LPUSH',KEYS[1],'v')",
  'return false',
];
const sha1 = (text: string): string => createHash('sha1').update(text).digest('hex');

function anyRequest(random: Random): string[] {
  const key = () => random.pick(['n', 's', 'l', 'key:with:colons', 'k'.repeat(90), '']);
  const value = () => random.pick(['7', 'text', 'v'.repeat(300), '\r\n', 'w'.repeat(5000)]);
  const many = (most: number, one: () => string) => Array.from({ length: random.below(most + 1) }, one);
  switch (random.below(12)) {
    case 0:
      return ['SET', key(), value()];
    case 1:
      return ['GET', key()];
    case 2:
      return ['MSET', key(), value(), key(), value()];
    case 3:
      return ['PING'];
    case 4:
      return random.pick([['MULTI'], ['EXEC'], ['DISCARD']]);
    case 5:
      return random.pick([
        ['EVALSHA', sha1('nobody loaded this'), '0'],
        ['EVALSHA', sha1(SCRIPTS[2]!), '3', 'one'],
        ['EVALSHA', sha1(SCRIPTS[2]!), 'x', 'one'],
        ['EVALSHA', sha1(SCRIPTS[2]!), '-1', 'one'],
        ['EVALSHA', sha1(SCRIPTS[2]!), '01', 'one'],
        ['EVALSHA', 'short', '0'],
        ['EVALSHA', sha1(SCRIPTS[2]!)],
        ['EVALSHA_RO', sha1(SCRIPTS[1]!), '1', 'n'],
        ['GET'],
      ]);
    case 6:
      return [random.pick(['EVAL', 'eval', 'EVAL_RO']), random.pick(SCRIPTS), '1', key(), value()];
    case 7: {
      const keys = many(12, key);
      return ['EVALSHA', sha1(SCRIPTS[2]!), String(keys.length), ...keys, ...many(3, value)];
    }
    default:
      return [
        random.pick(['EVALSHA', 'evalsha', 'EVALSHA_RO']),
        random.pick([sha1, (text: string) => sha1(text).toUpperCase()])(random.pick(SCRIPTS)),
        '1',
        key(),
        value(),
      ];
  }
}

/** Sends all of it, cut into pieces at random, and gives the replies' bytes. */
async function replies(client: RawClient, requests: readonly string[][], random: Random): Promise<string[]> {
  for (const piece of splitPayload(random, Buffer.concat(requests.map((args) => request(args))))) {
    client.socket.write(piece);
    if (random.chance(0.3)) await new Promise((resolve) => setImmediate(resolve));
  }
  const received: string[] = [];
  for (const _ of requests) received.push((await client.next()).raw.toString('latin1'));
  return received;
}

describe.each(['redis', 'valkey'] as const)('pipelines in a scope on %s', (server) => {
  it.each([2, 3] as const)('get what they get without one, in RESP%i', async (protocol) => {
    const [kv, bare] = [await startKv(server), await startKv(server)];
    const proxy = await startScopedProxy(kv.port, { users: USERS, interceptors: [hideOwnKeysInterceptor()] });
    const scoped = await proxy.login('a', protocol);
    const direct = await connectRaw(bare.port);
    await direct.send('HELLO', String(protocol));
    for (const client of [scoped, direct]) for (const script of SCRIPTS) await client.send('SCRIPT', 'LOAD', script);
    const random = seededRandom(seed);
    for (let round = 0; round < ROUNDS; round += 1) {
      const requests = Array.from({ length: REQUESTS }, () => anyRequest(random));
      requests.push(['DISCARD']);
      const [inScope, without] = [await replies(scoped, requests, random), await replies(direct, requests, random)];
      for (const [at, args] of requests.entries()) {
        expect(inScope[at], `seed ${seed}, round ${round}, ${JSON.stringify(args)}`).toBe(without[at]);
      }
    }
    const outside = ((await (await proxy.unscoped()).send('KEYS', '*')).items ?? []).map(({ bytes }) => `${bytes}`);
    expect(outside.length).toBeGreaterThan(0);
    expect(outside.filter((key) => !key.startsWith(PREFIX))).toEqual([]);
    await direct.close();
  });

  it('are in the scope that was chosen when they were sent, errors too', async () => {
    const proxy = await startScopedProxy((await startKv(server)).port, {
      users: USERS,
      interceptors: [hideOwnKeysInterceptor()],
    });
    const client = await proxy.login('chooser');
    const fails = "return redis.call('INCR',KEYS[1])";
    const enter = (org: string) => ['HOLDFAST', 'SCOPE', 'SET', org];
    await client.send(...enter('one'));
    await client.send('SCRIPT', 'LOAD', fails);
    const names = "redis.call('SET',KEYS[1],'x') return redis.error_reply('ERR '..KEYS[1]..ARGV[1])";
    await client.send('SCRIPT', 'LOAD', names);
    const run = (argument: string) => ['EVALSHA', sha1(names), '1', 'key', argument];
    const requests = [run('1'), enter('two'), run('2'), enter('three'), ['EVALSHA', sha1(fails), '1', 'key'], run('3')];
    client.socket.write(Buffer.concat(requests.map((args) => request(args))));
    const received: string[] = [];
    for (const _ of requests) received.push(`${(await client.next()).bytes}`);
    expect(received).toEqual(['ERR key1', 'OK', 'ERR key2', 'OK', '1', 'ERR key3']);
    const keys = ((await (await proxy.unscoped()).send('KEYS', '*')).items ?? []).map(({ bytes }) => `${bytes}`);
    expect(keys.sort()).toEqual(['v1/one/key', 'v1/three/key', 'v1/two/key']);
  });
});
