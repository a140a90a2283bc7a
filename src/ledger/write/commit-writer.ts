/**
 * Group commit. Whoever has an entry to commit adds it and waits; one statement takes all that wait, and what comes
 * meanwhile is the next batch. Under no load a batch is one entry and waits for nobody.
 *
 *   commit() ─▶ waiting ──flush──▶ in flight (≤ batchesMax) ──▶ committed
 *                  ▲                   │ stale: commit_late() ─▶ late | committed | ended
 *                  └── partition, ─────┤ conflict: that entry alone
 *                      retryable       └ any other error: halves, until the bad entry stands alone
 *
 * Invariants: a promise resolves only after the commit; an entry's failure is its own; rows and bytes that wait are
 * bounded, beyond that `commit` rejects with LEDGERDOWN; nothing waits longer than `commitTimeoutMs`.
 */

import type { Logger } from 'pino';
import { HoldfastError, messageOf } from '../../errors.ts';
import { bigintArray, byteaArrayOf } from '../encoding/binary-array.ts';
import { fieldsLength, writeFields } from '../encoding/entry-fields.ts';
import { maxEntryId } from '../encoding/entry-id.ts';
import type { Postgres } from '../postgres.ts';
import type { Stream, StreamRegistry } from '../stream-registry.ts';
import { batchLength } from './batch-length.ts';

export interface CommitLimits {
  readonly batchRowsMax: number;
  readonly batchBytesMax: number;
  readonly queueRowsMax: number;
  readonly queueBytesMax: number;
  readonly commitTimeoutMs: number;
}

/**
 * `committed`: in the ledger. `late`: the stream's epoch moved since the KV store gave the ID; the entry is in the
 * backlog and will be published again. `ended`: the incarnation is over, nothing was written. `conflict`: the ID is in
 * the ledger with other fields, nothing was written.
 */
export type CommitOutcome = 'committed' | 'late' | 'ended' | 'conflict';

export interface CommitRow {
  readonly stream: Stream;
  readonly id: Buffer;
  /** The stream's epoch when the XADD was sent. */
  readonly epoch: number;
  /** The XADD's arguments; fields and values from `firstField` on. */
  readonly args: readonly Buffer[];
  readonly firstField: number;
  /** An exact MAXLEN that the XADD carried. */
  readonly maxlen: number | undefined;
}

interface Waiting extends CommitRow {
  readonly bytes: number;
  readonly deadline: number;
  readonly resolve: (outcome: CommitOutcome) => void;
  readonly reject: (error: HoldfastError) => void;
}

interface Batch {
  rows: Waiting[];
  checked: boolean;
}

export interface CommitMetrics {
  readonly committedTotal: number;
  readonly batchesTotal: number;
  readonly lateTotal: number;
  readonly conflictsTotal: number;
  readonly rejectedTotal: number;
  /** Clients were told of success without a commit: `onFailure: degrade`. */
  readonly degradedTotal: number;
  readonly waitingRows: number;
  readonly waitingBytes: number;
  readonly lastBatchMs: number;
}

const BATCHES_MAX = 2;
const RETRY_MS = 50;

const COMMIT = {
  name: 'holdfast-commit-entries',
  text: `SELECT outcome, item FROM holdfast.commit_entries($1, $2, false, $3,
    $4::bigint[], $5::bytea[], $6::bigint[], $7::bytea[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bytea[])`,
};
const COMMIT_LATE = {
  name: 'holdfast-commit-late',
  text: 'SELECT item, outcome FROM holdfast.commit_late($1::bigint[], $2::bytea[], $3::bytea[], $4::bigint[])',
};

function compareStreams(a: Stream, b: Stream): number {
  return a.streamId - b.streamId;
}

function copyId(rows: readonly { id: Buffer }[]): Buffer {
  return byteaArrayOf(
    rows.map(() => 16),
    (target, offset, index) => void rows[index]!.id.copy(target, offset),
  );
}

