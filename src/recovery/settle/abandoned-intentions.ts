/**
 * What a client willed and nobody will settle any more is judged by what is there: its connection broke before the reply,
 * its process died, or the ledger could not be told.
 */
import type pg from 'pg';
import { boundedPage } from '../../ledger/bounded-page.ts';
import { ENTRY_ID_LENGTH } from '../../ledger/encoding/entry-id.ts';
import { ABANDONED_MAX, type AbandonedIntention, type SentUnder } from '../../ledger/intention-store.ts';
import type { Ledger } from '../../ledger/ledger.ts';
import type { Stream } from '../../ledger/stream-registry.ts';
import { readKnownStreams } from '../detect/known-streams.ts';
import { compare } from '../detect/verdict.ts';
import type { KvConnection } from '../kv/connection.ts';
import { presentEntries } from '../kv/entries.ts';
import { closeConnections } from '../kv/kill-connections.ts';
import {
  parseServerIdentity,
  readSnapshot,
  readStream,
  type ServerIdentity,
  type StreamState,
} from '../kv/snapshot.ts';
import { checkpointOf } from '../reconcile/checkpoint.ts';
import { endStreams, moveStreams } from './end-streams.ts';

/** So many of a stream's newest entries tell where it is. */
const TELLING_ROWS = 200;

interface Place {
  readonly database: number;
  readonly name: Buffer;
}

/** Rejects with KVDOWN, or with Postgres's errors. */
export async function settleAbandoned(ledger: Ledger, connection: KvConnection): Promise<void> {
  for (let full = true; full; ) {
    const abandoned = await ledger.intentions.abandoned();
    full = abandoned.length >= ABANDONED_MAX;
    if (abandoned.length > 0) await settlePart(ledger, connection, abandoned);
  }
}

async function settlePart(
  ledger: Ledger,
  connection: KvConnection,
  abandoned: readonly AbandonedIntention[],
): Promise<void> {
  await closeConnections(
    connection,
    abandoned.flatMap((intention) => (intention.connection === undefined ? [] : [intention.connection])),
  );
  const now = parseServerIdentity(String(await connection.command(0, ['INFO'])));
  // Nothing proves anything of these, which may be very many: all at once.
  const proves = ({ sent, changeId }: AbandonedIntention) => changeId !== undefined || isUnder(now, sent);
  await ledger.intentions.cancel(abandoned.filter((intention) => !proves(intention)));
  const changes = new Map<number, AbandonedIntention[]>();
  for (const intention of abandoned.filter(proves)) {
    if (intention.changeId === undefined) {
      await settleOne(ledger, connection, intention);
      continue;
    }
    const change = changes.get(intention.changeId);
    if (change === undefined) changes.set(intention.changeId, [intention]);
    else change.push(intention);
  }
  for (const [changeId, change] of changes) {
    const provable = change.every(({ sent }) => isUnder(now, sent));
    if (provable && (await hasMoved(ledger.pool, connection, changeId))) await moveStreams(ledger, connection, change);
    // Not carried out, or the KV store has lost both places: then it is restored where it was, which nobody was told otherwise.
    else await ledger.intentions.cancelChange(changeId);
  }
}

/** Whether the KV store is still the one to which it was sent: only then does what is missing prove that it was executed. */
function isUnder(now: ServerIdentity, sent: SentUnder | undefined): boolean {
  return sent !== undefined && sent.runId === now.runId && sent.replicationId === now.replicationId;
}

async function settleOne(ledger: Ledger, connection: KvConnection, intention: AbandonedIntention): Promise<void> {
  const { intentions, streams } = ledger;
  const stream = streams.byId(intention.streamId) ?? (await streams.refresh(intention.streamId));
  if (intention.ids !== undefined && stream !== undefined && !stream.ended) {
    await intentions.settleDeleteInPart(
      intention.intentionId,
      await deletedOf(ledger, connection, stream, intention.ids),
    );
    return;
  }
  if (intention.group !== undefined) {
    if (stream !== undefined && !stream.ended)
      await takeInGroupChange(ledger, connection, stream, intention, intention.group);
    await intentions.cancel([intention]);
    return;
  }
  const mayHaveEnded = intention.ends && stream !== undefined && !stream.ended;
  if (mayHaveEnded && typeof (await readStream(connection, stream)) === 'string') {
    await endStreams(ledger, connection, [intention]);
  } else await intentions.cancel([intention]);
}

