import type { Cache } from '../../cache/cache.ts';
import type { Interceptor } from '../../interceptor.ts';
import { getOrSetInterceptors } from './get-or-set.ts';
import { leaseInterceptors } from './leased-reads.ts';

/** Behind those of scopes, so that they see real keys. */
export function cacheInterceptors({ statistics, leases, rules }: Cache): Interceptor[] {
  return [
    ...getOrSetInterceptors({ statistics, leases, rules }),
    ...(leases === undefined ? [] : leaseInterceptors({ statistics, leases, rules })),
  ];
}
