/**
 * XREAD and XREADGROUP on ledgered streams. Held while a stream is compared or restored, for as long as they would have
 * blocked; asked again when their connection broke under them or the KV store says that a group is gone which the ledger
 * knows. So a worker sees a pause, or an empty read, and never the loss.
 *
 * After a restore a group stands at its checkpoint: entries that come again although their acknowledgement is recorded
 * are taken out of the reply and acknowledged, and if nothing is left the read goes on.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { HoldfastError } from '../../errors.ts';
import type { Exchange, Interceptor } from '../../interceptor.ts';
import type { AcknowledgedSet } from '../../ledger/encoding/acknowledged-set.ts';
import { formatEntryId, parseEntryId } from '../../ledger/encoding/entry-id.ts';
import type { Group, Stream } from '../../ledger/stream-registry.ts';
import * as encode from '../../resp/encode.ts';
import { aggregate, errorText, type Reply, readReply } from '../../resp/reply.ts';
import { equalsWord, knownStream, type LedgerContext, recovering } from './context.ts';

interface ReadRequest {
  /** Undefined for XREAD. */
  readonly group: Buffer | undefined;
  /** Position of BLOCK's value, if there is one. */
  readonly blockAt: number | undefined;
  /** Zero: for ever. */
  readonly blockMs: number;
  readonly noAck: boolean;
  readonly keysAt: number;
  readonly keys: number;
}

interface Reading {
  readonly exchange: Exchange;
  readonly request: ReadRequest;
  readonly args: readonly Buffer[];
  readonly streams: readonly Stream[];
  /** When the client's patience ends: Infinity for `BLOCK 0`. */
  readonly until: number;
  /** The streams' epochs, and the era of the KV store, when it was sent last. */
  epochs: readonly number[];
  era: number;
  /** What the server said first, when the read was asked again. */
  refusal: Buffer | undefined;
}

const DOLLAR = 0x24;
/** Between attempts to send a read that no connection takes. */
const AGAIN_MS = 50;
const GREATER = 0x3e;
/** A read that does not block and finds nothing but trouble waits this long, so that its client does not spin. */
const EMPTY_READ_MS = 1000;

function parseRead(args: readonly Buffer[]): ReadRequest | undefined {
  let at = 1;
  let group: Buffer | undefined;
  if (equalsWord(args[0]!, 'xreadgroup')) {
    if (args.length < 7 || !equalsWord(args[1]!, 'group')) return undefined;
    group = args[2]!;
    at = 4;
  }
  let blockAt: number | undefined;
  let blockMs = 0;
  let noAck = false;
  for (; at < args.length; at += 1) {
    const arg = args[at]!;
    if (equalsWord(arg, 'streams')) {
      const rest = args.length - at - 1;
      if (rest === 0 || rest % 2 !== 0) return undefined;
      return { group, blockAt, blockMs, noAck, keysAt: at + 1, keys: rest / 2 };
    }
    if (equalsWord(arg, 'block')) {
      at += 1;
      blockAt = at;
      blockMs = Number(args[at]?.toString('latin1'));
      if (!(blockMs >= 0)) return undefined;
    } else if (equalsWord(arg, 'count')) at += 1;
    else if (equalsWord(arg, 'noack')) noAck = true;
  }
  return undefined;
}