export class CommitWriter {
  readonly #postgres: Postgres;
  readonly #registry: StreamRegistry;
  readonly #limits: CommitLimits;
  readonly #log: Logger;
  /** Which counter of stream_progress is this process's; any will do, few share one. */
  readonly #slot = Math.floor(Math.random() * 64);

  #waiting: Waiting[] = [];
  #waitingBytes = 0;
  #inFlight = 0;
  #scheduled = false;
  #closed = false;
  #part = -1;
  #idle: (() => void) | undefined;

  #committed = 0;
  #batches = 0;
  #late = 0;
  #conflicts = 0;
  #rejected = 0;
  #degraded = 0;
  #lastBatchMs = 0;

  constructor(options: { postgres: Postgres; registry: StreamRegistry; limits: CommitLimits; log: Logger }) {
    this.#postgres = options.postgres;
    this.#registry = options.registry;
    this.#limits = options.limits;
    this.#log = options.log;
  }

  /** Whether an entry would be taken now: ask before the KV store is touched. */
  get accepting(): boolean {
    return (
      this.#postgres.available &&
      !this.#closed &&
      this.#waiting.length < this.#limits.queueRowsMax &&
      this.#waitingBytes < this.#limits.queueBytesMax
    );
  }

  metrics(): CommitMetrics {
    return {
      committedTotal: this.#committed,
      batchesTotal: this.#batches,
      lateTotal: this.#late,
      conflictsTotal: this.#conflicts,
      rejectedTotal: this.#rejected,
      degradedTotal: this.#degraded,
      waitingRows: this.#waiting.length,
      waitingBytes: this.#waitingBytes,
      lastBatchMs: this.#lastBatchMs,
    };
  }

