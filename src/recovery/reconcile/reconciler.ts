/**
 * Takes in entries that did not pass through Holdfast: from scripts, functions and clients connected directly. Whether
 * there are any, counting tells: of the entries up to a stream's last ID at one look, as many must have a row at the next
 * look as entries-added had counted; an XADD that was on its way has committed by then. Only where the counts differ is
 * the stream read, from where it was last complete, a bounded part for each look.
 *
 *   entries-added at the last look − (all rows − rows above that look's last ID) = entries without a row
 *
 * What is missing although all that exists has a row was deleted before anybody looked: it is counted, so that the next
 * comparison expects it. More rows than entries were counted up to the same ID mean that the KV store has lost some, whatever
 * was written to it since. Adopting a stream that the ledger did not know is the same, from 0-0.
 */
import type { Logger } from 'pino';
import { bigintArray, byteaArray } from '../../ledger/encoding/binary-array.ts';
import type { Ledger } from '../../ledger/ledger.ts';
import type { KnownStream } from '../detect/verdict.ts';
import type { KvConnection } from '../kv/connection.ts';
import { kvEntries } from '../kv/entries.ts';
import type { Looked } from './checkpoint.ts';
import { observe } from './observed-entries.ts';
import { missingEntries } from './uncounted-entries.ts';

interface Counted {
  readonly epoch: number;
  readonly lastId: Buffer;
  readonly entriesAdded: number;
}

export interface ReconcileContext {
  readonly ledger: Ledger;
  readonly connection: KvConnection;
  readonly leaderEpoch: number;
  readonly log: Logger;
  /** The stream turned out to lack something that the ledger has. */
  lost(looked: Looked, cause: string): Promise<void>;
}

/** So many entries of one stream are read at one look. */
const ENTRIES_PER_LOOK_MAX = 20_000;
const FEWER = 'it counted fewer entries than were committed up to the same ID';

export class Reconciler {
  /** What the last look counted. */
  #counted = new Map<number, Counted>();
  #observed = 0;

  /** Entries taken in that had not passed through Holdfast. */
  get observedTotal(): number {
    return this.#observed;
  }

  /** `deferred`: streams that were not read this time, of which the last count stands. */
  async reconcile(
    context: ReconcileContext,
    looked: readonly Looked[],
    deferred: readonly KnownStream[],
  ): Promise<void> {
    const before = this.#counted;
    this.#counted = new Map();
    for (const { streamId } of deferred) {
      const counted = before.get(streamId);
      if (counted !== undefined) this.#counted.set(streamId, counted);
    }
    const due: { readonly looked: Looked; readonly counted: Counted }[] = [];
    for (const look of looked) {
      const { known, actual } = look;
      if (known.mode !== 'normal') continue;
      this.#counted.set(known.streamId, {
        epoch: known.epoch,
        lastId: actual.lastId,
        entriesAdded: actual.entriesAdded,
      });
      const counted = before.get(known.streamId);
      if (counted === undefined || counted.epoch !== known.epoch) continue;
      if (counted.lastId.compare(known.reconciledId) > 0) due.push({ looked: look, counted });
    }
    if (due.length === 0) return;
    const missing = await missingEntries(
      context.ledger.pool,
      due.map(({ looked: { known }, counted }) => ({ ...counted, streamId: known.streamId })),
    );
    const complete: { streamId: number; lastId: Buffer }[] = [];
    for (const [at, { looked: look, counted }] of due.entries()) {
      const streamId = look.known.streamId;
      if (missing[at]! < 0) {
        await context.lost(look, FEWER);
        continue;
      }
      if (missing[at] === 0) {
        complete.push({ streamId, lastId: counted.lastId });
        continue;
      }
      const reached = await this.#takeIn(context, look, counted);
      if (reached === undefined) continue;
      if (reached.compare(counted.lastId) < 0) {
        complete.push({ streamId, lastId: reached });
        continue;
      }
      const [gone] = await missingEntries(context.ledger.pool, [{ ...counted, streamId }]);
      if (gone! < 0) {
        await context.lost(look, FEWER);
        continue;
      }
      if (gone! > 0) {
        await context.ledger.pool.query(
          'UPDATE holdfast.stream SET added_base = added_base + $2 WHERE stream_id = $1 AND epoch = $3 AND ended_at IS NULL',
          [streamId, gone, counted.epoch],
        );
      }
      complete.push({ streamId, lastId: counted.lastId });
    }
    await context.ledger.pool.query(
      `UPDATE holdfast.stream SET reconciled_id = GREATEST(reconciled_id, given.last_id)
         FROM unnest($1::bigint[], $2::bytea[]) AS given (stream_id, last_id)
        WHERE stream.stream_id = given.stream_id`,
      [bigintArray(complete.map(({ streamId }) => streamId)), byteaArray(complete.map(({ lastId }) => lastId))],
    );
  }

  /** Gives rows to entries that have none; gives how far it came, or nothing where the stream must be compared first. */
  async #takeIn(context: ReconcileContext, look: Looked, counted: Counted): Promise<Buffer | undefined> {
    const { known } = look;
    let taken = 0;
    for await (const page of kvEntries(context.connection, known, known.reconciledId, counted.lastId)) {
      const outcome = await observe(context, known.streamId, counted.epoch, page);
      if (outcome === 'conflict') {
        await context.lost(look, 'an ID holds other fields than the ledger has');
        return undefined;
      }
      if (outcome === 'stale') return undefined;
      this.#observed += outcome;
      taken += page.length;
      if (taken >= ENTRIES_PER_LOOK_MAX) return page.at(-1)!.id;
    }
    return counted.lastId;
  }
}
