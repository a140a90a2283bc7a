/**
 * Rows for entries that did not pass through Holdfast, marked as observed: for those that the reconciler finds, and for those
 * that a restore keeps. The latter can stand among or under IDs that the ledger had given away before the loss, where the
 * reconciler, which goes on from where the stream was last complete, would never look:
 *
 *   ID in the ledger?   with other fields, and …   the row under this ID     the lost entry
 *   no                                             is made                   –
 *   yes                 some group wants it        is the direct client's    gets a new ID, its acknowledgements with it
 *   yes                 nobody wants it any more   is the direct client's    is forgotten
 *
 * In each case what was acknowledged under that ID was something else. All of a batch is one transaction of the leader's, before
 * the restored stream takes its name: whoever does it again finds rows that are equal.
 */
import type pg from 'pg';
import type { Logger } from 'pino';
import { HoldfastError } from '../../errors.ts';
import { type AcknowledgedSet, EntryIdSet } from '../../ledger/encoding/acknowledged-set.ts';
import { bigintArray, byteaArray } from '../../ledger/encoding/binary-array.ts';
import {
  ENTRY_ID_LENGTH,
  ENTRY_ID_ZERO,
  entryIdFrom,
  formatEntryId,
  maxEntryId,
  minEntryId,
  nextEntryId,
} from '../../ledger/encoding/entry-id.ts';
import type { Ledger } from '../../ledger/ledger.ts';
import { isRetryable } from '../../ledger/sqlstate.ts';
import type { KnownStream } from '../detect/verdict.ts';
import type { KvEntry } from '../kv/entries.ts';
import { asLeader } from '../restore/renumber.ts';

/** Which counter of stream_progress is used does not matter. */
const SLOT = 64;
const BATCH_ENTRIES = 1000;
const BATCH_BYTES = 4 * 1024 * 1024;

/**
 * Entries without a row get one; gives how many those were. One that the ledger refuses for itself is left out, and told of in the
 * log. Rejects with Postgres's other errors.
 */
export async function observe(
  { ledger, log }: { readonly ledger: Ledger; readonly log: Logger },
  streamId: number,
  epoch: number,
  page: readonly KvEntry[],
): Promise<number | 'conflict' | 'stale'> {
  const { rows: present } = await ledger.pool.query<{ id: Buffer; fields: Buffer }>(
    'SELECT id, fields FROM holdfast.entry WHERE stream_id = $1 AND id = ANY ($2::bytea[])',
    [streamId, byteaArray(page.map(({ id }) => id))],
  );
  const known = new Map(present.map((row) => [row.id.toString('latin1'), row.fields]));
  const fresh: KvEntry[] = [];
  for (const entry of page) {
    const have = known.get(entry.id.toString('latin1'));
    if (have === undefined) fresh.push(entry);
    else if (!have.equals(entry.fields)) return 'conflict';
  }
  let observed = 0;
  const parts = fresh.length === 0 ? [] : [fresh];
  for (let part = parts.pop(); part !== undefined; part = parts.pop()) {
    try {
      const outcome = await insert(ledger.pool, streamId, epoch, part);
      if (typeof outcome === 'string') return outcome;
      observed += outcome;
    } catch (thrown) {
      if (isRetryable(thrown)) throw thrown;
      // Halves, until the bad one stands alone.
      const half = part.length >> 1;
      if (half > 0) parts.push(part.slice(half), part.slice(0, half));
      else log.error({ err: thrown, streamId, id: formatEntryId(part[0]!.id) }, 'the ledger refused an entry');
    }
  }
  return observed;
}

async function insert(
  database: pg.Pool | pg.PoolClient,
  streamId: number,
  epoch: number,
  fresh: readonly KvEntry[],
): Promise<number | 'conflict' | 'stale'> {
  const { rows } = await database.query<{ outcome: string }>(
    `SELECT outcome FROM holdfast.commit_entries(
       (SELECT max(part) FROM holdfast.entry_partition), $1::smallint, true, true,
       $2::bigint[], $3::bytea[], $4::bigint[], $5::bytea[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bytea[])`,
    [
      SLOT,
      bigintArray(fresh.map(() => streamId)),
      byteaArray(fresh.map(({ id }) => id)),
      bigintArray(fresh.map(() => epoch)),
      byteaArray(fresh.map(({ fields }) => fields)),
      bigintArray(fresh.map(() => undefined)),
      bigintArray([streamId]),
      bigintArray([epoch]),
      byteaArray([fresh.reduce((last, { id }) => maxEntryId(last, id), ENTRY_ID_ZERO)]),
    ],
  );
  if (rows.some(({ outcome }) => outcome === 'conflict')) return 'conflict';
  return rows.length > 0 ? 'stale' : fresh.length;
}

