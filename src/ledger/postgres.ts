/**
 * The connection to Postgres: a pool, and whether it answers. `available` is a fact to branch on without waiting: a failed
 * statement makes a probe, which decides; while it fails it is repeated.
 */
import pg from 'pg';
import type { Logger } from 'pino';
import { messageOf } from '../errors.ts';
import { isContention, isRetryable } from './sqlstate.ts';

const PROBE_MS = 200;
const PROBE_TIMEOUT_MS = 500;
const CONNECT_TIMEOUT_MS = 3000;
const IDLE_IN_TRANSACTION_MS = 3000;

export interface Postgres {
  readonly pool: pg.Pool;
  readonly available: boolean;
  /** Takes note of a failed statement; true where the same statement may succeed later. */
  failed(thrown: unknown): boolean;
  /** Resolves with true once a statement succeeds again, with false after `limitMs`. */
  whenAvailable(limitMs: number): Promise<boolean>;
  /** A connection of its own, outside of the pool: for LISTEN and for what a session holds. */
  connect(): Promise<pg.Client>;
  close(): Promise<void>;
}

export function connectPostgres(options: {
  readonly databaseUrl: string;
  readonly connectionsMax: number;
  readonly statementTimeoutMs: number;
  readonly log: Logger;
}): Postgres {
  const connection = {
    connectionString: options.databaseUrl,
    connectionTimeoutMillis: CONNECT_TIMEOUT_MS,
    keepAlive: true,
    application_name: 'holdfast',
  };
  const pool = new pg.Pool({
    ...connection,
    max: options.connectionsMax,
    // The server's own limit frees its locks; ours notices a server that no longer answers at all.
    statement_timeout: options.statementTimeoutMs,
    // A process that is stopped in the middle of a transaction must not hold a stream's lock.
    idle_in_transaction_session_timeout: IDLE_IN_TRANSACTION_MS,
    query_timeout: options.statementTimeoutMs + 1000,
  });
  // An idle connection that breaks is no event of its own: the next statement will tell.
  // One that breaks while it is lent out tells with its next statement, too.
  pool.on('connect', (client) => client.on('error', () => undefined));
  pool.on('error', (thrown) => options.log.debug({ err: thrown }, 'idle ledger connection lost'));

  let available = true;
  let closed = false;
  let probing = false;
  let next: NodeJS.Timeout | undefined;
  const waiting = new Set<() => void>();

  // One connection that broke says nothing of the server: the probe does, on another one.
  const probe = (): void => {
    if (closed || probing) return;
    probing = true;
    const slow = setTimeout(() => become(false), PROBE_TIMEOUT_MS);
    pool.query('SELECT 1').then(
      () => {
        clearTimeout(slow);
        probing = false;
        become(true);
      },
      () => {
        clearTimeout(slow);
        probing = false;
        become(false);
        if (!closed) next = setTimeout(probe, PROBE_MS);
      },
    );
  };

  const become = (now: boolean): void => {
    if (now !== available && !closed) {
      if (now) options.log.warn('the ledger answers again');
      else options.log.error('the ledger does not answer');
    }
    available = now;
    if (now) for (const wake of [...waiting]) wake();
  };

  return {
    pool,
    get available() {
      return available;
    },
    failed(thrown) {
      if (!isRetryable(thrown)) return false;
      if (isContention(thrown)) return true;
      options.log.debug({ err: messageOf(thrown) }, 'a statement to the ledger failed');
      probe();
      return true;
    },
    whenAvailable(limitMs) {
      if (available) return Promise.resolve(true);
      return new Promise((resolve) => {
        const wake = (): void => {
          clearTimeout(limit);
          waiting.delete(wake);
          resolve(available);
        };
        const limit = setTimeout(wake, limitMs);
        waiting.add(wake);
      });
    },
    async connect() {
      const client = new pg.Client(connection);
      client.on('error', (thrown) => options.log.debug({ err: thrown }, 'ledger session lost'));
      await client.connect();
      return client;
    },
    async close() {
      closed = true;
      clearTimeout(next);
      for (const wake of [...waiting]) wake();
      await pool.end();
    },
  };
}
