/**
 * Which failures of Postgres pass by themselves (https://www.postgresql.org/docs/current/errcodes-appendix.html).
 * The one table: writer, recovery and readers all ask here.
 */
const RETRYABLE_CLASSES: ReadonlySet<string> = new Set([
  '08', // connection exception
  '53', // insufficient resources: disk full, out of memory, too many connections
  '58', // system error outside of Postgres: I/O
]);

const RETRYABLE_STATES: ReadonlySet<string> = new Set([
  '25P03', // idle in transaction session timeout
  '25006', // read only transaction: a standby, or a primary on its way down
  '40001', // serialization failure
  '40P01', // deadlock detected
  '55P03', // lock not available
  '57014', // query canceled, by statement_timeout
  '57P01', // admin shutdown
  '57P02', // crash shutdown
  '57P03', // cannot connect now: starting up, shutting down, in recovery
  '57P05', // idle session timeout
]);

/** Of the connection rather than of the statement: the next statement needs a new one. */
const RETRYABLE_ERRNO: ReadonlySet<string> = new Set([
  'ECONNREFUSED',
  'ECONNRESET',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'ENOENT', // a unix socket whose server is not there
  'EPIPE',
  'ETIMEDOUT',
  'EAI_AGAIN',
]);

export function sqlState(thrown: unknown): string | undefined {
  if (typeof thrown !== 'object' || thrown === null || !('code' in thrown)) return undefined;
  return typeof thrown.code === 'string' ? thrown.code : undefined;
}

/** Whether the same statement may succeed later without anybody changing it. */
export function isRetryable(thrown: unknown): boolean {
  const state = sqlState(thrown);
  if (state !== undefined && state.length === 5 && !RETRYABLE_ERRNO.has(state)) {
    return RETRYABLE_CLASSES.has(state.slice(0, 2)) || RETRYABLE_STATES.has(state);
  }
  if (state !== undefined) return RETRYABLE_ERRNO.has(state);
  // pg reports a connection that ended, or could not be had in time, as a plain Error without a code.
  return thrown instanceof Error && /connection|timeout|terminated|not queryable/i.test(thrown.message);
}

/**
 * Whether the statement may have been carried out all the same: the connection ended under it. What Postgres answers with an error it
 * has not done, and where no connection could be had nothing was sent.
 */
export function isUnknownOutcome(thrown: unknown): boolean {
  const state = sqlState(thrown);
  if (state !== undefined) return state === 'ECONNRESET' || state === 'EPIPE' || state === 'ETIMEDOUT';
  return thrown instanceof Error && /terminated unexpectedly|query read timeout|connection ended/i.test(thrown.message);
}

/** Retryable, and of this one statement: says nothing about the server's health. */
export function isContention(thrown: unknown): boolean {
  const state = sqlState(thrown);
  return state === '40001' || state === '40P01' || state === '55P03' || state === '57014';
}
