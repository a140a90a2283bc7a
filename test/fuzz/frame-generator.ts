/**
 * Request bytes that know the protocol's structure: whole requests, and requests broken at the places where parsers
 * break (lengths, counts, line ends, nesting, the line between inline and multibulk). Every reply that a well-formed
 * request here gets is determined by the requests before it: the same bytes to two servers give the same bytes back
 * (so one field in a hash and one channel at a time: their order would be the hash seed's).
 */
import type { KvBinary } from '../../bench/processes.ts';
import { request } from '../../src/resp/encode.ts';
import type { Random } from './random.ts';

export interface Payload {
  readonly bytes: Buffer;
  readonly frames: number;
  /** Whether anything in it was broken on purpose. */
  readonly mutated: boolean;
}

type Argument = string | Buffer;

/**
 * A payload has either transactions or subscriptions: what subscribes inside MULTI has its answers outside EXEC's
 * reply, and is refused by Holdfast.
 */
type Theme = 'transactions' | 'subscriptions';
const THEMES: readonly Theme[] = ['transactions', 'subscriptions'];
const BELONGS: Readonly<Record<Theme, RegExp>> = {
  transactions: /^multi$/i,
  subscriptions: /subscribe$|^client reply/i,
};

/**
 * What Valkey 8.0 does otherwise when it comes in one read with other requests: an AUTH that it refuses behind a reply
 * that is not sent yet gets no reply, and what follows a line of blanks is read as lines. Holdfast does as Redis 7.0.
 */
const REFUSED_LOGIN = /^(?:auth|hello .*auth)/i;
const BLANKS = /^[ \t]+$/;

function excluded(args: readonly Argument[], theme: Theme, server: KvBinary): boolean {
  const words = [args[0], args[1]].filter((word) => typeof word === 'string').join(' ');
  if (server === 'valkey-server' && REFUSED_LOGIN.test(args.join(' '))) return true;
  return THEMES.some(
    (other) => other !== theme && (BELONGS[other].test(String(args[0])) || BELONGS[other].test(words)),
  );
}

function wellFormed(random: Random, prefix: string, theme: Theme, server: KvBinary): Argument[] {
  for (;;) {
    const args = anyRequest(random, prefix);
    if (!excluded(args, theme, server)) return args;
  }
}

