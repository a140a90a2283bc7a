/**
 * XGROUP on a ledgered stream. A group is in the ledger before its client hears that it exists, and is marked as changing
 * before a SETID or DESTROY goes out, so that no look takes the change for a loss and nobody brings the old group back.
 */
import { HoldfastError } from '../../errors.ts';
import type { Exchange, Interceptor } from '../../interceptor.ts';
import { formatEntryId } from '../../ledger/encoding/entry-id.ts';
import type { EndIntention } from '../../ledger/intention-store.ts';
import type { Stream } from '../../ledger/stream-registry.ts';
import * as encode from '../../resp/encode.ts';
import { beforeExec } from './before-exec.ts';
import { equalsWord, holdUntilOpen, knownStream, type LedgerContext } from './context.ts';

const HANDLED: ReadonlySet<string> = new Set(['xgroup|create', 'xgroup|setid', 'xgroup|destroy']);
const MINUS = 0x2d;
const ATTEMPTS_MAX = 3;

/** The KV store has no such group, or no such stream. */
function missesGroup(reply: Buffer): boolean {
  const text = reply.toString('latin1', 0, 60);
  return (
    text === ':0\r\n' || text.startsWith('-NOGROUP') || text.startsWith('-ERR The XGROUP subcommand requires the key')
  );
}

export function ledgerGroup(context: LedgerContext): Interceptor {
  const { ledger, recovery } = context;

  function unavailable(thrown: unknown): never {
    recovery.changes.report(thrown);
    throw new HoldfastError('LEDGERDOWN', 'the ledger does not answer; try again');
  }

  async function create(exchange: Exchange, key: Buffer, name: Buffer): Promise<void> {
    let stream: Stream | undefined;
    const begin = async (): Promise<void> => {
      if (knownStream(context, exchange, key) === undefined) context.streamLimit.take(exchange);
      stream = await ledger.streams.resolve(exchange.session.database, key).catch(unavailable);
    };
    exchange.onReply(async (reply) => {
      if (reply[0] !== MINUS && stream !== undefined) {
        await recovery.changes.takeInGroup(stream, name, false).catch(unavailable);
      }
      return reply;
    });
    if (exchange.queued) {
      beforeExec(exchange, begin);
      beginAtLast(exchange, knownStream(context, exchange, key));
      return;
    }
    if (await isRefused(exchange)) return;
    await begin();
    await holdUntilOpen(context, exchange, stream!);
    beginAtLast(exchange, stream);
  }

  /** The KV store does not have yet what the ledger will publish behind its last entry. */
  function beginAtLast(exchange: Exchange, stream: Stream | undefined): void {
    if (stream?.mode !== 'outage' || exchange.args[4]?.toString('latin1') !== '$') return;
    const last = Buffer.from(formatEntryId(stream.lastId));
    exchange.args = exchange.args.map((arg, at) => (at === 4 ? last : arg));
  }

  /** Whether the KV store does not let the session change groups of the stream; then its refusal is the answer. */
  async function isRefused(exchange: Exchange): Promise<boolean> {
    const refusal = await exchange.judge();
    if (refusal !== undefined) exchange.respond(refusal);
    return refusal !== undefined;
  }

  async function change(exchange: Exchange, stream: Stream, name: Buffer): Promise<void> {
    const settle = async (): Promise<void> => {
      await recovery.changes.takeInGroup(stream, name, true).catch(unavailable);
    };
    if (!stream.groups.has(name.toString('latin1'))) {
      if (!exchange.queued) await holdUntilOpen(context, exchange, stream);
      // Another sidecar may know it, or know this stream under the name that it had before.
      exchange.onReply(async (reply) => {
        if (reply[0] !== MINUS && reply.toString('latin1') !== ':0\r\n') await settle();
        return reply;
      });
      return;
    }
    let opened: EndIntention[] = [];
    const begin = async (): Promise<void> => {
      const group = stream.groups.get(name.toString('latin1'));
      if (group === undefined) return;
      const opening = { command: exchange.command!.name, ends: false, sent: recovery.sentUnder };
      opened = [await ledger.intentions.openGroupChange(stream.streamId, group.groupId, opening).catch(unavailable)];
      group.changing = true;
    };
    const doubt = (cause: unknown, clientId: number | undefined): void => {
      const connection = clientId === undefined ? undefined : { clientId, runId: recovery.runId };
      if (opened.length > 0) recovery.changes.leaveToLeader(opened, cause, connection);
    };
    /** It was not executed: as it was. */
    const cancel = async (): Promise<void> => {
      await recovery.changes.cancelSurely(opened);
      opened = [];
      await ledger.streams.refresh(stream.streamId).catch(unavailable);
    };
    const taken = async (): Promise<void> => {
      try {
        await settle();
        await recovery.changes.cancelSurely(opened);
      } catch (thrown) {
        doubt(thrown, undefined);
        throw thrown;
      }
    };
    exchange.onDiscard(() => void cancel().catch((thrown: unknown) => recovery.changes.report(thrown)));
    exchange.onDoubt(doubt);
    exchange.onReply(async (first) => {
      for (let reply = first, attempt = 1; ; attempt += 1) {
        if (!missesGroup(reply)) {
          if (reply[0] === MINUS) await cancel();
          else await taken();
          return reply;
        }
        // The ledger knows it: the KV store has lost it.
        await cancel();
        if (stream.ended || attempt === ATTEMPTS_MAX) return reply;
        await recovery.noticed('a command found no group where the ledger knows one', context.holdMs);
        if (exchange.queued) return reply;
        await holdUntilOpen(context, exchange, stream);
        await begin();
        reply = await exchange.resend().catch((thrown: unknown) => {
          doubt(thrown, undefined);
          throw thrown;
        });
      }
    });
    if (exchange.queued) {
      beforeExec(exchange, begin);
      return;
    }
    exchange.onLost((cause, clientId) => {
      doubt(cause, clientId);
      return encode.error(cause.toReplyText());
    });
    if (await isRefused(exchange)) return;
    await holdUntilOpen(context, exchange, stream);
    await begin();
  }

  return {
    name: 'ledger-group',
    handles: (command) => command !== undefined && HANDLED.has(command.name),
    request(exchange) {
      const [, subcommand, key, name] = exchange.args;
      if (subcommand === undefined || key === undefined || name === undefined) return;
      if (!recovery.ledgered(key)) return;
      if (equalsWord(subcommand, 'create')) return create(exchange, key, name);
      const stream = knownStream(context, exchange, key);
      if (stream === undefined) return;
      return change(exchange, stream, name);
    },
  };
}
