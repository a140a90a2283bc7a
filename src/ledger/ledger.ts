/**
 * The ledger in Postgres, as one process of Holdfast holds it: migrations, the writers, what is known of the streams,
 * and the session that hears what other sidecars did.
 */
import { randomUUID } from 'node:crypto';
import type pg from 'pg';
import type { Logger } from 'pino';
import { HoldfastError, messageOf } from '../errors.ts';
import { explainLedgerFailure } from './explain-failure.ts';
import { GroupStore } from './group-store.ts';
import { IntentionStore } from './intention-store.ts';
import { KvRegistry } from './kv-registry.ts';
import { migrate } from './migrate.ts';
import { holdOwnerLock } from './owner-lock.ts';
import { connectPostgres, endSession, type Postgres, SESSION_ANSWER_MS } from './postgres.ts';
import { StreamRegistry } from './stream-registry.ts';
import { AcknowledgementWriter } from './write/acknowledgement-writer.ts';
import { type CommitLimits, type CommitMetrics, CommitWriter } from './write/commit-writer.ts';
import { OutageWriter } from './write/outage-writer.ts';

const MIGRATIONS = new URL('./sql/', import.meta.url);
const LISTEN_RETRY_MS = 250;

export const DEFAULT_COMMIT_LIMITS: CommitLimits = {
  batchRowsMax: 2000,
  batchBytesMax: 8 * 1024 * 1024,
  queueRowsMax: 200_000,
  queueBytesMax: 256 * 1024 * 1024,
  commitTimeoutMs: 10_000,
};

export interface LedgerOptions {
  /** A postgres:// URL. */
  readonly databaseUrl: string;
  /** Names this process for operators, e.g. host and pid. */
  readonly name: string;
  readonly log: Logger;
  readonly limits?: Partial<CommitLimits>;
  /** Every how many milliseconds acknowledgements are written. */
  readonly acknowledgementFlushMs?: number;
}

/**
 * What some process did: `look` asks to compare now, `backlog` to publish, `stream` changed that record, `published`
 * moved backlog of that stream to the KV store. Without a stream ID: maybe any.
 */
export interface LedgerNotice {
  readonly kind: 'look' | 'backlog' | 'stream' | 'published';
  readonly streamId?: number;
}

export interface Ledger {
  /** UUID of this ledger, made with its first migration; the witness in the KV store names it. */
  readonly identity: string;
  readonly name: string;
  readonly postgres: Postgres;
  readonly pool: pg.Pool;
  readonly streams: StreamRegistry;
  readonly writer: CommitWriter;
  readonly outage: OutageWriter;
  readonly acknowledgements: AcknowledgementWriter;
  readonly groups: GroupStore;
  readonly kv: KvRegistry;
  readonly intentions: IntentionStore;
  /** Calls `listener` for each notice, after the registry took it in. Gives the way to stop it. */
  onNotice(listener: (notice: LedgerNotice) => void): () => void;
  /** Sends a notice to all sidecars, this one included. */
  notify(notice: 'look' | 'backlog'): Promise<void>;
  metrics(): LedgerMetrics;
  close(): Promise<void>;
}

export interface LedgerMetrics {
  readonly available: boolean;
  readonly streams: number;
  readonly commit: CommitMetrics;
  readonly outage: ReturnType<OutageWriter['metrics']>;
  readonly acknowledgements: ReturnType<AcknowledgementWriter['metrics']>;
}

