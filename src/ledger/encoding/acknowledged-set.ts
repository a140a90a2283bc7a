/**
 * Which entries of one group are acknowledged, as far as it is recorded: everything up to the checkpoint, everything on
 * the recorded pages of the pending entries list but what was pending, and the IDs that passed through since.
 */
import type pg from 'pg';
import { ENTRY_ID_LENGTH, ENTRY_ID_ZERO, maxEntryId } from './entry-id.ts';

/** A set of entry IDs in flat memory (24 bytes each): a million as objects would be too many. */
export class EntryIdSet {
  #ids: Buffer;
  #table: Int32Array;
  #size = 0;

  constructor(expected = 16) {
    let slots = 16;
    while (slots < expected * 2) slots *= 2;
    this.#ids = Buffer.allocUnsafe((slots / 2) * ENTRY_ID_LENGTH);
    this.#table = new Int32Array(slots).fill(-1);
  }

  get size(): number {
    return this.#size;
  }

  /** Adds the IDs that stand one behind the other in `concatenated`. */
  addAll(concatenated: Buffer): void {
    for (let at = 0; at < concatenated.length; at += ENTRY_ID_LENGTH) this.#add(concatenated, at);
  }

  add(id: Buffer): void {
    this.#add(id, 0);
  }

  has(id: Buffer): boolean {
    return this.#table[this.#slot(this.#table, id, 0)]! >= 0;
  }

  #add(source: Buffer, at: number): void {
    let slot = this.#slot(this.#table, source, at);
    if (this.#table[slot]! >= 0) return;
    if ((this.#size + 1) * 2 > this.#table.length) {
      this.#grow();
      slot = this.#slot(this.#table, source, at);
    }
    source.copy(this.#ids, this.#size * ENTRY_ID_LENGTH, at, at + ENTRY_ID_LENGTH);
    this.#table[slot] = this.#size;
    this.#size += 1;
  }

  /** Where the ID is, or where it would be put. The table is never more than half full. */
  #slot(table: Int32Array, source: Buffer, at: number): number {
    const mask = table.length - 1;
    const low = source.readInt32BE(at + 4);
    const sequence = source.readInt32BE(at + 12);
    let slot = (Math.imul(low, 0x9e3779b1) ^ Math.imul(sequence, 0x85ebca6b)) >>> 0;
    slot = (slot ^ (slot >>> 15)) & mask;
    for (;;) {
      const index = table[slot]!;
      if (index < 0) return slot;
      const from = index * ENTRY_ID_LENGTH;
      if (this.#ids.compare(source, at, at + ENTRY_ID_LENGTH, from, from + ENTRY_ID_LENGTH) === 0) return slot;
      slot = (slot + 1) & mask;
    }
  }

  #grow(): void {
    const ids = Buffer.allocUnsafe(this.#ids.length * 2);
    this.#ids.copy(ids);
    this.#ids = ids;
    const table = new Int32Array(this.#table.length * 2).fill(-1);
    for (let index = 0; index < this.#size; index += 1) {
      table[this.#slot(table, ids, index * ENTRY_ID_LENGTH)] = index;
    }
    this.#table = table;
  }
}

interface PendingPage {
  readonly fromId: Buffer;
  readonly toId: Buffer;
  readonly pending: EntryIdSet;
}

export class AcknowledgedSet {
  readonly checkpointId: Buffer;
  /** Nothing above it is known to be acknowledged. */
  maxId: Buffer;
  readonly #ids: EntryIdSet;
  readonly #pages: readonly PendingPage[];

  constructor(checkpointId: Buffer, ids: EntryIdSet, idsMax: Buffer, pages: readonly PendingPage[]) {
    this.checkpointId = checkpointId;
    this.#ids = ids;
    this.#pages = pages;
    this.maxId = maxEntryId(maxEntryId(checkpointId, idsMax), pages.at(-1)?.toId ?? ENTRY_ID_ZERO);
  }

  has(id: Buffer): boolean {
    if (id.compare(this.checkpointId) <= 0) return true;
    if (this.#ids.has(id)) return true;
    const page = this.#page(id);
    return page !== undefined && !page.pending.has(id);
  }

  add(id: Buffer): void {
    this.#ids.add(id);
    this.maxId = maxEntryId(this.maxId, id);
  }

  #page(id: Buffer): PendingPage | undefined {
    let low = 0;
    let high = this.#pages.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#pages[middle]!.toId.compare(id) < 0) low = middle + 1;
      else high = middle;
    }
    const page = this.#pages[low];
    return page !== undefined && page.fromId.compare(id) < 0 ? page : undefined;
  }
}

/** Some group has not acknowledged the entry; `groups` has each of the stream's, and without any every entry is wanted. */
export function isWanted(groups: readonly AcknowledgedSet[], id: Buffer): boolean {
  return groups.length === 0 || groups.some((acknowledged) => !acknowledged.has(id));
}

export async function readAcknowledged(pool: pg.Pool | pg.PoolClient, groupId: number): Promise<AcknowledgedSet> {
  const { rows } = await pool.query<{ checkpoint_id: Buffer }>(
    'SELECT checkpoint_id FROM holdfast.consumer_group WHERE group_id = $1',
    [groupId],
  );
  const checkpointId = rows[0]?.checkpoint_id ?? ENTRY_ID_ZERO;
  const ids = new EntryIdSet();
  let idsMax = ENTRY_ID_ZERO;
  for (let after = '0'; ; ) {
    const { rows: batches } = await pool.query<{ acknowledgement_id: string; max_id: Buffer; ids: Buffer }>(
      `SELECT acknowledgement_id, max_id, ids FROM holdfast.acknowledgement
        WHERE group_id = $1 AND acknowledgement_id > $2 AND max_id > $3 ORDER BY acknowledgement_id LIMIT 50`,
      [groupId, after, checkpointId],
    );
    for (const batch of batches) {
      ids.addAll(batch.ids);
      idsMax = maxEntryId(idsMax, batch.max_id);
    }
    const last = batches.at(-1);
    if (last === undefined) break;
    after = last.acknowledgement_id;
  }
  const { rows: pages } = await pool.query<{ from_id: Buffer; to_id: Buffer; ids: Buffer }>(
    `SELECT from_id, to_id, ids FROM holdfast.pending_page
      WHERE group_id = $1 AND to_id > $2 ORDER BY to_id`,
    [groupId, checkpointId],
  );
  return new AcknowledgedSet(
    checkpointId,
    ids,
    idsMax,
    pages.map((page) => {
      const pending = new EntryIdSet(page.ids.length / ENTRY_ID_LENGTH);
      pending.addAll(page.ids);
      return { fromId: page.from_id, toId: page.to_id, pending };
    }),
  );
}
