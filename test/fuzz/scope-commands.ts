/**
 * What a tenant of the isolation campaign asks for: mostly commands that succeed, each on keys of a type that suits it,
 * with names that every tenant uses alike, so that whatever reached past a scope would find something there. All that a
 * tenant writes carries its mark.
 */
import { sha1 } from '../../src/scope/lua/script-registry.ts';
import { SCRIPT_ATTACKS, STATE_CHANGES } from '../scope/script-attacks.ts';
import type { Random } from './random.ts';

export type Request = readonly (string | Buffer)[];

/** Names that a tenant knows, by the type that it keeps there. */
const KEYS = {
  string: ['s0', 's1', 's2', '', 'a:b', Buffer.from([0, 255, 13, 10, 42])],
  number: ['n0', 'n1'],
  list: ['l0', 'l1', 'l2'],
  hash: ['h0', 'h1'],
  set: ['t0', 't1', 't2'],
  sorted: ['z0', 'z1', 'z2'],
  stream: ['x0', 'x1', 'STREAMS'],
  geo: ['g0', 'g1'],
  log: ['p0', 'p1'],
  bits: ['b0', 'b1'],
} as const satisfies Record<string, readonly (string | Buffer)[]>;

export type KeyType = keyof typeof KEYS;

export const LIBRARY = [
  '#!lua name=tools',
  "redis.register_function('put',function(k,a) redis.call('SET',k[1],a[1]) return redis.call('GET',k[1]) end)",
  "redis.register_function('look',function(k,a) return {redis.call('KEYS','*'),redis.call('DBSIZE'),k,a} end)",
  "redis.register_function{function_name='peek',callback=function(k) return redis.call('GET',k[1]) end,flags={'no-writes'}}",
].join('\n');

/** Scripts with a number of keys of one type, and whether a further argument is wanted. */
const SCRIPTS: readonly (readonly [body: string, type: KeyType, keys: number])[] = [
  ["return redis.call('INCR',KEYS[1])", 'number', 1],
  ["redis.call('SET',KEYS[1],ARGV[1]) return redis.call('GET',KEYS[1])", 'string', 1],
  ["redis.call('set','s0',ARGV[1]) return {redis.call('get','s0'),redis.call('mget','s1','s2')}", 'string', 1],
  ["local r={} for i=1,5 do r[i]=redis.call('HSET',KEYS[1],'f'..i,ARGV[1]) end return r", 'hash', 1],
  ["return {redis.call('KEYS','*'),redis.call('SCAN','0','COUNT','1000'),redis.call('DBSIZE')}", 'string', 1],
  ["return redis.call('RANDOMKEY')", 'string', 1],
  ['return {KEYS,ARGV,#KEYS,#ARGV}', 'string', 2],
  ["return redis.pcall('INCR','h0').err", 'hash', 1],
  ["return redis.call('INCR','h0')", 'hash', 1],
  ["return redis.pcall('XGROUP','SETID',KEYS[1],'nogroup','0').err", 'stream', 1],
  ["return redis.call('XREADGROUP','GROUP','nogroup','c','STREAMS',KEYS[1],'>')", 'stream', 1],
  ["return redis.call('XREAD','COUNT','2','STREAMS',KEYS[1],KEYS[2],'0','0')", 'stream', 2],
  ["redis.setresp(3) return redis.call('XREAD','COUNT','2','STREAMS',KEYS[1],'0')", 'stream', 1],
  ["redis.call('RPUSH',KEYS[1],ARGV[1]) return redis.call('LMPOP','1',KEYS[1],'LEFT')", 'list', 1],
  ["return redis.call('SORT',KEYS[1],'BY','n*','GET','s*','GET','#','ALPHA')", 'list', 1],
  ["redis.call('ZUNIONSTORE','zd','2',KEYS[1],KEYS[2]) return redis.call('ZRANGE','zd',0,-1)", 'sorted', 2],
  ["redis.call('PUBLISH','news',ARGV[1]) return redis.call('TIME')", 'string', 1],
  ["#!lua flags=no-writes\nreturn redis.call('GET',KEYS[1])", 'string', 1],
  ['return redis.sha1hex(KEYS[1])', 'string', 1],
  ['return cjson.encode({KEYS=KEYS,ARGV=ARGV})', 'string', 2],
];

