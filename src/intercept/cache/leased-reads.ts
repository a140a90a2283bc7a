/**
 * GET and MGET of keys that a lease pattern names: a miss is told to one client, the others wait for its value
 * (cache/leases.ts), across a restart of the KV store too. A hit costs no exchange. Reads inside MULTI, and by sessions
 * that watch or track keys, are told what the KV store says: there a later value would be a wrong one.
 */
import type { CacheStatistics } from '../../cache/cache-statistics.ts';
import { NOT_NAMED } from '../../cache/cache-statistics.ts';
import type { LeaseRule, Leases } from '../../cache/leases.ts';
import { EXCHANGE, type Exchange, type Glance, type Interceptor, PLAIN } from '../../interceptor.ts';
import { array } from '../../resp/encode.ts';
import { isNullFrame, readReply } from '../../resp/reply.ts';
import { prefixOf } from '../scope/interceptors.ts';

export interface LeaseParts {
  readonly leases: Leases;
  /** In the order of the statistics' patterns. */
  readonly rules: readonly LeaseRule[];
  readonly statistics: CacheStatistics;
}

const ERROR = 45;

/** Gives none where there is no rule: then no read is looked at. */
export function leaseInterceptors(parts: LeaseParts): Interceptor[] {
  return parts.rules.length === 0 ? [] : [getInterceptor(parts), manyInterceptor(parts), deleteInterceptor(parts)];
}

function getInterceptor(parts: LeaseParts): Interceptor {
  const { statistics } = parts;
  function see(exchange: Exchange): void {
    const key = exchange.args[1];
    if (key === undefined || exchange.args.length !== 2) return;
    const answer = (frame: Buffer): Buffer | Promise<Buffer> =>
      frame[0] === ERROR ? frame : lookedUp(parts, exchange, key, frame);
    exchange.onReply(answer);
    // Reading again does no harm, but for who watches: to them the connection is part of what they asked.
    if (!exchange.queued && !exchange.session.pinned) exchange.onLost(async () => answer(await exchange.resend()));
  }
  return {
    name: 'leases',
    handles: (command) => command?.name === 'get',
    request: see,
    glance: {
      look: (buffer, start, bounds, argc, prefix) =>
        argc === 2 ? statistics.mark(buffer, start + bounds[2]!, start + bounds[3]!, prefix) : PLAIN,
      answered: (mark, replies, bytes) => statistics.hit(mark, bytes, replies),
      late: see,
    },
  };
}

/** One key's reply: as it is, or the value of whoever fetches it. */
function lookedUp(parts: LeaseParts, exchange: Exchange, key: Buffer, reply: Buffer): Buffer | Promise<Buffer> {
  const { statistics, leases, rules } = parts;
  const mark = statistics.markOf(key, prefixOf(exchange, key));
  if (mark === NOT_NAMED) return reply;
  if (!isNullFrame(reply)) {
    statistics.hit(mark, reply.length);
    return reply;
  }
  statistics.count(mark, 'misses');
  const { session } = exchange;
  if (exchange.queued || session.pinned) return reply;
  return leases.miss(session, session.database, key, rules[statistics.patternOf(key)]!, mark, reply);
}

function manyInterceptor(parts: LeaseParts): Interceptor {
  return {
    name: 'leases of many',
    handles: (command) => command?.name === 'mget',
    glance: glanceAtKeys(parts.statistics),
    request(exchange) {
      const keys = exchange.args.slice(1);
      exchange.onReply((frame) => {
        const { items } = readReply(frame);
        if (items === undefined || items.length !== keys.length) return frame;
        const replies = items.map((item, i) => lookedUp(parts, exchange, keys[i]!, item.raw));
        if (!replies.some((reply) => reply instanceof Promise)) return frame;
        return Promise.all(replies).then(array);
      });
    },
  };
}

/** What somebody fetches for a key that is deleted meanwhile is out of date: the next client is to fetch. */
function deleteInterceptor({ leases, statistics }: LeaseParts): Interceptor {
  return {
    name: 'leases of deleted keys',
    handles: (command) => command?.name === 'del' || command?.name === 'unlink',
    glance: glanceAtKeys(statistics),
    request(exchange) {
      const named = exchange.args.slice(1).filter((key) => statistics.patternOf(key) !== NOT_NAMED);
      if (named.length === 0) return;
      exchange.onReply((frame) => {
        if (frame[0] === ERROR) return frame;
        return leases.deleted(exchange.session.database, named).then(() => frame);
      });
    },
  };
}

/** An exchange where a pattern names one of the keys. */
function glanceAtKeys(statistics: CacheStatistics): Glance {
  return {
    look(buffer, start, bounds, argc, prefix) {
      for (let i = 1; i < argc; i += 1) {
        const mark = statistics.mark(buffer, start + bounds[i * 2]!, start + bounds[i * 2 + 1]!, prefix);
        if (mark !== NOT_NAMED) return EXCHANGE;
      }
      return PLAIN;
    },
    // Nothing is marked.
    answered: () => undefined,
    late: () => undefined,
  };
}