/**
 * The group is what it is now, in a new generation: of a SETID that was not executed that says nothing wrong. A group that is gone was
 * destroyed only by a DESTROY, and only where the stream has lost nothing.
 */
async function takeInGroupChange(
  ledger: Ledger,
  connection: KvConnection,
  stream: Stream,
  { command }: AbandonedIntention,
  name: Buffer,
): Promise<void> {
  const [known] = await readKnownStreams(ledger.pool, [stream.streamId]);
  if (known === undefined || known.mode === 'restoring') return;
  const { streams, nowMs } = await readSnapshot(connection, [stream]);
  const actual = streams[0] as StreamState;
  // The group itself, which is marked as changing, is not compared.
  if (typeof actual === 'string' || compare(known, actual, nowMs).kind !== 'same') return;
  const group = actual.groups.get(name.toString('latin1'));
  if (group === undefined && command !== 'xgroup|destroy') return;
  const checkpointId = group === undefined ? undefined : checkpointOf(group);
  const state = group === undefined || checkpointId === undefined ? undefined : { ...group, checkpointId };
  if (group !== undefined && state === undefined) return;
  await ledger.groups.settle(stream.streamId, name, state, true);
  await ledger.streams.refresh(stream.streamId);
}

/** Each entry by itself; nothing of a stream that has lost entries, where what is missing may be among these. */
async function deletedOf(ledger: Ledger, connection: KvConnection, stream: Stream, ids: Buffer): Promise<Buffer[]> {
  const [known] = await readKnownStreams(ledger.pool, [stream.streamId]);
  if (known === undefined || known.mode === 'restoring') return [];
  const { streams, nowMs } = await readSnapshot(connection, [stream]);
  const actual = streams[0] as StreamState;
  if (typeof actual === 'string' || compare(known, actual, nowMs).kind !== 'same') return [];
  const named = Array.from({ length: ids.length / ENTRY_ID_LENGTH }, (_, at) =>
    ids.subarray(at * ENTRY_ID_LENGTH, (at + 1) * ENTRY_ID_LENGTH),
  );
  const there = await presentEntries(connection, stream, named);
  return named.filter((id) => !there.has(id.toString('latin1')));
}

/** Whether more of the streams stand where they were to go than where they were. */
async function hasMoved(pool: pg.Pool, connection: KvConnection, changeId: number): Promise<boolean> {
  const { rows } = await pool.query<Place & { stream_id: string; target_database: number; target_name: Buffer }>(
    `SELECT stream_id, database, name, target_database, target_name
       FROM holdfast.intention JOIN holdfast.stream USING (stream_id)
      WHERE change_id = $1 AND target_database IS NOT NULL AND ended_at IS NULL LIMIT 100`,
    [changeId],
  );
  let balance = 0;
  for (const row of rows) {
    const target = { database: row.target_database, name: row.target_name };
    const { rows: entries } = await pool.query<{ id: Buffer; fields: Buffer }>(
      `SELECT id, fields FROM ${boundedPage(
        `SELECT id, fields FROM holdfast.entry WHERE stream_id = $1 ORDER BY id DESC LIMIT ${TELLING_ROWS}`,
        'DESC',
      )} AS bounded`,
      [row.stream_id],
    );
    const [here, there] = [await readStream(connection, row), await readStream(connection, target)];
    const [before, after] = [await matches(connection, row, entries), await matches(connection, target, entries)];
    if (before !== after) balance += Math.sign(after - before);
    else if (entries.length === 0) balance += Math.sign(standing(there) - standing(here));
  }
  return balance > 0;
}

/** A stream without any entries to tell it by is where there is one. */
function standing(state: StreamState): number {
  return typeof state === 'string' ? 0 : 1;
}

async function matches(
  connection: KvConnection,
  place: Place,
  entries: readonly { readonly id: Buffer; readonly fields: Buffer }[],
): Promise<number> {
  const found = await presentEntries(
    connection,
    place,
    entries.map(({ id }) => id),
  );
  return entries.filter(({ id, fields }) => found.get(id.toString('latin1'))?.equals(fields) === true).length;
}
