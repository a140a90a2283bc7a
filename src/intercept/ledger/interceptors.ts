/** Everything Holdfast does to commands on ledgered streams, in the order in which requests pass it. */
import type { Interceptor } from '../../interceptor.ts';
import { ledgerAcknowledge } from './acknowledge.ts';
import type { LedgerContext } from './context.ts';
import { ledgerDelete } from './delete.ts';
import { ledgerExec } from './exec.ts';
import { ledgerGroup } from './group.ts';
import { ledgerHold } from './hold.ts';
import { ledgerRead } from './read.ts';
import { ledgerReshape } from './reshape.ts';
import { ledgerScripts } from './script.ts';
import { ledgerXadd } from './xadd.ts';

export function ledgerInterceptors(context: LedgerContext): Interceptor[] {
  return [
    ledgerXadd(context),
    ledgerRead(context),
    ledgerAcknowledge(context),
    ledgerGroup(context),
    ledgerDelete(context),
    ledgerReshape(context),
    ledgerHold(context),
    ...ledgerScripts(context),
    ledgerExec(),
  ];
}
