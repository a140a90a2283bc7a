/**
 * Puts a stream back. It is built in a side key whose name carries the leader's epoch, and takes the stream's name in one
 * transaction that fails when the fence or the stream changed meanwhile:
 *
 *   ledger rows in ID order ─┐
 *                            ├─ merge ─▶ side key ─▶ XSETID, groups ─▶ WATCH fence, stream ─▶ RENAME ─▶ verify ─▶ complete
 *   what the stream has now ─┘              ▲                              │ changed: merge what came
 *                                           └──────────────────────────────┘
 *
 * What the KV store has stays: entries of direct clients, and history below the checkpoints. Of the ledger's entries
 * come back those that some group has not acknowledged; without groups, all that were not trimmed or deleted. An ID that
 * meanwhile holds other fields keeps them, and the ledger's entry gets a new ID.
 * Doing it twice, or half and then again, changes nothing.
 */
import type { Logger } from 'pino';
import type { KvAddress } from '../control-redis.ts';
import { HoldfastError } from '../errors.ts';
import { EntryIdSet, isWanted, readAcknowledged } from '../ledger/acknowledged-set.ts';
import { decodeFields, restoringXadd } from '../ledger/entry-fields.ts';
import {
  ENTRY_ID_MAX,
  ENTRY_ID_ZERO,
  entryIdFrom,
  formatEntryId,
  maxEntryId,
  nextEntryId,
  previousEntryId,
} from '../ledger/entry-id.ts';
import type { Ledger } from '../ledger/ledger.ts';
import { request } from '../resp/encode.ts';
import { BulkWriter } from './bulk-writer.ts';
import type { KnownGroup, KnownStream } from './compare.ts';
import { readKnownStreams } from './known-streams.ts';
import { type KvArgument, KvConnection } from './kv-connection.ts';
import { kvEntries } from './kv-entries.ts';
import { type GroupSnapshot, readSnapshot, type StreamSnapshot } from './kv-snapshot.ts';
import { swapByScript } from './swap-script.ts';
import { formatWitness, restoreKey, WITNESS_KEY } from './witness.ts';

export interface RestoreContext {
  readonly ledger: Ledger;
  readonly address: KvAddress;
  /** The leader's fencing epoch. */
  readonly leaderEpoch: number;
  readonly log: Logger;
}

export interface RestoreResult {
  readonly entriesRestored: number;
  readonly entriesMerged: number;
  readonly aliases: number;
  readonly milliseconds: number;
}

interface Entry {
  readonly id: Buffer;
  readonly fields: Buffer;
  /** An exact MAXLEN that its XADD carried: what it trimmed stays away. */
  readonly maxlen?: string | null;
}

const LEDGER_PAGE_ROWS = 5000;
const COMMAND_TIMEOUT_MS = 30_000;
const SWAP_ATTEMPTS_MAX = 50;
/** After so many looks that were outrun by a client, one script does the last merge and the swap. */
const WATCH_ATTEMPTS_MAX = 4;
const REBUILD_ATTEMPTS_MAX = 5;
/** A side key that a dead leader leaves behind goes by itself. */
const SIDE_KEY_TTL_MS = 3_600_000;

async function* ledgerEntries(ledger: Ledger, streamId: number, after: Buffer): AsyncGenerator<Entry[]> {
  for (let last = after; ; ) {
    const { rows } = await ledger.pool.query<Entry>({
      name: 'holdfast-restore-page',
      text: `SELECT id, fields, maxlen FROM holdfast.entry
              WHERE stream_id = $1 AND id > $2 ORDER BY id LIMIT ${LEDGER_PAGE_ROWS}`,
      values: [streamId, last],
    });
    if (rows.length > 0) yield rows;
    if (rows.length < LEDGER_PAGE_ROWS) return;
    last = rows.at(-1)!.id;
  }
}

/** One entry after the other out of pages. */
class Head {
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
}

