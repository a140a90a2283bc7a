/**
 * The key in which a stream is built before it takes the name: what the ledger has and what the KV store has, merged in
 * ID order, then the watermarks and the groups. Of the ledger's entries come those that some group has not acknowledged;
 * without groups, all that were not trimmed or deleted. An ID that meanwhile holds other fields keeps them, and the
 * ledger's entry gets a new ID. Where the KV store has no room for all of them the oldest come, and a window stays open
 * for the others (refill.ts).
 */
import { HoldfastError } from '../../errors.ts';
import { EntryIdSet, isWanted, readAcknowledged } from '../../ledger/encoding/acknowledged-set.ts';
import { byteaArray } from '../../ledger/encoding/binary-array.ts';
import { restoringXaddLengthMax, writeRestoringXadd } from '../../ledger/encoding/entry-fields.ts';
import {
  ENTRY_ID_MAX,
  ENTRY_ID_ZERO,
  formatEntryId,
  maxEntryId,
  minEntryId,
  previousEntryId,
} from '../../ledger/encoding/entry-id.ts';
import type { Ledger } from '../../ledger/ledger.ts';
import { request } from '../../resp/encode.ts';
import type { KnownGroup, KnownStream } from '../detect/verdict.ts';
import { BulkWriter } from '../kv/bulk-writer.ts';
import type { KvArgument, KvConnection } from '../kv/connection.ts';
import { type KvEntry, kvEntries } from '../kv/entries.ts';
import { restoreKey } from '../kv/epoch-key.ts';
import { entryBytes, OutOfRoom } from '../kv/memory.ts';
import { readStream, type StreamSnapshot } from '../kv/snapshot.ts';
import { type Displaced, KeptEntries, withoutTrimmed } from '../reconcile/observed-entries.ts';
import { ledgerEntries } from './ledger-entries.ts';
import type { RestoreContext } from './restore-stream.ts';

const FRAMES_BYTES = 256 * 1024;
/** Entries put or left out between two looks at whether the KV store keeps up. */
const STEPS_PER_CHECK = 1000;
/** A side key that is left behind goes by itself. */
const SIDE_KEY_TTL_MS = 3_600_000;

/** One entry after the other out of pages. */
class Head<Entry> {
  readonly #pages: AsyncGenerator<Entry[]>;
  #page: Entry[] = [];
  #at = 0;

  constructor(pages: AsyncGenerator<Entry[]>) {
    this.#pages = pages;
  }

  /** The entry in front, without waiting; `undefined` where the next page must be awaited or all is done. */
  get ready(): Entry | undefined {
    return this.#page[this.#at];
  }

  advance(): void {
    this.#at += 1;
  }

