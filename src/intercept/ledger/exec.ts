/**
 * EXEC: what its commands need of the ledger first. XADDs fix the epochs under which their IDs will be given, deletions
 * commit their intentions, and all wait for streams that are in trouble. Replies are each member's own.
 */
import { HoldfastError } from '../../errors.ts';
import type { Interceptor } from '../../interceptor.ts';
import { stepBeforeExec } from './before-exec.ts';

export function ledgerExec(): Interceptor {
  return {
    name: 'ledger-exec',
    handles: (command) => command?.name === 'exec',
    request(exchange) {
      const { transaction } = exchange;
      for (let at = 0; at < transaction.length; at += 1) {
        const waiting = stepBeforeExec(transaction[at]!)?.();
        if (waiting === undefined) continue;
        return waiting.then(async () => {
          for (const member of transaction.slice(at + 1)) {
            if (exchange.session.closed) throw new HoldfastError('ERR', 'the client is gone');
            await stepBeforeExec(member)?.();
          }
        });
      }
    },
  };
}
