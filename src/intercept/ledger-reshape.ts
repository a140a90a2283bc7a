/**
 * Commands that take a ledgered stream away or make another one of it: DEL and its kin, renames, times to live, XSETID,
 * whole databases. The intention commits before the command goes out, so that nobody takes the result for a loss, and is
 * settled by the reply, before the client hears.
 *
 * SET and its kin are not among them: a key of another type in a stream's place shows by itself that it was on purpose,
 * and the path of SET stays short.
 */
import type { CommandEntry } from '../command/command.ts';
import { HoldfastError } from '../errors.ts';
import type { EndIntention } from '../ledger/intention-store.ts';
import type { Stream } from '../ledger/stream-registry.ts';
import * as encode from '../resp/encode.ts';
import { type Reply, readReply } from '../resp/reply.ts';
import type { Exchange, Interceptor } from './interceptor.ts';
import { equalsWord, holdUntilWhole, knownStream, type LedgerContext } from './ledger-context.ts';
import { beforeExec } from './transaction-steps.ts';

/** What a command will do to which streams; `settle` is told of a reply that is no error. */
interface Reshaping {
  readonly which: readonly Stream[] | { readonly database: number } | 'all';
  settle(intentions: readonly EndIntention[], reply: Reply): Promise<void>;
}

/** Position of the key that a command overwrites, where that is all it does to a stream. */
const OVERWRITES: ReadonlyMap<string, number> = new Map([
  ['bitop', 2],
  ['geosearchstore', 1],
  ['pfmerge', 1],
  ['restore', 1],
  ['sdiffstore', 1],
  ['sinterstore', 1],
  ['sunionstore', 1],
  ['zdiffstore', 1],
  ['zinterstore', 1],
  ['zrangestore', 1],
  ['zunionstore', 1],
]);

const EXPIRES: ReadonlySet<string> = new Set(['expire', 'pexpire', 'expireat', 'pexpireat', 'persist']);
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
  'xsetid',
]);

function isHandled(command: CommandEntry | undefined): boolean {
  if (command === undefined) return false;
  const { name } = command;
  return OTHERS.has(name) || OVERWRITES.has(name) || EXPIRES.has(name) || STORES.has(name);
}

function isZero(reply: Reply): boolean {
  return reply.type === ':' && reply.bytes.length === 1 && reply.bytes[0] === 0x30;
}

