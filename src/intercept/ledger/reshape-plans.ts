/**
 * What commands will do to ledgered streams: which ones a command names, what it may end or move, and what a reply says of it.
 *
 * SET and its kin are not among them: a key of another type in a stream's place shows by itself that it was on purpose,
 * and the path of SET stays short.
 */
import type { CommandEntry } from '../../command/command.ts';
import type { Exchange } from '../../interceptor.ts';
import type { EndIntention, OpenedEnds, Opening } from '../../ledger/intention-store.ts';
import type { Stream } from '../../ledger/stream-registry.ts';
import type { Deadline } from '../../recovery/settle/client-changes.ts';
import type { Reply } from '../../resp/reply.ts';
import { equalsWord, knownStream, type LedgerContext } from './context.ts';

/** What the KV store did, as what was written down of it shows: `lost` where a stream was not there that the ledger knows. */
export type TakenIn = 'taken' | 'lost';

export interface Place {
  readonly database: number;
  readonly name: Buffer;
}

/** What a command will do to streams. */
export interface Reshaping {
  /** These must be open before. */
  readonly streams: readonly Stream[];
  /** The known streams that the command needs, or that it spares because they are there: a loss shows where one is not. */
  readonly standing: readonly Stream[];
  /** One of `standing` whose presence keeps the command from doing anything: looked for before the command goes out. */
  readonly spares?: Stream;
  /** What the command changes would hide a loss: compared before it goes out. */
  readonly compares?: Stream;
  /** Where a stream comes to with its groups, which are in the ledger before the client hears. */
  readonly arrives?: Place;
  open(): Promise<OpenedEnds>;
  /** A reply that is no error says that nothing was done. */
  nothingDone(reply: Reply): boolean;
  /** It was executed. */
  takeIn(intentions: readonly EndIntention[]): Promise<TakenIn>;
}

/** Position of the key that a command overwrites, where that is all it does to a stream. */
const OVERWRITES: ReadonlyMap<string, number> = new Map([
  ['bitop', 2],
  ['geosearchstore', 1],
  ['pfmerge', 1],
  ['sdiffstore', 1],
  ['sinterstore', 1],
  ['sunionstore', 1],
  ['zdiffstore', 1],
  ['zinterstore', 1],
  ['zrangestore', 1],
  ['zunionstore', 1],
]);

/** How many milliseconds their argument counts, and whether from now on. */
const EXPIRES: ReadonlyMap<string, { readonly unitMs: number; readonly relative: boolean }> = new Map([
  ['expire', { unitMs: 1000, relative: true }],
  ['pexpire', { unitMs: 1, relative: true }],
  ['expireat', { unitMs: 1000, relative: false }],
  ['pexpireat', { unitMs: 1, relative: false }],
]);
/** What DUMP's payload of a stream begins with: RDB_TYPE_STREAM_LISTPACKS, _2 and _3 of the servers' rdb.h. */
const DUMPED_STREAMS: ReadonlySet<number> = new Set([15, 19, 21]);
/** `STORE destination` among the arguments. */
const STORES: ReadonlySet<string> = new Set(['sort', 'georadius', 'georadiusbymember']);
const OTHERS: ReadonlySet<string> = new Set([
  'del',
  'unlink',
  'flushdb',
  'flushall',
  'rename',
  'renamenx',
  'move',
  'swapdb',
  'copy',
  'migrate',
  'persist',
  'restore',
  'xsetid',
]);

export function reshapes(command: CommandEntry | undefined): boolean {
  if (command === undefined) return false;
  const { name } = command;
  return OTHERS.has(name) || OVERWRITES.has(name) || EXPIRES.has(name) || STORES.has(name);
}

function isDatabase(index: number): boolean {
  return Number.isSafeInteger(index) && index >= 0 && index < 2 ** 31;
}

function isZero(reply: Reply): boolean {
  return reply.type === ':' && reply.bytes.length === 1 && reply.bytes[0] === 0x30;
}

const always = (): boolean => false;

