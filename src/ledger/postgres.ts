/**
 * The connection to Postgres: a pool, and whether it answers and takes entries. `available` is a fact to branch on without waiting: a
 * failed statement makes a probe, which decides; while it fails it is repeated.
 */
import type { Socket } from 'node:net';
import pg from 'pg';
import type { Logger } from 'pino';
import { messageOf } from '../errors.ts';
import { isContention, isRetryable } from './sqlstate.ts';
import { probeWrite } from './write-probe.ts';

const PROBE_MS = 200;
const PROBE_TIMEOUT_MS = 500;
const CONNECT_TIMEOUT_MS = 3000;
const IDLE_IN_TRANSACTION_MS = 3000;
const KEEP_ALIVE_MS = 5000;
/** A session whose short statement has no answer for so long is as good as ended: its end may never be heard of. */
export const SESSION_ANSWER_MS = 3000;
const GOODBYE_MS = 500;

export interface Postgres {
  readonly pool: pg.Pool;
  readonly available: boolean;
  /** Takes note of a failed statement; true where the same statement may succeed later. */
  failed(thrown: unknown): boolean;
  /** Resolves with true once a statement succeeds again, with false after `limitMs`. */
  whenAvailable(limitMs: number): Promise<boolean>;
  /**
   * A connection of its own, outside of the pool: for LISTEN and for what a session holds. With `answerMs` a statement that is not
   * answered by then rejects; the session is good for nothing afterwards.
   */
  connect(answerMs?: number): Promise<pg.Client>;
  close(): Promise<void>;
}

/** Ends a session of `Postgres.connect`, also where the other end says nothing any more. Never rejects. */
export async function endSession(session: pg.Client): Promise<void> {
  const { stream } = (session as unknown as { readonly connection: { readonly stream: Socket } }).connection;
  const silent = setTimeout(() => stream.destroy(), GOODBYE_MS);
  await session.end().catch(() => undefined);
  clearTimeout(silent);
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
    // A session that only listens sends nothing by itself: the network may forget it, and no end of it would be seen.
    keepAliveInitialDelayMillis: KEEP_ALIVE_MS,
    application_name: 'holdfast',
  };
  const pool = new pg.Pool({
    ...connection,
    max: options.connectionsMax,
    // The server's own limit frees its locks; ours notices a server that no longer answers at all. A process that is stopped in the middle
    // of a transaction must not hold a stream's lock. By SET, since a pooler in session mode refuses both as startup parameters.
    onConnect: async (client) => {
      await client.query(
        `SET statement_timeout = ${options.statementTimeoutMs}; SET idle_in_transaction_session_timeout = ${IDLE_IN_TRANSACTION_MS}`,
      );
    },
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
    const slow = setTimeout(() => become(false, `no answer within ${PROBE_TIMEOUT_MS} ms`), PROBE_TIMEOUT_MS);
    probeWrite(pool).then(
      () => {
        clearTimeout(slow);
        probing = false;
        become(true);
      },
      (thrown: unknown) => {
        clearTimeout(slow);
        probing = false;
        become(false, messageOf(thrown));
        if (!closed) next = setTimeout(probe, PROBE_MS);
      },
    );
  };

  const become = (now: boolean, reason?: string): void => {
    if (now !== available && !closed) {
      if (now) options.log.warn('the ledger takes entries again');
      else options.log.error({ err: reason }, 'the ledger takes no entries');
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
    async connect(answerMs) {
      const client = new pg.Client({ ...connection, ...(answerMs !== undefined && { query_timeout: answerMs }) });
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