/** One well-formed request on keys of its own prefix. */
function anyRequest(random: Random, prefix: string): Argument[] {
  const key = (kind: string) => `${prefix}:${kind}${random.below(3)}`;
  const value = () =>
    random.pick<() => Argument>([
      () => '',
      () => 'value',
      () => random.bytes(random.below(40)),
      () => '\r\n+OK\r\n$-1\r\n',
      () => '*1\r\n$4\r\nPING\r\n',
      () => String(random.below(1000) - 500),
      () => Buffer.alloc(random.below(20_000), 120),
    ])();
  return random.pick<() => Argument[]>([
    () => ['PING'],
    () => ['ping', value()],
    () => ['ECHO', value()],
    () => ['SET', key('s'), value()],
    () => ['SET', key('s'), value(), 'GET'],
    () => ['GET', key('s')],
    () => ['get', key('l')],
    () => ['APPEND', key('s'), value()],
    () => ['STRLEN', key('s')],
    () => ['GETRANGE', key('s'), String(random.below(10) - 5), String(random.below(10) - 5)],
    () => ['INCRBY', key('i'), String(random.below(100))],
    () => ['MSET', key('s'), value(), key('s'), value()],
    () => ['MGET', key('s'), key('s'), key('l'), key('none')],
    () => ['DEL', key('s'), key('l'), key('h')],
    () => ['EXISTS', key('s'), key('l')],
    () => ['TYPE', key('z')],
    () => ['RPUSH', key('l'), value(), value()],
    () => ['LPOP', key('l')],
    () => ['LRANGE', key('l'), '0', '-1'],
    () => ['HSET', key('h'), 'f', value()],
    () => ['HGETALL', key('h')],
    () => ['ZADD', key('z'), String(random.below(9)), 'm', '1.5', 'n'],
    () => ['ZRANGE', key('z'), '0', '-1', 'WITHSCORES'],
    () => ['XADD', key('x'), `${random.below(9)}-${random.below(9)}`, 'f', value()],
    () => ['XRANGE', key('x'), '-', '+'],
    () => ['XLEN', key('x')],
    () => ['XGROUP', 'CREATE', key('x'), 'g', '0', 'MKSTREAM'],
    () => ['XREADGROUP', 'GROUP', 'g', 'c', 'COUNT', '2', 'STREAMS', key('x'), '>'],
    () => ['XACK', key('x'), 'g', '1-1', '2-2'],
    () => ['XREAD', 'COUNT', '2', 'STREAMS', key('x'), '0'],
    () => ['MULTI'],
    () => ['MULTI'],
    () => ['EXEC'],
    () => ['EXEC'],
    () => ['DISCARD'],
    () => ['WATCH', key('s')],
    () => ['UNWATCH'],
    () => ['SELECT', String(random.below(3))],
    () => ['SELECT', '99'],
    () => ['HELLO', '9'],
    () => ['HELLO', '3'],
    () => ['HELLO', '2', 'SETNAME', 'named'],
    () => ['HELLO', '3', 'AUTH', 'nobody', 'wrong'],
    () => ['RESET'],
    () => ['CLIENT', 'SETNAME', `name${random.below(3)}`],
    () => ['CLIENT', 'GETNAME'],
    () => ['CLIENT', 'REPLY', random.pick(['ON', 'SKIP', 'OFF'])],
    () => ['CLIENT', 'NO-EVICT', 'on'],
    () => ['CLIENT', 'nosuch'],
    () => ['SUBSCRIBE', `${prefix}:c0`],
    () => ['UNSUBSCRIBE'],
    () => ['UNSUBSCRIBE', key('c')],
    () => ['PSUBSCRIBE', `${prefix}:*`],
    () => ['PUNSUBSCRIBE'],
    () => ['PUBLISH', key('c'), value()],
    () => ['EVAL', 'return {KEYS[1], ARGV[1], redis.call("get", KEYS[1])}', '1', key('s'), value()],
    () => ['EVALSHA', '0'.repeat(40), '0'],
    () => ['EVAL', 'return redis.error_reply("MY own error")', '0'],
    () => ['AUTH', 'wrong'],
    () => ['AUTH', 'nobody', 'wrong'],
    () => ['GET'],
    () => ['SET', key('s')],
    () => ['NOSUCHCOMMAND', value()],
    () => [random.bytes(1 + random.below(20))],
    () => [''],
    () => ['OBJECT', 'ENCODING', key('s')],
    () => ['SINTERCARD', '2', key('e'), key('e')],
    () => ['WAIT', '0', '0'],
    () => ['LPOS', key('l'), 'value'],
    () => ['QUIT'],
  ])();
}

const BAD_LENGTHS = [
  '-1',
  '-2',
  '-5',
  '',
  ' ',
  '+1',
  '01',
  '1 ',
  ' 1',
  '1x',
  'x',
  '0x1',
  '1.0',
  '1e1',
  '536870912',
  '536870913',
  '1048577',
  '2147483647',
  '2147483648',
  '4294967297',
  '9999999999',
  '9223372036854775807',
  '9223372036854775808',
  '99999999999999999999999',
  '-9223372036854775808',
  '1\0',
  '\0',
  '1\r',
  '1\n',
];

/** An inline command with the quoting that Redis's own splitter has to see. */
function inline(random: Random, prefix: string, server: KvBinary): Buffer {
  const lines = [
    'PING',
    '  PING  ',
    'ECHO hello',
    'ECHO "quoted \\x41\\n\\"text\\""',
    "ECHO 'it\\'s'",
    'ECHO "unbalanced',
    "ECHO 'unbalanced",
    'ECHO "closed"trailing',
    `SET ${prefix}:s0 inline`,
    `GET ${prefix}:s0`,
    '',
    '   ',
    '\t',
    'ECHO a\0b',
    '+OK',
    '$4',
    ':1',
    '>1',
    'GET / HTTP/1.0',
    'ECHO \x80\xff\xfe',
    `ECHO ${'y'.repeat(random.below(30_000))}`,
  ].filter((each) => server === 'redis-server' || !BLANKS.test(each));
  const line = random.pick(lines);
  return Buffer.from(line + random.pick(['\r\n', '\r\n', '\r\n', '\n', '\n\r\n']), 'latin1');
}

