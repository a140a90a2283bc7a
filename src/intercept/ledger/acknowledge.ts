/**
 * XACK on a ledgered stream: what it acknowledged is recorded. While the KV store is down the ledger takes it alone, and
 * it is applied afterwards. Where the count says that not all of the IDs were pending, recovery finds out which of them
 * are acknowledged; after a restore those are among them that had been delivered before the loss.
 */

import { HoldfastError } from '../../errors.ts';
import type { Exchange, Interceptor } from '../../interceptor.ts';
import { parseEntryId } from '../../ledger/encoding/entry-id.ts';
import type { Group, Stream } from '../../ledger/stream-registry.ts';
import * as encode from '../../resp/encode.ts';
import { readReply } from '../../resp/reply.ts';
import { knownStream, type LedgerContext, ledgerDown, recovering } from './context.ts';

/** While waiting, whether the KV store has gone down is looked at so often. */
const RECHECK_MS = 50;

function idsOf(args: readonly Buffer[]): Buffer[] | undefined {
  const ids = new Map<string, Buffer>();
  for (let at = 3; at < args.length; at += 1) {
    const id = parseEntryId(args[at]!, 'min');
    if (id === undefined) return undefined;
    ids.set(id.toString('latin1'), id);
  }
  return [...ids.values()];
}

export function ledgerAcknowledge(context: LedgerContext): Interceptor {
  const { ledger, recovery } = context;

  function send(exchange: Exchange, stream: Stream, group: Group, ids: readonly Buffer[]): void {
    const { epoch } = stream;
    exchange.onReply((reply) => {
      const answer = readReply(reply);
      if (answer.type !== ':') return reply;
      const acknowledged = Number(answer.bytes.toString('latin1'));
      if (acknowledged === ids.length) {
        ledger.acknowledgements.record(stream, group, epoch, ids);
        return reply;
      }
      const uncertain = recovery.acknowledgements.recordUncertain(stream, group, epoch, ids);
      // Restored and not read again yet: what was delivered before the loss counts as it would have without one.
      if (stream.restoredEpoch === 0 || group.filtered) return reply;
      return uncertain.then((earlier) => encode.integer(acknowledged + earlier));
    });
    // Doing it twice changes nothing.
    if (!exchange.queued) exchange.onLost(() => again(exchange, stream, group, ids));
  }

  async function again(exchange: Exchange, stream: Stream, group: Group, ids: readonly Buffer[]): Promise<Buffer> {
    const answered = await settle(exchange, stream, group, ids);
    if (answered !== undefined) return answered;
    const reply = await exchange.resend();
    void recovery.acknowledgements.recordUncertain(stream, group, stream.epoch, ids);
    return reply;
  }

  /** Waits until XACK may be forwarded, then gives nothing; or lets the ledger take it, then gives the reply. */
  async function settle(
    exchange: Exchange,
    stream: Stream,
    group: Group,
    ids: readonly Buffer[],
  ): Promise<Buffer | undefined> {
    const until = Date.now() + context.holdMs;
    for (;;) {
      const settled = await recovery.gate.reopened(
        stream,
        Math.min(until - Date.now(), RECHECK_MS),
        () => !exchange.session.closed,
      );
      if (settled !== 'timeout') return undefined;
      if (recovery.gate.state === 'down') {
        if (!exchange.session.admitted) {
          throw new HoldfastError('KVDOWN', 'the KV store cannot be reached, and has not let this user in before');
        }
        ledger.acknowledgements.record(stream, group, stream.epoch, ids);
        recovery.acknowledgements.owe(stream, group.name, ids);
        await ledger.acknowledgements.flush().catch(ledgerDown(context, 'it is recorded as soon as it does'));
        return encode.integer(ids.length);
      }
      if (Date.now() >= until || exchange.session.closed) throw recovering(stream);
    }
  }

  return {
    name: 'ledger-acknowledge',
    handles: (command) => command?.name === 'xack',
    request(exchange) {
      const stream = knownStream(context, exchange, exchange.args[1]);
      const group = stream?.groups.get(exchange.args[2]?.toString('latin1') ?? '');
      if (stream === undefined || group === undefined) return;
      const ids = idsOf(exchange.args);
      if (ids === undefined || ids.length === 0) return;
      if (recovery.gate.isOpen(stream) || exchange.queued) {
        send(exchange, stream, group, ids);
        return;
      }
      return settle(exchange, stream, group, ids).then((answered) => {
        if (answered === undefined) send(exchange, stream, group, ids);
        else exchange.respond(answered);
      });
    },
  };
}
