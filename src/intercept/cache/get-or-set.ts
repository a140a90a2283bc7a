/**
 * Get-or-set if absent: `GETORSET key value [EX s | PX ms | EXAT t | PXAT t]`, and the Lua scripts that say the same. Both
 * become one `SET key value NX GET`, which is atomic: its reply is the value that was there, or null where the given one
 * was stored.
 *
 * A script's errors are the script's own: where the native form meets any, nothing was written, and the script is run as
 * it came. A client whose lease of the key has lapsed does not store what it fetched while another client fetches anew.
 */
import type { CacheStatistics } from '../../cache/cache-statistics.ts';
import { type GetOrSetScripts, getOrSetScripts } from '../../cache/get-or-set-script.ts';
import type { LeaseRule, Leases } from '../../cache/leases.ts';
import { EXCHANGE, type Exchange, type Glance, type Interceptor, PLAIN } from '../../interceptor.ts';
import { bulk, error } from '../../resp/encode.ts';
import { isNullFrame } from '../../resp/reply.ts';
import { prefixOf } from '../scope/interceptors.ts';

export interface GetOrSetParts {
  readonly statistics: CacheStatistics;
  readonly leases: Leases | undefined;
  readonly rules: readonly LeaseRule[];
}

/** One get-or-set, whichever command said it. */
interface GetOrSet {
  readonly key: Buffer;
  readonly value: Buffer;
  /** `PX 100` and the like, or nothing. */
  readonly expiry: readonly Buffer[];
  /** What the client gets for an error of the native form. */
  failed(exchange: Exchange, frame: Buffer): Buffer | Promise<Buffer>;
}

const [SET, GET, NX] = [Buffer.from('SET'), Buffer.from('GET'), Buffer.from('NX')] as const;
const EXPIRY = new Set(['ex', 'px', 'exat', 'pxat']);
const FORM_HEAD = Buffer.from('*5\r\n$3\r\nSET\r\n');
const FORM_TAIL = Buffer.from('$2\r\nNX\r\n$3\r\nGET\r\n');
const ONE = 49;
const ERROR = 45;
const WRONG_NUMBER = error("ERR wrong number of arguments for 'getorset' command");
const SYNTAX = error('ERR syntax error');

export function getOrSetInterceptors(parts: GetOrSetParts): Interceptor[] {
  const scripts = getOrSetScripts();
  return [
    getOrSetInterceptor(parts),
    scriptInterceptor(parts, scripts, 'eval'),
    scriptInterceptor(parts, scripts, 'evalsha'),
    loadInterceptor(scripts),
  ];
}

function getOrSetInterceptor(parts: GetOrSetParts): Interceptor {
  const failed = (_: Exchange, frame: Buffer): Buffer => renamed(frame);
  return {
    name: 'get-or-set',
    handles: (command) => command?.name === 'getorset',
    request(exchange) {
      const [, key, value, ...expiry] = exchange.args;
      if (key === undefined || value === undefined) exchange.respond(WRONG_NUMBER);
      else if (expiry.length > 0 && !isExpiry(expiry)) exchange.respond(SYNTAX);
      else perform(parts, exchange, { key, value, expiry, failed });
    },
    glance: {
      ...glance(parts, 3, 1, () => true),
      late(exchange) {
        const [, key, value] = exchange.args;
        finish(parts, exchange, { key: key!, value: value!, expiry: [], failed });
      },
    },
  };
}

function isExpiry(expiry: readonly Buffer[]): boolean {
  return expiry.length === 2 && EXPIRY.has(expiry[0]!.toString('latin1').toLowerCase());
}

/** The KV store names SET in errors about the expiry. */
function renamed(frame: Buffer): Buffer {
  return error(frame.toString('utf8', 1, frame.length - 2).replace("'set' command", "'getorset' command"));
}

/**
 * EVAL and EVALSHA with one key and one argument. Inside MULTI the script runs as it is, and in a scope, where it is
 * sent with another one around it.
 */
function scriptInterceptor(parts: GetOrSetParts, scripts: GetOrSetScripts, name: 'eval' | 'evalsha'): Interceptor {
  const isKnown = name === 'eval' ? scripts.isBody : scripts.isSha;
  const asGetOrSet = ([, , , key, value]: readonly Buffer[], original: readonly Buffer[]): GetOrSet => ({
    key: key!,
    value: value!,
    expiry: [],
    failed: (exchange) => exchange.resend(original),
  });
  return {
    name: `get-or-set by ${name}`,
    sessions: 'unscoped',
    handles: (command) => command?.name === name,
    request(exchange) {
      const { args } = exchange;
      if (exchange.queued || args.length !== 5 || args[2]!.toString('latin1') !== '1' || !isKnown(args[1]!)) return;
      perform(parts, exchange, asGetOrSet(args, args));
    },
    glance: {
      ...glance(parts, 5, 3, (buffer, start, bounds) => {
        if (bounds[5]! - bounds[4]! !== 1 || buffer[start + bounds[4]!] !== ONE) return false;
        return isKnown(buffer, start + bounds[2]!, start + bounds[3]!);
      }),
      late: (exchange) => finish(parts, exchange, asGetOrSet(exchange.args, exchange.args)),
    },
  };
}

