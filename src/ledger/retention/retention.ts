/**
 * Keeps the ledger from growing for ever. Entries lie in partitions in order of ingest:
 *
 *   0: survivors │ oldest ─── closed ─── closed ─── … ─── written to
 *        ▲           │                                       │ bytes or age at the limit: a new one is opened
 *        └── keep ───┤ closed for `retentionMs`
 *                    └── detach, drop
 *
 * Before a partition goes, what a restore could still ask for is moved to partition 0, so that one abandoned group pins its
 * own backlog and nothing else; there it goes as soon as the checkpoint has passed it. Only the leader does this, in small
 * transactions that prove the lead. No lock is waited for, or held, in front of commits for longer than `LOCK_MS`; what does
 * not get its lock is tried again at the next pass, and every step may be done twice.
 */
import type pg from 'pg';
import type { Logger } from 'pino';
import { messageOf } from '../../errors.ts';
import { type AcknowledgedSet, isWanted, readAcknowledged } from '../encoding/acknowledged-set.ts';
import { byteaArray } from '../encoding/binary-array.ts';
import { inTransaction } from '../in-transaction.ts';
import type { Ledger } from '../ledger.ts';
import { endSession, SESSION_ANSWER_MS } from '../postgres.ts';
import { type IdleGroup, readIdleGroups } from './idle-groups.ts';
import { type LedgerSize, readLedgerSize } from './ledger-size.ts';
import { streamsIn } from './partition-streams.ts';
import { type Horizon, readHorizons } from './retention-horizon.ts';
import { sweepAged } from './retention-sweep.ts';

export interface RetentionLimits {
  /** Heap and index of the partition that is written to. Of a great ledger a 32nd, so that there are never very many. */
  readonly partitionBytesMax: number;
  /** How long one partition is written to; a seventh of the retention by default, a day at most. */
  readonly partitionAgeMs: number;
  readonly intervalMs: number;
}

export interface RetentionOptions {
  readonly ledger: Ledger;
  readonly retentionMs: number;
  /** Who leads recovery, and its epoch. */
  readonly leader: () => { readonly leads: boolean; readonly leaderEpoch: number };
  readonly limits?: Partial<RetentionLimits>;
  readonly log: Logger;
}

export interface PassResult {
  readonly opened: number | undefined;
  readonly dropped: readonly number[];
  readonly kept: number;
}

export interface RetentionStatus {
  /** Of the last pass; `undefined` before it. */
  readonly size: LedgerSize | undefined;
  readonly idleGroups: readonly IdleGroup[];
  readonly partitionsDroppedTotal: number;
  readonly entriesKeptTotal: number;
  readonly lastError: string | undefined;
}

const DAY_MS = 86_400_000;
const PARTITIONS_MIN = 7;
const PARTITIONS_GOAL = 32;
const BATCH_IDS = 2000;
const LOCK_MS = 200;
/** DETACH … CONCURRENTLY waits for readers of before, and nobody waits for it. */
const DETACH_MS = 30_000;
const STATEMENT_MS = 60_000;
/** Of the passes each so many'th looks after what is not in partitions, and for idle groups. */
const SWEEP_EVERY = 20;

export class Retention {
  readonly #ledger: Ledger;
  readonly #options: RetentionOptions;
  readonly #limits: RetentionLimits;
  readonly #log: Logger;
  #timer: NodeJS.Timeout | undefined;
  #passing: Promise<PassResult> | undefined;
  #stopped = false;
  #passes = 0;
  #size: LedgerSize | undefined;
  #idle: readonly IdleGroup[] = [];
  #alarmed = new Set<number>();
  #dropped = 0;
  #kept = 0;
  #lastError: string | undefined;

