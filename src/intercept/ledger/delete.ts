/**
 * XDEL and XTRIM on a ledgered stream. What is deleted stays deleted: the intention is in the ledger before the command
 * goes out, so that a restore by any sidecar leaves those entries out. After XTRIM the stream's new floor is.
 */
import { HoldfastError } from '../../errors.ts';
import type { Exchange, Interceptor } from '../../interceptor.ts';
import { parseEntryId } from '../../ledger/encoding/entry-id.ts';
import type { DeleteState } from '../../ledger/intention-store.ts';
import type { Stream } from '../../ledger/stream-registry.ts';
import { beforeExec } from './before-exec.ts';
import { holdUntilOpen, holdUntilWhole, knownStream, type LedgerContext } from './context.ts';

const COLON = 0x3a;
/** Whether entries may be deleted is independent of which. */
const ANY_ID = Buffer.from('0');

export function ledgerDelete(context: LedgerContext): Interceptor {
  const { ledger, recovery } = context;

  function unavailable(thrown: unknown): never {
    recovery.changes.report(thrown);
    throw new HoldfastError('LEDGERDOWN', 'the ledger does not answer; nothing was deleted, try again');
  }

  function concatenated(args: readonly Buffer[]): Buffer | undefined {
    const ids: Buffer[] = [];
    for (let at = 2; at < args.length; at += 1) {
      const id = parseEntryId(args[at]!, 'min');
      if (id === undefined) return undefined;
      ids.push(id);
    }
    return Buffer.concat(ids);
  }

  async function open(exchange: Exchange, stream: Stream, ids: Buffer): Promise<DeleteState> {
    for (;;) {
      await holdUntilOpen(context, exchange, stream);
      const state = await ledger.intentions
        .openDelete({ streamId: stream.streamId, ids, sent: recovery.sentUnder })
        .catch(unavailable);
      if (state.normal) return state;
      // This process had not heard yet that the stream is in trouble, or the ledger alone has the entry.
      await ledger.intentions.settleDelete({ intentionId: state.intentionId, deleted: false }).catch(unavailable);
      await ledger.streams.refresh(stream.streamId).catch(unavailable);
      await holdUntilWhole(context, exchange, stream);
    }
  }

  async function settled(exchange: Exchange, stream: Stream, opened: DeleteState, reply: Buffer): Promise<Buffer> {
    const deleted = reply[0] === COLON;
    if (!deleted) {
      await refused(stream, opened);
      return reply;
    }
    const now = await ledger.intentions.settleDelete({ intentionId: opened.intentionId, deleted }).catch(unavailable);
    // A restore began in between and may have read the entry before it heard of the intention.
    if ((now.normal && now.epoch === opened.epoch) || exchange.queued) return reply;
    await ledger.streams.refresh(stream.streamId).catch(unavailable);
    await holdUntilOpen(context, exchange, stream);
    await exchange.resend();
    return reply;
  }

  /** Nothing was deleted. What a restore has left out for it in between comes back. */
  async function refused(stream: Stream, { intentionId, epoch }: DeleteState): Promise<void> {
    await ledger.intentions.cancelDeleteSurely(intentionId);
    await ledger.streams.refresh(stream.streamId).catch(unavailable);
    if (stream.ended || stream.epoch === epoch) return;
    await recovery
      .proved(stream, stream.epoch, 'entries were left out for a deletion that was refused', context.holdMs)
      .catch(unavailable);
  }

  function remove(exchange: Exchange, stream: Stream): void | Promise<void> {
    const ids = concatenated(exchange.args);
    if (ids === undefined) return;
    let opened: DeleteState | undefined;
    const begin = async (): Promise<void> => {
      const refusal = exchange.queued ? undefined : await exchange.judge([...exchange.args.slice(0, 2), ANY_ID]);
      if (refusal === undefined) opened = await open(exchange, stream, ids);
      else exchange.respond(refusal);
    };
    exchange.onReply((reply) => (opened === undefined ? reply : settled(exchange, stream, opened, reply)));
    exchange.onDiscard(() => {
      if (opened !== undefined) void ledger.intentions.cancelDeleteSurely(opened.intentionId);
    });
    const doubt = (cause: unknown, clientId: number | undefined): void => {
      if (opened === undefined) return;
      const { streamId } = stream;
      const connection = clientId === undefined ? undefined : { clientId, runId: recovery.runId };
      recovery.changes.leaveToLeader([{ intentionId: opened.intentionId, streamId }], cause, connection);
    };
    exchange.onDoubt(doubt);
    if (exchange.queued) {
      beforeExec(exchange, begin);
      return;
    }
    exchange.onLost(async (_, clientId) => {
      // Doing it twice changes nothing; the intention stands meanwhile.
      try {
        await holdUntilOpen(context, exchange, stream);
        return await settled(exchange, stream, opened!, await exchange.resend());
      } catch (thrown) {
        doubt(thrown, clientId);
        throw thrown;
      }
    });
    return begin();
  }

  function trim(exchange: Exchange, stream: Stream): void | Promise<void> {
    exchange.onReply((reply) => {
      if (reply[0] !== COLON) return reply;
      return recovery.changes
        .takeInFloor(stream)
        .catch(unavailable)
        .then(() => reply);
    });
    if (exchange.queued || recovery.gate.isWhole(stream)) return;
    return holdUntilWhole(context, exchange, stream);
  }

  return {
    name: 'ledger-delete',
    handles: (command) => command?.name === 'xdel' || command?.name === 'xtrim',
    request(exchange) {
      const stream = knownStream(context, exchange, exchange.args[1]);
      if (stream === undefined) return;
      return exchange.command!.name === 'xdel' ? remove(exchange, stream) : trim(exchange, stream);
    },
  };
}
