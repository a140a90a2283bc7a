/**
 * Every documented command with random arguments, one at a time, to a server directly and to its twin through
 * Holdfast, in sessions with a random history (protocol, database, MULTI, subscriptions). What comes back must be the
 * same bytes, except where a server does not answer the same twice; those classes stand below, each with its reason.
 */
import { connect, type Socket } from 'node:net';
import { request } from '../../src/resp/encode.ts';
import { readReply } from '../../src/resp/reply.ts';
import { type DocumentedCommand, generateRequest } from './command-generator.ts';
import { seededRandom } from './random.ts';

/** Not sent: they end or change the server, wait for others, or reach beyond it. */
const NOT_SENT = new Set([
  'shutdown',
  'debug',
  'replicaof',
  'slaveof',
  'failover',
  'sync',
  'psync',
  'replconf',
  'monitor',
  'migrate',
  'save',
  'bgsave',
  'bgrewriteaof',
  'pfselftest',
  'pfdebug',
  'restore-asking',
  'client|pause',
  'client|kill',
  'client|reply',
  'config|set',
  'config|rewrite',
  'acl|setuser',
  'acl|deluser',
  'acl|load',
  'acl|save',
  'module|load',
  'module|loadex',
  'module|unload',
  'script|debug',
  'cluster|reset',
]);

/** Answers that two servers never give alike (time, chance, process, hash seed): only type and error are compared. */
const SHAPE_ONLY = new Set([
  'time',
  'info',
  'lastsave',
  'randomkey',
  'srandmember',
  'hrandfield',
  'zrandmember',
  'spop',
  'lolwut',
  'scan',
  'sscan',
  'hscan',
  'ttl',
  'pttl',
  'getex',
  'xpending',
  'xinfo|stream',
  'xinfo|consumers',
  'xautoclaim',
  'object|idletime',
  'object|freq',
  'memory|usage',
  'memory|stats',
  'memory|doctor',
  'memory|malloc-stats',
  'client|id',
  'client|list',
  'client|info',
  'config|get',
  'slowlog|get',
  'slowlog|len',
  'latency|doctor',
  'latency|graph',
  'latency|histogram',
  'latency|history',
  'latency|latest',
  'latency|reset',
  'acl|genpass',
  'acl|log',
  'acl|cat',
  'hello',
  'function|stats',
  'cluster|info',
  'cluster|nodes',
  'cluster|myid',
]);

/** Answers in the order of a hash table, which differs with each server's seed: compared as a bag of bytes. */
const UNORDERED =
  /^(keys|smembers|sunion|sinter|sdiff|hgetall|hkeys|hvals|sort|sort_ro|command|pubsub|function|acl|exec|eval|fcall|[ps]?unsubscribe)/;

export interface CommandMismatch {
  readonly seed: number;
  readonly history: readonly (readonly string[])[];
  readonly request: readonly string[];
  readonly direct: string;
  readonly through: string;
}

export interface CommandReport {
  readonly commands: number;
  readonly requests: number;
  readonly mismatches: readonly CommandMismatch[];
}

interface Side {
  readonly socket: Socket;
  received: Buffer;
  closed: boolean;
  wake: () => void;
}

const REPLY_TIMEOUT_MS = 700;
const SESSION_REQUESTS = 25;

function open(port: number, wake: () => void): Promise<Side> {
  return new Promise((resolve, reject) => {
    const socket = connect(port, '127.0.0.1');
    socket.setNoDelay(true);
    const side: Side = { socket, received: Buffer.alloc(0), closed: false, wake };
    socket.on('data', (data) => {
      side.received = side.received.length === 0 ? data : Buffer.concat([side.received, data]);
      side.wake();
    });
    socket.on('close', () => {
      side.closed = true;
      side.wake();
    });
    socket.once('error', reject);
    socket.once('connect', () => {
      socket.removeListener('error', reject);
      socket.on('error', () => {});
      resolve(side);
    });
  });
}

/** The first frame's type, and of an error its text; `undefined` while there is no whole frame. */
function shape(bytes: Buffer): string | undefined {
  try {
    const reply = readReply(bytes);
    return reply.type === '-' ? reply.raw.toString('latin1') : reply.type;
  } catch {
    return undefined;
  }
}

function sortedBytes(bytes: Buffer): Buffer {
  return Buffer.from(Uint8Array.from(bytes).sort());
}

const PREPARATION: readonly (readonly string[])[] = [
  ['FLUSHALL'],
  ['SET', 's', 'string value'],
  ['SET', 'n', '42'],
  ['RPUSH', 'l', 'a', 'b', 'c', '1'],
  ['HSET', 'h', 'f1', 'v1', 'f2', '2'],
  ['SADD', 'set', '1', '2', '3'],
  ['ZADD', 'z', '1', 'a', '2', 'b', '3', 'm1'],
  ['XADD', 'x', '1-1', 'f', 'v'],
  ['XADD', 'x', '2-0', 'f', 'w'],
  ['XGROUP', 'CREATE', 'x', 'g', '0'],
  ['GEOADD', 'geo', '13.361389', '38.115556', 'a', '15.087269', '37.502669', 'b'],
];