const FIELDS = ['f1', 'f2', 'f3', 'f4', 'f5'];
const CHANNELS = ['news', 'other', '__keyspace@0__:s0', '__keyevent@0__:set', '__keyevent@0__:del', 'c:1', ''];
const PATTERNS = ['*', 'n*', '*:*', '__key*', '__keyevent@*__:*', '[a-z]*', '?'];
const GLOBS = ['*', 's*', '?0', '[a-z]*', '*0', 'nosuch', ''];

const INFO_SECTIONS = [
  ...['all', 'everything', 'server', 'clients', 'memory', 'persistence', 'stats', 'replication', 'cpu', 'modules'],
  ...['errorstats', 'commandstats', 'latencystats', 'keyspace', 'debug', 'holdfast'],
];

export interface TenantWords {
  /** In every value that the tenant writes. */
  readonly mark: string;
  /** Before some of the names that it uses: of scopes that are not its own. */
  readonly guesses: readonly string[];
}

/** As a user of the KV store whom it would let in with any password. */
const LOGINS: readonly Request[] = [
  ['AUTH', 'default', 'any'],
  ['AUTH', 'any'],
  ['HELLO', '2', 'AUTH', 'default', 'any'],
  ['HELLO', '3', 'AUTH', 'default', 'any'],
];