/** An entry in the KV store, and the lost one that has its ID in the ledger. */
export interface Displaced {
  readonly theirs: KvEntry;
  readonly ours: KvEntry;
}

/** What one attempt to restore a stream keeps of clients that went past Holdfast. Rejects with Postgres's errors. */
export class KeptEntries {
  readonly #context: { readonly ledger: Ledger; readonly leaderEpoch: number };
  readonly #known: KnownStream;
  readonly #acknowledged: ReadonlyMap<number, AcknowledgedSet>;
  #fresh: KvEntry[] = [];
  #replacing: KvEntry[] = [];
  #bytes = 0;
  #observed = 0;

  /** `acknowledged`: of each of the stream's groups, by its ID. */
  constructor(
    context: { readonly ledger: Ledger; readonly leaderEpoch: number },
    known: KnownStream,
    acknowledged: ReadonlyMap<number, AcknowledgedSet>,
  ) {
    this.#context = context;
    this.#known = known;
    this.#acknowledged = acknowledged;
  }

  /** How many have got a row. */
  get observed(): number {
    return this.#observed;
  }

  /** `full`: call `flush` before the next one. */
  get full(): boolean {
    return this.#fresh.length + this.#replacing.length >= BATCH_ENTRIES || this.#bytes >= BATCH_BYTES;
  }

  /** An entry of which the ledger has no row. */
  add(entry: KvEntry): void {
    this.#fresh.push(entry);
    this.#bytes += entry.fields.length;
  }

  /** An entry that has taken the ID of a lost one which nobody wants any more. */
  replace(entry: KvEntry): void {
    this.#replacing.push(entry);
    this.#bytes += entry.fields.length;
  }

  async flush(): Promise<void> {
    if (this.#fresh.length + this.#replacing.length === 0) return;
    const { streamId, reconciledId } = this.#known;
    const replaced = this.#replacing.map(({ id }) => id);
    // Above reconciledId it may be what was acknowledged there: written, and acknowledged, since the last look.
    const between = this.#fresh.map(({ id }) => id).filter((id) => id.compare(reconciledId) <= 0);
    await asLeader(this.#context, async (client) => {
      if (replaced.length > 0) {
        await client.query(
          `UPDATE holdfast.entry SET fields = given.fields, maxlen = NULL, observed = true, committed_at = clock_timestamp()
             FROM unnest($2::bytea[], $3::bytea[]) AS given (id, fields)
            WHERE entry.stream_id = $1 AND entry.id = given.id`,
          [streamId, byteaArray(replaced), byteaArray(this.#replacing.map(({ fields }) => fields))],
        );
        await client.query('DELETE FROM holdfast.deletion WHERE stream_id = $1 AND id = ANY ($2::bytea[])', [
          streamId,
          byteaArray(replaced),
        ]);
      }
      await this.#insert(client, this.#fresh);
      await this.#reopen(client, [...replaced, ...between]);
    });
    this.#observed += this.#fresh.length + this.#replacing.length;
    this.#fresh = [];
    this.#replacing = [];
    this.#bytes = 0;
  }

  /** The lost ones get IDs above `after`, which are given. */
  async displace(displaced: readonly Displaced[], after: Buffer): Promise<Buffer[]> {
    const { streamId } = this.#known;
    const newIds: Buffer[] = [];
    for (const _ of displaced) {
      const next = nextEntryId(newIds.at(-1) ?? after);
      newIds.push(newIds.length > 0 ? next : maxEntryId(next, entryIdFrom(Date.now(), 0)));
    }
    for (let from = 0; from < displaced.length; from += BATCH_ENTRIES) {
      const part = displaced.slice(from, from + BATCH_ENTRIES);
      const partIds = newIds.slice(from, from + BATCH_ENTRIES);
      const oldIds = part.map(({ ours }) => ours.id);
      await asLeader(this.#context, async (client) => {
        await client.query(
          `SELECT holdfast.alias_entry($1, $2, given.id, given.new_id)
             FROM unnest($3::bytea[], $4::bytea[]) AS given (id, new_id)`,
          [this.#context.leaderEpoch, streamId, byteaArray(oldIds), byteaArray(partIds)],
        );
        await client.query(
          'UPDATE holdfast.stream SET seen_last_id = GREATEST(seen_last_id, $2) WHERE stream_id = $1',
          [streamId, partIds.at(-1)],
        );
        for (const [groupId, acknowledged] of this.#acknowledged) {
          const ids = partIds.filter((_, at) => acknowledged.has(oldIds[at]!));
          if (ids.length === 0) continue;
          await client.query('INSERT INTO holdfast.acknowledgement (group_id, max_id, ids) VALUES ($1, $2, $3)', [
            groupId,
            ids.at(-1),
            Buffer.concat(ids, ids.length * ENTRY_ID_LENGTH),
          ]);
        }
        await this.#insert(
          client,
          part.map(({ theirs }) => theirs),
        );
        await this.#reopen(client, oldIds);
      });
      this.#observed += part.length;
    }
    return newIds;
  }

  async #insert(client: pg.PoolClient, fresh: readonly KvEntry[]): Promise<void> {
    if (fresh.length === 0) return;
    const outcome = await insert(client, this.#known.streamId, this.#known.epoch, fresh);
    if (outcome === 'stale' || outcome === 'conflict') {
      throw new HoldfastError('RECOVERING', 'the ledger of the stream changed under its restore');
    }
  }

  /** What was acknowledged under these IDs was something else: what has them now is still to be delivered. */
  async #reopen(client: pg.PoolClient, ids: readonly Buffer[]): Promise<void> {
    for (const [groupId, acknowledged] of this.#acknowledged) {
      const open = ids.filter((id) => id.compare(acknowledged.checkpointId) > 0 && acknowledged.has(id));
      if (open.length > 0) await reopenFor(client, groupId, open);
    }
  }
}