  /**
   * Commits one entry. Rejects with LEDGERDOWN when the ledger did not take it in time (it may still be there: the
   * outcome is unknown), with LEDGERERROR when it refused this very entry.
   */
  commit(row: CommitRow): Promise<CommitOutcome> {
    if (this.#closed) return Promise.reject(new HoldfastError('LEDGERDOWN', 'the ledger is closing'));
    if (this.#waiting.length >= this.#limits.queueRowsMax || this.#waitingBytes >= this.#limits.queueBytesMax) {
      this.#rejected += 1;
      return Promise.reject(
        new HoldfastError('LEDGERDOWN', 'the ledger is too slow, its queue is full; the outcome is unknown'),
      );
    }
    return new Promise((resolve, reject) => {
      const bytes = fieldsLength(row.args, row.firstField);
      const deadline = Date.now() + this.#limits.commitTimeoutMs;
      this.#waiting.push({ ...row, bytes, deadline, resolve, reject });
      this.#waitingBytes += bytes;
      this.#schedule();
    });
  }

  /** Counts an entry of whose success a client is told without a commit. */
  passedBy(): void {
    this.#degraded += 1;
  }

  /** Commits what waits, then refuses. */
  async close(): Promise<void> {
    this.#closed = true;
    while (this.#waiting.length > 0 || this.#inFlight > 0) {
      this.#schedule();
      await new Promise<void>((resolve) => (this.#idle = resolve));
    }
  }

  #schedule(): void {
    if (this.#scheduled || this.#inFlight >= BATCHES_MAX || this.#waiting.length === 0) return;
    this.#scheduled = true;
    // At the end of the poll phase: all replies that came in one read are one batch.
    setImmediate(() => {
      this.#scheduled = false;
      while (this.#inFlight < BATCHES_MAX && this.#waiting.length > 0) {
        const batch = this.#take();
        this.#inFlight += 1;
        this.#run({ rows: batch, checked: false }).then(
          () => this.#done(),
          (thrown: unknown) => {
            // A fault of this program: the rows must not wait for ever.
            this.#log.error({ err: thrown }, 'group commit failed unexpectedly');
            this.#fail(batch, new HoldfastError('LEDGERDOWN', messageOf(thrown), { cause: thrown }));
            this.#done();
          },
        );
      }
    });
  }

  #done(): void {
    this.#inFlight -= 1;
    this.#schedule();
    if (this.#inFlight === 0 && this.#waiting.length === 0) this.#idle?.();
  }

  #take(): Waiting[] {
    const { count, bytes } = batchLength(this.#waiting, this.#limits);
    const batch = count === this.#waiting.length ? this.#waiting : this.#waiting.slice(0, count);
    this.#waiting = count === this.#waiting.length ? [] : this.#waiting.slice(count);
    this.#waitingBytes -= bytes;
    return batch;
  }

  #fail(rows: readonly Waiting[], error: HoldfastError): void {
    this.#rejected += rows.length;
    for (const row of rows) row.reject(error);
  }

  /** Runs batches until each row of the first has its answer. */
  async #run(first: Batch): Promise<void> {
    const batches = [first];
    for (let batch = batches.pop(); batch !== undefined; batch = batches.pop()) {
      try {
        if (this.#part < 0) await this.#findPart();
        await this.#learnClosed(batch.rows);
        const checked = batch.checked ? [] : batch.rows.filter((row) => row.id.compare(row.stream.closedMaxId) <= 0);
        if (checked.length > 0) {
          batches.push({ rows: checked, checked: true });
          const of = new Set(checked);
          batch = { rows: batch.rows.filter((row) => !of.has(row)), checked: false };
          if (batch.rows.length === 0) continue;
        }
        const again = await this.#commitBatch(batch);
        if (again.length > 0) batches.push({ rows: again, checked: batch.checked });
      } catch (thrown) {
        if (this.#postgres.failed(thrown)) {
          const left = await this.#waitToRetry(batch.rows, thrown);
          if (left.length > 0) batches.push({ rows: left, checked: batch.checked });
        } else if (batch.rows.length > 1) {
          const half = batch.rows.length >> 1;
          batches.push({ rows: batch.rows.slice(half), checked: batch.checked });
          batches.push({ rows: batch.rows.slice(0, half), checked: batch.checked });
        } else {
          this.#log.error({ err: thrown }, 'the ledger refused an entry');
          this.#fail(batch.rows, new HoldfastError('LEDGERERROR', messageOf(thrown), { cause: thrown }));
        }
      }
    }
  }

  async #waitToRetry(rows: Waiting[], thrown: unknown): Promise<Waiting[]> {
    const latest = rows.reduce((most, row) => Math.max(most, row.deadline), 0);
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    await this.#postgres.whenAvailable(Math.max(0, latest - Date.now()));
    const now = Date.now();
    const expired = rows.filter((row) => row.deadline <= now);
    if (expired.length > 0) {
      const text = `the ledger does not answer (${messageOf(thrown)}); the outcome is unknown`;
      this.#fail(expired, new HoldfastError('LEDGERDOWN', text, { cause: thrown }));
    }
    return rows.filter((row) => row.deadline > now);
  }