/** The state of one build: what the side key holds so far. */
interface Build {
  restored: number;
  merged: number;
  /** Merged entries of which the ledger has no row: they will be counted when it gets one. */
  unknown: number;
  aliases: number;
  length: number;
  lastId: Buffer;
  /** The stream up to whose last ID all is merged; what is newer is merged before the swap. */
  seen: StreamSnapshot | undefined;
}

export async function restoreStream(context: RestoreContext, streamId: number): Promise<RestoreResult | undefined> {
  const started = performance.now();
  const { ledger, log } = context;
  await ledger.pool.query('SELECT holdfast.assert_leader($1)', [context.leaderEpoch]);
  await ledger.pool.query(
    `UPDATE holdfast.recovery SET began_at = coalesce(began_at, clock_timestamp()), attempts = attempts + 1
      WHERE stream_id = $1 AND completed_at IS NULL`,
    [streamId],
  );
  const [known] = await readKnownStreams(ledger.pool, [streamId]);
  if (known === undefined || known.mode !== 'restoring') return undefined;

  // Two: what one of them watches, the other may read in transactions of its own.
  const reader = await KvConnection.open(context.address, COMMAND_TIMEOUT_MS);
  const fenced = await KvConnection.open(context.address, COMMAND_TIMEOUT_MS).catch((thrown: unknown) => {
    reader.close();
    throw thrown;
  });
  try {
    for (let attempt = 1; attempt <= REBUILD_ATTEMPTS_MAX; attempt += 1) {
      const build = await buildSideKey(context, reader, known);
      const swapped = await swapIn(context, reader, fenced, known, build);
      if (swapped === undefined) continue;
      const { rows } = await ledger.pool.query<{ complete_restore: boolean }>(
        'SELECT holdfast.complete_restore($1, $2, $3, $4, $5, NULL, $6, $7, $8)',
        [
          context.leaderEpoch,
          streamId,
          known.epoch,
          swapped.lastId,
          swapped.entriesAdded,
          build.restored,
          build.merged,
          build.aliases,
        ],
      );
      if (!rows[0]!.complete_restore) return undefined;
      const result = {
        entriesRestored: build.restored,
        entriesMerged: build.merged,
        aliases: build.aliases,
        milliseconds: Math.round(performance.now() - started),
      };
      log.warn({ stream: known.name.toString(), database: known.database, ...result }, 'stream restored');
      return result;
    }
    throw new HoldfastError('RECOVERING', 'the stream kept changing under the restore');
  } finally {
    reader.close();
    fenced.close();
  }
}