const STATES: readonly (readonly (readonly string[])[])[] = [
  [],
  [],
  [],
  [['HELLO', '3']],
  [['HELLO', '3']],
  [['SELECT', '1']],
  [['MULTI']],
  [['HELLO', '3'], ['MULTI']],
  [['WATCH', 's']],
  [['SUBSCRIBE', 'a']],
  [
    ['HELLO', '3'],
    ['SUBSCRIBE', 'a'],
  ],
  [['CLIENT', 'TRACKING', 'ON', 'BCAST', 'NOLOOP']],
  [['CLIENT', 'NO-EVICT', 'ON']],
];

export interface CommandFuzzOptions {
  readonly seed: number;
  readonly requests: number;
  readonly commands: readonly DocumentedCommand[];
  readonly directPort: number;
  readonly throughPort: number;
  readonly mismatchesMax: number;
  readonly onProgress?: (requests: number) => void;
}

/** Goes through all commands in turn until `requests` are sent. */
export async function fuzzCommands(options: CommandFuzzOptions): Promise<CommandReport> {
  const commands = options.commands.filter((command) => !NOT_SENT.has(command.name));
  const mismatches: CommandMismatch[] = [];
  let requests = 0;
  let session = 0;
  while (requests < options.requests && mismatches.length < options.mismatchesMax) {
    const seed = options.seed + session;
    session += 1;
    const random = seededRandom(seed);
    let wake = () => {};
    const [direct, through] = await Promise.all([
      open(options.directPort, () => wake()),
      open(options.throughPort, () => wake()),
    ]);
    const history: string[][] = [];
    let mayBeInTransaction = false;

    /** Gives `true` when both answered alike, `false` when not, `undefined` when neither said anything. */
    const ask = async (args: readonly string[], name: string): Promise<boolean | undefined> => {
      const bytes = request(args);
      direct.received = Buffer.alloc(0);
      through.received = Buffer.alloc(0);
      direct.socket.write(bytes);
      through.socket.write(bytes);
      const alike = () => {
        if (SHAPE_ONLY.has(name)) {
          const expected = shape(direct.received);
          return expected !== undefined && expected === shape(through.received);
        }
        if (direct.received.length === 0 || direct.received.length !== through.received.length) return false;
        if (direct.received.equals(through.received)) return true;
        return UNORDERED.test(name) && sortedBytes(direct.received).equals(sortedBytes(through.received));
      };
      const deadline = performance.now() + REPLY_TIMEOUT_MS;
      const settled = () => (name === 'quit' || direct.closed !== through.closed ? false : alike());
      while (!settled() && !(direct.closed && through.closed) && performance.now() < deadline) {
        await new Promise<void>((resolve) => {
          const timer = setTimeout(resolve, deadline - performance.now());
          wake = () => {
            clearTimeout(timer);
            resolve();
          };
        });
      }
      if (direct.received.length === 0 && through.received.length === 0) {
        return direct.closed === through.closed ? undefined : false;
      }
      return alike() && direct.closed === through.closed;
    };

    const step = async (args: string[], name: string): Promise<boolean> => {
      requests += 1;
      const alike = await ask(args, name);
      if (alike === false) {
        const text = (side: Side) =>
          `${JSON.stringify(side.received.toString('latin1', 0, 400))}${side.closed ? ' closed' : ''}`;
        mismatches.push({ seed, history: [...history], request: args, direct: text(direct), through: text(through) });
      }
      history.push(args);
      if (name === 'multi') mayBeInTransaction = true;
      return alike === true && !direct.closed && name !== 'spop';
    };

    let going = true;
    for (const args of PREPARATION) going &&= await step([...args], args[0]!.toLowerCase());
    for (const args of random.pick(STATES)) going &&= await step([...args], args[0]!.toLowerCase());
    for (let count = 0; going && count < SESSION_REQUESTS; count += 1) {
      // In turn, so that each command has its share; a random one now and then, for other neighbours.
      const command = random.chance(0.5)
        ? commands[(session * SESSION_REQUESTS + count) % commands.length]!
        : random.pick(commands);
      // Subscriptions are refused by Holdfast there, and EXEC's reply is compared as a whole.
      if (mayBeInTransaction && (command.name.endsWith('subscribe') || SHAPE_ONLY.has(command.name))) continue;
      going = await step(generateRequest(random, command), command.name);
    }
    direct.socket.destroy();
    through.socket.destroy();
    if (session % 100 === 0) options.onProgress?.(requests);
  }
  return { commands: commands.length, requests, mismatches };
}

export function describeCommandMismatch(mismatch: CommandMismatch): string {
  const quoted = (args: readonly string[]) => args.map((arg) => JSON.stringify(arg)).join(' ');
  return [
    `seed ${mismatch.seed}, ${quoted(mismatch.request)}`,
    `  after   ${mismatch.history.slice(PREPARATION.length).map(quoted).join('; ')}`,
    `  direct  ${mismatch.direct}`,
    `  through ${mismatch.through}`,
  ].join('\n');
}
