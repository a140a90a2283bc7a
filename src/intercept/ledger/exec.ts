/**
 * EXEC: what its commands need of the ledger first, once the KV store has queued them all; where it has refused one it will
 * execute none, and nothing is begun. XADDs fix the epochs under which their IDs will be given, deletions
 * commit their intentions, and all wait for streams that are in trouble. Replies are each member's own.
 */
import { HoldfastError } from '../../errors.ts';
import type { Exchange, Interceptor } from '../../interceptor.ts';
import { stepBeforeExec } from './before-exec.ts';

function begin(exchange: Exchange, members: readonly Exchange[]): void | Promise<void> {
  for (let at = 0; at < members.length; at += 1) {
    const waiting = stepBeforeExec(members[at]!)?.();
    if (waiting === undefined) continue;
    return waiting.then(async () => {
      for (const member of members.slice(at + 1)) {
        if (exchange.session.closed) throw new HoldfastError('ERR', 'the client is gone');
        await stepBeforeExec(member)?.();
      }
    });
  }
}

export function ledgerExec(): Interceptor {
  return {
    name: 'ledger-exec',
    handles: (command) => command?.name === 'exec',
    request(exchange) {
      const members = exchange.transaction.filter((member) => stepBeforeExec(member) !== undefined);
      if (members.length === 0) return;
      const queued = members.map((member) => member.inQueue());
      if (queued.every((there) => there === true)) return begin(exchange, members);
      return Promise.all(queued).then((all) => (all.every(Boolean) ? begin(exchange, members) : undefined));
    },
  };
}
