/**
 * All other stream commands on a ledgered stream: not sent while it is compared or restored, and sent again where the KV
 * store became another one between request and reply, since that reply told of a stream that had been lost.
 */
import type { CommandEntry } from '../command/command.ts';
import type { Stream } from '../ledger/stream-registry.ts';
import type { Exchange, Interceptor } from './interceptor.ts';
import { holdUntilOpen, knownStream, type LedgerContext } from './ledger-context.ts';

/** Where each command has its stream; the reads among them may be asked twice. */
const COMMANDS: ReadonlyMap<string, { readonly key: number; readonly read: boolean }> = new Map([
  ['xlen', { key: 1, read: true }],
  ['xrange', { key: 1, read: true }],
  ['xrevrange', { key: 1, read: true }],
  ['xpending', { key: 1, read: true }],
  ['xinfo|stream', { key: 2, read: true }],
  ['xinfo|groups', { key: 2, read: true }],
  ['xinfo|consumers', { key: 2, read: true }],
  ['xclaim', { key: 1, read: false }],
  ['xautoclaim', { key: 1, read: false }],
]);

function place(command: CommandEntry | undefined): { readonly key: number; readonly read: boolean } | undefined {
  return command === undefined ? undefined : COMMANDS.get(command.name);
}

export function ledgerHold(context: LedgerContext): Interceptor {
  const { recovery } = context;

  function watch(exchange: Exchange, stream: Stream): void {
    const { era } = recovery;
    exchange.onReply((reply) => {
      if (recovery.era === era) return reply;
      return holdUntilOpen(context, exchange, stream).then(() => exchange.resend());
    });
    exchange.onLost(async () => {
      await holdUntilOpen(context, exchange, stream);
      return exchange.resend();
    });
  }

  return {
    name: 'ledger-hold',
    handles: (command) => place(command) !== undefined,
    request(exchange) {
      const { key, read } = place(exchange.command)!;
      const stream = knownStream(context, exchange, exchange.args[key]);
      if (stream === undefined || exchange.queued) return;
      if (recovery.isOpen(stream)) {
        if (read) watch(exchange, stream);
        return;
      }
      return holdUntilOpen(context, exchange, stream).then(() => {
        if (read) watch(exchange, stream);
      });
    },
  };
}
