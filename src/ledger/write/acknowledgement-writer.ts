/**
 * Acknowledgements that passed through, written every `flushMs` as one row for each group: what is lost with this
 * process is at most the last interval, which is P2's bound. Recorded are only IDs that were delivered and are not
 * pending; whoever calls `record` has made sure.
 *
 * Bounded: beyond `PENDING_MAX` unwritten IDs new ones are counted and dropped, i.e. may be delivered again after a loss.
 */
import type { Logger } from 'pino';
import { messageOf } from '../../errors.ts';
import { type AcknowledgedSet, readAcknowledged } from '../encoding/acknowledged-set.ts';
import { bigintArray, byteaArray } from '../encoding/binary-array.ts';
import { ENTRY_ID_LENGTH, ENTRY_ID_ZERO, maxEntryId } from '../encoding/entry-id.ts';
import type { Postgres } from '../postgres.ts';
import type { Group, Stream } from '../stream-registry.ts';

const PENDING_MAX = 1_000_000;
/** Keeps one row below what is pleasant to read back. */
const IDS_PER_ROW = 10_000;

interface Pending {
  readonly groupId: number;
  readonly stream: Stream;
  /** The stream's epoch when the XACK was sent: an ID may have come to mean another entry since. */
  readonly epoch: number;
  ids: Buffer[];
}

export class AcknowledgementWriter {
  readonly #postgres: Postgres;
  readonly #flushMs: number;
  readonly #log: Logger;
  readonly #filters = new WeakMap<Group, { readonly epoch: number; readonly set: AcknowledgedSet }>();
  #pending = new Map<string, Pending>();
  #count = 0;
  #timer: NodeJS.Timeout | undefined;
  #flushing: Promise<void> | undefined;
  /** Waits for `#flushing`, and has not taken its batch yet. */
  #nextFlush: Promise<void> | undefined;
  #closed = false;
  #recorded = 0;
  #dropped = 0;

  constructor(options: { postgres: Postgres; flushMs: number; log: Logger }) {
    this.#postgres = options.postgres;
    this.#flushMs = options.flushMs;
    this.#log = options.log;
  }

  metrics(): { readonly recordedTotal: number; readonly droppedTotal: number; readonly waiting: number } {
    return { recordedTotal: this.#recorded, droppedTotal: this.#dropped, waiting: this.#count };
  }

  record(stream: Stream, group: Group, epoch: number, ids: readonly Buffer[]): void {
    const filter = this.#filters.get(group)?.set;
    if (filter !== undefined) for (const id of ids) filter.add(id);
    if (this.#count + ids.length > PENDING_MAX) {
      this.#dropped += ids.length;
      return;
    }
    const key = `${group.groupId} ${epoch}`;
    let pending = this.#pending.get(key);
    if (pending === undefined) {
      pending = { groupId: group.groupId, stream, epoch, ids: [] };
      this.#pending.set(key, pending);
    }
    for (const id of ids) pending.ids.push(id);
    this.#count += ids.length;
    this.#later();
  }

  #later(): void {
    if (this.#timer !== undefined || this.#closed) return;
    this.#timer = setTimeout(() => {
      this.#timer = undefined;
      this.flush().catch((thrown: unknown) => {
        this.#postgres.failed(thrown);
        this.#log.warn({ err: messageOf(thrown) }, 'acknowledgements could not be written yet');
        this.#later();
      });
    }, this.#flushMs);
  }

  /**
   * Resolves when all that was recorded before the call is committed; rejects with Postgres's error, nothing lost. Who calls
   * while one is on its way shares the next one: a Postgres that does not answer fails all of them at once, not each in turn.
   */
  flush(): Promise<void> {
    this.#nextFlush ??= this.#flushNext();
    return this.#nextFlush;
  }

  async #flushNext(): Promise<void> {
    await this.#flushing?.catch(() => undefined);
    this.#nextFlush = undefined;
    if (this.#count === 0) return;
    const batch = this.#pending;
    const count = this.#count;
    this.#pending = new Map();
    this.#count = 0;
    this.#flushing = this.#write([...batch.values()]);
    try {
      await this.#flushing;
      this.#recorded += count;
    } catch (thrown) {
      for (const [key, pending] of batch) {
        const newer = this.#pending.get(key);
        if (newer === undefined) this.#pending.set(key, pending);
        else newer.ids = pending.ids.concat(newer.ids);
      }
      this.#count += count;
      throw thrown;
    } finally {
      this.#flushing = undefined;
    }
  }

  /**
   * What is recorded of a group since the restore of `epoch`, what this process has not written yet included. Kept, and
   * kept current with what passes through this process, until `forget`.
   */
  async filter(group: Group, epoch: number): Promise<AcknowledgedSet> {
    const known = this.#filters.get(group);
    if (known?.epoch === epoch) return known.set;
    await this.flush();
    const set = await readAcknowledged(this.#postgres.pool, group.groupId);
    this.#filters.set(group, { epoch, set });
    return set;
  }

  /** The group has read past everything that was recorded. */
  forget(group: Group): void {
    this.#filters.delete(group);
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
    await this.flush().catch((thrown: unknown) => {
      this.#log.warn({ err: messageOf(thrown), acknowledgements: this.#count }, 'acknowledgements not written');
    });
  }

  async #write(batch: readonly Pending[]): Promise<void> {
    const groups: number[] = [];
    const greatest: Buffer[] = [];
    const rows: Buffer[] = [];
    for (const pending of batch) {
      const ids = pending.stream.epoch === pending.epoch ? pending.ids : await this.#translate(pending);
      for (let from = 0; from < ids.length; from += IDS_PER_ROW) {
        const part = ids.slice(from, from + IDS_PER_ROW);
        groups.push(pending.groupId);
        greatest.push(part.reduce(maxEntryId, ENTRY_ID_ZERO));
        rows.push(Buffer.concat(part, part.length * ENTRY_ID_LENGTH));
      }
    }
    await this.#postgres.pool.query(
      `INSERT INTO holdfast.acknowledgement (group_id, max_id, ids)
       SELECT group_id, given.max_id, given.ids
         FROM unnest($1::bigint[], $2::bytea[], $3::bytea[]) AS given (group_id, max_id, ids)
         JOIN holdfast.consumer_group USING (group_id)
        WHERE consumer_group.ended_at IS NULL AND given.max_id > consumer_group.checkpoint_id`,
      [bigintArray(groups), byteaArray(greatest), byteaArray(rows)],
    );
  }

  /** A restore came between: where the ID now belongs to another entry, the acknowledgement follows its own. */
  async #translate(pending: Pending): Promise<Buffer[]> {
    const { rows } = await this.#postgres.pool.query<{ id: Buffer; published_id: Buffer }>(
      `SELECT id, published_id FROM holdfast.alias
        WHERE stream_id = $1 AND epoch > $2 AND id = ANY ($3::bytea[]) ORDER BY epoch`,
      [pending.stream.streamId, pending.epoch, byteaArray(pending.ids)],
    );
    if (rows.length === 0) return pending.ids;
    const published = new Map(rows.map((row) => [row.id.toString('latin1'), row.published_id]));
    return pending.ids.map((id) => published.get(id.toString('latin1')) ?? id);
  }
}