async function reopenFor(client: pg.PoolClient, groupId: number, open: readonly Buffer[]): Promise<void> {
  const reopened = new EntryIdSet(open.length);
  for (const id of open) reopened.add(id);
  const least = open.reduce(minEntryId);
  const { rows: batches } = await client.query<{ acknowledgement_id: string; ids: Buffer }>(
    'SELECT acknowledgement_id, ids FROM holdfast.acknowledgement WHERE group_id = $1 AND max_id >= $2',
    [groupId, least],
  );
  for (const { acknowledgement_id: acknowledgementId, ids } of batches) {
    const kept = idsOf(ids).filter((id) => !reopened.has(id));
    if (kept.length * ENTRY_ID_LENGTH === ids.length) continue;
    await client.query('UPDATE holdfast.acknowledgement SET ids = $2 WHERE acknowledgement_id = $1', [
      acknowledgementId,
      Buffer.concat(kept),
    ]);
  }
  // Of a page everything counts as acknowledged but what was pending.
  const { rows: pages } = await client.query<{ from_id: Buffer; to_id: Buffer; ids: Buffer }>(
    'SELECT from_id, to_id, ids FROM holdfast.pending_page WHERE group_id = $1 AND to_id >= $2',
    [groupId, least],
  );
  for (const { from_id: fromId, to_id: toId, ids } of pages) {
    const inside = open.filter((id) => id.compare(fromId) > 0 && id.compare(toId) <= 0);
    if (inside.length === 0) continue;
    await client.query('UPDATE holdfast.pending_page SET ids = $3 WHERE group_id = $1 AND to_id = $2', [
      groupId,
      toId,
      Buffer.concat([ids, ...inside]),
    ]);
  }
}

function idsOf(concatenated: Buffer): Buffer[] {
  return Array.from({ length: concatenated.length / ENTRY_ID_LENGTH }, (_, at) =>
    concatenated.subarray(at * ENTRY_ID_LENGTH, (at + 1) * ENTRY_ID_LENGTH),
  );
}

/** Leaves out what was trimmed: what is below the stream's floor and in the ledger. Anything else there is a direct client's. */
export async function* withoutTrimmed(
  ledger: Ledger,
  { streamId, floorId }: KnownStream,
  pages: AsyncGenerator<KvEntry[]>,
): AsyncGenerator<KvEntry[]> {
  for await (const page of pages) {
    const below = page.filter(({ id }) => id.compare(floorId) < 0);
    if (below.length === 0) {
      yield page;
      continue;
    }
    const { rows } = await ledger.pool.query<{ id: Buffer; fields: Buffer }>(
      'SELECT id, fields FROM holdfast.entry WHERE stream_id = $1 AND id = ANY ($2::bytea[])',
      [streamId, byteaArray(below.map(({ id }) => id))],
    );
    const trimmed = new Map(rows.map(({ id, fields }) => [id.toString('latin1'), fields]));
    const kept = page.filter(
      ({ id, fields }) => id.compare(floorId) >= 0 || trimmed.get(id.toString('latin1'))?.equals(fields) !== true,
    );
    if (kept.length > 0) yield kept;
  }
}
