/**
 * Whether the process that opened an intention is still there: its LISTEN session holds a lock in its name, which goes with
 * the session. While that session is made anew the lock is missing for a moment, so nothing is concluded from that at once.
 */
import type pg from 'pg';

/** 'HF' and a number, in the first half of the two-part keys. */
const OWNER_LOCKS = 0x4846_0003;

export async function holdOwnerLock(session: pg.Client, owner: string): Promise<void> {
  await session.query('SELECT pg_advisory_lock_shared($1, hashtext($2))', [OWNER_LOCKS, owner]);
}

/** SQL: true where no session holds the lock of the owner that is in `column`. */
export function ownerIsGone(column: string): string {
  return `NOT EXISTS (
    SELECT FROM pg_locks
     WHERE locktype = 'advisory' AND granted AND objsubid = 2 AND classid = ${OWNER_LOCKS}
       AND objid::bigint = (hashtext(${column})::bigint & 4294967295)
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`;
}
