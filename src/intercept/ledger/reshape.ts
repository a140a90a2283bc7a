/**
 * Commands that take a ledgered stream away or make another one of it: DEL and its kin, renames, times to live, XSETID,
 * whole databases. The intention commits before the command goes out, so that nobody takes the result for a loss, and is
 * settled by the reply, before the client hears.
 *
 * SET and its kin are not among them: a key of another type in a stream's place shows by itself that it was on purpose,
 * and the path of SET stays short.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { CommandEntry } from '../../command/command.ts';
import { HoldfastError } from '../../errors.ts';
import type { Exchange, Interceptor } from '../../interceptor.ts';
import type { EndIntention, OpenedEnds } from '../../ledger/intention-store.ts';
import type { Stream } from '../../ledger/stream-registry.ts';
import * as encode from '../../resp/encode.ts';
import { type Reply, readReply } from '../../resp/reply.ts';
import { beforeExec } from './before-exec.ts';
import { equalsWord, holdUntilWhole, knownStream, type LedgerContext } from './context.ts';

/** What a command will do to streams; `settle` is told of a reply that is no error. */
interface Reshaping {
  /** These must be open before. */
  readonly streams: readonly Stream[];
  open(): Promise<OpenedEnds>;
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

/** Intentions that are open, and what to do when the reply is there. */
interface Opened {
  readonly intentions: readonly EndIntention[];
  readonly settle: Reshaping['settle'];
}

/** How long a command waits before it looks again whether another one is done with its streams. */
const BUSY_MS = 20;

function isDatabase(index: number): boolean {
  return Number.isSafeInteger(index) && index >= 0 && index < 2 ** 31;
}

function isZero(reply: Reply): boolean {
  return reply.type === ':' && reply.bytes.length === 1 && reply.bytes[0] === 0x30;
}

export function ledgerReshape(context: LedgerContext): Interceptor {
  const { ledger, recovery } = context;
  const { intentions } = ledger;
  const { changes } = recovery;

  function unavailable(thrown: unknown): never {
    changes.report(thrown);
    throw new HoldfastError('LEDGERDOWN', 'the ledger does not answer; nothing was done, try again');
  }

  function known(exchange: Exchange, keys: readonly (Buffer | undefined)[], database?: number): Stream[] {
    const streams = new Set<Stream>();
    for (const key of keys) {
      const stream = key === undefined ? undefined : ledger.streams.find(database ?? exchange.session.database, key);
      if (stream !== undefined) streams.add(stream);
    }
    return [...streams];
  }

  function end(exchange: Exchange, which: Parameters<typeof intentions.openEnd>[0]): Promise<OpenedEnds> {
    return intentions.openEnd(which, exchange.command!.name);
  }

  /** The streams are gone, unless the reply says `spared`. */
  function ending(
    exchange: Exchange,
    streams: readonly Stream[],
    spared: (reply: Reply) => boolean = () => false,
  ): Reshaping | undefined {
    if (streams.length === 0) return undefined;
    const streamIds = streams.map(({ streamId }) => streamId);
    return {
      streams,
      open: () => end(exchange, streamIds),
      settle: (opened, reply) => (spared(reply) ? changes.cancel(opened) : changes.endStreams(opened)),
    };
  }

  function numberAt(exchange: Exchange, at: number): number {
    return Number(exchange.args[at]?.toString('latin1') ?? Number.NaN);
  }

  /** A key that takes another's place. */
  function renaming(exchange: Exchange, key: Buffer, database: number, name: Buffer): Reshaping | undefined {
    const source = knownStream(context, exchange, key);
    const replaced = known(exchange, [name], database);
    if (source === undefined) return ending(exchange, replaced, isZero);
    if (source.database === database && source.name.equals(name)) return undefined;
    return {
      streams: [source, ...replaced],
      open: () => intentions.openMove({ streamId: source.streamId, database, name }, exchange.command!.name),
      settle: (opened, reply) => (isZero(reply) ? changes.cancel(opened) : changes.moveStreams(opened)),
    };
  }

  function reshaping(exchange: Exchange): Reshaping | undefined {
    const { args } = exchange;
    const name = exchange.command!.name;
    const { database } = exchange.session;
    switch (name) {
      case 'del':
      case 'unlink':
        return ending(exchange, known(exchange, args.slice(1)));
      case 'flushdb':
        return { streams: [], open: () => end(exchange, { database }), settle: (opened) => changes.endStreams(opened) };
      case 'flushall':
        return { streams: [], open: () => end(exchange, 'all'), settle: (opened) => changes.endStreams(opened) };
      case 'rename':
      case 'renamenx':
        return args.length === 3 ? renaming(exchange, args[1]!, database, args[2]!) : undefined;
      case 'move': {
        const target = numberAt(exchange, 2);
        if (args.length !== 3 || !isDatabase(target)) return undefined;
        return renaming(exchange, args[1]!, target, args[1]!);
      }
      case 'swapdb': {
        const [first, second] = [numberAt(exchange, 1), numberAt(exchange, 2)];
        if (!isDatabase(first) || !isDatabase(second) || first === second) return undefined;
        return {
          streams: [...ledger.streams.all()].filter(({ database: at }) => at === first || at === second),
          open: () => intentions.openSwap(first, second, name),
          settle: (opened) => changes.moveStreams(opened),
        };
      }
      case 'copy': {
        const at = args.findIndex((arg, index) => index > 2 && equalsWord(arg, 'db'));
        return ending(exchange, known(exchange, [args[2]], at < 0 ? undefined : numberAt(exchange, at + 1)), isZero);
      }
      case 'migrate': {
        if (args.some((arg, index) => index > 5 && equalsWord(arg, 'copy'))) return undefined;
        const at = args.findIndex((arg, index) => index > 5 && equalsWord(arg, 'keys'));
        const keys = at < 0 ? [args[3]] : args.slice(at + 1);
        return ending(exchange, known(exchange, keys), (reply) => reply.bytes.toString() !== 'OK');
      }
      case 'xsetid': {
        const [stream] = known(exchange, [args[1]]);
        if (stream === undefined) return undefined;
        return {
          streams: [stream],
          open: () => end(exchange, [stream.streamId]),
          settle: (opened) => changes.takeInWatermarks(stream, opened),
        };
      }
    }
    if (EXPIRES.has(name)) {
      const [stream] = known(exchange, [args[1]]);
      if (stream === undefined) return undefined;
      return {
        streams: [stream],
        open: () => end(exchange, [stream.streamId]),
        settle: (opened) => changes.takeInExpiry(stream, opened),
      };
    }
    if (STORES.has(name)) {
      const destinations = args.filter(
        (_, index) => index > 1 && (equalsWord(args[index - 1]!, 'store') || equalsWord(args[index - 1]!, 'storedist')),
      );
      return ending(exchange, known(exchange, destinations));
    }
    return ending(exchange, known(exchange, [args[OVERWRITES.get(name)!]]));
  }

  /** Gives what is open now and how it is to be settled; nothing where the command reshapes no stream any more. */
  async function open(exchange: Exchange): Promise<Opened | undefined> {
    for (const until = Date.now() + context.holdMs; ; ) {
      // Anew each time: what is waited for may have moved or ended a stream.
      const plan = reshaping(exchange);
      if (plan === undefined) return undefined;
      for (const stream of plan.streams) await holdUntilWhole(context, exchange, stream);
      const opened = await plan.open().catch(unavailable);
      if (!('busy' in opened)) return { intentions: opened, settle: plan.settle };
      const stream = await ledger.streams.refresh(opened.busy).catch(unavailable);
      if (stream === undefined || stream.ended) continue;
      await holdUntilWhole(context, exchange, stream);
      if (Date.now() > until) {
        throw new HoldfastError(
          'RECOVERING',
          `another command is about to move or end the stream ${stream.name.toString()}; nothing was done, try again`,
        );
      }
      await delay(BUSY_MS);
    }
  }

  async function settle(opened: Opened, reply: Reply): Promise<void> {
    const { intentions: ends } = opened;
    try {
      if (reply.type === '-' || reply.type === '!') await changes.cancel(ends);
      else await opened.settle(ends, reply);
    } catch (thrown) {
      ledger.postgres.failed(thrown);
      changes.leaveToLeader(ends, thrown);
      throw new HoldfastError('LEDGERDOWN', 'the command was executed, but the ledger could not take it in yet');
    }
  }

  return {
    name: 'ledger-reshape',
    handles: isHandled,
    request(exchange) {
      if (reshaping(exchange) === undefined) return;
      let opened: Opened | undefined;
      const begin = async (): Promise<void> => {
        const refusal = exchange.queued ? undefined : await exchange.judge();
        if (refusal === undefined) opened = await open(exchange);
        else exchange.respond(refusal);
      };
      exchange.onReply(async (frame) => {
        if (opened !== undefined && opened.intentions.length > 0) await settle(opened, readReply(frame));
        return frame;
      });
      exchange.onDiscard(() => {
        if (opened === undefined) return;
        changes.cancel(opened.intentions).catch((thrown: unknown) => ledger.postgres.failed(thrown));
      });
      if (exchange.queued) {
        beforeExec(exchange, begin);
        return;
      }
      exchange.onLost((cause, clientId) => {
        // Done or not: the leader will see, by what is there. Until then nobody takes it for a loss.
        if (opened !== undefined && opened.intentions.length > 0) {
          const { runId } = recovery;
          changes.leaveToLeader(opened.intentions, cause, clientId === undefined ? undefined : { clientId, runId });
        }
        return encode.error(cause.toReplyText());
      });
      return begin();
    },
  };
}