  async fill(): Promise<Entry | undefined> {
    if (this.#at < this.#page.length) return this.#page[this.#at];
    const next = await this.#pages.next();
    this.#page = next.done === true ? [] : next.value;
    this.#at = 0;
    return this.#page[0];
  }

  /** No more is wanted. */
  async end(): Promise<void> {
    await this.#pages.return(undefined);
  }
}

/** The state of one build: what the side key holds so far. */
export interface Build {
  restored: number;
  merged: number;
  /** Merged entries of which the ledger had no row: they are counted when it gets one. */
  unknown: number;
  /** Entries that got a row, as they had not passed through Holdfast. */
  observed: number;
  /** Up to here the ledger has a row of everything that a restore could ask for. */
  reconciledId: Buffer;
  aliases: number;
  length: number;
  lastId: Buffer;
  /** The stream up to whose last ID all is merged; what is newer is merged before the swap. */
  seen: StreamSnapshot | undefined;
  /** Of the ledger's entries above it some are left out for want of memory. */
  windowId: Buffer | undefined;
}

let attempts = 0;

/** For one attempt and no other: what is still on its way from one that was given up cannot land in the next one's. */
export function newSideKey(context: RestoreContext, streamId: number): Buffer {
  attempts += 1;
  return Buffer.from(restoreKey(context.leaderEpoch, streamId, attempts));
}

/**
 * `room`: how many bytes it may take in the KV store. Gives `replaced` where a key of another type has the stream's name.
 * Rejects with OutOfRoom where the KV store refuses for want of memory, and leaves no side key behind then.
 */
export async function buildSideKey(
  context: RestoreContext,
  connection: KvConnection,
  known: KnownStream,
  side: Buffer,
  room: number,
): Promise<Build | 'replaced'> {
  const { ledger } = context;
  await connection.command(known.database, ['UNLINK', side]);
  const groups = [...known.groups.values()];
  const acknowledged = await Promise.all(groups.map((group) => readAcknowledged(ledger.pool, group.groupId)));
  const deleting = await readDeleting(ledger, known.streamId);
  const kept = new KeptEntries(context, known, new Map(groups.map(({ groupId }, at) => [groupId, acknowledged[at]!])));
  let low = previousEntryId(known.floorId);
  if (groups.length > 0) {
    const checkpoint = acknowledged.reduce((least, set) => minEntryId(least, set.checkpointId), ENTRY_ID_MAX);
    low = maxEntryId(low, checkpoint);
  }

  const actual = await readStream(connection, known);
  if (actual === 'other') return 'replaced';
  const build: Build = {
    restored: 0,
    merged: 0,
    unknown: 0,
    observed: 0,
    reconciledId: ENTRY_ID_ZERO,
    aliases: 0,
    length: 0,
    lastId: ENTRY_ID_ZERO,
    seen: actual === 'missing' ? undefined : actual,
    windowId: undefined,
  };
  const writer = await BulkWriter.open(context.address, known.database);
  // Where nothing is there, nothing can have been put under the ID of what was deleted.
  const fromLedger = new Head(ledgerEntries(ledger, known.streamId, low, build.seen !== undefined));
  try {
    // How many entries stand at or below each group's checkpoint: for entries-read.
    const below = groups.map(() => -1);
    const displaced: Displaced[] = [];
    let frames = Buffer.allocUnsafeSlow(FRAMES_BYTES);
    let bytes = 0;
    let commands = 0;
    let used = 0;
    const expire = request(['PEXPIRE', side, String(SIDE_KEY_TTL_MS)]);
    const flush = (): void => {
      writer.write(frames.subarray(0, bytes), commands);
      // Also behind the last of them: after the end of an attempt, what lands late makes the key anew.
      writer.write(expire, 1);
      frames = Buffer.allocUnsafeSlow(FRAMES_BYTES);
      bytes = 0;
      commands = 0;
    };
    /** Sees to it that so many bytes more can be written. */
    const reserve = (length: number): void => {
      if (bytes + length <= frames.length) return;
      if (bytes > 0) flush();
      if (length > frames.length) frames = Buffer.allocUnsafeSlow(length);
    };
    const add = (command: readonly KvArgument[]): void => {
      const frame = request(command.map((part) => (Buffer.isBuffer(part) ? part : String(part))));
      reserve(frame.length);
      bytes += frame.copy(frames, bytes);
      commands += 1;
    };
    const put = (entry: KvEntry & { readonly maxlen?: number | undefined }): void => {
      groups.forEach((_, index) => {
        if (below[index]! < 0 && entry.id.compare(acknowledged[index]!.checkpointId) > 0) below[index] = build.length;
      });
      const { maxlen } = entry;
      used += entryBytes(entry.fields);
      reserve(restoringXaddLengthMax(side, entry.fields));
      bytes = writeRestoringXadd(frames, bytes, side, formatEntryId(entry.id), entry.fields, maxlen);
      commands += 1;
      if (build.length === 0) add(['PEXPIRE', side, SIDE_KEY_TTL_MS]);
      build.length += 1;
      if (maxlen !== undefined && build.length > maxlen) {
        const trimmed = build.length - maxlen;
        build.length -= trimmed;
        below.forEach((count, index) => {
          if (count > 0) below[index] = Math.max(0, count - trimmed);
        });
      }
      build.lastId = entry.id;
    };

    const present = kvEntries(connection, known, ENTRY_ID_ZERO, build.seen?.lastId ?? ENTRY_ID_ZERO);
    const fromKv = new Head(marked(ledger, known.streamId, deleting, withoutTrimmed(ledger, known, present)));
    for (let steps = 1; ; steps += 1) {
      const theirs = build.seen === undefined ? undefined : (fromKv.ready ?? (await fromKv.fill()));
      // With the window full, all that is left to do is to merge what is there.
      if (theirs === undefined && build.windowId !== undefined) break;
      const ours = fromLedger.ready ?? (await fromLedger.fill());
      if (ours === undefined && theirs === undefined) break;
      const order = ours === undefined ? 1 : theirs === undefined ? -1 : ours.id.compare(theirs.id);
      const whole = build.windowId === undefined;
      // Of an ID that holds other fields neither a deletion nor an acknowledgement was meant for what has it now.
      const taken = order === 0 && !ours!.fields.equals(theirs!.fields);
      if (order <= 0) {
        fromLedger.advance();
        const deleted = ours!.deleted || deleting.has(ours!.id);
        const wanted = whole && !deleted && isWanted(acknowledged, ours!.id);
        if (order < 0 && wanted) {
          if (used + entryBytes(ours!.fields) > room) build.windowId = previousEntryId(ours!.id);
          else {
            put(ours!);
            build.restored += 1;
          }
        } else if (taken && wanted) displaced.push({ theirs: theirs!, ours: ours! });
        else if (taken && whole) kept.replace(theirs!);
      }
      if (order >= 0) {
        fromKv.advance();
        if (taken || !theirs!.deleted) {
          put(theirs!);
          build.merged += 1;
          if (order > 0) build.unknown += 1;
          if (order > 0 && whole && theirs!.id.compare(low) > 0) kept.add(theirs!);
        }
      }
      if (kept.full) await kept.flush();
      if (steps % STEPS_PER_CHECK === 0) {
        await writer.ready();
        await refuse(writer);
      }
    }
    await kept.flush();
    // Those of a windowed build come with what is left, which they are above.
    const newIds = await kept.displace(displaced, maxEntryId(build.lastId, known.lastId));
    build.unknown += displaced.length;
    build.aliases = displaced.length;
    build.observed = kept.observed;
    if (build.windowId === undefined) {
      for (const [at, { ours }] of displaced.entries()) put({ id: newIds[at]!, fields: ours.fields });
      build.restored += displaced.length;
    }
    // Behind the edge nobody has looked.
    build.reconciledId = build.windowId ?? build.lastId;

    // A stream may be all groups and no entries.
    const finish: KvArgument[][] = [];
    if (build.length === 0) {
      finish.push(['XGROUP', 'CREATE', side, 'holdfast', '0', 'MKSTREAM'], ['XGROUP', 'DESTROY', side, 'holdfast']);
    }
    finish.push(xsetid(side, known, build));
    const left = build.windowId === undefined ? 0 : await countAbove(ledger, known.streamId, build.windowId);
    groups.forEach((group, index) => {
      const atOrBelow = below[index]! < 0 ? build.length : below[index]!;
      const above = build.length - atOrBelow + left;
      finish.push(createGroup(side, group, acknowledged[index]!.checkpointId, known, build, above));
    });
    for (const command of finish) add(command);
    flush();
    await writer.drain();
    await refuse(writer);
    // Evicted half-way, and begun again by the next XADD, it would lack what came before.
    if ((await connection.command(known.database, ['XLEN', side])) !== build.length) {
      throw new OutOfRoom('the KV store evicted a stream while it was restored');
    }
    return build;
  } catch (thrown) {
    if (thrown instanceof OutOfRoom) await connection.command(known.database, ['UNLINK', side]);
    throw thrown;
  } finally {
    writer.close();
    await fromLedger.end();
  }
}

/** Throws where the KV store refused a command. */
async function refuse(writer: BulkWriter): Promise<void> {
  const refused = writer.takeRefused()[0];
  if (refused === undefined) return;
  // What is still on its way would make the key anew once it is taken out, and there is room for it then.
  await writer.drain();
  if (refused.text.startsWith('OOM ')) throw new OutOfRoom('the KV store has no memory for what it lost');
  throw new HoldfastError('RECOVERING', `the KV store refused to take an entry back: ${refused.text}`);
}

async function countAbove(ledger: Ledger, streamId: number, id: Buffer): Promise<number> {
  const { rows } = await ledger.pool.query<{ entries: string }>(
    'SELECT count(*) AS entries FROM holdfast.entry WHERE stream_id = $1 AND id > $2',
    [streamId, id],
  );
  return Number(rows[0]!.entries);
}

/** What the ledger counts, and will count: less would be the next loss. More is found out by the reconciler. */
function entriesAdded(known: KnownStream, build: Build): number {
  return Math.max(known.added + build.unknown, build.seen?.entriesAdded ?? 0, build.length);
}

/**
 * The last ID, entries-added and max-deleted-entry-id that the side key is given. While a window is open the last ID is
 * its edge, so that more can follow.
 */
export function watermarks(
  known: KnownStream,
  build: Build,
): { readonly lastId: string; readonly entriesAdded: number; readonly maxDeletedId: string } {
  const top = maxEntryId(build.lastId, build.windowId ?? known.lastId);
  const last = maxEntryId(top, build.seen?.lastId ?? ENTRY_ID_ZERO);
  const deleted = maxEntryId(known.maxDeletedId, build.seen?.maxDeletedId ?? ENTRY_ID_ZERO);
  return {
    lastId: formatEntryId(last),
    entriesAdded: entriesAdded(known, build),
    maxDeletedId: formatEntryId(minEntryId(deleted, last)),
  };
}

export function xsetid(key: Buffer, known: KnownStream, build: Build): KvArgument[] {
  const { lastId, entriesAdded: added, maxDeletedId } = watermarks(known, build);
  return ['XSETID', key, lastId, 'ENTRIESADDED', added, 'MAXDELETEDID', maxDeletedId];
}

function createGroup(
  key: Buffer,
  group: Pick<KnownGroup, 'name'>,
  checkpointId: Buffer,
  known: KnownStream,
  build: Build,
  above: number,
): KvArgument[] {
  const read = Math.max(0, entriesAdded(known, build) - above);
  return ['XGROUP', 'CREATE', key, group.name, formatEntryId(checkpointId), 'ENTRIESREAD', read];
}

/** What clients are about to delete, or may have deleted. */
async function readDeleting(ledger: Ledger, streamId: number): Promise<EntryIdSet> {
  const deleting = new EntryIdSet();
  const { rows } = await ledger.pool.query<{ ids: Buffer }>(
    `SELECT ids FROM holdfast.intention WHERE stream_id = $1 AND kind = 'delete'`,
    [streamId],
  );
  for (const { ids } of rows) deleting.addAll(ids);
  return deleting;
}

interface MarkedEntry extends KvEntry {
  /** By a client, though the KV store has it. */
  readonly deleted: boolean;
}

async function* marked(
  ledger: Ledger,
  streamId: number,
  deleting: EntryIdSet,
  pages: AsyncGenerator<KvEntry[]>,
): AsyncGenerator<MarkedEntry[]> {
  for await (const page of pages) {
    const { rows } = await ledger.pool.query<{ id: Buffer }>(
      'SELECT id FROM holdfast.deletion WHERE stream_id = $1 AND id = ANY ($2::bytea[])',
      [streamId, byteaArray(page.map(({ id }) => id))],
    );
    const deleted = new Set(rows.map(({ id }) => id.toString('latin1')));
    yield page.map((entry) => ({
      ...entry,
      deleted: deleted.has(entry.id.toString('latin1')) || deleting.has(entry.id),
    }));
  }
}