  constructor(options: RetentionOptions) {
    this.#ledger = options.ledger;
    this.#options = options;
    this.#log = options.log;
    this.#limits = {
      partitionBytesMax: 4 * 2 ** 30,
      partitionAgeMs: Math.min(DAY_MS, options.retentionMs / PARTITIONS_MIN),
      intervalMs: 15_000,
      ...options.limits,
    };
  }

  start(): void {
    const again = (): void => {
      if (this.#stopped) return;
      this.#timer = setTimeout(() => {
        this.pass()
          .catch((thrown: unknown) => this.#failed(thrown))
          .finally(again);
      }, this.#limits.intervalMs);
    };
    again();
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#timer);
    await this.#passing?.catch(() => undefined);
  }

  status(): RetentionStatus {
    return {
      size: this.#size,
      idleGroups: this.#idle,
      partitionsDroppedTotal: this.#dropped,
      entriesKeptTotal: this.#kept,
      lastError: this.#lastError,
    };
  }

  /** Rejects with Postgres's errors; what was not done is done by a later pass. */
  pass(): Promise<PassResult> {
    this.#passing ??= this.#passOnce().finally(() => {
      this.#passing = undefined;
    });
    return this.#passing;
  }

  #failed(thrown: unknown): void {
    this.#lastError = messageOf(thrown);
    if (this.#ledger.postgres.failed(thrown)) {
      this.#log.debug({ err: this.#lastError }, 'retention goes on at its next pass');
    } else this.#log.error({ err: thrown }, 'retention failed');
  }

  async #passOnce(): Promise<PassResult> {
    let sweep = this.#passes % SWEEP_EVERY === 0;
    this.#passes += 1;
    const { leads, leaderEpoch } = this.#options.leader();
    let result: PassResult = { opened: undefined, dropped: [], kept: 0 };
    if (leads) {
      const client = await this.#ledger.postgres.connect(STATEMENT_MS + SESSION_ANSWER_MS);
      try {
        await client.query(`SET lock_timeout = ${LOCK_MS}; SET statement_timeout = ${STATEMENT_MS}`);
        result = await this.#rotate(client, leaderEpoch);
        sweep ||= result.dropped.length > 0;
        if (sweep) await sweepAged(client, leaderEpoch, this.#options.retentionMs, () => this.#stopped);
      } finally {
        await endSession(client);
      }
    }
    this.#size = await readLedgerSize(this.#ledger.pool);
    if (sweep) await this.#watchIdle();
    this.#lastError = undefined;
    return result;
  }

  async #rotate(client: pg.Client, leaderEpoch: number): Promise<PassResult> {
    const opened = await this.#openIfDue(client, leaderEpoch);
    const dropped: number[] = [];
    let kept = 0;
    for (const part of await this.#expired(client)) {
      if (this.#stopped) break;
      const { keptEntries, complete } = await this.#keep(client, leaderEpoch, part);
      kept += keptEntries;
      this.#kept += keptEntries;
      if (!complete) break;
      await this.#drop(client, part);
      dropped.push(part);
      this.#dropped += 1;
      this.#log.info({ partition: part, kept: keptEntries }, 'an old partition of the ledger was dropped');
    }
    return { opened, dropped, kept };
  }

  async #openIfDue(client: pg.Client, leaderEpoch: number): Promise<number | undefined> {
    const { rows } = await client.query<{ due: boolean }>(
      `SELECT pg_relation_size(current.oid) > 0
              AND (opened_at < clock_timestamp() - $1 * interval '1 millisecond'
                   OR pg_total_relation_size(current.oid) > GREATEST($2::bigint, total.bytes / ${PARTITIONS_GOAL})) AS due
         FROM (SELECT opened_at, to_regclass('holdfast.entry_' || part)::oid AS oid
                 FROM holdfast.entry_partition ORDER BY part DESC LIMIT 1) AS current,
              (SELECT coalesce(sum(pg_total_relation_size(inhrelid)), 0)::bigint AS bytes
                 FROM pg_inherits WHERE inhparent = 'holdfast.entry'::regclass) AS total`,
      [this.#limits.partitionAgeMs, this.#limits.partitionBytesMax],
    );
    if (rows[0]?.due !== true) return undefined;
    const opened = await inTransaction(client, async () => {
      await client.query('SELECT holdfast.assert_leader($1)', [leaderEpoch]);
      const { rows: parts } = await client.query<{ part: number }>('SELECT holdfast.open_partition() AS part');
      return parts[0]!.part;
    });
    this.#log.info({ partition: opened }, 'a new partition of the ledger is written to');
    return opened;
  }

  /** Closed for long enough, oldest first. A client's will that is older than the partition's end may still want its rows. */
  async #expired(client: pg.Client): Promise<number[]> {
    const { rows } = await client.query<{ part: number }>(
      `SELECT part FROM holdfast.entry_partition
        WHERE part > 0 AND closed_at < clock_timestamp() - $1 * interval '1 millisecond'
          AND NOT EXISTS (SELECT FROM holdfast.intention WHERE kind = 'end' AND opened_at < closed_at)
        ORDER BY part`,
      [this.#options.retentionMs],
    );
    return rows.map((row) => row.part);
  }

  /** Moves what is still needed. Not complete where a group began meanwhile, which may need what was judged without it. */
  async #keep(
    client: pg.Client,
    leaderEpoch: number,
    part: number,
  ): Promise<{ readonly keptEntries: number; readonly complete: boolean }> {
    if (!(await isAttached(client, part))) return { keptEntries: 0, complete: true };
    const { rows: newest } = await client.query<{ id: string }>(
      'SELECT coalesce(max(group_id), 0) AS id FROM holdfast.consumer_group',
    );
    const streamIds = await streamsIn(client, part);
    const horizons = await readHorizons(client, streamIds);
    let keptEntries = 0;
    for (const horizon of horizons.values()) {
      keptEntries += await this.#keepOfStream(client, leaderEpoch, part, horizon);
      if (this.#stopped) return { keptEntries, complete: false };
    }
    const { rowCount } = await client.query(
      'SELECT FROM holdfast.consumer_group WHERE group_id > $1 AND ended_at IS NULL AND stream_id = ANY ($2) LIMIT 1',
      [newest[0]!.id, streamIds],
    );
    return { keptEntries, complete: rowCount === 0 };
  }

  async #keepOfStream(client: pg.Client, leaderEpoch: number, part: number, horizon: Horizon): Promise<number> {
    let kept = 0;
    let acknowledged: AcknowledgedSet[] | undefined;
    for (let after = horizon.id; ; ) {
      const { rows } = await client.query<{ id: Buffer; deleted: boolean }>(
        `SELECT id, EXISTS (SELECT FROM holdfast.deletion AS d
                             WHERE d.stream_id = entry.stream_id AND d.id = entry.id) AS deleted
           FROM holdfast.entry WHERE part = $1 AND stream_id = $2 AND id > $3 ORDER BY id LIMIT ${BATCH_IDS}`,
        [part, horizon.streamId, after],
      );
      const last = rows.at(-1);
      if (last === undefined || this.#stopped) return kept;
      after = last.id;
      acknowledged ??= await Promise.all(
        horizon.groupIds.map((groupId) => readAcknowledged(this.#ledger.pool, groupId)),
      );
      const sets = acknowledged;
      const needed = rows.filter(({ id, deleted }) => !deleted && isWanted(sets, id)).map(({ id }) => id);
      if (needed.length === 0) continue;
      const { rows: moved } = await client.query<{ kept: string }>(
        'SELECT holdfast.keep_entries($1, $2, $3, $4::bytea[]) AS kept',
        [leaderEpoch, part, horizon.streamId, byteaArray(needed)],
      );
      kept += Number(moved[0]!.kept);
    }
  }

  async #drop(client: pg.Client, part: number): Promise<void> {
    await client.query(`SET lock_timeout = ${DETACH_MS}`);
    try {
      const { rows } = await client.query<{ pending: boolean }>(
        `SELECT inhdetachpending AS pending FROM pg_inherits WHERE inhrelid = to_regclass($1)`,
        [`holdfast.entry_${part}`],
      );
      if (rows[0] !== undefined) {
        const how = rows[0].pending ? 'FINALIZE' : 'CONCURRENTLY';
        await client.query(`ALTER TABLE holdfast.entry DETACH PARTITION holdfast.entry_${part} ${how}`);
      }
    } finally {
      await client.query(`SET lock_timeout = ${LOCK_MS}`);
    }
    await inTransaction(client, async () => {
      await client.query(`DROP TABLE IF EXISTS holdfast.entry_${part}`);
      await client.query('DELETE FROM holdfast.entry_partition WHERE part = $1', [part]);
    });
  }

  async #watchIdle(): Promise<void> {
    this.#idle = await readIdleGroups(this.#ledger.pool, this.#options.retentionMs);
    const idle = new Set(this.#idle.map(({ groupId }) => groupId));
    for (const { groupId, stream, database, group, checkpointId, idleSince } of this.#idle) {
      if (this.#alarmed.has(groupId)) continue;
      this.#log.warn(
        { stream, database, group, checkpointId, idleSince },
        'a group has not moved for as long as the ledger keeps entries, and keeps its backlog: XGROUP DESTROY forgets it',
      );
    }
    this.#alarmed = idle;
  }
}

/** Neither detached nor about to be: then its rows were judged, and are out of sight. */
async function isAttached(client: pg.Client, part: number): Promise<boolean> {
  const { rowCount } = await client.query(
    'SELECT FROM pg_inherits WHERE inhrelid = to_regclass($1) AND NOT inhdetachpending',
    [`holdfast.entry_${part}`],
  );
  return rowCount === 1;
}