/** One generator for each connection. */
export function tenantCommands(random: Random, { mark, guesses }: TenantWords) {
  const { pick, below, chance } = random;
  let written = 0;

  function key(type: KeyType): string | Buffer {
    const name = pick<string | Buffer>(KEYS[type]);
    if (guesses.length === 0 || !chance(0.5)) return name;
    return typeof name === 'string' ? pick(guesses) + name : Buffer.concat([Buffer.from(pick(guesses)), name]);
  }
  const value = (): string => {
    written += 1;
    return chance(0.03) ? `${mark}${'x'.repeat(below(3000))}` : `${mark}${written % 50}`;
  };
  const member = (): string => `${mark}m${below(12)}`;
  const number = (): string => String(below(20) - 5);
  const count = (): string => String(1 + below(4));
  const field = (): string => pick(FIELDS);
  const index = (): string => String(below(8) - 4);
  const score = (): string => pick(['1', '2.5', '-3', '10', 'inf', '0']);
  const keys = (type: KeyType, most = 3): (string | Buffer)[] =>
    Array.from({ length: 1 + below(most) }, () => key(type));
  const counted = (type: KeyType): (string | Buffer)[] => {
    const names = keys(type);
    return [String(names.length), ...names];
  };
  const some = (...options: readonly (readonly string[])[]): readonly string[] => (chance(0.4) ? pick(options) : []);
  const anyType = (): KeyType => pick(Object.keys(KEYS) as KeyType[]);
  const wait = '0.002';
  const range = (): readonly string[] =>
    pick([
      ['0', '-1'],
      ['0', '3'],
      ['-2', '-1'],
      ['1', '2'],
    ]);
  const glob = (): string => pick(GLOBS);
  const group = (): string => pick(['g', 'STREAMS']);
  const consumer = (): string => pick(['c', 'BLOCK', 'STREAMS']);
  const id = (): string => pick(['0', '0-0', '1-1', '5', '$']);

  const strings: (() => Request)[] = [
    () => [
      'SET',
      key('string'),
      value(),
      ...some(['EX', '100'], ['PX', '100000'], ['NX'], ['XX'], ['GET'], ['KEEPTTL']),
    ],
    () => ['GET', key('string')],
    () => ['get', key('string')],
    () => ['GETSET', key('string'), value()],
    () => ['GETEX', key('string'), ...some(['PERSIST'], ['EX', '1000'])],
    () => ['GETDEL', key('string')],
    () => ['MGET', ...keys('string', 5)],
    () => ['MSET', key('string'), value(), key('string'), value()],
    () => ['MSETNX', key('string'), value(), key('string'), value()],
    () => ['SETEX', key('string'), '100', value()],
    () => ['PSETEX', key('string'), '100000', value()],
    () => ['SETNX', key('string'), value()],
    () => ['STRLEN', key('string')],
    () => ['GETRANGE', key('string'), ...range()],
    () => ['SUBSTR', key('string'), ...range()],
    () => ['SETRANGE', key('string'), count(), value()],
    () => ['APPEND', key('string'), value()],
    () => ['LCS', key('string'), key('string'), ...some(['LEN'], ['IDX'], ['IDX', 'WITHMATCHLEN'])],
    () => ['GETORSET', key('string'), value(), ...some(['EX', '100'])],
    () => ['INCR', key('number')],
    () => ['DECR', key('number')],
    () => ['INCRBY', key('number'), number()],
    () => ['DECRBY', key('number'), number()],
    () => ['SETBIT', key('bits'), count(), '1'],
    () => ['GETBIT', key('bits'), count()],
    () => ['BITCOUNT', key('bits'), ...some(['0', '-1'])],
    () => ['BITPOS', key('bits'), '1'],
    () => ['BITOP', pick(['AND', 'OR', 'XOR']), key('bits'), ...keys('bits')],
    () => ['BITFIELD', key('bits'), 'INCRBY', 'u8', '0', '3', 'GET', 'u4', '0'],
    () => ['BITFIELD_RO', key('bits'), 'GET', 'u4', '0'],
    () => ['PFADD', key('log'), member(), member()],
    () => ['PFCOUNT', ...keys('log')],
    () => ['PFMERGE', key('log'), ...keys('log')],
  ];
  const lists: (() => Request)[] = [
    () => [pick(['LPUSH', 'RPUSH']), key('list'), value(), value()],
    () => [pick(['LPUSHX', 'RPUSHX']), key('list'), value()],
    () => [pick(['LPOP', 'RPOP']), key('list'), ...some(['2'])],
    () => ['LRANGE', key('list'), ...range()],
    () => ['LLEN', key('list')],
    () => ['LINDEX', key('list'), index()],
    () => ['LTRIM', key('list'), '-12', '-1'],
    () => ['LREM', key('list'), '1', value()],
    () => ['LINSERT', key('list'), pick(['BEFORE', 'AFTER']), value(), value()],
    () => ['LPOS', key('list'), value(), ...some(['COUNT', '0'], ['RANK', '-1'])],
    () => ['LMOVE', key('list'), key('list'), pick(['LEFT', 'RIGHT']), pick(['LEFT', 'RIGHT'])],
    () => ['RPOPLPUSH', key('list'), key('list')],
    () => ['LMPOP', ...counted('list'), pick(['LEFT', 'RIGHT']), ...some(['COUNT', '2'])],
    () => [pick(['BLPOP', 'BRPOP']), ...keys('list'), wait],
    () => ['BLMOVE', key('list'), key('list'), 'LEFT', 'RIGHT', wait],
    () => ['BRPOPLPUSH', key('list'), key('list'), wait],
    () => ['BLMPOP', wait, ...counted('list'), 'LEFT', ...some(['COUNT', '2'])],
    () => ['SORT', key('list'), 'ALPHA', ...some(['DESC'], ['LIMIT', '0', '3'])],
    () => ['SORT', key('list'), 'BY', 'nosort', 'GET', '#', 'GET', 's*', 'GET', 'h*->f1'],
    () => ['SORT', key('list'), 'BY', 's*', 'ALPHA', 'GET', '#', 'STORE', key('list')],
    () => ['SORT_RO', key('list'), 'ALPHA', ...some(['BY', 's*'], ['GET', '*'])],
  ];
  const hashes: (() => Request)[] = [
    () => ['HSET', key('hash'), field(), value(), field(), value()],
    () => ['HMSET', key('hash'), field(), value()],
    () => ['HSETNX', key('hash'), field(), value()],
    () => ['HGET', key('hash'), field()],
    () => ['HMGET', key('hash'), field(), field()],
    () => ['HGETALL', key('hash')],
    () => [pick(['HKEYS', 'HVALS', 'HLEN']), key('hash')],
    () => ['HEXISTS', key('hash'), field()],
    () => ['HSTRLEN', key('hash'), field()],
    () => ['HDEL', key('hash'), field()],
    () => ['HINCRBY', key('hash'), 'counter', number()],
    () => ['HINCRBYFLOAT', key('hash'), 'counter', number()],
    () => ['HRANDFIELD', key('hash'), ...some(['2'], ['-3', 'WITHVALUES'])],
    () => ['HSCAN', key('hash'), '0', ...some(['MATCH', 'f*'], ['COUNT', '5'])],
  ];
  const sets: (() => Request)[] = [
    () => ['SADD', key('set'), member(), member()],
    () => ['SREM', key('set'), member()],
    () => ['SMEMBERS', key('set')],
    () => ['SISMEMBER', key('set'), member()],
    () => ['SMISMEMBER', key('set'), member(), member()],
    () => ['SCARD', key('set')],
    () => ['SPOP', key('set'), ...some(['2'])],
    () => ['SRANDMEMBER', key('set'), ...some(['-2'])],
    () => ['SMOVE', key('set'), key('set'), member()],
    () => [pick(['SUNION', 'SINTER', 'SDIFF']), ...keys('set')],
    () => [pick(['SUNIONSTORE', 'SINTERSTORE', 'SDIFFSTORE']), key('set'), ...keys('set')],
    () => ['SINTERCARD', ...counted('set'), ...some(['LIMIT', '2'])],
    () => ['SSCAN', key('set'), '0', ...some(['MATCH', '*'])],
  ];
  const sorted: (() => Request)[] = [
    () => ['ZADD', key('sorted'), ...some(['NX'], ['XX'], ['GT'], ['CH']), score(), member()],
    () => ['ZINCRBY', key('sorted'), number(), `${mark}m12`],
    () => ['ZRANGE', key('sorted'), ...range(), ...some(['WITHSCORES'], ['REV'])],
    () => ['ZRANGESTORE', key('sorted'), key('sorted'), ...range()],
    () => [pick(['ZRANGEBYSCORE', 'ZREVRANGEBYSCORE']), key('sorted'), '-inf', '+inf', ...some(['LIMIT', '0', '2'])],
    () => ['ZRANGEBYLEX', key('sorted'), '-', '+'],
    () => [pick(['ZRANK', 'ZREVRANK', 'ZSCORE']), key('sorted'), member()],
    () => ['ZMSCORE', key('sorted'), member(), member()],
    () => [pick(['ZCARD']), key('sorted')],
    () => ['ZCOUNT', key('sorted'), '-inf', '5'],
    () => ['ZREM', key('sorted'), member()],
    () => ['ZREMRANGEBYRANK', key('sorted'), '8', '-1'],
    () => [pick(['ZPOPMIN', 'ZPOPMAX']), key('sorted'), ...some(['2'])],
    () => [pick(['BZPOPMIN', 'BZPOPMAX']), ...keys('sorted'), wait],
    () => ['ZMPOP', ...counted('sorted'), pick(['MIN', 'MAX']), ...some(['COUNT', '2'])],
    () => ['BZMPOP', wait, ...counted('sorted'), 'MIN'],
    () => [pick(['ZUNION', 'ZINTER', 'ZDIFF']), ...counted('sorted'), ...some(['WITHSCORES'])],
    () => [pick(['ZUNIONSTORE', 'ZINTERSTORE', 'ZDIFFSTORE']), key('sorted'), ...counted('sorted')],
    () => ['ZINTERCARD', ...counted('sorted')],
    () => ['ZRANDMEMBER', key('sorted'), ...some(['2', 'WITHSCORES'])],
    () => ['ZSCAN', key('sorted'), '0'],
    () => ['GEOADD', key('geo'), '13.36', '38.11', 'P', '15.08', '37.5', 'C'],
    () => ['GEOPOS', key('geo'), 'P', 'none'],
    () => ['GEODIST', key('geo'), 'P', 'C'],
    () => ['GEOHASH', key('geo'), 'P'],
    () => ['GEOSEARCH', key('geo'), 'FROMLONLAT', '15', '37', 'BYRADIUS', '200', 'km', 'ASC'],
    () => ['GEOSEARCHSTORE', key('geo'), key('geo'), 'FROMLONLAT', '15', '37', 'BYBOX', '400', '400', 'km'],
    () => ['GEORADIUS', key('geo'), '15', '37', '200', 'km', ...some(['WITHDIST'], ['COUNT', '1', 'ASC'])],
    () => ['GEORADIUS', key('geo'), '15', '37', '200', 'km', pick(['STORE', 'STOREDIST']), key('geo')],
    () => ['GEORADIUS_RO', key('geo'), '15', '37', '200', 'km'],
  ];
  const streams: (() => Request)[] = [
    () => ['XADD', key('stream'), ...some(['MAXLEN', '30'], ['MAXLEN', '~', '30']), '*', field(), value()],
    () => ['XADD', key('stream'), '*', field(), value()],
    () => ['XLEN', key('stream')],
    () => [pick(['XRANGE']), key('stream'), '-', '+', ...some(['COUNT', '2'])],
    () => ['XREVRANGE', key('stream'), '+', '-', 'COUNT', '2'],
    () => ['XREAD', ...some(['COUNT', '2']), 'STREAMS', key('stream'), key('stream'), '0', '0'],
    () => ['XREAD', 'COUNT', '1', 'BLOCK', '2', 'STREAMS', key('stream'), id()],
    () => ['XGROUP', 'CREATE', key('stream'), group(), '0', 'MKSTREAM'],
    () => [
      'XREADGROUP',
      'GROUP',
      group(),
      consumer(),
      ...some(['COUNT', '2'], ['NOACK']),
      'STREAMS',
      key('stream'),
      '>',
    ],
    () => ['XREADGROUP', 'GROUP', group(), consumer(), 'BLOCK', '2', 'STREAMS', key('stream'), '>'],
    () => ['XREADGROUP', 'GROUP', group(), consumer(), 'STREAMS', key('stream'), '0'],
    () => ['XACK', key('stream'), group(), '1-1', '5-0'],
    () => ['XPENDING', key('stream'), group(), ...some(['-', '+', '5'])],
    () => ['XCLAIM', key('stream'), group(), consumer(), '0', '1-1'],
    () => ['XAUTOCLAIM', key('stream'), group(), consumer(), '0', '0', 'COUNT', '3'],
    () => ['XINFO', 'STREAM', key('stream'), ...some(['FULL'])],
    () => ['XINFO', 'GROUPS', key('stream')],
    () => ['XINFO', 'CONSUMERS', key('stream'), group()],
    () => ['XTRIM', key('stream'), 'MAXLEN', '20'],
    () => ['XDEL', key('stream'), '1-1'],
    () => ['XGROUP', 'CREATECONSUMER', key('stream'), group(), consumer()],
    () => ['XGROUP', 'SETID', key('stream'), 'nosuchgroup', '0'],
  ];
  const keyspace: (() => Request)[] = [
    () => ['EXISTS', ...keys(anyType())],
    () => ['TYPE', key(anyType())],
    () => [pick(['TTL', 'PTTL', 'EXPIRETIME', 'PEXPIRETIME', 'PERSIST', 'DUMP']), key(anyType())],
    () => ['EXPIRE', key(anyType()), '1000'],
    () => ['PEXPIRE', key('string'), pick(['5', '100000'])],
    () => ['TOUCH', ...keys(anyType())],
    () => [pick(['DEL', 'UNLINK']), key(pick(['string', 'list', 'hash', 'set', 'sorted']))],
    () => ['OBJECT', pick(['ENCODING', 'REFCOUNT', 'IDLETIME']), key(anyType())],
    () => ['MEMORY', 'USAGE', key(anyType())],
    () => ['DEBUG', pick(['OBJECT', 'DIGEST-VALUE']), key('string')],
    () => {
      const type = anyType();
      return ['COPY', key(type), key(type), ...some(['REPLACE'], ['DB', '1', 'REPLACE'])];
    },
    () => {
      const type = pick<KeyType>(['string', 'list', 'hash', 'set', 'sorted']);
      return [pick(['RENAME', 'RENAMENX']), key(type), key(type)];
    },
    () => ['MOVE', key('string'), pick(['1', '2'])],
    () => ['KEYS', glob()],
    () => ['SCAN', '0', ...some(['MATCH', glob()], ['COUNT', '100'], ['TYPE', 'hash', 'COUNT', '1000'])],
    () => ['SCAN', String(below(2048)), 'COUNT', '50'],
    () => ['RANDOMKEY'],
    () => ['DBSIZE'],
    () => ['COMMAND', 'GETKEYS', 'MSET', key('string'), 'v', key('string'), 'v'],
    () => ['COMMAND', 'GETKEYSANDFLAGS', 'SET', key('string'), 'v'],
    () => ['INFO', ...some(...INFO_SECTIONS.map((section) => [section]))],
    () => ['ROLE'],
  ];
  const scripts: (() => Request)[] = [
    () => {
      const [body, type, many] = pick(SCRIPTS);
      const names = Array.from({ length: many }, () => key(type));
      return [pick(['EVAL', 'eval']), body, String(many), ...names, value()];
    },
    () => {
      const [body, type, many] = pick(SCRIPTS);
      return ['EVAL', body, String(many), ...Array.from({ length: many }, () => key(type)), value(), value()];
    },
    () => {
      const [body, type, many] = pick(SCRIPTS);
      const names = Array.from({ length: many }, () => key(type));
      return [pick(['EVALSHA', 'evalsha', 'EVALSHA_RO']), sha1(body), String(many), ...names, value()];
    },
    () => ['EVAL_RO', "return redis.call('GET',KEYS[1])", '1', key('string')],
    () => ['FCALL', 'put', '1', key('string'), value()],
    () => ['FCALL', 'look', '1', key('string'), value()],
    () => ['FCALL_RO', 'peek', '1', key('string')],
    () => ['FUNCTION', 'LIST', ...some(['WITHCODE'], ['LIBRARYNAME', '*'])],
    () => ['SCRIPT', 'EXISTS', '0'.repeat(40)],
  ];
  const messages: (() => Request)[] = [
    () => ['PUBLISH', pick(CHANNELS), value()],
    () => ['SPUBLISH', pick(CHANNELS), value()],
    () => ['PUBSUB', pick(['CHANNELS', 'SHARDCHANNELS']), ...some(['*'], ['n*'])],
    () => ['PUBSUB', pick(['NUMSUB', 'SHARDNUMSUB']), pick(CHANNELS), pick(CHANNELS)],
    () => ['PUBSUB', 'NUMPAT'],
    () => ['CLIENT', pick(['LIST', 'INFO', 'ID', 'GETNAME', 'TRACKINGINFO', 'GETREDIR'])],
    () => ['ACL', 'WHOAMI'],
    () => ['COMMAND', 'COUNT'],
    () => ['LASTSAVE'],
    () => ['ECHO', value()],
    () => ['PING', ...some([mark])],
    () => ['SELECT', pick(['0', '0', '0', '1', '2'])],
  ];
  /** What is refused, or ought to find nothing. */
  const attacks: (() => Request)[] = [
    () => ['EVAL', pick(SCRIPT_ATTACKS), '0'],
    () =>
      pick<Request>([
        ['SLOWLOG', 'GET'],
        ['ACL', 'LOG'],
        ['ACL', 'LIST'],
        ['CONFIG', 'GET', '*'],
        ['CLIENT', 'KILL', 'TYPE', 'replica'],
        ['CLIENT', 'TRACKING', 'ON', 'REDIRECT', '1'],
        ['LATENCY', 'LATEST'],
        ['MEMORY', 'STATS'],
        ['MONITOR'],
        ['SWAPDB', '0', '1'],
        ['FUNCTION', 'DUMP'],
        ['FUNCTION', 'STATS'],
        ['MODULE', 'LIST'],
        ['HOLDFAST', 'STATUS'],
        ['HOLDFAST', 'COMMANDS'],
        ['HOLDFAST', 'SCOPE', 'INVALIDATE', 'o', 'f', '1'],
        ['NOSUCHCOMMAND', 's0'],
        ['OBJECT', 'HELP'],
        ['MIGRATE', '127.0.0.1', '1', 's0', '0', '10'],
        ['MIGRATE', '127.0.0.1', '1', '', '0', '10', 'COPY', 'AUTH', 'x', 'KEYS', 's0', 's1'],
        ['HOLDFAST', 'WITH', 'holdfast', 'epoch', '1', 'HGETALL', 'scripts'],
        ['HOLDFAST', 'SCOPE', 'INVALIDATE', 'holdfast', 'epoch', '1'],
        ['ZUNION', '01', 'z0'],
        ['SORT', 'l0', 'GET', 'secret', 'GET', '*'],
        ['DEBUG', 'RELOAD'],
      ]),
    () => ['EVAL', pick(STATE_CHANGES)[0], '0'],
    () => ['EVAL', `${pick(STATE_CHANGES)[0]} return redis.call('GET',KEYS[1])`, '1', key('string')],
    () => [
      ...['FUNCTION', 'LOAD', 'REPLACE'],
      `#!lua name=change\nredis.register_function('change',function() ${pick(STATE_CHANGES)[0]} end)`,
    ],
    () => ['FCALL', 'change', '0'],
    // Errors that a script makes up are counted by their first word.
    () => ['EVAL', 'return redis.error_reply(ARGV[1])', '0', `${mark}E${below(5)} was said`],
    () => ['EVAL', 'return {err=ARGV[1]}', '0', `${mark}F${below(5)} was said`],
    () => ['EVAL', "return redis.call('SCAN',ARGV[1],'COUNT','5')", '0', String(below(2 ** 20))],
    () => ['SCAN', String(below(2 ** 31)), 'COUNT', pick(['1', '1000000', '99999999999999999', '0'])],
    () => pick<Request>(LOGINS),
    () => pick<Request>(LOGINS),
    () => ['EVAL', 'return 1 end', '0'],
    () => ['FUNCTION', 'LOAD', "#!lua name=bad\nend redis.call('SET','secret',1)"],
    () => ['FCALL', pick(['nosuch', 'hf0_put', '']), '0'],
  ];
  const groups: readonly (readonly [number, readonly (() => Request)[]])[] = [
    [26, strings],
    [15, lists],
    [8, hashes],
    [8, sets],
    [14, sorted],
    [10, streams],
    [12, keyspace],
    [5, scripts],
    [6, messages],
    [2, attacks],
  ];
  const total = groups.reduce((sum, [weight]) => sum + weight, 0);

  function next(): Request {
    let at = below(total);
    for (const [weight, group] of groups) {
      if (at < weight) return pick(group)();
      at -= weight;
    }
    return ['PING'];
  }

  /** What a connection sets up before anything else. Repeated, it is refused or does nothing. */
  function begin(): Request[] {
    return [
      ['FUNCTION', 'LOAD', 'REPLACE', LIBRARY],
      ...SCRIPTS.map(([body]): Request => ['SCRIPT', 'LOAD', body]),
      ...KEYS.stream.flatMap((name): Request[] => [
        ['XGROUP', 'CREATE', name, 'g', '0', 'MKSTREAM'],
        ['XGROUP', 'CREATE', name, 'STREAMS', '0', 'MKSTREAM'],
      ]),
      ['GEOADD', 'g0', '13.36', '38.11', 'P', '15.08', '37.5', 'C'],
    ];
  }

  /** Changes what a RESP3 connection hears. */
  function listen(): Request {
    return pick<() => Request>([
      () => ['SUBSCRIBE', pick(CHANNELS), pick(CHANNELS)],
      () => ['PSUBSCRIBE', pick(PATTERNS)],
      () => ['SSUBSCRIBE', pick(CHANNELS)],
      () => ['UNSUBSCRIBE', ...(chance(0.5) ? [pick(CHANNELS)] : [])],
      () => ['PUNSUBSCRIBE', ...(chance(0.5) ? [pick(PATTERNS)] : [])],
      () => ['SUNSUBSCRIBE'],
    ])();
  }

  function track(): Request {
    return pick<Request>([
      ['CLIENT', 'TRACKING', 'ON'],
      ['CLIENT', 'TRACKING', 'ON', 'BCAST'],
      ['CLIENT', 'TRACKING', 'ON', 'BCAST', 'PREFIX', 's', 'PREFIX', 'h'],
      ['CLIENT', 'TRACKING', 'ON', 'NOLOOP'],
      ['CLIENT', 'TRACKING', 'OFF'],
      ['CLIENT', 'TRACKING', 'OFF'],
    ]);
  }

  /** Empties what is the tenant's own. */
  function flush(): Request {
    return pick<Request>([['FLUSHDB'], ['FLUSHDB', 'ASYNC'], ['FLUSHALL'], ['FUNCTION', 'FLUSH'], ['SCRIPT', 'FLUSH']]);
  }

  return { next, begin, listen, track, flush, key, value };
}

/** All names of the tenants, for who keeps the same elsewhere. */
export const ALL_KEYS: readonly (string | Buffer)[] = Object.values(KEYS).flat();