async function buildSideKey(context: RestoreContext, connection: KvConnection, known: KnownStream): Promise<Build> {
  const { ledger } = context;
  const side = Buffer.from(restoreKey(context.leaderEpoch, known.streamId));
  await connection.command(known.database, ['UNLINK', side]);
  const groups = [...known.groups.values()];
  const acknowledged = await Promise.all(groups.map((group) => readAcknowledged(ledger.pool, group.groupId)));
  const deleted = await readDeleted(ledger, known.streamId);
  let low = previousEntryId(known.floorId);
  if (groups.length > 0) {
    const checkpoint = acknowledged.reduce(
      (least, set) => (set.checkpointId.compare(least) < 0 ? set.checkpointId : least),
      ENTRY_ID_MAX,
    );
    low = maxEntryId(low, checkpoint);
  }

  const snapshot = await readSnapshot(connection, [{ database: known.database, name: known.name, groups: [] }]);
  const actual = snapshot.streams[0]!;
  const build: Build = {
    restored: 0,
    merged: 0,
    unknown: 0,
    aliases: 0,
    length: 0,
    lastId: ENTRY_ID_ZERO,
    seen: typeof actual === 'string' ? undefined : actual,
  };
  const writer = await BulkWriter.open(context.address, known.database);
  try {
    // How many entries stand at or below each group's checkpoint: for entries-read.
    const below = groups.map(() => -1);
    const displaced: Entry[] = [];
    let frames: Buffer[] = [];
    let bytes = 0;
    let commands = 0;
    const flush = (): void => {
      writer.write([Buffer.concat(frames)], commands);
      frames = [];
      bytes = 0;
      commands = 0;
    };
    const put = (entry: Entry): void => {
      groups.forEach((_, index) => {
        if (below[index]! < 0 && entry.id.compare(acknowledged[index]!.checkpointId) > 0) below[index] = build.length;
      });
      const maxlen = entry.maxlen ?? undefined;
      for (const part of restoringXadd(side, formatEntryId(entry.id), entry.fields, maxlen)) {
        frames.push(part);
        bytes += part.length;
      }
      commands += 1;
      build.length += 1;
      if (maxlen !== undefined && build.length > Number(maxlen)) {
        const trimmed = build.length - Number(maxlen);
        build.length -= trimmed;
        below.forEach((count, index) => {
          if (count > 0) below[index] = Math.max(0, count - trimmed);
        });
      }
      build.lastId = entry.id;
      if (bytes > 256 * 1024) flush();
    };

    const fromLedger = new Head(ledgerEntries(ledger, known.streamId, low));
    const fromKv = new Head(kvEntries(connection, known, ENTRY_ID_ZERO, build.seen?.lastId ?? ENTRY_ID_ZERO));
    for (let steps = 1; ; steps += 1) {
      const ours = fromLedger.ready ?? (await fromLedger.fill());
      const theirs = build.seen === undefined ? undefined : (fromKv.ready ?? (await fromKv.fill()));
      if (ours === undefined && theirs === undefined) break;
      const order = ours === undefined ? 1 : theirs === undefined ? -1 : ours.id.compare(theirs.id);
      if (order <= 0) {
        fromLedger.advance();
        const wanted = !deleted.has(ours!.id) && isWanted(acknowledged, ours!.id);
        if (order < 0) {
          if (wanted) {
            put(ours!);
            build.restored += 1;
          }
        } else if (wanted && !ours!.fields.equals(theirs!.fields)) displaced.push(ours!);
      }
      if (order >= 0) {
        fromKv.advance();
        if (!deleted.has(theirs!.id) && theirs!.id.compare(known.floorId) >= 0) {
          put(theirs!);
          build.merged += 1;
          if (order > 0) build.unknown += 1;
        }
      }
      if (steps % 1000 === 0) await writer.ready();
    }
    for (const entry of displaced) {
      const next = nextEntryId(maxEntryId(build.lastId, known.lastId));
      const id = maxEntryId(next, entryIdFrom(Date.now(), 0));
      await ledger.pool.query('SELECT holdfast.alias_entry($1, $2, $3, $4)', [
        context.leaderEpoch,
        known.streamId,
        entry.id,
        id,
      ]);
      put({ id, fields: entry.fields });
      build.restored += 1;
      build.aliases += 1;
    }
    if (commands > 0) flush();

    // A stream may be all groups and no entries.
    const finish: KvArgument[][] = [];
    if (build.length === 0) {
      finish.push(['XGROUP', 'CREATE', side, 'holdfast', '0', 'MKSTREAM'], ['XGROUP', 'DESTROY', side, 'holdfast']);
    }
    finish.push(['PEXPIRE', side, SIDE_KEY_TTL_MS]);
    finish.push(xsetid(side, known, build));
    groups.forEach((group, index) => {
      const atOrBelow = below[index]! < 0 ? build.length : below[index]!;
      finish.push(createGroup(side, group, acknowledged[index]!.checkpointId, known, build, build.length - atOrBelow));
    });
    for (const command of finish)
      writer.write([request(command.map((part) => (Buffer.isBuffer(part) ? part : String(part))))], 1);
    await writer.drain();
    const refused = writer.takeRefused()[0];
    if (refused !== undefined) {
      await connection.command(known.database, ['UNLINK', side]);
      throw new HoldfastError('RECOVERING', `the KV store refused to take an entry back: ${refused.text}`);
    }
    return build;
  } finally {
    writer.close();
  }
}

