/** Everything Holdfast does to commands on ledgered streams, in the order in which requests pass it. */
import type { Interceptor } from './interceptor.ts';
import { ledgerAcknowledge } from './ledger-acknowledge.ts';
import type { LedgerContext } from './ledger-context.ts';
import { ledgerDelete } from './ledger-delete.ts';
import { ledgerExec } from './ledger-exec.ts';
import { ledgerGroup } from './ledger-group.ts';
import { ledgerHold } from './ledger-hold.ts';
import { ledgerRead } from './ledger-read.ts';
import { ledgerReshape } from './ledger-reshape.ts';
import { ledgerXadd } from './ledger-xadd.ts';

export function ledgerInterceptors(context: LedgerContext): Interceptor[] {
  return [
    ledgerXadd(context),
    ledgerRead(context),
    ledgerAcknowledge(context),
    ledgerGroup(context),
    ledgerDelete(context),
    ledgerReshape(context),
    ledgerHold(context),
    ledgerExec(),
  ];
}
