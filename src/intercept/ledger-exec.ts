/**
 * EXEC with ledgered XADDs in it: goes out when all their streams are open, which fixes the epochs under which their IDs
 * will have been given. Each of them commits when it sees its member of the reply.
 */
import { HoldfastError } from '../errors.ts';
import type { Exchange, Interceptor } from './interceptor.ts';
import { holdUntilOpen, type LedgerContext } from './ledger-context.ts';
import { queuedXadd, type XaddExchange } from './ledger-xadd.ts';

export function ledgerExec(context: LedgerContext): Interceptor {
  const { ledger, recovery } = context;

  function fix(xadds: readonly XaddExchange[]): void {
    for (const xadd of xadds) xadd.epoch = xadd.stream.epoch;
  }

  async function hold(exchange: Exchange, xadds: readonly XaddExchange[]): Promise<void> {
    // One may close while another is waited for.
    while (!xadds.every((xadd) => recovery.isOpen(xadd.stream))) {
      for (const xadd of xadds) {
        if (recovery.isOpen(xadd.stream)) continue;
        await holdUntilOpen(context, exchange, xadd.stream);
        if (xadd.stream.ended) xadd.stream = await ledger.streams.resolve(xadd.stream.database, xadd.stream.name);
      }
    }
    fix(xadds);
  }

  return {
    name: 'ledger-exec',
    handles: (command) => command?.name === 'exec',
    request(exchange) {
      if (exchange.transaction.length === 0) return;
      const xadds: XaddExchange[] = [];
      for (const member of exchange.transaction) {
        const xadd = queuedXadd(member);
        if (xadd !== undefined) xadds.push(xadd);
      }
      if (xadds.length === 0) return;
      if (!ledger.writer.accepting && context.onFailure === 'refuse') {
        throw new HoldfastError('LEDGERDOWN', 'the ledger does not take entries now; nothing was executed, try again');
      }
      if (!xadds.every((xadd) => recovery.isOpen(xadd.stream))) return hold(exchange, xadds);
      fix(xadds);
      return;
    },
  };
}
