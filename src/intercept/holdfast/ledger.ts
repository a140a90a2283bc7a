/** HOLDFAST LEDGER: how great the ledger is, and whether everything in it that somebody still needs is in the KV store. */
import { HoldfastError } from '../../errors.ts';
import type { LedgerSize } from '../../ledger/retention/ledger-size.ts';
import type { VerifyReport } from '../../recovery/verify.ts';
import * as encode from '../../resp/encode.ts';
import type { HoldfastSubcommand } from './command.ts';

export interface LedgerAdmin {
  size(): Promise<LedgerSize>;
  verify(): Promise<VerifyReport>;
}

/** SIZE and VERIFY give JSON, for what they say is nested and grows. */
export function holdfastLedger(admin: LedgerAdmin): HoldfastSubcommand {
  return {
    name: 'ledger',
    admin: true,
    syntax: 'SIZE | VERIFY',
    summary: 'JSON: bytes, rows and partitions; or what an entry-by-entry comparison with the KV store finds.',
    async run(exchange, [verb, ...rest]) {
      const word = verb?.toString('latin1').toLowerCase();
      if (rest.length > 0 || (word !== 'size' && word !== 'verify')) {
        throw new HoldfastError('ERR', 'syntax: HOLDFAST LEDGER SIZE | VERIFY');
      }
      const report = await (word === 'size' ? admin.size() : admin.verify());
      exchange.respond(encode.bulk(JSON.stringify(report)));
    },
  };
}
