/**
 * XADD on a ledgered stream: the KV store gives the ID, the ledger commits, then the client hears.
 *
 *   open ─────────▶ forwarded with NOMKSTREAM ─ ID ──▶ commit ─ committed ──▶ reply
 *     ▲                 │         │                      ├ late: published again first, its new ID is the reply
 *     │  nil: a loss    │         │ connection broke     ├ ended: looked for in the next incarnation
 *     │  or no greater ID         │                      └ conflict: compared, then once more
 *     └─────────────────┘         ▼
 *   outage ────────────▶ accepted by the ledger (in doubt where it was sent already), its ID is the reply
 *
 * No success is told before the commit. When all is well `request` does not wait and `onReply` makes one promise.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { batched } from '../../async/batcher.ts';
import { HoldfastError } from '../../errors.ts';
import type { Exchange, Interceptor } from '../../interceptor.ts';
import {
  ENTRY_ID_LENGTH,
  ENTRY_ID_ZERO,
  formatEntryId,
  maxEntryId,
  parseEntryId,
} from '../../ledger/encoding/entry-id.ts';
import type { Stream } from '../../ledger/stream-registry.ts';
import * as encode from '../../resp/encode.ts';
import { errorText, readReply } from '../../resp/reply.ts';
import { beforeExec } from './before-exec.ts';
import { holdUntilWhole, type LedgerContext, ledgerDown, recovering } from './context.ts';
import { parseXadd, type XaddRequest } from './xadd-request.ts';

/** What the KV store answers while it is no store to write to: the entry was not taken. */
const OUTAGE_ERRORS: ReadonlySet<string> = new Set(['LOADING', 'READONLY', 'MASTERDOWN', 'CLUSTERDOWN', 'TRYAGAIN']);
const NOMKSTREAM = Buffer.from('NOMKSTREAM');
/** Behind an XADD's key: whether it may be added is independent of what is added. */
const ANY_ENTRY: readonly Buffer[] = ['*', 'f', 'v'].map((arg) => Buffer.from(arg));
const ATTEMPTS_MAX = 8;
/** How long a client whose XADD is in doubt waits for its real ID before it gets the ledger's. */
const DOUBT_MS = 1000;
/** How often it is asked whether the stream has become another one, where an ID is not above those before. */
const RESHAPING_MS = 20;

const SMALL_ID = encode.error('ERR The ID specified in XADD is equal or smaller than the target stream top item');

/** An XADD on its way: what is needed to commit it, or to do it again. */
interface XaddExchange {
  readonly exchange: Exchange;
  readonly parsed: XaddRequest;
  /** The client's arguments. */
  readonly args: readonly Buffer[];
  stream: Stream;
  /** Of the stream when it was sent; for a queued one, when EXEC was. */
  epoch: number;
  /** The stream's greatest known ID when it was sent. */
  after: Buffer;
  /** Of the server that was compared last when it was sent. */
  runId: string;
}

/** The connection broke under an XADD: it may have reached the KV store. */
interface Doubt {
  readonly cause: HoldfastError;
  readonly clientId: number | undefined;
}

/** A bulk string that is not nil. */
function isId(reply: Buffer): boolean {
  return reply[0] === 0x24 && reply[1] !== 0x2d;
}

function isLedgerDown(thrown: unknown): boolean {
  return thrown instanceof HoldfastError && thrown.code === 'LEDGERDOWN';
}

