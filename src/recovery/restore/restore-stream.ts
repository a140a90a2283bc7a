/**
 * Puts a stream back. It is built in a side key whose name carries the leader's epoch, and takes the stream's name in one
 * transaction that fails when the fence or the stream changed meanwhile:
 *
 *   ledger rows in ID order ─┐
 *                            ├─ merge ─▶ side key ─▶ XSETID, groups ─▶ WATCH fence, stream ─▶ RENAME ─▶ verify ─▶ complete
 *   what the stream has now ─┘              ▲                              │ changed: merge what came
 *                                           └──────────────────────────────┘
 *
 * What the KV store has stays: entries of direct clients, and history below the checkpoints. A key of another type stays
 * too: then the stream is over. Doing it twice, or half and then again, changes nothing.
 */
import type { Logger } from 'pino';
import type { KvAddress } from '../../control-redis.ts';
import { HoldfastError } from '../../errors.ts';
import { decodeFields } from '../../ledger/encoding/entry-fields.ts';
import { ENTRY_ID_ZERO, formatEntryId, maxEntryId, previousEntryId } from '../../ledger/encoding/entry-id.ts';
import type { Ledger } from '../../ledger/ledger.ts';
import { readKnownStreams } from '../detect/known-streams.ts';
import { endWhereReplaced, isWrongType } from '../detect/replaced-key.ts';
import type { KnownStream } from '../detect/verdict.ts';
import { isOutOfMemory, type KvArgument, KvConnection } from '../kv/connection.ts';
import { kvEntries } from '../kv/entries.ts';
import { WITNESS_KEY, watchFence } from '../kv/epoch-key.ts';
import { OutOfRoom, readMemory, roomForRestore } from '../kv/memory.ts';
import { readStream, type StreamSnapshot } from '../kv/snapshot.ts';
import { asLeader } from './renumber.ts';
import { type Build, buildSideKey, newSideKey, watermarks, xsetid } from './staging-key.ts';
import { swapByScript } from './swap-script.ts';

export interface RestoreContext {
  readonly ledger: Ledger;
  readonly address: KvAddress;
  /** The leader's fencing epoch. */
  readonly leaderEpoch: number;
  readonly log: Logger;
  /** How many streams share the memory that restores may take. */
  readonly sharers: number;
}

export interface RestoreResult {
  readonly entriesRestored: number;
  readonly entriesMerged: number;
  readonly aliases: number;
  /** Entries of clients that went past Holdfast, taken in by it. */
  readonly observed: number;
  /** The rest follows as there is room: `publishBacklog`. */
  readonly windowed: boolean;
  readonly milliseconds: number;
}

const COMMAND_TIMEOUT_MS = 30_000;
const SWAP_ATTEMPTS_MAX = 50;
/** After so many looks that were outrun by a client, one script does the last merge and the swap. */
const WATCH_ATTEMPTS_MAX = 4;
const REBUILD_ATTEMPTS_MAX = 5;
const IN_PART = 'restored in part: the KV store has no memory for more until some of it is acknowledged';

