/** Which mistake around the ledger's database an error of Postgres shows at the start, with the remedy. */
import { messageOf } from '../errors.ts';
import { sqlState } from './sqlstate.ts';

/** Objects of the schema that are not there. */
const MISSING: ReadonlySet<string> = new Set(['42P01', '42703', '42883', '3F000']);
const INSUFFICIENT_PRIVILEGE = '42501';
const LOCK_NOT_AVAILABLE = '55P03';
const READ_ONLY = '25006';

/** `ledger.database: …`, on one line. */
export function explainLedgerFailure(thrown: unknown): string {
  const state = sqlState(thrown);
  const message = messageOf(thrown);
  if (state !== undefined && MISSING.has(state)) {
    return `ledger.database: the schema holdfast is not whole: ${message}; restore the database from a backup, or DROP SCHEMA holdfast CASCADE to begin an empty ledger`;
  }
  if (state === INSUFFICIENT_PRIVILEGE) {
    return `ledger.database: ${message}; the role of the URL must own the schema holdfast: CREATE SCHEMA holdfast AUTHORIZATION role, or GRANT CREATE ON DATABASE … TO role`;
  }
  if (state === LOCK_NOT_AVAILABLE) {
    return `ledger.database: a migration waits for a lock that another session holds: ${message}; see pg_locks and pg_stat_activity`;
  }
  if (state === READ_ONLY) {
    return `ledger.database: this Postgres does not take writes: ${message}; connect to the primary, without default_transaction_read_only`;
  }
  return `ledger.database: ${message}`;
}
