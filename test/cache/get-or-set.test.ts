import { createHash } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { request } from '../../src/resp/encode.ts';
import { replyValue } from '../../src/resp/reply.ts';
import type { RawClient } from '../support/raw-client.ts';
import { kvKinds, startKv } from '../support/servers.ts';
import { rawClient, startCacheSidecar } from './cache-sidecar.ts';

/** As Flight Control's client sends it. */
const REFERENCE = `
\t\tlocal value = redis.call('get', KEYS[1])
\t\tif not value then
\t\t\tredis.call('set', KEYS[1], ARGV[1], 'NX')
\t\t\tvalue = ARGV[1]
\t\tend
\t\treturn value
\t`;
const OTHER_FORM = `local v=redis.call("GET",KEYS[1]) -- there?
if v then return v end redis.call("SET",KEYS[1],ARGV[1]) return ARGV[1]`;
const SHA = createHash('sha1').update(REFERENCE).digest('hex');
const BINARY = Buffer.from([0, 255, 13, 10, 36, 45, 49, 13, 10]);

/** How a key is before, and what is stored. */
const CASES: readonly (readonly [string, (client: RawClient, key: string) => Promise<unknown>, string | Buffer])[] = [
  ['absent', async () => undefined, 'given'],
  ['absent, empty value', async () => undefined, ''],
  ['absent, binary value', async () => undefined, BINARY],
  ['absent, large value', async () => undefined, Buffer.alloc(300_000, 'x')],
  ['present', (client, key) => client.send('SET', key, 'there'), 'given'],
  ['the empty string', (client, key) => client.send('SET', key, ''), 'given'],
  ['binary', (client, key) => client.send('SET', key, BINARY), 'given'],
  ['looks like null', (client, key) => client.send('SET', key, '$-1\r\n'), 'given'],
  ['expiring', (client, key) => client.send('SET', key, 'there', 'PX', '100000'), 'given'],
  ['expired', (client, key) => client.send('SET', key, 'there', 'PXAT', '1'), 'given'],
  ['a number', (client, key) => client.send('INCR', key), 'given'],
  ['a list', (client, key) => client.send('LPUSH', key, 'x'), 'given'],
  ['a stream', (client, key) => client.send('XADD', key, '1-1', 'a', 'b'), 'given'],
];