/** What the ledger counts, and will count: less would be the next loss. More is found out by the reconciler. */
function entriesAdded(known: KnownStream, build: Build): number {
  return Math.max(known.added + build.unknown, build.seen?.entriesAdded ?? 0, build.length);
}

function watermarks(
  known: KnownStream,
  build: Build,
): { readonly lastId: string; readonly entriesAdded: number; readonly maxDeletedId: string } {
  const last = maxEntryId(maxEntryId(build.lastId, known.lastId), build.seen?.lastId ?? ENTRY_ID_ZERO);
  const deleted = maxEntryId(known.maxDeletedId, build.seen?.maxDeletedId ?? ENTRY_ID_ZERO);
  return {
    lastId: formatEntryId(last),
    entriesAdded: entriesAdded(known, build),
    maxDeletedId: formatEntryId(deleted.compare(last) > 0 ? last : deleted),
  };
}

function xsetid(key: Buffer, known: KnownStream, build: Build): KvArgument[] {
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

async function readDeleted(ledger: Ledger, streamId: number): Promise<EntryIdSet> {
  const deleted = new EntryIdSet();
  const { rows } = await ledger.pool.query<{ ids: Buffer | null }>(
    `SELECT string_agg(id, ''::bytea) AS ids FROM holdfast.deletion WHERE stream_id = $1
     UNION ALL
     SELECT ids FROM holdfast.intention WHERE stream_id = $1 AND kind = 'delete'`,
    [streamId],
  );
  for (const row of rows) if (row.ids !== null) deleted.addAll(row.ids);
  return deleted;
}

/**
 * Lets the side key take the name. Gives the stream as it is then, `undefined` where it must be built anew. Throws where
 * this leader's fence is gone.
 */
async function swapIn(
  context: RestoreContext,
  reader: KvConnection,
  fenced: KvConnection,
  known: KnownStream,
  build: Build,
): Promise<StreamSnapshot | undefined> {
  const { database, name } = known;
  const side = Buffer.from(restoreKey(context.leaderEpoch, known.streamId));
  const fence = formatWitness({ ledger: context.ledger.identity, epoch: context.leaderEpoch });
  for (let attempt = 1; attempt <= SWAP_ATTEMPTS_MAX; attempt += 1) {
    const [, witness] = await fenced.pipeline(0, [
      ['WATCH', WITNESS_KEY],
      ['GET', WITNESS_KEY],
    ]);
    if (!Buffer.isBuffer(witness) || witness.toString() !== fence) {
      await fenced.command(0, ['UNWATCH']);
      throw new HoldfastError('RECOVERING', 'the fence is gone: another leader restores, or the KV store lost it');
    }
    await fenced.command(database, ['WATCH', name]);
    const now = await readState(reader, known);
    const before = build.seen;
    if (now !== undefined && (before === undefined || !sameEntries(now, before))) {
      // Written to meanwhile. Appended entries are merged at the end; anything else needs the whole merge again.
      const came: Entry[] = [];
      const after = build.seen?.lastId ?? ENTRY_ID_ZERO;
      for await (const page of kvEntries(reader, known, after, now.lastId)) came.push(...page);
      const top = maxEntryId(build.lastId, known.lastId);
      const appended = now.entriesAdded - (before?.entriesAdded ?? 0) === came.length;
      if (!appended || came.some((entry) => entry.id.compare(top) <= 0)) {
        await fenced.command(0, ['UNWATCH']);
        return undefined;
      }
      await fenced.command(0, ['UNWATCH']);
      if (attempt >= WATCH_ATTEMPTS_MAX) {
        const merged = await swapByScript(reader, {
          database,
          fenceKey: WITNESS_KEY,
          fence,
          stream: name,
          side,
          parked: Buffer.concat([side, Buffer.from(':replaced')]),
          mergedId: formatEntryId(after),
          mergedAdded: build.seen?.entriesAdded ?? 0,
          ...watermarks(known, build),
          groups: [...known.groups.values()].map((group) => group.name),
        });
        if (merged === 'fence') throw new HoldfastError('RECOVERING', 'the fence is gone: another leader restores');
        if (merged === 'rebuild') return undefined;
        if (merged === 'many') continue;
        build.merged += merged;
        return verified(reader, known);
      }
      const replies = await reader.pipeline(
        database,
        came.map((entry): KvArgument[] => ['XADD', side, formatEntryId(entry.id), ...decodeFields(entry.fields)]),
      );
      const refused = replies.find((reply) => reply instanceof Error);
      if (refused instanceof Error) throw new HoldfastError('RECOVERING', `merging was refused: ${refused.message}`);
      build.length += came.length;
      build.merged += came.length;
      build.unknown += came.length;
      build.seen = now;
      if (came.length > 0) build.lastId = came.at(-1)!.id;
      await reader.command(database, xsetid(side, known, build));
      continue;
    }

    const commands: KvArgument[][] = [];
    for (const [groupName, group] of now?.groups ?? []) {
      // Made by a client that went past Holdfast: it stays, at its own checkpoint.
      if (!known.groups.has(groupName)) {
        const at = group.pending === 0 ? group.lastDeliveredId : previousEntryId(group.minPendingId ?? ENTRY_ID_ZERO);
        commands.push(['XGROUP', 'CREATE', side, group.name, formatEntryId(at)]);
      }
    }
    const expiresAtMs = now?.expiresAtMs ?? known.expiresAtMs;
    commands.push(expiresAtMs === undefined ? ['PERSIST', side] : ['PEXPIREAT', side, expiresAtMs]);
    const parked = Buffer.concat([side, Buffer.from(':replaced')]);
    if (now !== undefined) commands.push(['RENAME', name, parked]);
    commands.push(['RENAME', side, name]);
    if (now !== undefined) commands.push(['UNLINK', parked]);
    const replies = await fenced.transaction(database, commands);
    if (replies === null) continue;
    const refused = replies.find((reply) => reply instanceof Error);
    if (refused instanceof Error)
      throw new HoldfastError('RECOVERING', `taking the name was refused: ${refused.message}`);

    return verified(reader, known);
  }
  return undefined;
}

/** Reads back what has the name now. */
async function verified(reader: KvConnection, known: KnownStream): Promise<StreamSnapshot> {
  const actual = await readState(reader, known);
  if (actual === undefined || actual.lastId.compare(known.lastId) < 0 || actual.entriesAdded < known.added) {
    throw new HoldfastError('RECOVERING', 'the restored stream is not what was built');
  }
  return actual;
}

function sameEntries(a: StreamSnapshot, b: StreamSnapshot): boolean {
  return (
    a.length === b.length &&
    a.entriesAdded === b.entriesAdded &&
    a.lastId.equals(b.lastId) &&
    a.maxDeletedId.equals(b.maxDeletedId)
  );
}

/** The stream as it is, with the smallest pending ID of groups that the ledger does not know. */
async function readState(connection: KvConnection, known: KnownStream): Promise<StreamSnapshot | undefined> {
  const ask = { database: known.database, name: known.name };
  const first = (await readSnapshot(connection, [{ ...ask, groups: [] }])).streams[0]!;
  if (typeof first === 'string') return undefined;
  const unknown = [...first.groups.entries()].filter(
    ([name, group]: [string, GroupSnapshot]) => group.pending > 0 && !known.groups.has(name),
  );
  if (unknown.length === 0) return first;
  const second = (await readSnapshot(connection, [{ ...ask, groups: unknown.map(([name]) => name) }])).streams[0]!;
  return typeof second === 'string' ? undefined : second;
}