  async #findPart(): Promise<void> {
    const { rows } = await this.#postgres.pool.query<{ part: number }>(
      'SELECT max(part) AS part FROM holdfast.entry_partition',
    );
    this.#part = rows[0]!.part;
  }

  /** For streams not seen since the partition opened: the greatest of their IDs that lies in another partition. */
  async #learnClosed(rows: readonly Waiting[]): Promise<void> {
    let unknown: Set<Stream> | undefined;
    for (const row of rows) if (row.stream.checkedPart !== this.#part) (unknown ??= new Set()).add(row.stream);
    if (unknown === undefined) return;
    const streams = [...unknown];
    const part = this.#part;
    const { rows: found } = await this.#postgres.pool.query<{ stream_id: string; id: Buffer | null }>(
      `SELECT stream_id, (SELECT id FROM holdfast.entry
                           WHERE entry.stream_id = named.stream_id AND entry.part <> $2
                           ORDER BY id DESC LIMIT 1) AS id
         FROM unnest($1::bigint[]) AS named (stream_id)`,
      [bigintArray(streams.map((stream) => stream.streamId)), part],
    );
    const greatest = new Map(found.map((row) => [Number(row.stream_id), row.id]));
    for (const stream of streams) {
      const id = greatest.get(stream.streamId);
      if (id !== null && id !== undefined) stream.closedMaxId = maxEntryId(stream.closedMaxId, id);
      stream.checkedPart = part;
    }
  }

  /** Gives the rows that must go again. */
  async #commitBatch({ rows, checked }: Batch): Promise<Waiting[]> {
    const started = performance.now();
    // Several epochs of one stream in a batch: all but the newest are known to be stale.
    const newest = new Map<Stream, { epoch: number; last: Buffer }>();
    for (const row of rows) {
      const known = newest.get(row.stream);
      if (known === undefined) newest.set(row.stream, { epoch: row.epoch, last: row.id });
      else if (row.epoch > known.epoch) newest.set(row.stream, { epoch: row.epoch, last: row.id });
      else if (row.epoch === known.epoch && row.id.compare(known.last) > 0) known.last = row.id;
    }
    const stale = rows.filter((row) => row.epoch !== newest.get(row.stream)!.epoch);
    if (stale.length > 0) {
      const of = new Set(stale);
      await this.#commitLate(stale);
      return rows.filter((row) => !of.has(row));
    }

    const streams = [...newest.keys()].sort(compareStreams);
    const { rows: answers } = await this.#postgres.pool.query<{ outcome: string; item: string | null }>({
      ...COMMIT,
      values: [
        this.#part,
        this.#slot,
        checked,
        bigintArray(rows.map((row) => row.stream.streamId)),
        copyId(rows),
        bigintArray(rows.map((row) => row.epoch)),
        byteaArrayOf(
          rows.map((row) => row.bytes),
          (target, offset, index) => void writeFields(target, offset, rows[index]!.args, rows[index]!.firstField),
        ),
        bigintArray(rows.map((row) => row.maxlen)),
        bigintArray(streams.map((stream) => stream.streamId)),
        bigintArray(streams.map((stream) => newest.get(stream)!.epoch)),
        byteaArrayOf(
          streams.map(() => 16),
          (target, offset, index) => void newest.get(streams[index]!)!.last.copy(target, offset),
        ),
      ],
    });
    this.#batches += 1;
    this.#lastBatchMs = performance.now() - started;

    const conflicting = new Set<Waiting>();
    const moved = new Set<number>();
    for (const answer of answers) {
      if (answer.outcome === 'partition') {
        this.#part = -1;
        return rows;
      }
      if (answer.outcome === 'stale') moved.add(Number(answer.item));
      else conflicting.add(rows[Number(answer.item) - 1]!);
    }
    if (moved.size > 0) {
      const late = rows.filter((row) => moved.has(row.stream.streamId));
      await this.#commitLate(late);
      return rows.filter((row) => !moved.has(row.stream.streamId));
    }
    this.#committed += rows.length - conflicting.size;
    this.#conflicts += conflicting.size;
    for (const row of rows) row.resolve(conflicting.has(row) ? 'conflict' : 'committed');
    return [];
  }

  async #commitLate(rows: readonly Waiting[]): Promise<void> {
    const { rows: answers } = await this.#postgres.pool.query<{ item: string; outcome: CommitOutcome }>({
      ...COMMIT_LATE,
      values: [
        bigintArray(rows.map((row) => row.stream.streamId)),
        copyId(rows),
        byteaArrayOf(
          rows.map((row) => row.bytes),
          (target, offset, index) => void writeFields(target, offset, rows[index]!.args, rows[index]!.firstField),
        ),
        bigintArray(rows.map((row) => row.maxlen)),
      ],
    });
    for (const streamId of new Set(rows.map((row) => row.stream.streamId))) {
      // Whoever asks next shall know; a failure leaves the old record, which only costs the detour again.
      this.#registry.refresh(streamId).catch((thrown: unknown) => this.#postgres.failed(thrown));
    }
    for (const answer of answers) {
      const row = rows[Number(answer.item) - 1]!;
      if (answer.outcome === 'committed') this.#committed += 1;
      if (answer.outcome === 'late') this.#late += 1;
      row.resolve(answer.outcome);
    }
  }
}