describe.each(kvKinds)('get-or-set on %s', async (kind) => {
  const kv = await startKv(kind);
  const setup = async (rules = {}) => {
    const sidecar = await startCacheSidecar({ kvPort: kv.port, ...rules });
    return { sidecar, client: await sidecar.client(), direct: await rawClient(kv.port) };
  };

  const forms: readonly (readonly [string, readonly string[]])[] = [
    ['EVAL', ['EVAL', REFERENCE, '1']],
    ['EVALSHA', ['EVALSHA', SHA, '1']],
    ['EVALSHA in capitals', ['EVALSHA', SHA.toUpperCase(), '1']],
    ['EVAL of another form', ['EVAL', OTHER_FORM, '1']],
  ];
  it.each(forms.flatMap((form) => CASES.map((each) => [...form, ...each] as const)))(
    '%s gives what the script gives: %j %s',
    async (_, form, __, prepare, value) => {
      const { client, direct, sidecar } = await setup();
      await direct.send('SCRIPT', 'LOAD', REFERENCE);
      // The first time a script runs as it is.
      await client.send(...form, 'warm', 'x');
      await direct.send('FLUSHALL');
      await prepare(direct, 'expected');
      await prepare(direct, 'actual');
      const expected = await direct.send(...form, 'expected', value);
      const actual = await client.send(...form, 'actual', value);
      expect(actual.raw.equals(expected.raw), `${actual.raw} for ${expected.raw}`).toBe(true);
      for (const look of ['TYPE', 'DUMP', 'TTL']) {
        expect((await direct.send(look, 'actual')).raw).toEqual((await direct.send(look, 'expected')).raw);
      }
      if (expected.type === '$')
        expect(sidecar.cache.snapshot().total.hits + sidecar.cache.snapshot().total.misses).toBeGreaterThan(0);
    },
  );

  it.each(CASES)('GETORSET gives what the script gives: %s', async (_, prepare, value) => {
    const { client, direct } = await setup();
    for (const queued of [false, true]) {
      await direct.send('FLUSHALL');
      await prepare(direct, 'expected');
      await prepare(direct, 'actual');
      const expected = await direct.send('EVAL', REFERENCE, '1', 'expected', value);
      let actual = queued ? undefined : await client.send('GETORSET', 'actual', value);
      if (actual === undefined) {
        await client.send('MULTI');
        expect(replyValue(await client.send('getorset', 'actual', value))).toBe('QUEUED');
        actual = (await client.send('EXEC')).items![0]!;
      }
      if (expected.type === '-') expect(actual.bytes.toString()).toMatch(/^WRONGTYPE Operation against a key holding/);
      else expect(actual.raw).toEqual(expected.raw);
      expect((await direct.send('DUMP', 'actual')).raw).toEqual((await direct.send('DUMP', 'expected')).raw);
      expect((await direct.send('TTL', 'actual')).raw).toEqual((await direct.send('TTL', 'expected')).raw);
    }
  });

  it('sets an expiry with the value, and only then', async () => {
    const { client, direct } = await setup();
    await direct.send('FLUSHALL');
    expect(replyValue(await client.send('GETORSET', 'a', 'v', 'EX', '100'))).toBe('v');
    expect(replyValue(await direct.send('TTL', 'a'))).toBe(100);
    expect(replyValue(await client.send('GETORSET', 'a', 'w', 'px', '5'))).toBe('v');
    expect(replyValue(await direct.send('TTL', 'a'))).toBe(100);
    const at = Math.round(Date.now() / 1000) + 50;
    expect(replyValue(await client.send('GETORSET', 'b', 'v', 'EXAT', String(at)))).toBe('v');
    expect(replyValue(await client.send('GETORSET', 'c', 'v', 'PXAT', String(at * 1000)))).toBe('v');
    expect(replyValue(await direct.send('EXPIRETIME', 'b'))).toBe(at);
    expect(replyValue(await direct.send('EXPIRETIME', 'c'))).toBe(at);
  });

  it('refuses what it does not know, in the words of the server', async () => {
    const { client, direct } = await setup();
    await direct.send('FLUSHALL');
    const error = async (...args: string[]) => (await client.send(...args)).bytes.toString();
    expect(await error('GETORSET')).toBe("ERR wrong number of arguments for 'getorset' command");
    expect(await error('GETORSET', 'k')).toBe("ERR wrong number of arguments for 'getorset' command");
    for (const rest of [['XX'], ['NX'], ['KEEPTTL'], ['EX'], ['EX', '1', 'PX', '1'], ['FOO', '1'], ['GET']]) {
      expect(await error('GETORSET', 'k', 'v', ...rest)).toBe('ERR syntax error');
    }
    expect(await error('GETORSET', 'k', 'v', 'EX', 'x')).toBe('ERR value is not an integer or out of range');
    expect(await error('GETORSET', 'k', 'v', 'EX', '0')).toBe("ERR invalid expire time in 'getorset' command");
    expect(replyValue(await direct.send('EXISTS', 'k'))).toBe(0);
    await client.send('MULTI');
    expect(await error('GETORSET', 'k')).toMatch(/^ERR wrong number/);
    expect(await error('EXEC')).toMatch(/^EXECABORT/);
  });

  it('keeps the order of a pipeline of everything, whatever the reply', async () => {
    const { client, direct } = await setup();
    await direct.send('FLUSHALL');
    await direct.send('LPUSH', 'list', 'x');
    const wanted: (string | number | null)[] = [];
    const requests: Buffer[] = [];
    for (let i = 0; i < 300; i += 1) {
      const key = `key${i % 50}`;
      requests.push(request(['GETORSET', key, `value${i}`]), request(['GET', `nothing${i}`]), request(['PING']));
      requests.push(request(['GETORSET', 'list', 'x']), request(['GETORSET', key, 'w', 'EX', '9']));
      requests.push(request(['EVALSHA', SHA, '1', `by sha ${i}`, String(i)]));
      wanted.push(`value${i % 50}`, null, 'PONG', 'WRONGTYPE', `value${i % 50}`, String(i));
    }
    client.socket.write(Buffer.concat(requests));
    const replies = [];
    for (const _ of wanted) replies.push(await client.next());
    expect(
      replies.map((reply) => (reply.type === '-' ? reply.bytes.toString().split(' ')[0] : replyValue(reply))),
    ).toEqual(wanted);
  });

  it('stores what each request of long pipelines says, and counts it for its family', async () => {
    const { sidecar, direct } = await setup();
    await direct.send('FLUSHALL');
    const clients = await Promise.all(Array.from({ length: 8 }, () => sidecar.client()));
    const families = ['git-data', 'http-data', 'k8ssecret-data'];
    const stores: Record<string, number> = {};
    let storedBytes = 0;
    await Promise.all(
      clients.map(async (client, number) => {
        const values: string[] = [];
        const requests: Buffer[] = [];
        for (let i = 0; i < 300; i += 1) {
          const family = families[(i % 7) % 3]!;
          const value = `${number} ${i} `.repeat(i % 50 === 0 ? 4000 : 1 + (i % 90));
          requests.push(request(['GETORSET', `v1/o/f/t/${family}/${number}/${i}`, value]));
          // The next one of the same key finds it.
          if (i % 3 === 0) requests.push(request(['GETORSET', `v1/o/f/t/${family}/${number}/${i}`, 'other']));
          values.push(...(i % 3 === 0 ? [value, value] : [value]));
          stores[family] = (stores[family] ?? 0) + 1;
          storedBytes += value.length;
        }
        client.socket.write(Buffer.concat(requests));
        for (const value of values) {
          const reply = await client.next();
          expect(replyValue(reply)).toBe(value);
        }
      }),
    );
    const { cells, total } = sidecar.cache.snapshot();
    expect(total).toMatchObject({ stores: 2400, storedBytes, hits: 800, misses: 2400 });
    expect(Object.fromEntries(cells.map(({ family, stores }) => [family, stores]))).toEqual(stores);
  });

  it('knows a script by its SHA1 once its body was seen', async () => {
    const { client, direct, sidecar } = await setup();
    await direct.send('FLUSHALL');
    const script = `${OTHER_FORM} -- ${kind}`;
    const sha = createHash('sha1').update(script).digest('hex');
    expect((await client.send('EVALSHA', sha, '1', 'v1/o/f/t/x/k', 'v')).bytes.toString()).toMatch(/^NOSCRIPT/);
    await client.send('EVAL', script, '1', 'v1/o/f/t/x/k', 'v');
    expect(sidecar.cache.snapshot().total).toMatchObject({ hits: 0, misses: 0 });
    expect(replyValue(await client.send('EVALSHA', sha, '1', 'v1/o/f/t/x/k', 'w'))).toBe('v');
    expect(replyValue(await client.send('EVAL', script, '1', 'v1/o/f/t/x/k', 'w'))).toBe('v');
    expect(sidecar.cache.snapshot().total).toMatchObject({ hits: 2, misses: 0 });
  });

  it('speaks RESP3', async () => {
    const { client, direct } = await setup();
    await direct.send('FLUSHALL');
    await client.send('HELLO', '3');
    expect((await client.send('GETORSET', 'k', 'v')).raw.toString()).toBe('$1\r\nv\r\n');
    expect((await client.send('GETORSET', 'k', 'w')).raw.toString()).toBe('$1\r\nv\r\n');
  });

  it('runs scripts that say something else as they are', async () => {
    const { client, direct } = await setup();
    await direct.send('FLUSHALL');
    const others = [
      REFERENCE.replace('return value', 'return 1'),
      REFERENCE.replace("'get'", "'getdel'"),
      REFERENCE.replace('ARGV[1]\n', "ARGV[1] .. 'x'\n"),
      REFERENCE.replaceAll('KEYS[1]', 'KEYS[2]'),
      `#!lua\n${REFERENCE}`,
    ];
    for (const [i, script] of others.entries()) {
      for (const round of [1, 2]) {
        const [here, there] = [`h${i}-${round}`, `t${i}-${round}`];
        expect(replyValue(await client.send('EVAL', script, '2', here, `${here}x`, 'v'))).toEqual(
          replyValue(await direct.send('EVAL', script, '2', there, `${there}x`, 'v')),
        );
      }
    }
  });

  it('is atomic: of many writers one wins, and everybody gets its value', async () => {
    const { sidecar, direct } = await setup();
    await direct.send('FLUSHALL');
    const clients = await Promise.all(Array.from({ length: 50 }, () => sidecar.client()));
    for (let round = 0; round < 20; round += 1) {
      const got = await Promise.all(
        clients.map((client, i) =>
          i % 3 === 0
            ? client.send('EVALSHA', SHA, '1', `race${round}`, `by ${i}`)
            : client.send('GETORSET', `race${round}`, `by ${i}`),
        ),
      );
      expect(new Set(got.map((reply) => reply.bytes.toString())).size).toBe(1);
    }
  });
});
