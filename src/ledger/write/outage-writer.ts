/**
 * Accepts entries without the KV store: Postgres gives the ID. In batches like the commit writer, but one after the
 * other, so that what one client sends in order gets IDs in that order.
 */

import type { Logger } from 'pino';
import { HoldfastError, messageOf } from '../../errors.ts';
import { bigintArray, byteaArray, byteaArrayOf } from '../encoding/binary-array.ts';
import { fieldsLength, writeFields } from '../encoding/entry-fields.ts';
import type { Postgres } from '../postgres.ts';
import { isUnknownOutcome } from '../sqlstate.ts';
import type { Stream } from '../stream-registry.ts';
import { batchLength } from './batch-length.ts';
import type { CommitLimits } from './commit-writer.ts';

export interface OutageRow {
  readonly stream: Stream;
  /** `undefined` for `*`, 8 bytes for `ms-*`, 16 for a whole ID. */
  readonly requested: Buffer | undefined;
  readonly args: readonly Buffer[];
  readonly firstField: number;
  readonly maxlen: number | undefined;
  /** Set where the XADD may have reached the KV store already, under an ID above this one. */
  readonly inDoubtAfter: Buffer | undefined;
  /** The KV store's client ID of the connection that broke under it, and the run of the server that gave the ID. */
  readonly kvClientId: number | undefined;
  readonly kvRunId: string | undefined;
}

/** `id`: accepted under it. `normal`: the stream is not in outage any more. `small`: the requested ID is not above all others. */
export type OutageOutcome = { readonly id: Buffer } | 'normal' | 'small';

interface Waiting extends OutageRow {
  readonly bytes: number;
  readonly deadline: number;
  readonly resolve: (outcome: OutageOutcome) => void;
  readonly reject: (error: HoldfastError) => void;
}

const RETRY_MS = 50;

const ACCEPT = {
  name: 'holdfast-accept-entries',
  text: `SELECT item, id FROM holdfast.accept_entries($1::bigint[], $2::bytea[], $3::bytea[], $4::bigint[], $5::bytea[], $6::bigint[], $7::text[])`,
};

export class OutageWriter {
  readonly #postgres: Postgres;
  readonly #limits: CommitLimits;
  readonly #log: Logger;
  #waiting: Waiting[] = [];
  #waitingBytes = 0;
  #running = false;
  #accepted = 0;

  constructor(options: { postgres: Postgres; limits: CommitLimits; log: Logger }) {
    this.#postgres = options.postgres;
    this.#limits = options.limits;
    this.#log = options.log;
  }

  metrics(): { readonly acceptedTotal: number; readonly waitingRows: number; readonly waitingBytes: number } {
    return {
      acceptedTotal: this.#accepted,
      waitingRows: this.#waiting.length,
      waitingBytes: this.#waitingBytes,
    };
  }

  /** Rejects with LEDGERDOWN (outcome unknown) or LEDGERERROR, as the commit writer does. */
  accept(row: OutageRow): Promise<OutageOutcome> {
    if (this.#waiting.length >= this.#limits.queueRowsMax || this.#waitingBytes >= this.#limits.queueBytesMax) {
      return Promise.reject(new HoldfastError('LEDGERDOWN', 'the ledger is too slow, its queue is full'));
    }
    return new Promise((resolve, reject) => {
      const bytes = fieldsLength(row.args, row.firstField);
      const deadline = Date.now() + this.#limits.commitTimeoutMs;
      this.#waiting.push({ ...row, bytes, deadline, resolve, reject });
      this.#waitingBytes += bytes;
      if (this.#running) return;
      this.#running = true;
      setImmediate(() => {
        this.#drain().catch((thrown: unknown) => this.#log.error({ err: thrown }, 'outage writer failed unexpectedly'));
      });
    });
  }

  async #drain(): Promise<void> {
    while (this.#waiting.length > 0) {
      const batch = this.#take();
      await this.#accept(batch);
    }
    this.#running = false;
  }

  #take(): Waiting[] {
    const { count, bytes } = batchLength(this.#waiting, this.#limits);
    this.#waitingBytes -= bytes;
    return this.#waiting.splice(0, count);
  }

  async #accept(batch: readonly Waiting[]): Promise<void> {
    for (let rows = batch; rows.length > 0; ) {
      try {
        const { rows: answers } = await this.#postgres.pool.query<{ item: string; id: Buffer | null }>({
          ...ACCEPT,
          values: [
            bigintArray(rows.map((row) => row.stream.streamId)),
            byteaArray(rows.map((row) => row.requested)),
            byteaArrayOf(
              rows.map((row) => row.bytes),
              (target, offset, index) => void writeFields(target, offset, rows[index]!.args, rows[index]!.firstField),
            ),
            bigintArray(rows.map((row) => row.maxlen)),
            byteaArray(rows.map((row) => row.inDoubtAfter)),
            bigintArray(rows.map((row) => row.kvClientId)),
            rows.map((row) => row.kvRunId ?? null),
          ],
        });
        for (const { item, id } of answers) {
          const row = rows[Number(item) - 1]!;
          if (id === null) row.resolve('normal');
          else if (id.readBigUInt64BE(0) === 0n && id.readBigUInt64BE(8) === 0n) row.resolve('small');
          else row.resolve({ id });
        }
        this.#accepted += rows.length;
        return;
      } catch (thrown) {
        // A batch whose outcome is unknown goes again under new IDs: it may then be there twice, which P2 counts as in
        // doubt, and never not at all.
        if (isUnknownOutcome(thrown))
          rows = rows.map((row) => ({ ...row, inDoubtAfter: row.inDoubtAfter ?? row.stream.lastId }));
        if (!this.#postgres.failed(thrown)) {
          if (rows.length > 1) {
            for (const row of rows) await this.#accept([row]);
            return;
          }
          this.#log.error({ err: thrown }, 'the ledger refused an entry');
          rows[0]!.reject(new HoldfastError('LEDGERERROR', messageOf(thrown), { cause: thrown }));
          return;
        }
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
        const latest = rows.reduce((most, row) => Math.max(most, row.deadline), 0);
        await this.#postgres.whenAvailable(Math.max(0, latest - Date.now()));
        const now = Date.now();
        for (const row of rows) {
          if (row.deadline <= now) {
            row.reject(new HoldfastError('LEDGERDOWN', `the ledger does not answer (${messageOf(thrown)})`));
          }
        }
        rows = rows.filter((row) => row.deadline > now);
      }
    }
  }
}