export function ledgerXadd(context: LedgerContext): Interceptor {
  const { ledger, recovery } = context;

  /** Whether a command is about to make another stream of it; its record is as it was then. Of many XADDs in trouble, those that wait ask at once. */
  const lookAtReshaping = batched(async (streams: readonly Stream[]) => {
    const open = new Map<Stream, boolean>();
    for (const stream of new Set(streams)) {
      open.set(stream, await ledger.intentions.areOpen(stream.streamId));
      await ledger.streams.refresh(stream.streamId);
    }
    return streams.map((stream) => open.get(stream)!);
  });

  function request(exchange: Exchange): void | Promise<void> {
    const { args } = exchange;
    const key = args[1];
    if (key === undefined || !recovery.ledgered(key)) return;
    const parsed = parseXadd(args);
    if (parsed === undefined) return;
    let bytes = 0;
    for (let at = parsed.idAt + 1; at < args.length; at += 1) bytes += args[at]!.length;
    if (bytes > context.entryBytesMax) {
      const text = `ERR the entry has ${bytes} bytes, ledger.entryBytesMax is ${context.entryBytesMax}`;
      exchange.respond(encode.error(text));
      return;
    }
    const stream = ledger.streams.find(exchange.session.database, key);
    if (stream !== undefined && recovery.gate.isWhole(stream) && ledger.writer.accepting) {
      send({ exchange, parsed, args, stream, epoch: stream.epoch, after: stream.lastId, runId: recovery.runId });
      return;
    }
    return begin(exchange, parsed);
  }

  /** Anything but the usual case. */
  async function begin(exchange: Exchange, parsed: XaddRequest): Promise<void> {
    const { args } = exchange;
    if (!ledger.writer.accepting) {
      if (context.onFailure === 'degrade') return degrade(exchange);
      throw new HoldfastError('LEDGERDOWN', 'the ledger does not take entries now; nothing was written, try again');
    }
    if (ledger.streams.find(exchange.session.database, args[1]!) === undefined) {
      // A stream begins for those only whom the KV store lets add to it.
      if (exchange.queued) return queue(exchange, parsed);
      const refusal = await exchange.judge([args[0]!, args[1]!, ...ANY_ENTRY]);
      if (refusal !== undefined) {
        exchange.respond(refusal);
        return;
      }
      context.streamLimit.take(exchange);
    }
    let stream: Stream;
    try {
      stream = await resolve(exchange);
    } catch (thrown) {
      if (context.onFailure === 'degrade' && isLedgerDown(thrown)) return degrade(exchange);
      throw thrown;
    }
    const { epoch, lastId: after } = stream;
    const xadd: XaddExchange = { exchange, parsed, args, stream, epoch, after, runId: recovery.runId };
    if (exchange.queued) {
      // EXEC decides when it may go.
      send(xadd);
      return;
    }
    const reply = await untilOpen(xadd, undefined);
    if (reply === undefined) send(xadd);
    else exchange.respond(reply);
  }

  /** Queued, on a stream that the ledger does not know: it begins when EXEC goes out. */
  function queue(exchange: Exchange, parsed: XaddRequest): void {
    let xadd: XaddExchange | undefined;
    beforeExec(exchange, async () => {
      let stream: Stream;
      if (ledger.streams.find(exchange.session.database, exchange.args[1]!) === undefined) {
        context.streamLimit.take(exchange);
      }
      try {
        stream = await resolve(exchange);
      } catch (thrown) {
        if (context.onFailure === 'degrade' && isLedgerDown(thrown)) return degrade(exchange);
        throw thrown;
      }
      const { epoch, lastId: after } = stream;
      xadd = { exchange, parsed, args: exchange.args, stream, epoch, after, runId: recovery.runId };
      await fix(xadd);
    });
    exchange.onReply((reply) => (xadd === undefined ? reply : replied(xadd, reply, 1)));
  }

  /** The ledger takes it in from the stream, once it can. */
  function degrade(exchange: Exchange): void {
    exchange.onReply((reply) => {
      if (isId(reply)) ledger.writer.passedBy();
      return reply;
    });
  }

  function resolve(exchange: Exchange): Promise<Stream> {
    return ledger.streams.resolve(exchange.session.database, exchange.args[1]!).catch((thrown: unknown) => {
      ledger.postgres.failed(thrown);
      throw new HoldfastError('LEDGERDOWN', 'the ledger does not answer; nothing was written, try again');
    });
  }

  /**
   * Waits until the XADD may be forwarded, then gives nothing; or has the ledger accept it, then gives the reply.
   * `doubt`: it was sent already and may have reached the KV store.
   */
  async function untilOpen(xadd: XaddExchange, doubt: Doubt | undefined): Promise<Buffer | undefined> {
    const until = Date.now() + context.holdMs;
    while (!xadd.exchange.session.closed) {
      const settled = await recovery.gate.settled(xadd.stream, Math.max(0, until - Date.now()));
      if (settled === 'ended') {
        xadd.stream = await resolve(xadd.exchange);
        continue;
      }
      if (settled === 'timeout') throw recovering(xadd.stream);
      if (settled === 'open' && doubt === undefined) {
        xadd.epoch = xadd.stream.epoch;
        xadd.after = xadd.stream.lastId;
        xadd.runId = recovery.runId;
        return undefined;
      }
      const reply = await accept(xadd, doubt);
      if (reply !== undefined) return reply;
    }
    throw recovering(xadd.stream);
  }

  /** The ledger takes the entry. Gives the reply, or nothing where the outage is over. */
  async function accept(xadd: XaddExchange, doubt: Doubt | undefined): Promise<Buffer | undefined> {
    const { stream, parsed, exchange } = xadd;
    if (!exchange.session.admitted) {
      throw new HoldfastError('KVDOWN', 'the KV store cannot be reached, and has not let this user in before');
    }
    if (parsed.noMkStream && !stream.present) return encode.nullBulk(exchange.session.protocol);
    const unanswered = ledgerDown(
      context,
      doubt === undefined ? 'nothing was written, try again' : 'the entry may or may not have been added',
    );
    await recovery
      .enterOutage(stream, doubt === undefined ? 'the KV store is down' : doubt.cause.message)
      .catch(unanswered);
    const outcome = await ledger.outage.accept({
      stream,
      requested: parsed.requested,
      args: xadd.args,
      firstField: parsed.idAt + 1,
      maxlen: parsed.maxlen,
      inDoubtAfter: doubt === undefined ? undefined : xadd.after,
      kvClientId: doubt?.clientId,
      kvRunId: doubt === undefined ? undefined : xadd.runId,
    });
    if (outcome === 'normal') {
      await ledger.streams.refresh(stream.streamId).catch(unanswered);
      return undefined;
    }
    if (outcome === 'small') return doubt === undefined ? SMALL_ID : doubtful(xadd, doubt);
    // If the KV store is there, the real ID is a matter of milliseconds.
    const published =
      doubt !== undefined && recovery.gate.state !== 'down'
        ? await recovery.publications.idOf(stream, outcome.id, DOUBT_MS)
        : undefined;
    return encode.bulk(formatEntryId(published ?? outcome.id));
  }

  /** Its ID is not above the stream's: where the KV store has this very entry, the lost reply said so. */
  async function doubtful(xadd: XaddExchange, { cause }: Doubt): Promise<Buffer> {
    const { stream, parsed, args } = xadd;
    const id = parsed.requested;
    if (id?.length === ENTRY_ID_LENGTH && (await recovery.hasEntry(stream, id, args, parsed.idAt + 1))) {
      xadd.epoch = stream.epoch;
      return commit(xadd, id, encode.bulk(formatEntryId(id)), 1);
    }
    throw new HoldfastError('KVDOWN', `the entry may or may not have been added: ${cause.message}`);
  }

  function sentArgs(xadd: XaddExchange): readonly Buffer[] {
    const { args, parsed, stream, exchange } = xadd;
    // In a transaction a DEL of the key may come before.
    if (parsed.noMkStream || !stream.present || exchange.queued) return args;
    return [args[0]!, args[1]!, NOMKSTREAM, ...args.slice(2)];
  }

  function send(xadd: XaddExchange): void {
    const { exchange } = xadd;
    exchange.args = sentArgs(xadd);
    exchange.onReply((reply) => replied(xadd, reply, 1));
    if (exchange.queued) beforeExec(exchange, () => fix(xadd));
    else exchange.onLost((cause, clientId) => lost(xadd, cause, clientId));
  }

  /** EXEC goes out: under this epoch the ID will be given. */
  function fix(xadd: XaddExchange): void | Promise<void> {
    if (!ledger.writer.accepting && context.onFailure === 'refuse') {
      throw new HoldfastError('LEDGERDOWN', 'the ledger does not take entries now; nothing was executed, try again');
    }
    xadd.epoch = xadd.stream.epoch;
    if (recovery.gate.isWhole(xadd.stream)) return;
    return holdUntilWhole(context, xadd.exchange, xadd.stream).then(async () => {
      if (xadd.stream.ended) xadd.stream = await resolve(xadd.exchange);
      xadd.epoch = xadd.stream.epoch;
    });
  }

  async function lost(xadd: XaddExchange, cause: HoldfastError, clientId: number | undefined): Promise<Buffer> {
    // Never sent: as if it came now.
    if (clientId === undefined) return again(xadd, 1);
    return (await untilOpen(xadd, { cause, clientId }))!;
  }

  function replied(xadd: XaddExchange, reply: Buffer, attempt: number): Buffer | Promise<Buffer> {
    if (isId(reply)) {
      const id = parseEntryId(reply.subarray(reply.indexOf(13) + 2, reply.length - 2));
      return id === undefined ? reply : commit(xadd, id, reply, attempt);
    }
    const parsed = readReply(reply);
    const text = errorText(parsed);
    if (text !== undefined) {
      if (!OUTAGE_ERRORS.has(text.split(' ', 1)[0]!) || xadd.exchange.queued) return reply;
      recovery.upstreamLost();
      return again(xadd, attempt);
    }
    // Nil: the client's own NOMKSTREAM on a stream that never was, or a stream that is gone.
    if (!parsed.isNull || (xadd.parsed.noMkStream && !xadd.stream.present)) return reply;
    return recovery
      .noticed('XADD found no stream where the ledger knows one', context.holdMs)
      .then(() => again(xadd, attempt));
  }

  /** Not taken by the KV store: once more, when it can be. */
  async function again(xadd: XaddExchange, attempt: number): Promise<Buffer> {
    if (attempt >= ATTEMPTS_MAX) throw recovering(xadd.stream);
    const answered = await untilOpen(xadd, undefined);
    if (answered !== undefined) return answered;
    let reply: Buffer;
    try {
      reply = await xadd.exchange.resend(sentArgs(xadd));
    } catch (thrown) {
      if (thrown instanceof HoldfastError) return (await untilOpen(xadd, { cause: thrown, clientId: undefined }))!;
      throw thrown;
    }
    return replied(xadd, reply, attempt + 1);
  }

  function commit(xadd: XaddExchange, id: Buffer, reply: Buffer, attempt: number): Promise<Buffer> {
    const { stream, epoch, exchange } = xadd;
    // In a transaction a DEL of the key may have come before.
    if (id.compare(xadd.after) <= 0 && !exchange.queued && !stream.ended) return wentBack(xadd, id, reply, attempt);
    stream.lastId = maxEntryId(stream.lastId, id);
    stream.present = true;
    return ledger.writer
      .commit({ stream, id, epoch, args: xadd.args, firstField: xadd.parsed.idAt + 1, maxlen: xadd.parsed.maxlen })
      .then((outcome) => {
        if (outcome === 'committed') return reply;
        if (outcome === 'late') return republished(xadd, id);
        if (outcome === 'ended') return inNextIncarnation(xadd, id, reply, attempt);
        return conflicting(xadd, id, reply, attempt);
      })
      .catch((thrown: unknown) => {
        if (context.onFailure !== 'degrade' || !isLedgerDown(thrown)) throw thrown;
        ledger.writer.passedBy();
        return reply;
      });
  }

  async function republished(xadd: XaddExchange, id: Buffer): Promise<Buffer> {
    const published = await recovery.publications.idOf(xadd.stream, id, context.holdMs * 2);
    if (published === undefined) {
      throw new HoldfastError('LEDGERDOWN', 'the entry is in the ledger, but could not be published again yet');
    }
    return encode.bulk(formatEntryId(published));
  }

  /**
   * The KV store had given greater IDs before: it has lost the stream, and somebody made it anew. Under this ID the entry would come
   * before what groups have passed, or what was trimmed, and nobody would be given it. Or a client has just set the IDs back.
   */
  async function wentBack(xadd: XaddExchange, id: Buffer, reply: Buffer, attempt: number): Promise<Buffer> {
    const { stream } = xadd;
    const became = await reshaped(xadd);
    if (became === 'ended') return commit(xadd, id, reply, attempt);
    const fields = xadd.args.slice(xadd.parsed.idAt + 1);
    await recovery.withdraw(stream, id, fields);
    if (became === undefined) await lossProved(xadd, 'XADD gave an ID that is not above those before');
    else if (await isRestored(stream)) await recovery.withdraw(stream, id, fields);
    return again(xadd, attempt);
  }

  /** A restore that had begun before may have taken along what was withdrawn: whether it has come to its end. */
  async function isRestored(stream: Stream): Promise<boolean> {
    const settled = await recovery.gate.reopened(stream, context.holdMs);
    return settled === 'open' && !stream.ended;
  }

  /** What the stream has become since the XADD was sent. Waits for commands that are about to make another one of it. */
  async function reshaped({ stream, epoch }: XaddExchange): Promise<'ended' | 'moved' | undefined> {
    const unanswered = ledgerDown(context, 'the entry may or may not have been added');
    for (const until = Date.now() + context.holdMs; ; await delay(RESHAPING_MS)) {
      const open = await lookAtReshaping(stream).catch(unanswered);
      if (stream.ended) return 'ended';
      if (stream.epoch !== epoch) return 'moved';
      if (!open || Date.now() > until) return undefined;
    }
  }

  /** Rejects with LEDGERDOWN: the outcome of the XADD is unknown then. */
  function lossProved({ stream, epoch }: XaddExchange, cause: string): Promise<void> {
    return recovery
      .proved(stream, epoch, cause, context.holdMs)
      .catch(ledgerDown(context, 'the entry may or may not have been added'));
  }

  /** The incarnation ended while the entry was on its way: it went with it, or it is the first of the next. */
  async function inNextIncarnation(xadd: XaddExchange, id: Buffer, reply: Buffer, attempt: number): Promise<Buffer> {
    if (attempt >= ATTEMPTS_MAX) throw recovering(xadd.stream);
    const next = await resolve(xadd.exchange);
    const { epoch } = next;
    const found = await recovery.hasEntry(next, id, xadd.args, xadd.parsed.idAt + 1);
    if (!found) return reply;
    xadd.stream = next;
    xadd.epoch = epoch;
    xadd.after = ENTRY_ID_ZERO;
    return commit(xadd, id, reply, attempt + 1);
  }

  /** The ID belongs to another entry in the ledger: the KV store forgot that one. */
  async function conflicting(xadd: XaddExchange, id: Buffer, reply: Buffer, attempt: number): Promise<Buffer> {
    const cause = 'XADD gave an ID that the ledger has with other fields';
    const there = await recovery.hasEntry(xadd.stream, id, xadd.args, xadd.parsed.idAt + 1).catch(() => false);
    await (there ? lossProved(xadd, cause) : recovery.noticed(cause, context.holdMs));
    const settled = await recovery.gate.reopened(xadd.stream, context.holdMs, undefined, true);
    if (attempt < ATTEMPTS_MAX && settled === 'open') {
      xadd.epoch = xadd.stream.epoch;
      if (await recovery.hasEntry(xadd.stream, id, xadd.args, xadd.parsed.idAt + 1)) {
        return commit(xadd, id, reply, attempt + 1);
      }
    }
    throw new HoldfastError(
      'LEDGERCONFLICT',
      `the ledger has another entry under ${formatEntryId(id)}; this one was not made durable`,
    );
  }

  return {
    name: 'ledger-xadd',
    handles: (command) => command?.name === 'xadd',
    request,
  };
}
