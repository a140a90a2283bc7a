/** All interceptors of the sidecar, in the order in which requests pass them; replies pass them the other way round. */
import { hideOwnKeysInterceptor } from './hide-own-keys.ts';
import { infoInterceptor } from './info.ts';
import type { Interceptor } from './interceptor.ts';
import type { LedgerContext } from './ledger-context.ts';
import { ledgerInterceptors } from './ledger-interceptors.ts';

export interface InterceptorParts {
  readonly ledger: LedgerContext;
  /** Names and values of INFO's section `# Holdfast`. */
  infoFields(): Readonly<Record<string, string | number>>;
}

export function createInterceptors(parts: InterceptorParts): Interceptor[] {
  return [infoInterceptor(parts.infoFields), hideOwnKeysInterceptor(), ...ledgerInterceptors(parts.ledger)];
}