/** Connects and migrates. Throws `CONFIG` where the database cannot be reached or is none that a ledger can be in. */
export async function openLedger(options: LedgerOptions): Promise<Ledger> {
  const { log } = options;
  const limits: CommitLimits = { ...DEFAULT_COMMIT_LIMITS, ...options.limits };
  const postgres = connectPostgres({
    databaseUrl: options.databaseUrl,
    connectionsMax: 8,
    statementTimeoutMs: limits.commitTimeoutMs,
    log,
  });
  const { pool } = postgres;
  let identity: string;
  const streams = new StreamRegistry(pool);
  try {
    const session = await postgres.connect();
    try {
      await refuseSharedSessions(postgres, session);
      const applied = await migrate(session, MIGRATIONS, (seconds) =>
        log.warn({ seconds }, 'another process migrates this ledger; waiting for it'),
      );
      if (applied > 0) log.info({ applied }, 'ledger migrated');
      await refuseLooseDurability(session, log);
      const { rows } = await session.query<{ ledger: string }>('SELECT ledger FROM holdfast.identity');
      identity = rows[0]!.ledger;
    } finally {
      await endSession(session);
    }
    await streams.reload();
  } catch (thrown) {
    await postgres.close();
    if (thrown instanceof HoldfastError) throw thrown;
    throw new HoldfastError('CONFIG', explainLedgerFailure(thrown), { cause: thrown });
  }

  const writer = new CommitWriter({ postgres, registry: streams, limits, log });
  const outage = new OutageWriter({ postgres, limits, log });
  const acknowledgements = new AcknowledgementWriter({ postgres, flushMs: options.acknowledgementFlushMs ?? 200, log });
  const listeners = new Set<(notice: LedgerNotice) => void>();
  const heard = (notice: LedgerNotice): void => {
    for (const listener of listeners) listener(notice);
  };
  // Of this run of the process: the next one may have its name.
  const owner = `${options.name} ${randomUUID()}`;
  const kv = new KvRegistry(pool, owner, options.name);
  const listening = listen({ postgres, streams, owner, log, heard });
  await listening.started;

  return {
    identity,
    name: options.name,
    postgres,
    pool,
    streams,
    writer,
    outage,
    acknowledgements,
    groups: new GroupStore(pool),
    kv,
    intentions: new IntentionStore(pool, owner),
    onNotice(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    async notify(notice) {
      await pool.query('SELECT pg_notify($1, $2)', ['holdfast', notice]);
    },
    metrics: () => ({
      available: postgres.available,
      streams: streams.size,
      commit: writer.metrics(),
      outage: outage.metrics(),
      acknowledgements: acknowledgements.metrics(),
    }),
    async close() {
      await writer.close();
      await acknowledgements.close();
      if (postgres.available) await kv.leave().catch((thrown: unknown) => postgres.failed(thrown));
      await listening.stop();
      await postgres.close();
    },
  };
}

/**
 * A pooler that gives a session's server to others between transactions (PgBouncer's transaction and statement mode) breaks LISTEN, the
 * locks that sessions hold and prepared statements, silently. Two sessions that stand on one server at the same time show it.
 */
async function refuseSharedSessions(postgres: Postgres, first: pg.Client): Promise<void> {
  const serverOf = async (session: pg.Client): Promise<number> => {
    const { rows } = await session.query<{ pid: number }>('SELECT pg_backend_pid() AS pid');
    return rows[0]!.pid;
  };
  const before = await serverOf(first);
  const second = await postgres.connect(SESSION_ANSWER_MS);
  try {
    // Statement mode refuses it.
    if (!(await began(second))) throw new HoldfastError('CONFIG', SHARED_SESSIONS);
    if ((await serverOf(second)) !== before && (await serverOf(first)) === before) return;
  } finally {
    await endSession(second);
  }
  throw new HoldfastError('CONFIG', SHARED_SESSIONS);
}

async function began(session: pg.Client): Promise<boolean> {
  return session.query('BEGIN').then(
    () => true,
    () => false,
  );
}

const SHARED_SESSIONS =
  'ledger.database: a connection pooler in transaction or statement mode stands in front of Postgres, which breaks LISTEN and ' +
  'session locks; connect to Postgres itself, or set pool_mode = session for this database';

/** A commit that is not on disk is no commit. */
async function refuseLooseDurability(session: pg.Client, log: Logger): Promise<void> {
  const { rows } = await session.query<{ fsync: string; synchronous: string; version: number }>(
    `SELECT current_setting('fsync') AS fsync, current_setting('synchronous_commit') AS synchronous,
            current_setting('server_version_num')::integer AS version`,
  );
  const { fsync, synchronous, version } = rows[0]!;
  if (version < 150_000) {
    throw new HoldfastError(
      'CONFIG',
      `ledger.database: Postgres 15 or newer is needed, this is ${(version / 10_000) | 0}`,
    );
  }
  if (synchronous === 'off') {
    throw new HoldfastError(
      'CONFIG',
      'ledger.database: synchronous_commit is off, a crash of Postgres would lose acknowledged events; ALTER ROLE … SET synchronous_commit = on',
    );
  }
  if (fsync === 'off') log.warn('ledger.database: fsync is off, a crash of its machine loses acknowledged events');
}

/** The LISTEN session: reconnects for ever, and reads everything again after it was away. */
function listen(options: {
  postgres: Postgres;
  streams: StreamRegistry;
  owner: string;
  log: Logger;
  heard: (notice: LedgerNotice) => void;
}): { readonly started: Promise<void>; stop(): Promise<void> } {
  const { postgres, streams, owner, log, heard } = options;
  let session: pg.Client | undefined;
  let stopped = false;
  let retry: NodeJS.Timeout | undefined;

  const take = (payload: string): void => {
    const [kind, id] = payload.split(' ');
    if (kind === 'ended') {
      streams
        .over((id ?? '').split(',').map(Number))
        .catch((thrown: unknown) => log.warn({ err: messageOf(thrown) }, 'could not take in that streams ended'));
      return;
    }
    const streamId = Number(id);
    if (kind === 'look' || kind === 'backlog') {
      heard({ kind });
      return;
    }
    if (kind === 'published') {
      heard({ kind, streamId });
      return;
    }
    streams.refresh(streamId).then(
      () => heard({ kind: 'stream', streamId }),
      (thrown: unknown) => {
        postgres.failed(thrown);
        log.warn({ err: messageOf(thrown) }, 'could not read a changed stream');
      },
    );
  };

  const start = async (again: boolean): Promise<void> => {
    try {
      const client = await postgres.connect(SESSION_ANSWER_MS);
      if (stopped) return void (await endSession(client));
      session = client;
      client.on('notification', (message) => take(message.payload ?? ''));
      client.once('end', () => {
        if (session === client) session = undefined;
        later();
      });
      await holdOwnerLock(client, owner);
      await client.query('LISTEN holdfast');
      // What was said while nobody listened.
      if (again) {
        await streams.reload();
        heard({ kind: 'stream' });
        heard({ kind: 'published' });
        heard({ kind: 'look' });
      }
    } catch (thrown) {
      postgres.failed(thrown);
      log.debug({ err: messageOf(thrown) }, 'ledger notifications unavailable');
      const broken = session;
      session = undefined;
      if (broken !== undefined) void endSession(broken);
      later();
    }
  };
  const later = (): void => {
    if (stopped || retry !== undefined) return;
    retry = setTimeout(() => {
      retry = undefined;
      void start(true);
    }, LISTEN_RETRY_MS);
  };

  return {
    started: start(false),
    async stop() {
      stopped = true;
      clearTimeout(retry);
      if (session !== undefined) await endSession(session);
    },
  };
}
