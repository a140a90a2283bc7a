/**
 * XGROUP on a ledgered stream. A group is in the ledger before its client hears that it exists, and is marked as changing
 * before a SETID or DESTROY goes out, so that no look takes the change for a loss and nobody brings the old group back.
 */
import { HoldfastError } from '../../errors.ts';
import type { Exchange, Interceptor } from '../../interceptor.ts';
import { formatEntryId } from '../../ledger/encoding/entry-id.ts';
import type { Stream } from '../../ledger/stream-registry.ts';
import { beforeExec } from './before-exec.ts';
import { equalsWord, holdUntilOpen, knownStream, type LedgerContext } from './context.ts';

const HANDLED: ReadonlySet<string> = new Set(['xgroup|create', 'xgroup|setid', 'xgroup|destroy']);
const MINUS = 0x2d;

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
    const group = stream.groups.get(name.toString('latin1'));
    if (group === undefined) {
      if (!exchange.queued) await holdUntilOpen(context, exchange, stream);
      // Another sidecar may know it, or know this stream under the name that it had before.
      exchange.onReply(async (reply) => {
        if (reply[0] !== MINUS && reply.toString('latin1') !== ':0\r\n') await settle();
        return reply;
      });
      return;
    }
    let marked = false;
    const begin = async (): Promise<void> => {
      await ledger.groups.changing(group.groupId, true).catch(unavailable);
      group.changing = true;
      marked = true;
    };
    exchange.onDiscard(() => {
      if (!marked) return;
      // Not executed: as it was.
      group.changing = false;
      ledger.groups.changing(group.groupId, false).catch((thrown: unknown) => ledger.postgres.failed(thrown));
    });
    exchange.onReply(async (reply) => {
      if (reply[0] !== MINUS) await settle();
      else if (marked) {
        group.changing = false;
        await ledger.groups.changing(group.groupId, false).catch(unavailable);
      }
      return reply;
    });
    if (exchange.queued) {
      beforeExec(exchange, begin);
      return;
    }
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
