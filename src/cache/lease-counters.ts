/** Since the start, but for `waiting` and `held`. */
export interface LeaseCounters {
  granted: number;
  waits: number;
  /** Clients that waited and got the value. */
  saved: number;
  /** Clients that were told to fetch after `waitMs`. */
  waitsExpired: number;
  /** Leases whose holder took more than `leaseMs`. */
  expired: number;
  /** Leases that ended because their holder's connection did. */
  abandoned: number;
  /** Leases that ended because the key was deleted. */
  voided: number;
  /** Late writes that were not stored. */
  fenced: number;
  /** Misses without a lease: at a limit, or no word from the KV store. */
  unguarded: number;
  waitMsTotal: number;
  waiting: number;
  held: number;
}

export function noLeaseCounters(): LeaseCounters {
  return {
    granted: 0,
    waits: 0,
    saved: 0,
    waitsExpired: 0,
    expired: 0,
    abandoned: 0,
    voided: 0,
    fenced: 0,
    unguarded: 0,
    waitMsTotal: 0,
    waiting: 0,
    held: 0,
  };
}