export function ledgerRead(context: LedgerContext): Interceptor {
  const { recovery, ledger } = context;

  function request(exchange: Exchange): void | Promise<void> {
    const { args } = exchange;
    const parsed = parseRead(args);
    if (parsed === undefined) return;
    let streams: Stream[] | undefined;
    let open = true;
    for (let at = 0; at < parsed.keys; at += 1) {
      const stream = knownStream(context, exchange, args[parsed.keysAt + at]);
      if (stream === undefined) continue;
      (streams ??= []).push(stream);
      open &&= recovery.gate.isOpen(stream);
    }
    if (streams === undefined) return;
    const until =
      exchange.queued || parsed.blockAt === undefined
        ? Date.now() + context.holdMs
        : parsed.blockMs === 0
          ? Number.POSITIVE_INFINITY
          : Date.now() + parsed.blockMs;
    const epochs = streams.map((stream) => stream.epoch);
    const reading: Reading = {
      exchange,
      request: parsed,
      args: resolved(exchange, parsed),
      streams,
      until,
      epochs,
      era: recovery.era,
      refusal: undefined,
    };
    exchange.onReply((reply) => replied(reading, reply));
    if (!exchange.queued) {
      exchange.onLost(() => {
        // It may not have heard of it yet, and would let the read go on to nowhere.
        recovery.upstreamLost();
        return again(reading);
      });
    }
    if (open || exchange.queued) return;
    return hold(reading).then((settled) => {
      if (settled === 'open') exchange.args = withBlock(reading, args);
      else exchange.respond(settled);
    });
  }

  /** `$` means the last entry now, not when the command is sent again after a restore. */
  function resolved(exchange: Exchange, parsed: ReadRequest): readonly Buffer[] {
    const { args } = exchange;
    let own: Buffer[] | undefined;
    for (let at = parsed.keysAt + parsed.keys; at < args.length; at += 1) {
      if (args[at]!.length !== 1 || args[at]![0] !== DOLLAR) continue;
      const stream = knownStream(context, exchange, args[at - parsed.keys]);
      if (stream === undefined) continue;
      own ??= [...args];
      own[at] = Buffer.from(formatEntryId(stream.lastId));
    }
    return own ?? args;
  }

  /** The request again, with what is left of its BLOCK. */
  function withBlock(reading: Reading, args: readonly Buffer[]): readonly Buffer[] {
    const { blockAt, blockMs } = reading.request;
    if (blockAt === undefined || blockMs === 0) return args;
    const left = [...args];
    left[blockAt] = Buffer.from(String(Math.max(1, reading.until - Date.now())));
    return left;
  }

  /** Waits for all streams; gives `open`, or the reply that ends the waiting. */
  async function hold(reading: Reading): Promise<'open' | Buffer> {
    const { exchange, request: parsed, streams } = reading;
    const onlyNew = parsed.group !== undefined && isOnlyNew(reading);
    const limit = (): number => {
      const left = reading.until - Date.now();
      return onlyNew && parsed.blockAt === undefined ? Math.min(left, EMPTY_READ_MS) : left;
    };
    for (const stream of streams) {
      const settled = await recovery.gate.reopened(stream, Math.max(0, limit()), () => !exchange.session.closed);
      if (settled !== 'timeout') continue;
      if (parsed.blockAt !== undefined || onlyNew) return encode.nullArray(exchange.session.protocol);
      throw recovering(stream);
    }
    reading.epochs = streams.map((stream) => stream.epoch);
    reading.era = recovery.era;
    return 'open';
  }

  function isOnlyNew(reading: Reading): boolean {
    for (let key = 0; key < reading.request.keys; key += 1) if (!isNew(reading, key)) return false;
    return true;
  }

  function isNew({ args, request: { keysAt, keys } }: Reading, key: number): boolean {
    const id = args[keysAt + keys + key]!;
    return id.length === 1 && id[0] === GREATER;
  }

  function isAnyNew(reading: Reading): boolean {
    for (let key = 0; key < reading.request.keys; key += 1) if (isNew(reading, key)) return true;
    return false;
  }

  /** Whether entries of the stream under this name are new, and not those that are pending for the consumer. */
  function readsNew(reading: Reading, name: Buffer): boolean {
    const { keysAt, keys } = reading.request;
    for (let key = 0; key < keys; key += 1) {
      if (isNew(reading, key) && reading.args[keysAt + key]!.equals(name)) return true;
    }
    return false;
  }

  /** Once more, when the streams are open; as often as it takes, within the client's patience. */
  async function again(reading: Reading): Promise<Buffer> {
    const { exchange } = reading;
    for (;;) {
      const settled = await hold(reading);
      if (settled !== 'open') return settled;
      let reply: Buffer;
      try {
        reply = await exchange.resend(withBlock(reading, reading.args));
      } catch (thrown) {
        if (exchange.session.closed) throw thrown;
        if (Date.now() >= reading.until) {
          // Between an outage and the next connection: an empty read, as all through the outage.
          if (reading.request.blockAt !== undefined) return encode.nullArray(exchange.session.protocol);
          throw thrown;
        }
        await sleep(AGAIN_MS);
        continue;
      }
      return replied(reading, reply);
    }
  }

  function replied(reading: Reading, reply: Buffer): Buffer | Promise<Buffer> {
    if (reply[0] === 0x2d) return refused(reading, reply);
    if (reading.request.group === undefined || !isAnyNew(reading)) return reply;
    if (reply[0] !== 0x2a && reply[0] !== 0x25) return reply;
    if (moved(reading)) return decided(reading).then(() => filter(reading, reply, false));
    for (const stream of reading.streams) {
      const group = stream.groups.get(reading.request.group.toString('latin1'));
      if (group === undefined || stream.restoredEpoch === 0 || group.filtered) continue;
      if (readsNew(reading, stream.name)) return filter(reading, reply, true);
    }
    return reply;
  }

  /** What the reply tells may be from a state of the KV store that nobody has compared. */
  function moved({ streams, epochs, era }: Reading): boolean {
    return (
      recovery.era !== era || streams.some((stream, at) => stream.epoch !== epochs[at] || !recovery.gate.isOpen(stream))
    );
  }

  /**
   * Waits until it is known what became of the streams. Rejects with RECOVERING when neither the client's patience nor `holdMs` is
   * left: what was read is pending for this consumer, or comes again.
   */
  async function decided({ exchange, streams, until }: Reading): Promise<void> {
    const limit = Math.max(until, Date.now() + context.holdMs);
    for (const stream of streams) {
      const settled = await recovery.gate.reopened(stream, limit - Date.now(), () => !exchange.session.closed);
      if (settled === 'timeout') throw recovering(stream);
    }
  }

  function refused(reading: Reading, reply: Buffer): Buffer | Promise<Buffer> {
    const text = errorText(readReply(reply))!;
    const code = text.split(' ', 1)[0]!;
    const { exchange, request: parsed } = reading;
    const ofGroup =
      code === 'NOGROUP' &&
      parsed.group !== undefined &&
      reading.streams.some((stream) => {
        const group = stream.groups.get(parsed.group!.toString('latin1'));
        return group !== undefined && !group.changing && !stream.ended;
      });
    const ofStore = code === 'UNBLOCKED' || code === 'LOADING' || code === 'MASTERDOWN';
    if (exchange.queued || !(ofGroup || ofStore)) return reading.refusal ?? reply;
    // Also when the client's patience has ended meanwhile: an empty read is the answer then, not the loss.
    const limitMs = Math.max(0, Math.min(context.holdMs, reading.until - Date.now()));
    return recovery.noticed(`${code} for a blocked or group read`, limitMs).then(() => {
      // A client deleted or replaced it: what the server says of that is right, and asking again would never end.
      reading.refusal ??= reply;
      if (reading.streams.some((stream) => stream.ended)) return reading.refusal;
      // Nothing of ours was lost: the reply is about something else, such as a group that never was.
      const unmoved = reading.streams.every(
        (stream, at) => stream.epoch === reading.epochs[at] && recovery.gate.isOpen(stream),
      );
      return ofGroup && unmoved ? reading.refusal : again(reading);
    });
  }

  /** Takes out what is acknowledged already. `current`: the group stands where the reply ends, for nothing was restored since. */
  async function filter(reading: Reading, reply: Buffer, current: boolean): Promise<Buffer> {
    const { exchange, request: parsed } = reading;
    const name = parsed.group!.toString('latin1');
    const root = readReply(reply);
    if (root.items === undefined) return reply;
    const pairs: Buffer[] = [];
    let changed = false;
    const members = root.items;
    for (let at = 0; at < members.length; at += root.type === '%' ? 2 : 1) {
      const pair = root.type === '%' ? [members[at]!, members[at + 1]!] : members[at]!.items!;
      const [key, entries] = pair as [Reply, Reply];
      const isNewToGroup = readsNew(reading, key.bytes);
      const stream = isNewToGroup ? ledger.streams.find(exchange.session.database, key.bytes) : undefined;
      const group = stream?.groups.get(name);
      const kept =
        stream === undefined || group === undefined ? undefined : await unacknowledged(stream, group, entries, current);
      if (kept === undefined || kept.length === entries.items!.length) {
        pairs.push(...(root.type === '%' ? [key.raw, entries.raw] : [members[at]!.raw]));
        continue;
      }
      changed = true;
      if (kept.length === 0) continue;
      const left = aggregate(
        '*',
        kept.map((entry) => entry.raw),
      );
      pairs.push(...(root.type === '%' ? [key.raw, left] : [aggregate('*', [key.raw, left])]));
    }
    if (!changed) return reply;
    if (pairs.length > 0) return aggregate(root.type === '%' ? '%' : '*', pairs);
    if (exchange.queued) return encode.nullArray(exchange.session.protocol);
    if (parsed.blockAt !== undefined && Date.now() >= reading.until) return encode.nullArray(exchange.session.protocol);
    return again(reading);
  }

  /** The entries that must be delivered; the others are acknowledged. `undefined` where all must. */
  async function unacknowledged(
    stream: Stream,
    group: Group,
    entries: Reply,
    current: boolean,
  ): Promise<Reply[] | undefined> {
    const items = entries.items ?? [];
    const lasts = stream.restoredEpoch > 0 && !group.filtered;
    const set = await recorded(stream, group);
    const done: Buffer[] = [];
    const kept: Reply[] = [];
    let last: Buffer | undefined;
    for (const entry of items) {
      const idText = entry.items![0]!.bytes;
      const id = parseEntryId(idText)!;
      last = id;
      if (set.has(id)) done.push(idText);
      else kept.push(entry);
    }
    if (current && last !== undefined && last.compare(set.maxId) > 0) {
      group.filtered = true;
    }
    if (!lasts || group.filtered) ledger.acknowledgements.forget(group);
    if (done.length === 0) return undefined;
    // Where the KV store has just gone, it is told when it is back: recovery makes recorded acknowledgements again.
    await recovery.acknowledgements.acknowledge(stream, group.name, done).catch((thrown: unknown) => {
      if (!(thrown instanceof HoldfastError)) throw thrown;
    });
    return kept;
  }

  /**
   * What is recorded as acknowledged. The entries of this reply are pending now for who asked, and nobody else would be given them
   * soon: a Postgres that does not answer is waited for. Rejects with LEDGERDOWN after `holdMs`.
   */
  async function recorded(stream: Stream, group: Group): Promise<AcknowledgedSet> {
    const { postgres, acknowledgements } = ledger;
    for (const until = Date.now() + context.holdMs; ; ) {
      try {
        return await acknowledgements.filter(group, stream.restoredEpoch);
      } catch (thrown) {
        if (!postgres.failed(thrown)) throw thrown;
        const left = until - Date.now();
        if (left <= 0 || !(await postgres.whenAvailable(left))) {
          throw new HoldfastError(
            'LEDGERDOWN',
            'the ledger does not answer; what was read is pending for this consumer',
          );
        }
      }
    }
  }

  return {
    name: 'ledger-read',
    handles: (command) => command?.name === 'xread' || command?.name === 'xreadgroup',
    request,
  };
}
