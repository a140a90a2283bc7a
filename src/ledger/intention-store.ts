/**
 * What clients will to reshape, committed before the command goes out and settled by its reply. While an intention of
 * kind `end` is open no look takes the stream's state for a loss; entries of an open `delete` are not brought back.
 *
 * It says only what may have happened. An opening whose answer was lost is cancelled by its owner, as often as that takes.
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import type pg from 'pg';
import { batched } from '../async/batcher.ts';
import { bigintArray, byteaArray } from './encoding/binary-array.ts';
import { ENTRY_ID_LENGTH, ENTRY_ID_ZERO, maxEntryId } from './encoding/entry-id.ts';
import { ownerIsGone } from './owner-lock.ts';
import { retryContention } from './retry-contention.ts';
import { isRetryable, isUnknownOutcome } from './sqlstate.ts';

/** So many are given at once. */
export const ABANDONED_MAX = 500;

/** A statement is ended by Postgres before (`statement_timeout`). */
const UNHEARD_MS_MAX = 15_000;
const UNHEARD_RETRY_MS = 250;

export interface EndIntention {
  readonly intentionId: number;
  readonly streamId: number;
}

/** A stream that goes on in another place. */
export interface Move {
  readonly streamId: number;
  readonly database: number;
  readonly name: Buffer;
}

/** The server under which a command is sent. */
export interface SentUnder {
  readonly runId: string;
  readonly replicationId: string;
}

/** What is common to the intentions of one command. */
export interface Opening {
  readonly command: string;
  /** Whether it can end a stream: only then may its absence come of it. */
  readonly ends: boolean;
  readonly sent: SentUnder;
}

/** The connection on which a command was lost, and the run of the KV store that gave it its ID. */
export interface LostConnection {
  readonly clientId: number;
  readonly runId: string;
}

export interface AbandonedIntention extends EndIntention {
  /** Of an intention to delete entries: their IDs, concatenated. */
  readonly ids: Buffer | undefined;
  /** Of an intention to move streams: what it has in common with the others of the same command. */
  readonly changeId: number | undefined;
  readonly connection: LostConnection | undefined;
  readonly command: string;
  /** Of an intention to change a group: its name. */
  readonly group: Buffer | undefined;
  readonly ends: boolean;
  /** `undefined` for one of an older program. */
  readonly sent: SentUnder | undefined;
}

/** Opened, or nothing is: that stream is in trouble, or another command is about to end or move it. */
export type OpenedEnds = readonly EndIntention[] | { readonly busy: number };

interface DeleteCall {
  readonly streamId: number;
  readonly ids: Buffer;
  readonly sent: SentUnder;
}

interface SettleCall {
  readonly intentionId: number;
  readonly deleted: boolean;
}

/** As it was when the call was committed. `normal`: nothing that is under way could bring the entries back. */
export interface DeleteState {
  readonly intentionId: number;
  readonly epoch: number;
  readonly normal: boolean;
}

/** So many locks of one transaction leave room for others, and so many numbers fit into a notice. */
export const STREAMS_PER_PART = 350;

/** Streams by number, those of one database, or all. */
type Ending = readonly number[] | { readonly database: number } | 'all';

function isList(which: Ending): which is readonly number[] {
  return Array.isArray(which);
}

export class IntentionStore {
  readonly #pool: pg.Pool;
  readonly #owner: string;
  /** Opens the intention to delete entries of a stream, their IDs concatenated. */
  readonly openDelete: (call: DeleteCall) => Promise<DeleteState>;
  /** The entries are deleted, or, where the KV store refused, are not. */
  readonly settleDelete: (call: SettleCall) => Promise<DeleteState>;

  constructor(pool: pg.Pool, owner: string) {
    this.#pool = pool;
    this.#owner = owner;
    this.openDelete = batched((calls) => this.#openDeletes(calls));
    this.settleDelete = batched((calls) => this.#settleDeletes(calls));
  }

  /**
   * Opens the intention to end the incarnation of streams, part by part: nothing may be done before all are open, and where they
   * cannot be, those that are are cancelled.
   */
  async openEnd(which: Ending, opening: Opening): Promise<OpenedEnds> {
    const intentions: EndIntention[] = [];
    try {
      for (let streams = await this.#chosen(which, 0); streams.length > 0; ) {
        for (let from = 0; from < streams.length; from += STREAMS_PER_PART) {
          const opened = await this.#opened(opening, 'holdfast.open_end($1::bigint[], $2, $3)', [
            bigintArray(streams.slice(from, from + STREAMS_PER_PART)),
            opening.command,
            this.#owner,
          ]);
          if ('busy' in opened) {
            await this.cancelSurely(intentions);
            return opened;
          }
          intentions.push(...opened);
        }
        // What began meanwhile.
        streams = isList(which) ? [] : await this.#chosen(which, streams.at(-1)!);
      }
      return intentions;
    } catch (thrown) {
      await this.cancelSurely(intentions);
      throw thrown;
    }
  }

