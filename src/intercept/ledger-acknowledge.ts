/**
 * XACK on a ledgered stream: held like a read while the stream is in trouble; what it acknowledged is recorded. Where the
 * count says that not all of the IDs were pending, recovery finds out which are acknowledged.
 */
import { parseEntryId } from '../ledger/entry-id.ts';
import type { Group, Stream } from '../ledger/stream-registry.ts';
import { readReply } from '../resp/reply.ts';
import type { Exchange, Interceptor } from './interceptor.ts';
import { holdUntilOpen, knownStream, type LedgerContext } from './ledger-context.ts';

function idsOf(args: readonly Buffer[]): Buffer[] | undefined {
  const ids: Buffer[] = [];
  for (let at = 3; at < args.length; at += 1) {
    const id = parseEntryId(args[at]!, 'min');
    if (id === undefined) return undefined;
    ids.push(id);
  }
  return ids;
}

export function ledgerAcknowledge(context: LedgerContext): Interceptor {
  const { ledger, recovery } = context;

  function send(exchange: Exchange, stream: Stream, group: Group, ids: readonly Buffer[]): void {
    const { epoch } = stream;
    exchange.onReply((reply) => {
      const answer = readReply(reply);
      if (answer.type !== ':') return reply;
      const acknowledged = Number(answer.bytes.toString('latin1'));
      if (acknowledged === ids.length) ledger.acknowledgements.record(stream, group, epoch, ids);
      else recovery.recordUncertain(stream, group, epoch, ids);
      return reply;
    });
    if (exchange.queued) return;
    exchange.onLost(async () => {
      // Doing it twice changes nothing.
      await holdUntilOpen(context, exchange, stream);
      const reply = await exchange.resend();
      recovery.recordUncertain(stream, group, epoch, ids);
      return reply;
    });
  }

  return {
    name: 'ledger-acknowledge',
    handles: (command) => command?.name === 'xack',
    request(exchange) {
      const stream = knownStream(context, exchange, exchange.args[1]);
      const group = stream?.groups.get(exchange.args[2]?.toString('latin1') ?? '');
      if (stream === undefined || group === undefined) return;
      const ids = idsOf(exchange.args);
      if (ids === undefined) return;
      if (recovery.isOpen(stream) || exchange.queued) {
        send(exchange, stream, group, ids);
        return;
      }
      return holdUntilOpen(context, exchange, stream).then(() => send(exchange, stream, group, ids));
    },
  };
}