export function ledgerReshape(context: LedgerContext): Interceptor {
  const { ledger, recovery } = context;
  const { intentions } = ledger;

  function unavailable(thrown: unknown): never {
    ledger.postgres.failed(thrown);
    throw new HoldfastError('LEDGERDOWN', 'the ledger does not answer; try again');
  }

  function known(exchange: Exchange, keys: readonly (Buffer | undefined)[], database?: number): Stream[] {
    const streams = new Set<Stream>();
    for (const key of keys) {
      const stream = key === undefined ? undefined : ledger.streams.find(database ?? exchange.session.database, key);
      if (stream !== undefined) streams.add(stream);
    }
    return [...streams];
  }

  /** The streams are gone, whatever the reply was. */
  function ending(streams: readonly Stream[]): Reshaping | undefined {
    if (streams.length === 0) return undefined;
    return { which: streams, settle: (opened) => recovery.endStreams(opened) };
  }

  function numberAt(exchange: Exchange, at: number): number {
    return Number(exchange.args[at]?.toString('latin1') ?? Number.NaN);
  }

  function renaming(
    source: Stream | undefined,
    replaced: readonly Stream[],
    database: number,
    name: Buffer,
  ): Reshaping | undefined {
    if (source === undefined) {
      const over = ending(replaced);
      if (over === undefined) return undefined;
      return {
        ...over,
        settle: (opened, reply) => (isZero(reply) ? intentions.cancel(opened) : recovery.endStreams(opened)),
      };
    }
    return {
      which: [source, ...replaced.filter((stream) => stream !== source)],
      settle: (opened, reply) =>
        isZero(reply) || (source.database === database && source.name.equals(name))
          ? intentions.cancel(opened)
          : recovery.renameStream(opened, source, database, name),
    };
  }

  function reshaping(exchange: Exchange): Reshaping | undefined {
    const { args } = exchange;
    const name = exchange.command!.name;
    const { database } = exchange.session;
    switch (name) {
      case 'del':
      case 'unlink':
        return ending(known(exchange, args.slice(1)));
      case 'flushdb':
        return { which: { database }, settle: (opened) => recovery.endStreams(opened) };
      case 'flushall':
        return { which: 'all', settle: (opened) => recovery.endStreams(opened) };
      case 'rename':
      case 'renamenx':
        if (args.length !== 3) return undefined;
        return renaming(knownStream(context, exchange, args[1]), known(exchange, [args[2]]), database, args[2]!);
      case 'move': {
        const target = numberAt(exchange, 2);
        if (args.length !== 3 || !Number.isSafeInteger(target)) return undefined;
        return renaming(knownStream(context, exchange, args[1]), known(exchange, [args[1]], target), target, args[1]!);
      }
      case 'swapdb': {
        const [first, second] = [numberAt(exchange, 1), numberAt(exchange, 2)];
        if (!Number.isSafeInteger(first) || !Number.isSafeInteger(second) || first === second) return undefined;
        const streams = [...ledger.streams.all()].filter(({ database: at }) => at === first || at === second);
        if (streams.length === 0) return undefined;
        return { which: streams, settle: (opened) => intentions.settleSwap(opened, first, second) };
      }
      case 'copy': {
        const at = args.findIndex((arg, index) => index > 2 && equalsWord(arg, 'db'));
        const over = ending(known(exchange, [args[2]], at < 0 ? undefined : numberAt(exchange, at + 1)));
        return (
          over && {
            ...over,
            settle: (opened, reply) => (isZero(reply) ? intentions.cancel(opened) : recovery.endStreams(opened)),
          }
        );
      }
      case 'migrate': {
        if (args.some((arg, index) => index > 5 && equalsWord(arg, 'copy'))) return undefined;
        const at = args.findIndex((arg, index) => index > 5 && equalsWord(arg, 'keys'));
        const over = ending(known(exchange, at < 0 ? [args[3]] : args.slice(at + 1)));
        return (
          over && {
            ...over,
            settle: (opened, reply) =>
              reply.bytes.toString() === 'OK' ? recovery.endStreams(opened) : intentions.cancel(opened),
          }
        );
      }
      case 'xsetid': {
        const [stream] = known(exchange, [args[1]]);
        if (stream === undefined) return undefined;
        return { which: [stream], settle: (opened) => recovery.takeInWatermarks(stream, opened) };
      }
    }
    if (EXPIRES.has(name)) {
      const [stream] = known(exchange, [args[1]]);
      if (stream === undefined) return undefined;
      return { which: [stream], settle: (opened) => recovery.takeInExpiry(stream, opened) };
    }
    if (STORES.has(name)) {
      const destinations = args.filter(
        (_, index) => index > 1 && (equalsWord(args[index - 1]!, 'store') || equalsWord(args[index - 1]!, 'storedist')),
      );
      return ending(known(exchange, destinations));
    }
    return ending(known(exchange, [args[OVERWRITES.get(name)!]]));
  }

  async function open(exchange: Exchange, plan: Reshaping): Promise<readonly EndIntention[]> {
    const { which } = plan;
    const streams = typeof which === 'object' && !('database' in which) ? which : undefined;
    for (;;) {
      for (const stream of streams ?? []) await holdUntilWhole(context, exchange, stream);
      const opened = await intentions
        .openEnd(
          streams === undefined ? (which as { database: number } | 'all') : streams.map(({ streamId }) => streamId),
          exchange.command!.name,
        )
        .catch(unavailable);
      if (!('troubled' in opened)) return opened;
      const stream = (await ledger.streams.refresh(opened.troubled).catch(unavailable)) ?? undefined;
      if (stream !== undefined) await holdUntilWhole(context, exchange, stream);
    }
  }

  return {
    name: 'ledger-reshape',
    handles: isHandled,
    request(exchange) {
      const plan = reshaping(exchange);
      if (plan === undefined) return;
      let opened: readonly EndIntention[] = [];
      const begin = async (): Promise<void> => {
        opened = await open(exchange, plan);
      };
      exchange.onReply(async (frame) => {
        if (opened.length === 0) return frame;
        const reply = readReply(frame);
        if (reply.type === '-' || reply.type === '!') await intentions.cancel(opened).catch(unavailable);
        else await plan.settle(opened, reply).catch(unavailable);
        for (const { streamId } of opened) await ledger.streams.refresh(streamId).catch(unavailable);
        return frame;
      });
      exchange.onDiscard(() => {
        if (opened.length === 0) return;
        intentions.cancel(opened).catch((thrown: unknown) => ledger.postgres.failed(thrown));
      });
      if (exchange.queued) {
        beforeExec(exchange, begin);
        return;
      }
      exchange.onLost((cause) => {
        // Done or not: the leader will see, by what is there. Until then nobody takes it for a loss.
        intentions.doubt(opened).catch((thrown: unknown) => ledger.postgres.failed(thrown));
        return encode.error(cause.toReplyText());
      });
      return begin();
    },
  };
}
