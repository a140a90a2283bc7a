/**
 * What this process knows of the streams in the ledger: one record for each current incarnation, looked up without
 * waiting by whoever handles a command, kept current by notifications and by whoever learns better. It may lag; every
 * commit names the epoch it was made under, so a stale record costs a detour and never an entry.
 */
import type pg from 'pg';
import { batched } from '../async/batcher.ts';
import { bigintArray, byteaArray } from './encoding/binary-array.ts';
import { ENTRY_ID_ZERO, maxEntryId } from './encoding/entry-id.ts';

export type StreamMode = 'normal' | 'outage' | 'restoring';

export interface Group {
  readonly groupId: number;
  readonly name: Buffer;
  readonly generation: number;
  checkpointId: Buffer;
  lastDeliveredId: Buffer;
  /** The greatest ID that was ever delivered in this generation, restores included. */
  everDeliveredId: Buffer;
  changing: boolean;
  /** Since the stream's last restore it has read past everything that is recorded as acknowledged. */
  filtered: boolean;
}

export interface Stream {
  readonly streamId: number;
  readonly database: number;
  readonly name: Buffer;
  readonly incarnation: number;
  epoch: number;
  /** The epoch whose restore was the last to complete; 0 without one. */
  restoredEpoch: number;
  mode: StreamMode;
  modeCause: string | undefined;
  /** The KV store had the key at some time of this incarnation: if it has none now, that is a loss. */
  present: boolean;
  ended: boolean;
  /** The greatest ID that this process has seen or read; there may be greater ones. */
  lastId: Buffer;
  /** By name, as latin1. */
  groups: Map<string, Group>;
  /** The greatest ID in partitions other than `checkedPart`; unknown where that is not the current partition. */
  closedMaxId: Buffer;
  checkedPart: number;
}

interface StreamRow {
  stream_id: string;
  database: number;
  name: Buffer;
  incarnation: string;
  epoch: string;
  restored_epoch: string;
  mode: StreamMode;
  mode_cause: string | null;
  present: boolean;
  ended: boolean;
  last_id: Buffer;
}

interface GroupRow {
  stream_id: string;
  group_id: string;
  name: Buffer;
  generation: string;
  checkpoint_id: Buffer;
  last_delivered_id: Buffer;
  ever_delivered_id: Buffer;
  changing: boolean;
}

const STREAM_COLUMNS = `stream_id, database, name, incarnation, epoch, restored_epoch, mode, mode_cause,
  present OR EXISTS (
    SELECT FROM holdfast.stream_progress AS progress WHERE progress.stream_id = stream.stream_id
  ) AS present, ended_at IS NOT NULL AS ended,
  GREATEST(seen_last_id, (
    SELECT last_id FROM holdfast.stream_progress AS progress
     WHERE progress.stream_id = stream.stream_id ORDER BY last_id DESC LIMIT 1
  )) AS last_id`;
const GROUP_COLUMNS = `stream_id, group_id, name, generation, checkpoint_id, last_delivered_id,
  GREATEST(ever_delivered_id, last_delivered_id) AS ever_delivered_id, changing`;

/** Streams that have ended. */
interface Over {
  readonly over: readonly number[];
}

type ChangeListener = (stream: Stream) => void;

export class StreamRegistry {
  readonly #pool: pg.Pool;
  readonly #byName = new Map<number, Map<string, Stream>>();
  readonly #byId = new Map<number, Stream>();
  readonly #resolving = new Map<string, Promise<Stream>>();
  readonly #listeners = new Set<ChangeListener>();
  /** One read after the other: one that began earlier and answers later would bring back what was before. */
  readonly #read: (wanted: number | 'all' | Over) => Promise<Stream | undefined>;

  constructor(pool: pg.Pool) {
    this.#pool = pool;
    this.#read = batched((wanted) => this.#readTogether(wanted));
  }

  get size(): number {
    return this.#byId.size;
  }

  all(): IterableIterator<Stream> {
    return this.#byId.values();
  }

  /** Those of one database. */
  in(database: number): Iterable<Stream> {
    return this.#byName.get(database)?.values() ?? [];
  }

  find(database: number, name: Buffer): Stream | undefined {
    return this.#byName.get(database)?.get(name.toString('latin1'));
  }

  byId(streamId: number): Stream | undefined {
    return this.#byId.get(streamId);
  }