/** One request that is not as it should be. */
function malformed(random: Random, prefix: string, theme: Theme, server: KvBinary): Buffer {
  const args = wellFormed(random, prefix, theme, server);
  const whole = request(args);
  return random.pick<() => Buffer>([
    // A count or a length that lies.
    () => Buffer.from(`*${random.pick(BAD_LENGTHS)}\r\n`, 'latin1'),
    () => Buffer.concat([Buffer.from(`*${random.pick(BAD_LENGTHS)}\r\n`, 'latin1'), whole.subarray(4)]),
    () => Buffer.from(`*2\r\n$3\r\nGET\r\n$${random.pick(BAD_LENGTHS)}\r\nkey\r\n`, 'latin1'),
    () => Buffer.from(`*1\r\n$${random.pick(BAD_LENGTHS)}\r\nPING\r\n`, 'latin1'),
    // A type that has no place in a request.
    () =>
      Buffer.from(
        `*1\r\n${random.pick(['*', ':', '+', '-', '%', '~', '>', '_', '#', ',', '(', '!', '='])}4\r\nPING\r\n`,
      ),
    () => Buffer.from('*2\r\n*1\r\n$4\r\nPING\r\n$1\r\nx\r\n'),
    () => Buffer.from('*1\r\n'.repeat(1 + random.below(50))),
    // Line ends that are not.
    () => Buffer.from('*1\rX$4\rXPING\rX'),
    () => Buffer.from('*1\n$4\nPING\n'),
    () => Buffer.from('*1\r\n$4\r\nPINGXX'),
    () => Buffer.from('*1\r\n$4\r\nPING\n\r'),
    () => Buffer.from('*1\r\n$5\r\nPING\r\n\r\n'),
    () => Buffer.from('*1\r\n$3\r\nPING\r\n'),
    // Cut short, one byte changed, one byte dropped, one byte doubled.
    () => whole.subarray(0, random.below(whole.length)),
    () => {
      const copy = Buffer.from(whole);
      copy[random.below(copy.length)] = random.below(256);
      return copy;
    },
    () => {
      const at = random.below(whole.length);
      return Buffer.concat([whole.subarray(0, at), whole.subarray(at + 1)]);
    },
    () => {
      const at = random.below(whole.length);
      return Buffer.concat([whole.subarray(0, at + 1), whole.subarray(at)]);
    },
    // More arguments than anybody needs, and fewer than announced.
    () => request(['DEL', ...Array.from({ length: 2000 }, (_, index) => `${prefix}:none${index}`)]),
    () => Buffer.from('*1000000\r\n$4\r\nPING\r\n$1\r\nx\r\n'),
    () => Buffer.from(`*${args.length + 1}\r\n`, 'latin1'),
    // Nothing, and noise.
    () => Buffer.from('*0\r\n'),
    () => Buffer.from('\r\n\r\n\r\n'),
    () => random.bytes(1 + random.below(60)),
    () => Buffer.alloc(400_000, random.pick(['a', '*', '\0', '1'])),
    () => Buffer.from(`*${'1'.repeat(400_000)}`),
    () => Buffer.from(`*1\r\n$${'1'.repeat(400_000)}`),
  ])();
}

/** Some requests for one connection, most of them well formed, so that what follows a broken one is seen as well. */
export function generatePayload(random: Random, prefix: string, server: KvBinary): Payload {
  const frames = 1 + random.below(random.chance(0.1) ? 60 : 10);
  const mutation = random.pick([0, 0.05, 0.3]);
  const theme = random.pick(THEMES);
  const parts: Buffer[] = [];
  let mutated = false;
  for (let frame = 0; frame < frames; frame += 1) {
    if (random.chance(mutation)) {
      parts.push(malformed(random, prefix, theme, server));
      mutated = true;
    } else if (random.chance(0.1)) parts.push(inline(random, prefix, server));
    else if (random.chance(0.05)) {
      // Never one that has to wait: a client that blocks is not answered any more once it half-closes.
      parts.push(request(['RPUSH', `${prefix}:l0`, 'ready']), request(['BLPOP', `${prefix}:l0`, '5']));
    } else parts.push(request(wellFormed(random, prefix, theme, server)));
  }
  return { bytes: Buffer.concat(parts), frames, mutated };
}

/** Where to cut a payload into writes: nowhere, at every byte, or at some places. */
export function splitPayload(random: Random, bytes: Buffer): Buffer[] {
  const style = random.below(10);
  if (style < 5 || bytes.length < 2) return [bytes];
  if (style === 5 && bytes.length <= 300) return Array.from(bytes, (_, at) => bytes.subarray(at, at + 1));
  const cuts = new Set<number>();
  for (let cut = 0; cut < 1 + random.below(6); cut += 1) cuts.add(1 + random.below(bytes.length - 1));
  const places = [0, ...[...cuts].sort((a, b) => a - b), bytes.length];
  return places.slice(1).map((end, index) => bytes.subarray(places[index], end));
}