export async function restoreStream(context: RestoreContext, streamId: number): Promise<RestoreResult | undefined> {
  const started = performance.now();
  const { ledger, log } = context;
  await ledger.pool.query('SELECT holdfast.assert_leader($1)', [context.leaderEpoch]);
  await ledger.pool.query(
    `UPDATE holdfast.recovery SET began_at = coalesce(began_at, clock_timestamp()), attempts = attempts + 1
      WHERE stream_id = $1 AND completed_at IS NULL`,
    [streamId],
  );
  const first = await readRestoring(ledger, streamId);
  if (first === undefined) return undefined;
  let known: KnownStream = first;

  const side = newSideKey(context, streamId);
  // Two: what one of them watches, the other may read in transactions of its own.
  const reader = await KvConnection.open(context.address, COMMAND_TIMEOUT_MS);
  const fenced = await KvConnection.open(context.address, COMMAND_TIMEOUT_MS).catch((thrown: unknown) => {
    reader.close();
    throw thrown;
  });
  try {
    for (let attempt = 1; attempt <= REBUILD_ATTEMPTS_MAX; attempt += 1) {
      // An attempt writes rows of what it keeps, which the next one must have counted.
      const now: KnownStream | undefined = attempt === 1 ? known : await readRestoring(ledger, streamId);
      if (now === undefined || now.epoch !== known.epoch) return undefined;
      known = now;
      const room = roomForRestore(await readMemory(reader), known.groups.size > 0, context.sharers);
      if (room <= 0) throw new OutOfRoom('the KV store has no memory left for what it lost');
      const build = await buildSideKey(context, reader, known, side, room);
      if (build === 'replaced') {
        if (await endWhereReplaced(ledger, reader, log, known)) return undefined;
        continue;
      }
      const swapped = await swapIn(context, reader, fenced, known, side, build);
      if (swapped === 'rebuild') continue;
      await noteBuilt(context, known, build);
      const { rows } = await ledger.pool.query<{ complete_restore: boolean }>(
        'SELECT holdfast.complete_restore($1, $2, $3, $4, $5, $6, $7, $8, $9)',
        [
          context.leaderEpoch,
          streamId,
          known.epoch,
          swapped.lastId,
          swapped.entriesAdded,
          build.windowId ?? null,
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
        observed: build.observed,
        windowed: build.windowId !== undefined,
        milliseconds: Math.round(performance.now() - started),
      };
      log.warn({ stream: known.name.toString(), database: known.database, ...result }, 'stream restored');
      return result;
    }
    throw new HoldfastError('RECOVERING', 'the stream kept changing under the restore');
  } catch (thrown) {
    if (!isWrongType(thrown) || !(await endWhereReplaced(ledger, reader, log, known))) throw thrown;
    return undefined;
  } finally {
    fenced.close();
    // Where it took the name it is gone already; else it must not take memory until it expires. A KV store that has fallen
    // silent may answer late or never: the next attempt, which has another side key, does not wait for that.
    reader
      .command(known.database, ['UNLINK', side])
      .catch(() => undefined)
      .finally(() => reader.close());
  }
}

async function readRestoring(ledger: Ledger, streamId: number): Promise<KnownStream | undefined> {
  const [known] = await readKnownStreams(ledger.pool, [streamId]);
  return known?.mode === 'restoring' ? known : undefined;
}

/** The reconciler need not look again at what has been looked at, and must look at what has not. */
async function noteBuilt(context: RestoreContext, known: KnownStream, build: Build): Promise<void> {
  const windowed = build.windowId !== undefined;
  await asLeader(context, (client) =>
    client.query(
      `UPDATE holdfast.stream
          SET reconciled_id = CASE WHEN $4 THEN $3 ELSE GREATEST(reconciled_id, $3) END,
              mode_cause = CASE WHEN $4 THEN $5 ELSE mode_cause END
        WHERE stream_id = $1 AND epoch = $2`,
      [known.streamId, known.epoch, build.reconciledId, windowed, IN_PART],
    ),
  );
}

/**
 * Lets the side key take the name. Gives the stream as it is then, `rebuild` where the side key must be built anew. Rejects
 * where this leader's fence is gone.
 */
async function swapIn(
  context: RestoreContext,
  reader: KvConnection,
  fenced: KvConnection,
  known: KnownStream,
  side: Buffer,
  build: Build,
): Promise<StreamSnapshot | 'rebuild'> {
  const { database, name } = known;
  for (let attempt = 1; attempt <= SWAP_ATTEMPTS_MAX; attempt += 1) {
    const fence = await watchFence(context.ledger, fenced, context.leaderEpoch);
    // The side key can be evicted, which may not cost the stream its present content.
    await fenced.command(database, ['WATCH', name, side]);
    const state = await readStream(reader, known);
    if (state === 'other' || (await reader.command(database, ['EXISTS', side])) === 0) {
      await fenced.command(0, ['UNWATCH']);
      return 'rebuild';
    }
    const now = state === 'missing' ? undefined : state;
    const before = build.seen;
    if (now !== undefined && (before === undefined || !sameEntries(now, before))) {
      // Written to meanwhile. Appended entries are merged at the end; anything else needs the whole merge again.
      await fenced.command(0, ['UNWATCH']);
      const after = before?.lastId ?? ENTRY_ID_ZERO;
      const added = now.entriesAdded - (before?.entriesAdded ?? 0);
      if (attempt >= WATCH_ATTEMPTS_MAX && (await isSmall(reader, known, after, now.lastId))) {
        const merged = await swapByScript(reader, {
          database,
          fenceKey: WITNESS_KEY,
          fence,
          stream: name,
          side,
          parked: Buffer.concat([side, Buffer.from(':replaced')]),
          mergedId: formatEntryId(after),
          mergedAdded: before?.entriesAdded ?? 0,
          ...watermarks(known, build),
          groups: [...known.groups.values()].map((group) => group.name),
        });
        if (merged === 'fence') throw new HoldfastError('RECOVERING', 'the fence is gone: another leader restores');
        if (merged === 'rebuild') return 'rebuild';
        if (merged === 'many') continue;
        build.merged += merged;
        return verified(reader, known, build);
      }
      const appended = await append(reader, known, side, build, after, now.lastId);
      if (appended !== added) return 'rebuild';
      build.seen = now;
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

    return verified(reader, known, build);
  }
  return 'rebuild';
}

/** Adds to the side key what came to the stream; gives how many those were, or `rebuild` where they are no mere addition. */
async function append(
  reader: KvConnection,
  known: KnownStream,
  side: Buffer,
  build: Build,
  after: Buffer,
  until: Buffer,
): Promise<number | 'rebuild'> {
  const top = maxEntryId(build.lastId, known.lastId);
  let appended = 0;
  for await (const page of kvEntries(reader, known, after, until)) {
    if (page[0]!.id.compare(top) <= 0) return 'rebuild';
    const replies = await reader.pipeline(
      known.database,
      page.map(({ id, fields }): KvArgument[] => [
        'XADD',
        side,
        'NOMKSTREAM',
        formatEntryId(id),
        ...decodeFields(fields),
      ]),
    );
    const refused = replies.find((reply) => reply instanceof Error);
    if (isOutOfMemory(refused)) throw new OutOfRoom('the KV store has no memory for what it lost');
    if (refused instanceof Error) throw new HoldfastError('RECOVERING', `merging was refused: ${refused.message}`);
    if (replies.includes(null)) return 'rebuild';
    appended += page.length;
    build.length += page.length;
    build.merged += page.length;
    build.unknown += page.length;
    build.lastId = page.at(-1)!.id;
  }
  return appended;
}

/** What came is at most a page: a script can merge it without the KV store standing still for long. */
async function isSmall(reader: KvConnection, known: KnownStream, after: Buffer, until: Buffer): Promise<boolean> {
  let pages = 0;
  for await (const _ of kvEntries(reader, known, after, until)) if ((pages += 1) > 1) return false;
  return true;
}

/** Reads back what has the name now. */
async function verified(reader: KvConnection, known: KnownStream, build: Build): Promise<StreamSnapshot> {
  const actual = await readStream(reader, known);
  const last = build.windowId ?? known.lastId;
  if (typeof actual === 'string' || actual.lastId.compare(last) < 0 || actual.entriesAdded < known.added) {
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
