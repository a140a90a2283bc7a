/**
 * What the KV store says of streams at one moment: one transaction that contains the witness and the server's identity,
 * so that what is concluded from it is known to be of this KV store in this epoch.
 */
import { ENTRY_ID_ZERO, parseEntryId } from '../../ledger/encoding/entry-id.ts';
import { byField, type KvArgument, type KvConnection, type KvReply } from './connection.ts';
import { parseWitness, WITNESS_KEY, type Witness } from './epoch-key.ts';

export interface GroupSnapshot {
  readonly name: Buffer;
  readonly lastDeliveredId: Buffer;
  readonly pending: number;
  /** The smallest pending ID; `undefined` where nothing is pending, or where the group was not asked about by name. */
  readonly minPendingId: Buffer | undefined;
  readonly entriesRead: number | undefined;
}

export interface StreamSnapshot {
  readonly length: number;
  readonly lastId: Buffer;
  readonly entriesAdded: number;
  readonly maxDeletedId: Buffer;
  /** `undefined` for an empty stream. */
  readonly firstId: Buffer | undefined;
  /** Unix milliseconds; `undefined` without a time to live. */
  readonly expiresAtMs: number | undefined;
  /** By name, as latin1. */
  readonly groups: ReadonlyMap<string, GroupSnapshot>;
}

/** What has a stream's name: a stream, nothing, or a key of another type. */
export type StreamState = StreamSnapshot | 'missing' | 'other';

export interface KvSnapshot {
  readonly witness: Witness | undefined;
  readonly runId: string;
  readonly replicationId: string;
  readonly role: string;
  /** As asked. */
  readonly streams: readonly StreamState[];
}

export interface SnapshotRequest {
  readonly database: number;
  readonly name: Buffer;
  /** Names of groups, as latin1, whose smallest pending ID is wanted. */
  readonly groups: Iterable<string>;
}

/** `key:value` lines of INFO. */
export function infoField(info: string, field: string): string | undefined {
  return new RegExp(`^${field}:(.*?)\\r?$`, 'm').exec(info)?.[1];
}

export interface ServerIdentity {
  readonly runId: string;
  readonly replicationId: string;
  /** Of the primary that it followed before it became one itself; empty where it did not. */
  readonly previousReplicationId: string;
  readonly role: string;
  readonly loading: boolean;
}

export function parseServerIdentity(info: string): ServerIdentity {
  return {
    runId: infoField(info, 'run_id') ?? '',
    replicationId: infoField(info, 'master_replid') ?? '',
    previousReplicationId: (infoField(info, 'master_replid2') ?? '').replace(/^0+$/, ''),
    role: infoField(info, 'role') ?? 'master',
    loading: infoField(info, 'loading') === '1',
  };
}

function requireId(reply: KvReply | undefined): Buffer {
  return (Buffer.isBuffer(reply) ? parseEntryId(reply, 'min') : undefined) ?? ENTRY_ID_ZERO;
}

function firstEntryId(reply: KvReply | undefined): Buffer | undefined {
  return Array.isArray(reply) ? requireId(reply[0]) : undefined;
}

/** Entry and group counters are far below 2^53. */
function count(reply: KvReply | undefined): number {
  return typeof reply === 'number' ? reply : 0;
}

/** Reads the state of one stream; `groups` as in `SnapshotRequest`. */
export async function readStream(
  connection: KvConnection,
  { database, name }: Pick<SnapshotRequest, 'database' | 'name'>,
  groups: readonly string[] = [],
): Promise<StreamState> {
  return (await readSnapshot(connection, [{ database, name, groups }])).streams[0]!;
}

/** Reads the streams' state. One request of bounded size: give at most a hundred. */
export async function readSnapshot(
  connection: KvConnection,
  requests: readonly SnapshotRequest[],
): Promise<KvSnapshot> {
  const commands: KvArgument[][] = [
    ['SELECT', 0],
    ['GET', WITNESS_KEY],
    ['INFO', 'server'],
    ['INFO', 'replication'],
  ];
  const head = commands.length;
  const asked = requests.map((request) => [...request.groups]);
  requests.forEach((request, index) => {
    commands.push(['SELECT', request.database]);
    commands.push(['XINFO', 'STREAM', request.name]);
    commands.push(['XINFO', 'GROUPS', request.name]);
    commands.push(['PEXPIRETIME', request.name]);
    for (const group of asked[index]!) commands.push(['XPENDING', request.name, Buffer.from(group, 'latin1')]);
  });
  const replies = await connection.readTogether(0, commands);
  const { runId } = parseServerIdentity(String(replies[2]));
  const { replicationId, role } = parseServerIdentity(String(replies[3]));

  let at = head;
  const streams = requests.map((_, index): StreamState => {
    const [, stream, groups, expiry] = replies.slice(at, at + 4);
    const pending = replies.slice(at + 4, at + 4 + asked[index]!.length);
    at += 4 + asked[index]!.length;
    if (stream instanceof Error) return stream.message.startsWith('WRONGTYPE') ? 'other' : 'missing';
    const fields = byField(stream!);
    const minPending = new Map<string, Buffer>();
    asked[index]!.forEach((group, position) => {
      const summary = pending[position];
      if (Array.isArray(summary) && Buffer.isBuffer(summary[1])) minPending.set(group, requireId(summary[1]));
    });
    const snapshots = new Map<string, GroupSnapshot>();
    for (const group of Array.isArray(groups) ? groups : []) {
      const about = byField(group);
      const name = about.get('name') as Buffer;
      const entriesRead = about.get('entries-read');
      snapshots.set(name.toString('latin1'), {
        name,
        lastDeliveredId: requireId(about.get('last-delivered-id')),
        pending: count(about.get('pending')),
        minPendingId: minPending.get(name.toString('latin1')),
        entriesRead: typeof entriesRead === 'number' ? entriesRead : undefined,
      });
    }
    return {
      length: count(fields.get('length')),
      lastId: requireId(fields.get('last-generated-id')),
      entriesAdded: count(fields.get('entries-added')),
      maxDeletedId: requireId(fields.get('max-deleted-entry-id')),
      firstId: firstEntryId(fields.get('first-entry')),
      expiresAtMs: count(expiry) > 0 ? count(expiry) : undefined,
      groups: snapshots,
    };
  });
  return { witness: parseWitness(replies[1]!), runId, replicationId, role, streams };
}