  /** Called after a record changed, the ended one included. Gives the way to stop it. */
  onChange(listener: ChangeListener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** The stream's current incarnation, begun where there is none. */
  resolve(database: number, name: Buffer): Promise<Stream> {
    const known = this.find(database, name);
    if (known !== undefined) return Promise.resolve(known);
    const key = `${database}:${name.toString('latin1')}`;
    let resolving = this.#resolving.get(key);
    if (resolving === undefined) {
      resolving = this.#begin(database, name).finally(() => this.#resolving.delete(key));
      this.#resolving.set(key, resolving);
    }
    return resolving;
  }

  async #begin(database: number, name: Buffer): Promise<Stream> {
    // A concurrent insert of the same name makes ours do nothing and is then found by the second query.
    for (;;) {
      // Told to the others, for a DEL that goes through them is an intention only on a stream that they know.
      const { rows: begun } = await this.#pool.query<{ stream_id: string }>(
        `WITH begun AS (
           INSERT INTO holdfast.stream (database, name, incarnation)
           SELECT $1, $2, coalesce(max(incarnation), 0) + 1 FROM holdfast.stream
            WHERE database = $1 AND sha256(name) = sha256($2)
           ON CONFLICT DO NOTHING
           RETURNING stream_id
         )
         SELECT stream_id, pg_notify('holdfast', 'stream ' || stream_id) FROM begun`,
        [database, name],
      );
      const { rows } =
        begun.length > 0
          ? { rows: begun }
          : await this.#pool.query<{ stream_id: string }>(
              `SELECT stream_id FROM holdfast.stream
                WHERE database = $1 AND sha256(name) = sha256($2) AND ended_at IS NULL`,
              [database, name],
            );
      if (rows[0] !== undefined) await this.refresh(Number(rows[0].stream_id));
      const stream = this.find(database, name);
      if (stream !== undefined) return stream;
    }
  }

  /**
   * Takes in streams that were found in the KV store, but for those that are on their way there from another place. They count as
   * present only once a look has seen them, for they may be gone again.
   */
  async discover(database: number, names: readonly Buffer[]): Promise<void> {
    await this.#pool.query(
      `WITH begun AS (
         INSERT INTO holdfast.stream (database, name, incarnation)
         SELECT $1, found.name, 1 + coalesce((SELECT max(old.incarnation) FROM holdfast.stream AS old
                                               WHERE old.database = $1 AND sha256(old.name) = sha256(found.name)), 0)
           FROM unnest($2::bytea[]) AS found (name)
          WHERE NOT EXISTS (SELECT FROM holdfast.intention AS i
                             WHERE i.target_database = $1 AND sha256(i.target_name) = sha256(found.name))
         ON CONFLICT DO NOTHING
         RETURNING stream_id
       )
       SELECT pg_notify('holdfast', 'stream ' || stream_id) FROM begun`,
      [database, byteaArray(names)],
    );
    await this.reload();
  }

  /** Reads one stream again, as a notification asks. Gives its record, also where it ended. */
  refresh(streamId: number): Promise<Stream | undefined> {
    return this.#read(streamId);
  }

  /** Reads all current streams again: at the start, and after notifications may have been missed. */
  async reload(): Promise<void> {
    await this.#read('all');
  }

  /** These ended, as the ledger says: nothing needs to be read. */
  async over(streamIds: readonly number[]): Promise<void> {
    if (streamIds.length > 0) await this.#read({ over: streamIds });
  }

  async #readTogether(wanted: readonly (number | 'all' | Over)[]): Promise<(Stream | undefined)[]> {
    // Whoever read them before they ended has stored them by now.
    for (const one of wanted) if (typeof one === 'object') this.#dropEnded(one.over);
    const all = wanted.includes('all');
    const streamIds = wanted.filter((one) => typeof one === 'number');
    if (!all && streamIds.length === 0) return wanted.map(() => undefined);
    const { rows } = await this.#pool.query<StreamRow>(
      `SELECT ${STREAM_COLUMNS} FROM holdfast.stream WHERE ($1 AND ended_at IS NULL) OR stream_id = ANY ($2::bigint[])`,
      [all, bigintArray(streamIds)],
    );
    const { rows: groupRows } = await this.#pool.query<GroupRow>(
      `SELECT ${GROUP_COLUMNS} FROM holdfast.consumer_group
        WHERE ended_at IS NULL AND ($1 OR stream_id = ANY ($2::bigint[]))`,
      [all, bigintArray(streamIds)],
    );
    const read = new Map(rows.map((row) => [Number(row.stream_id), this.#store(row)]));
    if (all) {
      for (const stream of [...this.#byId.values()]) if (!read.has(stream.streamId)) this.#drop(stream);
    }
    this.#storeGroups([...read.values()], groupRows);
    for (const stream of read.values()) this.#changed(stream);
    return wanted.map((one) => (typeof one === 'number' ? read.get(one) : undefined));
  }

  /** Takes a change of mode or epoch that this process made or was told of, unless the record is newer. */
  moved(stream: Stream, epoch: number, mode: StreamMode, cause: string | undefined): void {
    if (epoch < stream.epoch) return;
    stream.epoch = epoch;
    stream.mode = mode;
    stream.modeCause = cause;
    this.#changed(stream);
  }

  #store(row: StreamRow): Stream {
    const streamId = Number(row.stream_id);
    const name = row.name.toString('latin1');
    let named = this.#byName.get(row.database);
    if (named === undefined) this.#byName.set(row.database, (named = new Map()));
    const known = this.#byId.get(streamId);
    if (row.ended) {
      if (known !== undefined) this.#drop(known);
      return known ?? record(row);
    }
    if (known !== undefined && known.database === row.database && known.name.equals(row.name)) {
      const epoch = Number(row.epoch);
      if (epoch >= known.epoch) {
        known.epoch = epoch;
        if (Number(row.restored_epoch) > known.restoredEpoch) {
          known.restoredEpoch = Number(row.restored_epoch);
          for (const group of known.groups.values()) group.filtered = false;
        }
        known.mode = row.mode;
        known.modeCause = row.mode_cause ?? undefined;
      }
      known.present ||= row.present;
      known.lastId = maxEntryId(known.lastId, row.last_id);
      return known;
    }
    if (known !== undefined) this.#drop(known);
    const previous = named.get(name);
    // A query that was under way when the next incarnation began must not bring the old one back.
    if (previous !== undefined && previous.streamId > streamId) return previous;
    if (previous !== undefined) this.#drop(previous);
    const stream = record(row);
    named.set(name, stream);
    this.#byId.set(streamId, stream);
    return stream;
  }

  #storeGroups(streams: readonly Stream[], rows: readonly GroupRow[]): void {
    const byStream = new Map<number, { readonly stream: Stream; readonly groups: Map<string, Group> }>();
    for (const stream of streams) byStream.set(stream.streamId, { stream, groups: new Map() });
    for (const row of rows) {
      const of = byStream.get(Number(row.stream_id));
      if (of === undefined) continue;
      const name = row.name.toString('latin1');
      const known = of.stream.groups.get(name);
      if (known?.groupId === Number(row.group_id)) {
        known.checkpointId = row.checkpoint_id;
        known.lastDeliveredId = row.last_delivered_id;
        known.everDeliveredId = row.ever_delivered_id;
        known.changing = row.changing;
        of.groups.set(name, known);
        continue;
      }
      of.groups.set(name, {
        groupId: Number(row.group_id),
        name: row.name,
        generation: Number(row.generation),
        checkpointId: row.checkpoint_id,
        lastDeliveredId: row.last_delivered_id,
        everDeliveredId: row.ever_delivered_id,
        changing: row.changing,
        filtered: false,
      });
    }
    for (const { stream, groups } of byStream.values()) stream.groups = groups;
  }

  #dropEnded(streamIds: readonly number[]): void {
    for (const streamId of streamIds) {
      const stream = this.#byId.get(streamId);
      if (stream !== undefined) this.#drop(stream);
    }
  }

  #drop(stream: Stream): void {
    stream.ended = true;
    this.#byId.delete(stream.streamId);
    const named = this.#byName.get(stream.database);
    const name = stream.name.toString('latin1');
    if (named?.get(name) === stream) named.delete(name);
    this.#changed(stream);
  }

  #changed(stream: Stream): void {
    for (const listener of this.#listeners) listener(stream);
  }
}

function record(row: StreamRow): Stream {
  return {
    streamId: Number(row.stream_id),
    database: row.database,
    name: row.name,
    incarnation: Number(row.incarnation),
    epoch: Number(row.epoch),
    restoredEpoch: Number(row.restored_epoch),
    mode: row.mode,
    modeCause: row.mode_cause ?? undefined,
    present: row.present,
    ended: row.ended,
    lastId: row.last_id,
    groups: new Map(),
    closedMaxId: ENTRY_ID_ZERO,
    checkedPart: -1,
  };
}