/** Tells of a request what it will do; nothing where it does nothing to a stream that this process knows. */
export function reshapingPlans(context: LedgerContext): (exchange: Exchange) => Reshaping | undefined {
  const { ledger, recovery } = context;
  const { intentions } = ledger;
  const { changes } = recovery;

  function known(exchange: Exchange, keys: readonly (Buffer | undefined)[], database?: number): Stream[] {
    const streams = new Set<Stream>();
    for (const key of keys) {
      const stream = key === undefined ? undefined : ledger.streams.find(database ?? exchange.session.database, key);
      if (stream !== undefined) streams.add(stream);
    }
    return [...streams];
  }

  function opening(exchange: Exchange, ends: boolean): Opening {
    return { command: exchange.command!.name, ends, sent: recovery.sentUnder };
  }

  const ended = async (opened: readonly EndIntention[]): Promise<TakenIn> => {
    await changes.endStreams(opened);
    return 'taken';
  };

  /** The streams are gone, unless the reply says that nothing was done. */
  function ending(
    exchange: Exchange,
    streams: readonly Stream[],
    nothingDone: (reply: Reply) => boolean = always,
    standing: readonly Stream[] = [],
  ): Reshaping | undefined {
    if (streams.length === 0) return undefined;
    const streamIds = streams.map(({ streamId }) => streamId);
    return {
      streams,
      standing,
      open: () => intentions.openEnd(streamIds, opening(exchange, true)),
      nothingDone,
      takeIn: ended,
    };
  }

  /** Everything of a database, or of all of them. */
  function flushing(exchange: Exchange, which: { readonly database: number } | 'all'): Reshaping {
    return {
      streams: [],
      standing: [],
      open: () => intentions.openEnd(which, opening(exchange, true)),
      nothingDone: always,
      takeIn: ended,
    };
  }

  /** The stream goes on; `takeIn` writes down how. */
  function changing(
    exchange: Exchange,
    stream: Stream | undefined,
    ends: boolean,
    takeIn: (stream: Stream, opened: readonly EndIntention[]) => Promise<TakenIn>,
  ): Reshaping | undefined {
    if (stream === undefined) return undefined;
    return {
      streams: [stream],
      standing: [stream],
      open: () => intentions.openEnd([stream.streamId], opening(exchange, ends)),
      nothingDone: isZero,
      takeIn: (opened) => takeIn(stream, opened),
    };
  }

  /** A command that leaves alone what is there, and does nothing then. */
  function sparing(exchange: Exchange, target: Stream | undefined, source: readonly Stream[]): Reshaping | undefined {
    if (target === undefined) return undefined;
    return {
      streams: [target],
      standing: [target, ...source],
      spares: target,
      open: () => intentions.openEnd([target.streamId], opening(exchange, false)),
      nothingDone: isZero,
      // Its place was free: what is there now is brought together with what the ledger has.
      async takeIn(opened) {
        await changes.cancel(opened);
        return target.ended ? 'taken' : 'lost';
      },
    };
  }

  /** With what `plan` does, if it does anything, a stream comes to that place. */
  function arriving(plan: Reshaping | undefined, database: number, name: Buffer): Reshaping | undefined {
    if (!recovery.ledgered(name)) return plan;
    const nothing: Reshaping = {
      streams: [],
      standing: [],
      open: async () => [],
      nothingDone: isZero,
      takeIn: async () => 'taken',
    };
    return { ...(plan ?? nothing), arrives: { database, name } };
  }

  function numberAt(exchange: Exchange, at: number): number {
    return Number(exchange.args[at]?.toString('latin1') ?? Number.NaN);
  }

  /** A key that takes another's place, unless `spares` says that it leaves one that is there alone. */
  function renaming(
    exchange: Exchange,
    key: Buffer,
    database: number,
    name: Buffer,
    spares: boolean,
  ): Reshaping | undefined {
    const source = knownStream(context, exchange, key);
    const [replaced] = known(exchange, [name], database);
    if (source === undefined) {
      return spares
        ? sparing(exchange, replaced, [])
        : ending(exchange, replaced === undefined ? [] : [replaced], isZero);
    }
    if (source.database === database && source.name.equals(name)) return undefined;
    const move = { streamId: source.streamId, database, name };
    const there = replaced === undefined ? [] : [replaced];
    return {
      streams: [source, ...there],
      standing: spares ? [source, ...there] : [source],
      ...(spares && replaced !== undefined ? { spares: replaced } : {}),
      open: () => intentions.openMove(move, opening(exchange, true)),
      nothingDone: isZero,
      async takeIn(opened) {
        if (spares && replaced !== undefined && !replaced.ended) {
          await changes.join(source, replaced, opened);
          return 'lost';
        }
        await changes.moveStreams(opened);
        return 'taken';
      },
    };
  }

  function swapping(exchange: Exchange): Reshaping | undefined {
    const [first, second] = [numberAt(exchange, 1), numberAt(exchange, 2)];
    if (!isDatabase(first) || !isDatabase(second) || first === second) return undefined;
    return {
      streams: [...ledger.streams.all()].filter(({ database }) => database === first || database === second),
      standing: [],
      open: () => intentions.openSwap(first, second, opening(exchange, true)),
      nothingDone: always,
      async takeIn(opened) {
        await changes.moveStreams(opened);
        return 'taken';
      },
    };
  }

  function copying(exchange: Exchange): Reshaping | undefined {
    const { args } = exchange;
    const at = args.findIndex((arg, index) => index > 2 && equalsWord(arg, 'db'));
    const database = at < 0 ? exchange.session.database : numberAt(exchange, at + 1);
    const [target] = known(exchange, [args[2]], database);
    const source = known(exchange, [args[1]]);
    const replaces = args.some((arg, index) => index > 2 && equalsWord(arg, 'replace'));
    const plan = replaces
      ? ending(exchange, target === undefined ? [] : [target], isZero, source)
      : sparing(exchange, target, source);
    return source.length === 0 || args[2] === undefined ? plan : arriving(plan, database, args[2]);
  }

  function restoring(exchange: Exchange): Reshaping | undefined {
    const { args } = exchange;
    const [target] = known(exchange, [args[1]]);
    const replaces = args.some((arg, index) => index > 3 && equalsWord(arg, 'replace'));
    const plan = replaces ? ending(exchange, target === undefined ? [] : [target]) : sparing(exchange, target, []);
    const isStream = args[3] !== undefined && DUMPED_STREAMS.has(args[3][0] ?? -1);
    return isStream ? arriving(plan, exchange.session.database, args[1]!) : plan;
  }

  function migrating(exchange: Exchange): Reshaping | undefined {
    const { args } = exchange;
    if (args.some((arg, index) => index > 5 && equalsWord(arg, 'copy'))) return undefined;
    const at = args.findIndex((arg, index) => index > 5 && equalsWord(arg, 'keys'));
    const streams = known(exchange, at < 0 ? [args[3]] : args.slice(at + 1));
    return ending(exchange, streams, (reply) => reply.bytes.toString() !== 'OK', streams);
  }

  function expiring(exchange: Exchange, { unitMs, relative }: { readonly unitMs: number; readonly relative: boolean }) {
    const [stream] = known(exchange, [exchange.args[1]]);
    const ms = numberAt(exchange, 2) * unitMs;
    const deadline: Deadline = { ms, relative, since: performance.now() };
    return changing(exchange, stream, ms <= 0, (of, opened) => changes.takeInExpiry(of, opened, deadline));
  }

  return function reshaping(exchange) {
    const { args } = exchange;
    const name = exchange.command!.name;
    const { database } = exchange.session;
    switch (name) {
      case 'del':
      case 'unlink': {
        const streams = known(exchange, args.slice(1));
        return ending(exchange, streams, isZero, streams);
      }
      case 'flushdb':
        return flushing(exchange, { database });
      case 'flushall':
        return flushing(exchange, 'all');
      case 'rename':
      case 'renamenx':
        if (args.length !== 3) return undefined;
        return renaming(exchange, args[1]!, database, args[2]!, name === 'renamenx');
      case 'move': {
        const target = numberAt(exchange, 2);
        if (args.length !== 3 || !isDatabase(target)) return undefined;
        return renaming(exchange, args[1]!, target, args[1]!, true);
      }
      case 'swapdb':
        return swapping(exchange);
      case 'copy':
        return copying(exchange);
      case 'restore':
        return restoring(exchange);
      case 'migrate':
        return migrating(exchange);
      case 'persist':
        return changing(exchange, known(exchange, [args[1]])[0], false, (stream, opened) =>
          changes.takeInExpiry(stream, opened, undefined),
        );
      case 'xsetid': {
        const [stream] = known(exchange, [args[1]]);
        const counted = args.some((arg, index) => index > 2 && equalsWord(arg, 'entriesadded'));
        const plan = changing(exchange, stream, false, (of, opened) => changes.takeInWatermarks(of, opened, counted));
        return plan === undefined ? undefined : { ...plan, compares: stream! };
      }
    }
    const expires = EXPIRES.get(name);
    if (expires !== undefined) return expiring(exchange, expires);
    if (STORES.has(name)) {
      const destinations = args.filter(
        (_, index) => index > 1 && (equalsWord(args[index - 1]!, 'store') || equalsWord(args[index - 1]!, 'storedist')),
      );
      return ending(exchange, known(exchange, destinations));
    }
    return ending(exchange, known(exchange, [args[OVERWRITES.get(name)!]]));
  };
}