function loadInterceptor(scripts: GetOrSetScripts): Interceptor {
  return {
    name: 'get-or-set by script load',
    sessions: 'unscoped',
    handles: (command) => command?.name === 'script|load',
    request({ args }) {
      if (args.length === 3) scripts.isBody(args[2]!);
    },
  };
}

/** Requests of `argc` arguments that `says` takes are sent in the native form; the key stands at `keyAt`. */
function glance(
  { statistics, leases }: GetOrSetParts,
  argc: number,
  keyAt: number,
  says: (buffer: Buffer, start: number, bounds: Int32Array) => boolean,
): Omit<Glance, 'late'> {
  // What is no get-or-set after all runs as it came; GETORSET always is one, or has options or mistakes to look at.
  const otherwise = keyAt === 1 ? EXCHANGE : PLAIN;
  return {
    look(buffer, start, bounds, count, prefix) {
      if (count !== argc || !says(buffer, start, bounds)) return otherwise;
      if (leases?.anyLapsed === true) return EXCHANGE;
      return statistics.anyMark(buffer, start + bounds[keyAt * 2]!, start + bounds[keyAt * 2 + 1]!, prefix);
    },
    answered: (mark, replies, bytes) => statistics.hit(mark, bytes, replies),
    form: { head: FORM_HEAD, argumentsFrom: keyAt, tail: FORM_TAIL },
  };
}

function native({ key, value, expiry }: GetOrSet): readonly Buffer[] {
  return [SET, key, value, NX, GET, ...expiry];
}

function perform(parts: GetOrSetParts, exchange: Exchange, wanted: GetOrSet): void {
  const { leases, statistics, rules } = parts;
  const { session } = exchange;
  const { key, value } = wanted;
  const lapse = exchange.queued ? undefined : leases?.lapse(session, session.database, key);
  if (leases === undefined || lapse === undefined) {
    exchange.args = native(wanted);
    finish(parts, exchange, wanted);
    return;
  }
  const rule = rules[statistics.patternOf(key)];
  const mark = statistics.anyMarkOf(key, prefixOf(exchange, key));
  exchange.args = [GET, key];
  exchange.onReply(async (frame) => {
    let reply = frame;
    let why = lapse === 'unsure' ? undefined : lapse;
    if (lapse === 'unsure' && isNullFrame(frame)) why = await leases.ascertain(session, session.database, key);
    if (isNullFrame(frame) && why !== undefined && rule !== undefined) {
      reply = await leases.miss(session, session.database, key, rule, mark, frame);
    }
    if (!isNullFrame(reply) && reply[0] !== ERROR) {
      if (why !== undefined) leases.fence(session, session.database, key);
      statistics.hit(mark, reply.length);
      return reply;
    }
    if (why === 'voided' && reply[0] !== ERROR) {
      // The key was deleted since: this value is from before, and is nobody else's.
      leases.fence(session, session.database, key);
      return bulk(value);
    }
    return answer(parts, exchange, wanted, await exchange.resend(native(wanted)));
  });
}

/** The exchange is, or was, sent in its native form. */
function finish(parts: GetOrSetParts, exchange: Exchange, wanted: GetOrSet): void {
  const again = async (): Promise<Buffer> => answer(parts, exchange, wanted, await exchange.resend(native(wanted)));
  exchange.onReply((frame) => answer(parts, exchange, wanted, frame));
  // Once more does no harm: what was stored, perhaps by this very request, is what comes back.
  if (!exchange.queued) exchange.onLost(again);
}

function answer(parts: GetOrSetParts, exchange: Exchange, wanted: GetOrSet, frame: Buffer): Buffer | Promise<Buffer> {
  if (frame[0] === ERROR) return wanted.failed(exchange, frame);
  const { statistics } = parts;
  const mark = statistics.anyMarkOf(wanted.key, prefixOf(exchange, wanted.key));
  if (!isNullFrame(frame)) {
    statistics.hit(mark, frame.length);
    return frame;
  }
  statistics.count(mark, 'misses');
  statistics.count(mark, 'stores');
  statistics.count(mark, 'storedBytes', wanted.value.length);
  return bulk(wanted.value);
}