  /** Current streams among them with a number above `after`, ascending. */
  async #chosen(which: Ending, after: number): Promise<number[]> {
    if (isList(which)) return [...which].sort((a, b) => a - b);
    const { rows } = await this.#pool.query<{ stream_id: string }>(
      `SELECT stream_id FROM holdfast.stream
        WHERE ended_at IS NULL AND ($1::integer IS NULL OR database = $1) AND stream_id > $2 ORDER BY stream_id`,
      [which === 'all' ? null : which.database, after],
    );
    return rows.map((row) => Number(row.stream_id));
  }

  /** Ends those of the streams to which nothing came since; gives what is settled. At most `STREAMS_PER_PART`. */
  async endQuiet(intentions: readonly EndIntention[]): Promise<readonly EndIntention[]> {
    const { rows } = await retryContention(() =>
      this.#pool.query<{ intention_id: string; stream_id: string }>(
        'SELECT intention_id, stream_id FROM holdfast.end_streams($1::bigint[])',
        [bigintArray(intentions.map(({ intentionId }) => intentionId))],
      ),
    );
    return rows.map((row) => ({ intentionId: Number(row.intention_id), streamId: Number(row.stream_id) }));
  }

  /** Opens the intention to change a group, which is marked as changing as long as it is open. */
  async openGroupChange(streamId: number, groupId: number, { command, sent }: Opening): Promise<EndIntention> {
    const token = randomUUID();
    const { rows } = await retryContention(() =>
      this.#pool.query<{ intention_id: string }>(
        `INSERT INTO holdfast.intention (stream_id, group_id, kind, command, owner, ends, sent_run_id, sent_replication_id, opening)
         VALUES ($1, $2, 'group', $3, $4, false, $5, $6, $7) RETURNING intention_id`,
        [streamId, groupId, command, this.#owner, sent.runId, sent.replicationId, token],
      ),
    ).catch((thrown: unknown) => this.#unheard(token, thrown));
    return { intentionId: Number(rows[0]!.intention_id), streamId };
  }

  /** Opens the intention to move a stream, and to end the one whose place it takes. */
  openMove({ streamId, database, name }: Move, opening: Opening): Promise<OpenedEnds> {
    return this.#opened(
      opening,
      'holdfast.open_moves(ARRAY[$1::bigint], ARRAY[$2::integer], ARRAY[$3::bytea], $4, $5)',
      [streamId, database, name, opening.command, this.#owner],
    );
  }

  /** Opens the intention that the streams of two databases change places. */
  openSwap(first: number, second: number, opening: Opening): Promise<OpenedEnds> {
    return this.#opened(opening, 'holdfast.open_swap($1, $2, $3, $4)', [first, second, opening.command, this.#owner]);
  }

  async #opened({ ends, sent }: Opening, call: string, values: readonly unknown[]): Promise<OpenedEnds> {
    const token = randomUUID();
    const from = values.length;
    const { rows } = await retryContention(() =>
      this.#pool.query<{ intention_id: string | null; stream_id: string }>(
        `SELECT opened.intention_id, opened.stream_id
           FROM (SELECT array_agg(intention_id) AS ids, array_agg(stream_id) AS streams FROM ${call}) AS made,
                LATERAL holdfast.describe_intentions(ids, $${from + 1}, $${from + 2}, $${from + 3}, $${from + 4}) AS described,
                LATERAL unnest(ids, streams) AS opened (intention_id, stream_id)`,
        [...values, ends, sent.runId, sent.replicationId, token],
      ),
    ).catch((thrown: unknown) => this.#unheard(token, thrown));
    const busy = rows.find((row) => row.intention_id === null);
    if (busy !== undefined) return { busy: Number(busy.stream_id) };
    return rows.map((row) => ({ intentionId: Number(row.intention_id), streamId: Number(row.stream_id) }));
  }

  /** The opening failed. Where it may have been committed all the same, it is cancelled as soon as nothing can commit it any more. */
  #unheard(token: string, thrown: unknown): never {
    if (isUnknownOutcome(thrown)) void this.#withdraw(token);
    throw thrown;
  }

  /** A statement whose connection broke can commit for as long as it may run. Never rejects. */
  async #withdraw(token: string): Promise<void> {
    let certain = false;
    for (const until = Date.now() + UNHEARD_MS_MAX; !certain && !this.#pool.ending; ) {
      certain = Date.now() > until;
      try {
        const { rowCount } = await this.#pool.query('DELETE FROM holdfast.intention WHERE opening = $1', [token]);
        if (rowCount !== 0) return;
      } catch {
        certain = false;
      }
      await delay(UNHEARD_RETRY_MS, undefined, { ref: false });
    }
  }

  /** They were certainly not carried out: cancelled now, or by and by where Postgres does not answer. Never rejects. */
  async cancelSurely(intentions: readonly EndIntention[]): Promise<void> {
    if (intentions.length === 0) return;
    await this.#surely(() => this.cancel(intentions));
  }

  /** The same of an intention to delete entries. */
  async cancelDeleteSurely(intentionId: number): Promise<void> {
    await this.#surely(() => this.settleDelete({ intentionId, deleted: false }));
  }

  async #surely(settle: () => Promise<unknown>): Promise<void> {
    const attempt = (): Promise<boolean> =>
      settle().then(
        () => true,
        (thrown: unknown) => !isRetryable(thrown),
      );
    if (await attempt()) return;
    const goOn = async (): Promise<void> => {
      do await delay(UNHEARD_RETRY_MS, undefined, { ref: false });
      while (!this.#pool.ending && !(await attempt()));
    };
    void goOn();
  }

  /** They were not carried out. */
  async cancel(intentions: readonly EndIntention[]): Promise<void> {
    if (intentions.length === 0) return;
    await this.#pool.query('DELETE FROM holdfast.intention WHERE intention_id = ANY ($1::bigint[])', [
      bigintArray(intentions.map(({ intentionId }) => intentionId)),
    ]);
  }

  /** A command that was to move streams was not carried out. */
  async cancelChange(changeId: number): Promise<void> {
    await this.#pool.query('DELETE FROM holdfast.intention WHERE change_id = $1', [changeId]);
  }

  /** Whether a command that makes another stream of it is under way, or what became of one is to be found out. */
  async areOpen(streamId: number): Promise<boolean> {
    const { rowCount } = await this.#pool.query(
      "SELECT FROM holdfast.intention WHERE stream_id = $1 AND kind = 'end' LIMIT 1",
      [streamId],
    );
    return rowCount !== 0;
  }

  /** What became of them is to be found out, by whoever leads. */
  async doubt(intentions: readonly EndIntention[], connection: LostConnection | undefined): Promise<void> {
    await this.#pool.query(
      `UPDATE holdfast.intention SET doubted = true, kv_client_id = $2, kv_run_id = $3
        WHERE intention_id = ANY ($1::bigint[])`,
      [
        bigintArray(intentions.map(({ intentionId }) => intentionId)),
        connection?.clientId ?? null,
        connection?.runId ?? null,
      ],
    );
  }

  /** At most `ABANDONED_MAX` intentions that nobody will settle any more: doubted ones, those of a process that is gone, and very old ones. */
  async abandoned(): Promise<readonly AbandonedIntention[]> {
    const { rows } = await this.#pool.query<{
      intention_id: string;
      stream_id: string;
      kind: string;
      ids: Buffer | null;
      change_id: string | null;
      kv_client_id: string | null;
      kv_run_id: string | null;
      command: string;
      group_name: Buffer | null;
      ends: boolean;
      sent_run_id: string | null;
      sent_replication_id: string | null;
    }>(
      `SELECT intention_id, intention.stream_id, kind, ids, change_id, kv_client_id, kv_run_id, ends, sent_run_id, sent_replication_id,
              command, consumer_group.name AS group_name
         FROM holdfast.intention LEFT JOIN holdfast.consumer_group USING (group_id)
        WHERE doubted OR opened_at < clock_timestamp() - interval '60 seconds'
           OR (opened_at < clock_timestamp() - interval '5 seconds' AND ${ownerIsGone('owner')})
        ORDER BY intention_id LIMIT ${ABANDONED_MAX}`,
    );
    return rows.map((row) => ({
      intentionId: Number(row.intention_id),
      streamId: Number(row.stream_id),
      ids: row.kind === 'delete' ? (row.ids ?? Buffer.alloc(0)) : undefined,
      changeId: row.change_id === null ? undefined : Number(row.change_id),
      connection:
        row.kv_client_id === null || row.kv_run_id === null
          ? undefined
          : { clientId: Number(row.kv_client_id), runId: row.kv_run_id },
      command: row.command,
      group: row.group_name ?? undefined,
      ends: row.ends,
      sent:
        row.sent_run_id === null || row.sent_replication_id === null
          ? undefined
          : { runId: row.sent_run_id, replicationId: row.sent_replication_id },
    }));
  }

  /** The stream goes on with other watermarks: those that XSETID gave it. */
  async settleXsetid(
    intentions: readonly EndIntention[],
    streamId: number,
    state: { readonly lastId: Buffer; readonly entriesAdded: number; readonly maxDeletedId: Buffer },
  ): Promise<void> {
    await this.#pool.query('SELECT holdfast.settle_xsetid($1::bigint[], $2, $3, $4, $5)', [
      bigintArray(intentions.map(({ intentionId }) => intentionId)),
      streamId,
      state.lastId,
      state.entriesAdded,
      state.maxDeletedId,
    ]);
  }

  /** Of an intention to delete entries, these were deleted and the others were not. */
  async settleDeleteInPart(intentionId: number, deleted: readonly Buffer[]): Promise<void> {
    await this.#pool.query(
      `WITH settled AS (DELETE FROM holdfast.intention WHERE intention_id = $1 RETURNING stream_id)
       INSERT INTO holdfast.deletion (stream_id, id)
       SELECT stream_id, id FROM settled, unnest($2::bytea[]) AS given (id)
       ON CONFLICT DO NOTHING`,
      [intentionId, byteaArray(deleted)],
    );
  }

  async #openDeletes(calls: readonly DeleteCall[]): Promise<readonly DeleteState[]> {
    const token = randomUUID();
    // Of one moment: those who call at once are under one server, or the older one's IDs prove nothing.
    const { sent } = calls[0]!;
    const query = this.#pool.query<DeleteRow>(
      `WITH given AS (
         SELECT * FROM unnest($1::bigint[], $2::bytea[], $4::bytea[]) WITH ORDINALITY
           AS given (stream_id, ids, greatest_id, position)
       ), numbered AS (
         SELECT nextval(pg_get_serial_sequence('holdfast.intention', 'intention_id')) AS intention_id, given.* FROM given
       ), opened AS (
         INSERT INTO holdfast.intention (intention_id, stream_id, kind, command, ids, owner, ends, sent_run_id, sent_replication_id,
                                         opening)
         OVERRIDING SYSTEM VALUE
         SELECT intention_id, stream_id, 'delete', 'xdel', ids, $3, false, $5, $6, $7 FROM numbered
       )
       SELECT intention_id, epoch,
              CASE mode
                WHEN 'normal' THEN true
                WHEN 'outage' THEN (window_id IS NULL OR greatest_id <= window_id) AND NOT EXISTS (
                  SELECT FROM holdfast.backlog AS b WHERE b.stream_id = stream.stream_id AND b.id <= greatest_id)
                ELSE false
              END AS normal
         FROM numbered JOIN holdfast.stream USING (stream_id) ORDER BY position`,
      [
        bigintArray(calls.map(({ streamId }) => streamId)),
        byteaArray(calls.map(({ ids }) => ids)),
        this.#owner,
        byteaArray(calls.map(({ ids }) => greatestOf(ids))),
        sent.runId,
        sent.replicationId,
        token,
      ],
    );
    const { rows } = await query.catch((thrown: unknown) => this.#unheard(token, thrown));
    return rows.map(deleteState);
  }

  async #settleDeletes(calls: readonly SettleCall[]): Promise<readonly DeleteState[]> {
    const { rows } = await this.#pool.query<DeleteRow>(
      `WITH settled AS (
         DELETE FROM holdfast.intention USING unnest($1::bigint[], $2::bigint[]) AS given (intention_id, deleted)
          WHERE intention.intention_id = given.intention_id
         RETURNING intention.intention_id, stream_id, ids, deleted
       ), deleted AS (
         INSERT INTO holdfast.deletion (stream_id, id)
         SELECT DISTINCT stream_id, substr(ids, at * ${ENTRY_ID_LENGTH} + 1, ${ENTRY_ID_LENGTH})
           FROM settled, generate_series(0, octet_length(ids) / ${ENTRY_ID_LENGTH} - 1) AS at
          WHERE deleted = 1
         ON CONFLICT DO NOTHING
       )
       SELECT intention_id, epoch, mode <> 'restoring' AS normal
         FROM unnest($1::bigint[]) WITH ORDINALITY AS given (intention_id, position)
         JOIN settled USING (intention_id) JOIN holdfast.stream USING (stream_id) ORDER BY position`,
      [
        bigintArray(calls.map(({ intentionId }) => intentionId)),
        bigintArray(calls.map((call) => (call.deleted ? 1 : 0))),
      ],
    );
    return rows.map(deleteState);
  }
}

function greatestOf(ids: Buffer): Buffer {
  let greatest = ENTRY_ID_ZERO;
  for (let at = 0; at < ids.length; at += ENTRY_ID_LENGTH) {
    greatest = maxEntryId(greatest, ids.subarray(at, at + ENTRY_ID_LENGTH));
  }
  return greatest;
}

interface DeleteRow {
  intention_id: string;
  epoch: string;
  normal: boolean;
}

function deleteState(row: DeleteRow): DeleteState {
  return { intentionId: Number(row.intention_id), epoch: Number(row.epoch), normal: row.normal };
}
