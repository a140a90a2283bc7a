/** The numbered cases of key scoping, each on both reference servers and in both protocols. */
import { describe, expect, it } from 'vitest';
import type { RawClient } from '../support/raw-client.ts';
import { startKv } from '../support/servers.ts';
import { type Ask, asking, plain, type ScopedProxy, startScopedProxy } from './scoped-proxy.ts';

const USERS = {
  a: { scope: 'a:', may: ['migrate'] as const },
  b: { scope: 'b:' },
  'a*': { scope: 'a*:' },
  'a?b': { scope: '[a-c]\\?b:' },
  worker: {
    scope: 'v1/{orgId}/{fleet}/{templateVersion}/',
    may: ['set-scope'] as const,
    shared: ['task-queue'],
  },
};

const extraArgs = ['--enable-debug-command', 'yes'];
const kvs = { redis: await startKv('redis', { extraArgs }), valkey: await startKv('valkey', { extraArgs }) };
const proxies: Record<string, ScopedProxy> = {
  redis: await startScopedProxy(kvs.redis.port, { users: USERS }),
  valkey: await startScopedProxy(kvs.valkey.port, { users: USERS }),
};

const sorted = (value: unknown): string[] => [...(value as string[])].sort();

describe.each([
  ['redis', 2],
  ['redis', 3],
  ['valkey', 2],
  ['valkey', 3],
] as const)('in a scope on %s, RESP%i', (server, protocol) => {
  const proxy = proxies[server]!;
  let client: RawClient;
  let a: Ask;
  let b: Ask;
  /** The KV store behind Holdfast's back. */
  let direct: Ask;

  async function begin(): Promise<void> {
    direct = asking(await proxy.unscoped());
    await direct('FLUSHALL');
    await direct('CONFIG', 'SET', 'notify-keyspace-events', 'KEA');
    client = await proxy.login('a', protocol);
    a = asking(client);
    b = asking(await proxy.login('b', protocol));
  }
  const allKeys = async (): Promise<string[]> => sorted(await direct('KEYS', '*'));

  /** RESP2 gives pairs, RESP3 a map: both as pairs. */
  const streams = (value: unknown): unknown => {
    const flat = value as unknown[] | null;
    if (protocol === 2 || flat === null) return flat;
    return Array.from({ length: flat.length / 2 }, (_, i) => [flat[i * 2], flat[i * 2 + 1]]);
  };

  it('1: counts out keys, and finds every destination', async () => {
    await begin();
    await a('ZADD', 'z1', 1, 'm', 2, 'n');
    await a('ZADD', 'z2', 3, 'm');
    await b('ZADD', 'z1', 9, 'secret');
    expect(await a('ZUNION', 2, 'z1', 'z2')).toEqual(['n', 'm']);
    expect(await a('ZUNIONSTORE', 'zu', 2, 'z1', 'z2', 'WEIGHTS', 1, 2)).toBe(2);
    expect(await a('ZINTERSTORE', 'zi', 2, 'z1', 'z2')).toBe(1);
    expect(await a('ZDIFFSTORE', 'zd', 2, 'z1', 'z2')).toBe(1);
    expect(await a('ZINTERCARD', 2, 'z1', 'z2')).toBe(1);
    expect(await a('ZRANGESTORE', 'zr', 'z1', 0, -1)).toBe(2);
    await a('SADD', 's1', 'x', 'y');
    await a('SADD', 's2', 'y');
    expect(await a('SINTERCARD', 2, 's1', 's2')).toBe(1);
    expect(await a('SUNIONSTORE', 'su', 's1', 's2')).toBe(2);
    expect(await a('SINTERSTORE', 'si', 's1', 's2')).toBe(1);
    expect(await a('SDIFFSTORE', 'sd', 's1', 's2')).toBe(1);
    expect(await a('SMOVE', 's1', 's2', 'x')).toBe(1);
    await a('RPUSH', 'l', 3, 1, 2);
    expect(await a('SORT', 'l', 'STORE', 'ls')).toBe(3);
    expect(await a('LMPOP', 2, 'none', 'l', 'LEFT')).toEqual(['l', ['3']]);
    expect(await a('BLMPOP', 1, 2, 'none', 'l', 'LEFT', 'COUNT', 2)).toEqual(['l', ['1', '2']]);
    expect(await a('ZMPOP', 1, 'z2', 'MIN')).toEqual(['z2', [['m', '3']]]);
    expect(await a('BZMPOP', 1, 1, 'zu', 'MIN')).toEqual(['zu', [['n', '2']]]);
    await a('GEOADD', 'g', 13.361389, 38.115556, 'P', 15.087269, 37.502669, 'C');
    expect(await a('GEORADIUS', 'g', 15, 37, 200, 'km', 'COUNT', 2, 'ASC', 'STORE', 'gs')).toBe(2);
    expect(await a('GEORADIUSBYMEMBER', 'g', 'P', 200, 'km', 'STOREDIST', 'gd')).toBe(2);
    expect(await a('GEOSEARCHSTORE', 'gx', 'g', 'FROMMEMBER', 'P', 'BYRADIUS', 200, 'km')).toBe(2);
    expect(await a('BITOP', 'OR', 'bo', 'su1', 'su2')).toBe(0);
    expect(await a('PFMERGE', 'pf', 'pf1', 'pf2')).toBe('OK');
    expect(await a('COPY', 'ls', 'lc')).toBe(1);
    expect(await a('LCS', 'no1', 'no2')).toBe('');
    expect(await a('EVAL', 'return {KEYS[1],KEYS[2],ARGV[1]}', 2, 'k1', 'k2', 'v')).toEqual(['k1', 'k2', 'v']);
    const keys = await allKeys();
    expect(keys.filter((key) => !key.startsWith('a:'))).toEqual(['b:z1']);
    expect(keys).toEqual(
      expect.arrayContaining([
        'a:zu',
        'a:zi',
        'a:zd',
        'a:zr',
        'a:su',
        'a:si',
        'a:sd',
        'a:ls',
        'a:gs',
        'a:gd',
        'a:gx',
        'a:pf',
        'a:lc',
      ]),
    );
  });

  it('1: does not let numbers of keys that are none reach past the scope', async () => {
    await begin();
    await direct('ZADD', 'z', 1, 'secret');
    for (const number of ['+1', '01', '-1', '9', '1.0', ' 1', '0x1', '', 'z', '99999999999999999999']) {
      expect(await a('ZUNION', number, 'z')).toMatch(/^!ERR/);
      expect(await a('EVAL', "return redis.call('ZUNION',1,KEYS[1])", number, 'z')).toMatch(/^!ERR/);
    }
    expect(await a('EVALSHA', 'abc', '9', 'z')).toMatch(/^!(ERR Number of keys|NOSCRIPT)/);
  });

  it('2: SORT looks up BY and GET patterns in the scope', async () => {
    await begin();
    await direct('MSET', 'w_1', 100, 'w_2', 200, 'w_3', 300);
    await a('RPUSH', 'l', 1, 2, 3);
    await a('MSET', 'w_1', 3, 'w_2', 2, 'w_3', 1, 'v_1', 'x', 'v_2', 'y', 'v_3', 'z');
    await a('HSET', 'h_1', 'f', 'one');
    expect(await a('SORT', 'l', 'BY', 'w_*', 'GET', '#', 'GET', 'v_*')).toEqual(['3', 'z', '2', 'y', '1', 'x']);
    expect(await a('SORT', 'l', 'BY', 'nosort', 'GET', 'h_*->f', 'LIMIT', 0, 1)).toEqual(['one']);
    expect(await a('SORT_RO', 'l', 'BY', 'w_*')).toEqual(['3', '2', '1']);
    expect(await a('SORT', 'l', 'GET', 'constant')).toEqual([null, null, null]);
    expect(await a('SORT', 'l', 'BY', 'w_*', 'STORE', 'sorted')).toBe(3);
    expect(await direct('LRANGE', 'a:sorted', 0, -1)).toEqual(['3', '2', '1']);
    const star = asking(await proxy.login('a*', protocol));
    await star('RPUSH', 'l', 1);
    expect(await star('SORT', 'l', 'GET', 'w_*')).toMatch(/^!NOPERM/);
    expect(await star('SORT', 'l', 'BY', 'nosort', 'GET', '#')).toEqual(['1']);
  });

  it('3: streams with groups and consumers called STREAMS, COUNT and BLOCK', async () => {
    await begin();
    await a('XADD', 's', '1-1', 'f', 'v');
    await a('XADD', 'STREAMS', '1-1', 'f', 'w');
    const entry = (value: string) => [['1-1', ['f', value]]];
    expect(streams(await a('XREAD', 'COUNT', 1, 'STREAMS', 'STREAMS', 's', 0, 0))).toEqual([
      ['STREAMS', entry('w')],
      ['s', entry('v')],
    ]);
    for (const [group, consumer] of [
      ['STREAMS', 'STREAMS'],
      ['COUNT', 'BLOCK'],
      ['GROUP', 'NOACK'],
    ]) {
      expect(await a('XGROUP', 'CREATE', 's', group!, '0')).toBe('OK');
      expect(streams(await a('XREADGROUP', 'COUNT', 5, 'GROUP', group!, consumer!, 'STREAMS', 's', '>'))).toEqual([
        ['s', entry('v')],
      ]);
      expect(await a('XREADGROUP', 'GROUP', group!, consumer!, 'BLOCK', 1, 'STREAMS', 's', '>')).toBe(null);
    }
    expect(await a('XPENDING', 's', 'STREAMS')).toEqual([1, '1-1', '1-1', [['STREAMS', '1']]]);
    expect(await a('XAUTOCLAIM', 's', 'STREAMS', 'other', 0, '0')).toEqual(['0-0', entry('v'), []]);
    expect(await a('XCLAIM', 's', 'STREAMS', 'third', 0, '1-1', 'JUSTID')).toEqual(['1-1']);
    expect(await a('XACK', 's', 'STREAMS', '1-1')).toBe(1);
    expect(JSON.stringify(await a('XINFO', 'STREAM', 's', 'FULL'))).not.toContain('a:');
    expect(await a('XINFO', 'GROUPS', 's')).toHaveLength(3);
    expect(await a('XINFO', 'CONSUMERS', 's', 'COUNT')).toHaveLength(1);
    expect(await a('XREAD', 'STREAMS', 's')).toMatch(/^!ERR/);
    expect(await a('XREAD', 'NEWOPTION', 'STREAMS', 's', '0')).toMatch(/^!ERR syntax error/);
    expect(await allKeys()).toEqual(['a:STREAMS', 'a:s']);
  });

  it('4: MIGRATE, OBJECT, MEMORY USAGE, DEBUG OBJECT, COPY DB, MOVE, SWAPDB, DUMP and RESTORE', async () => {
    await begin();
    const target = asking(await proxies[server === 'redis' ? 'valkey' : 'redis']!.unscoped());
    await target('FLUSHALL');
    await direct('MSET', 'k', 'secret', 'm2', 'secret');
    await a('MSET', 'k', 'v', 'm1', '1', 'm2', '2');
    expect(await a('OBJECT', 'ENCODING', 'k')).toBe('embstr');
    expect(await a('OBJECT', 'REFCOUNT', 'nokey')).toBe(null);
    expect(await a('MEMORY', 'USAGE', 'k')).toBeGreaterThan(10);
    expect(await a('MEMORY', 'USAGE', 'nokey')).toBe(null);
    expect(await a('DEBUG', 'OBJECT', 'k')).toMatch(/encoding:embstr/);
    expect(await a('DEBUG', 'OBJECT', 'nokey')).toMatch(/^!ERR no such key/);
    expect(await a('DEBUG', 'SLEEP', '0')).toMatch(/^!NOPERM/);
    expect(await a('COPY', 'k', 'k', 'DB', 5)).toBe(1);
    expect(await a('MOVE', 'k', 4)).toBe(1);
    expect(await a('SWAPDB', 0, 4)).toMatch(/^!NOPERM/);
    await direct('SELECT', 5);
    expect(await allKeys()).toEqual(['a:k']);
    await direct('SELECT', 4);
    expect(await allKeys()).toEqual(['a:k']);
    await direct('SELECT', 0);
    const dump = await client.send('DUMP', 'm1');
    expect(await a('RESTORE', 'r', 0, dump.bytes)).toBe('OK');
    expect(await a('RESTORE', 'r', 0, dump.bytes)).toBe('!BUSYKEY Target key name already exists.');
    // From the older server to the newer one only.
    if (server === 'redis') {
      const port = kvs.valkey.port;
      expect(await a('MIGRATE', '127.0.0.1', port, '', 0, 1000, 'COPY', 'REPLACE', 'KEYS', 'm1', 'm2')).toBe('OK');
      expect(await a('MIGRATE', '127.0.0.1', port, 'r', 0, 1000)).toBe('OK');
      expect(await a('MIGRATE', '127.0.0.1', port, '', 0, 1000)).toBe('NOKEY');
      expect(sorted(await target('KEYS', '*'))).toEqual(['a:m1', 'a:m2', 'a:r']);
      expect(await target('GET', 'a:m2')).toBe('2');
    }
  });

  it('5: SCAN and KEYS stay inside, with MATCH and without, whatever the scope is called', async () => {
    await begin();
    const star = asking(await proxy.login('a*', protocol));
    const odd = asking(await proxy.login('a?b', protocol));
    await direct('MSET', 'a?b:', 1, 'abc:x', 1, 'ab:x', 1, '[a-c]xb:k', 1, 'b?b:k', 1, 'ax:n', 1);
    await a('MSET', 'one', 1, 'two', 2, 'a*:x', 3, '', 4);
    await star('MSET', 'one', 1, 'b', 2);
    await odd('MSET', 'one', 1, 'q?', 2);
    const scan = async (ask: Ask, ...options: (string | number)[]): Promise<string[]> => {
      const found: string[] = [];
      let cursor = '0';
      do {
        const [next, keys] = (await ask('SCAN', cursor, ...options)) as [string, string[]];
        cursor = next;
        found.push(...keys);
      } while (cursor !== '0');
      return found.sort();
    };
    expect(sorted(await a('KEYS', '*'))).toEqual(['', 'a*:x', 'one', 'two']);
    expect(sorted(await a('KEYS', 't*'))).toEqual(['two']);
    expect(sorted(await a('KEYS', 'a\\*:?'))).toEqual(['a*:x']);
    expect(sorted(await star('KEYS', '*'))).toEqual(['b', 'one']);
    expect(sorted(await odd('KEYS', '*'))).toEqual(['one', 'q?']);
    expect(sorted(await odd('KEYS', 'q\\?'))).toEqual(['q?']);
    expect(await scan(a)).toEqual(['', 'a*:x', 'one', 'two']);
    expect(await scan(a, 'MATCH', 'o*', 'COUNT', 3)).toEqual(['one']);
    expect(await scan(a, 'COUNT', 2, 'TYPE', 'string')).toEqual(['', 'a*:x', 'one', 'two']);
    expect(await scan(a, 'TYPE', 'list')).toEqual([]);
    expect(await scan(star)).toEqual(['b', 'one']);
    expect(await scan(odd, 'MATCH', '[o]ne')).toEqual(['one']);
    expect(await a('SCAN', '0', 'MATCH')).toMatch(/^!ERR syntax error/);
    expect(await a('SCAN', '0', 'COUNT')).toMatch(/^!ERR/);
    await a('HSET', 'h', 'a:f', 1, 'g', 2);
    expect(await a('HSCAN', 'h', 0, 'MATCH', 'a:*')).toEqual(['0', ['a:f', '1']]);
  });

  it('6: replies name logical keys, in EXEC and in errors too', async () => {
    await begin();
    await a('RPUSH', 'l', 1, 2, 3, 4, 5, 6);
    await a('ZADD', 'z', 1, 'm', 2, 'n', 3, 'o');
    expect(await a('BLPOP', 'none', 'l', 1)).toEqual(['l', '1']);
    expect(await a('BRPOP', 'l', 1)).toEqual(['l', '6']);
    expect(await a('BLMOVE', 'l', 'l2', 'LEFT', 'LEFT', 1)).toBe('2');
    expect(await a('BZPOPMIN', 'z', 1)).toEqual(['z', 'm', '1']);
    expect(await a('BZPOPMAX', 'z', 1)).toEqual(['z', 'o', '3']);
    expect(await a('BLPOP', 'none', '0.01')).toBe(null);
    expect(await a('COMMAND', 'GETKEYS', 'MSET', 'x', 1, 'y', 2)).toEqual(['x', 'y']);
    expect(await a('RANDOMKEY')).toMatch(/^(l|z|l2)$/);
    await a('XADD', 's', '1-1', 'f', 'v');
    for (const args of [
      ['MULTI'],
      ['KEYS', '*'],
      ['RANDOMKEY'],
      ['DBSIZE'],
      ['LMPOP', 1, 'l', 'LEFT'],
      ['XREAD', 'STREAMS', 's', '0'],
      ['SCAN', '0'],
    ]) {
      expect(await a(...(args as [string]))).toMatch(/^(OK|QUEUED)$/);
    }
    const [keys, random, size, popped, read, scanned] = (await a('EXEC')) as unknown[];
    expect(sorted(keys)).toEqual(['l', 'l2', 's', 'z']);
    expect(random).toMatch(/^(l|l2|s|z)$/);
    expect(size).toBe(4);
    expect(popped).toEqual(['l', ['3']]);
    expect(streams(read)).toEqual([['s', [['1-1', ['f', 'v']]]]]);
    expect(sorted((scanned as unknown[])[1])).toEqual(['l', 'l2', 's', 'z']);
    expect(await a('XREADGROUP', 'GROUP', 'g', 'c', 'STREAMS', 's', '>')).toBe(
      "!NOGROUP No such key 's' or consumer group 'g' in XREADGROUP with GROUP option",
    );
    expect(await a('XGROUP', 'SETID', 's', 'g', '0')).toBe("!NOGROUP No such consumer group 'g' for key name 's'");
    expect(await a('XINFO', 'CONSUMERS', 's', 'g')).toBe("!NOGROUP No such consumer group 'g' for key name 's'");
    expect(await a('XCLAIM', 'a:', 'a:', 'c', 0, '1-1')).toBe("!NOGROUP No such key 'a:' or consumer group 'a:'");
    expect(await a('XPENDING', 'nokey', 'g')).toBe("!NOGROUP No such key 'nokey' or consumer group 'g'");
    expect(await a('EVAL', "return redis.call('XPENDING',KEYS[1],'g')", 1, 'nokey')).toMatch(
      /^!NOGROUP No such key 'nokey' or consumer group 'g' script: [0-9a-f]{40}, on @user_script:1\.$/,
    );
    for (const args of [['MULTI'], ['XINFO', 'GROUPS', 'nokey'], ['XPENDING', 's', 'g']])
      await a(...(args as [string]));
    expect(JSON.stringify(await a('EXEC'))).toBe(
      '["!ERR no such key","!NOGROUP No such key \'s\' or consumer group \'g\'"]',
    );
  });

  it('8: whole-keyspace commands mean the scope', async () => {
    await begin();
    await direct('MSET', 'outside', 1, 'a', 2, 'ab:', 3);
    await b('MSET', 'x', 1, 'y', 2);
    await a('MSET', 'x', 1, 'y', 2, 'z', 3);
    await a('SELECT', 3);
    await a('SET', 'in3', 1);
    expect(await a('DBSIZE')).toBe(1);
    await a('SELECT', 0);
    expect(await a('DBSIZE')).toBe(3);
    for (let i = 0; i < 20; i += 1) expect(await a('RANDOMKEY')).toMatch(/^[xyz]$/);
    expect(await a('INFO', 'keyspace')).toBe('# Keyspace\r\n');
    expect(await a('INFO')).not.toMatch(/db0:|keyspace_hits|evicted_keys|pubsub_channels/);
    expect(await a('INFO', 'server')).toMatch(/redis_version:/);
    expect(await a('FLUSHDB', 'NOW')).toMatch(/^!ERR syntax error/);
    expect(await a('FLUSHDB')).toBe('OK');
    expect(await a('DBSIZE')).toBe(0);
    expect(await a('RANDOMKEY')).toBe(null);
    expect(await allKeys()).toEqual(['a', 'ab:', 'b:x', 'b:y', 'outside']);
    await a('SET', 'x', 1);
    expect(await a('FLUSHALL', 'ASYNC')).toBe('OK');
    await direct('SELECT', 3);
    expect(await allKeys()).toEqual([]);
    await direct('SELECT', 0);
    expect(await allKeys()).toEqual(['a', 'ab:', 'b:x', 'b:y', 'outside']);
    for (const args of [
      ['SWAPDB', '0', '1'],
      ['MONITOR'],
      ['SLOWLOG', 'GET'],
      ['LATENCY', 'LATEST'],
      ['CONFIG', 'GET', '*'],
      ['CONFIG', 'SET', 'maxmemory', '1'],
      ['ACL', 'LIST'],
      ['ACL', 'SETUSER', 'x'],
      ['MEMORY', 'STATS'],
      ['DEBUG', 'RELOAD'],
      ['SHUTDOWN'],
      ['SAVE'],
      ['REPLICAOF', 'no', 'one'],
      ['SYNC'],
      ['PSYNC', '?', '-1'],
      ['REPLCONF', 'ACK', '0'],
      ['CLUSTER', 'NODES'],
      ['SCRIPT', 'KILL'],
      ['SCRIPT', 'DEBUG', 'YES'],
      ['FUNCTION', 'DUMP'],
      ['FUNCTION', 'STATS'],
      ['MODULE', 'LIST'],
      ['CLIENT', 'PAUSE', '1'],
      ['CLIENT', 'NO-EVICT', 'on'],
      ['OBJECT', 'NEWSUBCOMMAND', 'k'],
      ['NOSUCHCOMMAND', 'k'],
    ]) {
      expect(await a(...(args as [string])), args.join(' ')).toMatch(/^!NOPERM /);
      await a('MULTI');
      expect(await a(...(args as [string])), args.join(' ')).toMatch(/^!NOPERM /);
      expect(await a('EXEC')).toMatch(/^!EXECABORT/);
    }
    expect(await a('ACL', 'WHOAMI')).toBe('a');
    expect(await a('FLUSHDB')).toBe('OK');
  });

  it('8: CLIENT LIST and KILL know the clients of the scope only', async () => {
    await begin();
    const other = await proxy.login('b', protocol);
    const own = await proxy.login('a', protocol);
    const ids = async (ask: Ask): Promise<string[]> =>
      [...String(await ask('CLIENT', 'LIST')).matchAll(/id=(\d+)/g)].map((found) => found[1]!);
    const otherId = plain(await other.send('CLIENT', 'ID'));
    const ownId = plain(await own.send('CLIENT', 'ID'));
    expect(await ids(a)).toContain(String(ownId));
    expect(await ids(a)).not.toContain(String(otherId));
    expect(await a('CLIENT', 'KILL', 'ID', Number(otherId))).toBe(0);
    expect(await a('CLIENT', 'UNBLOCK', Number(otherId))).toBe(0);
    expect(await a('CLIENT', 'TRACKING', 'ON', 'REDIRECT', Number(otherId))).toMatch(
      /^!ERR The client ID you want redirect to does not exist/,
    );
    expect(plain(await other.send('PING'))).toBe('PONG');
    for (const args of [
      ['LIST'],
      ['KILL', 'ID', '1'],
      ['UNBLOCK', '1'],
      ['TRACKING', 'ON', 'REDIRECT', '1'],
      ['GETREDIR'],
    ]) {
      await a('MULTI');
      expect(await a('CLIENT', ...args)).toMatch(/^!NOPERM/);
      expect(await a('EXEC')).toMatch(/^!EXECABORT/);
    }
    expect(await a('CLIENT', 'KILL', 'ID', Number(ownId))).toBe(1);
    await expect(own.send('PING')).rejects.toThrow();
  });

  it('9: takes binary keys, empty keys, keys that start with the prefix, and any letter case', async () => {
    await begin();
    const binary = Buffer.from([0, 255, 13, 10, 36, 42]);
    for (const key of [
      binary,
      Buffer.from(''),
      Buffer.from('a:'),
      Buffer.from('a:a:x'),
      Buffer.from('b:k'),
      Buffer.alloc(70_000, 120),
    ]) {
      expect(await a('sEt', key, 'v')).toBe('OK');
      expect((await client.send('gEt', key)).bytes.toString()).toBe('v');
      const listed = (await client.send('kEyS', '*')).items!;
      expect(listed).toHaveLength(1);
      expect(listed[0]!.bytes.equals(key)).toBe(true);
      const [, page] = (await client.send('ScAn', '0', 'cOuNt', '100')).items!;
      expect(page!.items![0]!.bytes.equals(key)).toBe(true);
      expect(await a('gEtSeT', key, 'w')).toBe('v');
      expect(await a('DEL', key)).toBe(1);
    }
    await b('SET', 'k', 'secret');
    expect(await a('GET', 'b:k')).toBe(null);
    expect(await a('XGROUP', 'CREATE', 'a\r\nb', 'g', '0')).toMatch(/^!ERR The XGROUP subcommand requires the key/);
    expect(await a('XPENDING', 'a\r\nb', 'g')).toBe("!NOGROUP No such key 'a  b' or consumer group 'g'");
    client.socket.write('set inline value\r\n');
    expect(plain(await client.next())).toBe('OK');
    expect(await allKeys()).toEqual(['a:inline', 'b:k']);
  });

  it('shares listed keys, and nothing before a scope is chosen', async () => {
    await begin();
    const worker = asking(await proxy.login('worker', protocol));
    await direct('SET', 'secret', 1);
    expect(await worker('XADD', 'task-queue', '1-1', 'f', 'v')).toBe('1-1');
    expect(await worker('SET', 'k', 1)).toMatch(/^!NOPERM this session has no scope yet/);
    for (const args of [
      ['KEYS', '*'],
      ['SCAN', '0'],
      ['DBSIZE'],
      ['FLUSHDB'],
      ['EVAL', 'return 1', '0'],
      ['SUBSCRIBE', 'c'],
      ['PUBLISH', 'c', 'm'],
      ['CLIENT', 'TRACKING', 'ON'],
      ['MGET', 'task-queue', 'secret'],
    ]) {
      expect(await worker(...(args as [string])), args.join(' ')).toMatch(/^!NOPERM/);
    }
    expect(await worker('HOLDFAST', 'WITH', 'org', 'fleet', 'v1', 'SET', 'k', 'with')).toBe('OK');
    expect(await worker('HOLDFAST', 'WITH', 'org', 'fleet', 'v2', 'GET', 'k')).toBe(null);
    expect(await worker('HOLDFAST', 'WITH', 'org', 'fleet', 'v1', 'SUBSCRIBE', 'k')).toMatch(/^!ERR/);
    expect(await worker('HOLDFAST', 'WITH', 'org', 'fleet', 'v1', 'CONFIG', 'GET', 'k')).toMatch(/^!NOPERM/);
    expect(await worker('HOLDFAST', 'WITH', 'org/x', 'fleet', 'v1', 'GET', 'k')).toMatch(/^!ERR parts of a scope/);
    expect(await worker('HOLDFAST', 'SCOPE', 'SET', 'org', 'fleet')).toMatch(/^!ERR syntax/);
    expect(await worker('HOLDFAST', 'SCOPE', 'SET', 'org', 'fleet', 'v1')).toBe('OK');
    expect(await worker('HOLDFAST', 'SCOPE', 'GET')).toBe('v1/org/fleet/v1/');
    expect(await worker('GET', 'k')).toBe('with');
    expect(await worker('KEYS', '*')).toEqual(['k']);
    expect(streams(await worker('XREAD', 'STREAMS', 'task-queue', 'k2', '0', '0'))).toEqual([
      ['task-queue', [['1-1', ['f', 'v']]]],
    ]);
    expect(
      await worker('EVAL', "return {KEYS[1],redis.call('TYPE',KEYS[1]).ok,redis.call('GET','k')}", 1, 'task-queue'),
    ).toEqual(['task-queue', 'stream', 'with']);
    for (const args of [['MULTI'], ['HOLDFAST', 'WITH', 'org', 'fleet', 'v2', 'SET', 'k', '2'], ['SET', 'k3', 'x']])
      await worker(...(args as [string]));
    expect(await worker('EXEC')).toEqual(['OK', 'OK']);
    expect(await worker('HOLDFAST', 'SCOPE', 'CLEAR')).toBe('OK');
    expect(await worker('GET', 'k')).toMatch(/^!NOPERM/);
    expect(await allKeys()).toEqual([
      'secret',
      'task-queue',
      'v1/org/fleet/v1/k',
      'v1/org/fleet/v1/k3',
      'v1/org/fleet/v2/k',
    ]);
    expect(await worker('HOLDFAST', 'SCOPE', 'INVALIDATE', 'org', 'fleet', 'v1')).toBe(2);
    expect(await worker('HOLDFAST', 'SCOPE', 'INVALIDATE', 'org')).toBe(1);
    expect(await allKeys()).toEqual(['secret', 'task-queue']);
    expect(await a('HOLDFAST', 'SCOPE', 'SET', 'org', 'fleet', 'v1')).toMatch(/^!NOPERM/);
    expect(await a('HOLDFAST', 'SCOPE', 'GET')).toMatch(/^!NOPERM/);
  });
});
