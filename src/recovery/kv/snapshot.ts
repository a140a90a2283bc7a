/**
 * What the KV store says of streams at one moment: read by one script, together with the witness and the server's identity, so
 * that what is concluded from it is known to be of this KV store in this epoch. XINFO STREAM answers with the whole first and
 * last entry: the script keeps these at the server, and stops where too many bytes of them had to be copied there.
 */
import { ENTRY_ID_ZERO, parseEntryId } from '../../ledger/encoding/entry-id.ts';
import type { KvConnection, KvReply } from './connection.ts';
import { parseWitness, WITNESS_KEY, type Witness } from './epoch-key.ts';

export interface GroupSnapshot {
  readonly name: Buffer;
  readonly lastDeliveredId: Buffer;
  readonly pending: number;
  /** The smallest pending ID; `undefined` where nothing is pending. */
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
  /** Of the last entry that is there; `undefined` for an empty stream. */
  readonly topId: Buffer | undefined;
  /** Unix milliseconds; `undefined` without a time to live. */
  readonly expiresAtMs: number | undefined;
  /** By name, as latin1. */
  readonly groups: ReadonlyMap<string, GroupSnapshot>;
  /** What the KV store had to copy for this answer. */
  readonly bytes: number;
}

/** What has a stream's name: a stream, nothing, or a key of another type. */
export type StreamState = StreamSnapshot | 'missing' | 'other';

export interface KvSnapshot {
  readonly witness: Witness | undefined;
  readonly runId: string;
  readonly replicationId: string;
  readonly role: string;
  /** By the KV store's clock, Unix milliseconds. */
  readonly nowMs: number;
  /** Of the first streams that were asked about, at least of one. `present`: a stream of which only that was asked. */
  readonly streams: readonly (StreamState | 'present')[];
}

export interface StreamKey {
  readonly database: number;
  readonly name: Buffer;
}

export interface SnapshotRequest extends StreamKey {
  /** Asks only whether there is a stream. */
  readonly presence?: boolean;
}

/** With one more stream, whose entries may be of any size, it is little enough for the KV store to do at once. */
const BYTES_MAX = 4 * 1024 * 1024;
/** What a group takes in the answer, and its name besides. */
const GROUP_BYTES = 64;

/**
 * KEYS: the witness, then the streams. ARGV: how many bytes may be exceeded once, then of each stream its database, and 1
 * where only its presence is asked for. Gives the witness, the server's identity, and of each stream its type, or numbers,
 * IDs and groups.
 */
const SNAPSHOT = `
redis.call('SELECT', 0)
local answer = { redis.pcall('GET', KEYS[1]), redis.call('INFO', 'server'), redis.call('INFO', 'replication'), redis.call('TIME') }
local function fields(reply)
  local named = {}
  for at = 1, #reply, 2 do named[reply[at]] = reply[at + 1] end
  return named
end
local total = 0
for at = 2, #KEYS do
  if total >= tonumber(ARGV[1]) then break end
  local key = KEYS[at]
  redis.call('SELECT', ARGV[at * 2 - 2])
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'stream' or ARGV[at * 2 - 1] == '1' then
    answer[#answer + 1] = kind
  else
    local stream, bytes = fields(redis.call('XINFO', 'STREAM', key)), 0
    local first, last = stream['first-entry'], stream['last-entry']
    for _, entry in ipairs({ first or { '', {} }, last or { '', {} } }) do
      for _, field in ipairs(entry[2]) do bytes = bytes + #field end
    end
    local groups = {}
    for index, reply in ipairs(redis.call('XINFO', 'GROUPS', key)) do
      local group = fields(reply)
      local least = group.pending > 0 and redis.call('XPENDING', key, group.name, '-', '+', 1)[1]
      groups[index] = { group.name, group['last-delivered-id'], group.pending, least and least[1], group['entries-read'] }
      bytes = bytes + #group.name + ${GROUP_BYTES}
    end
    answer[#answer + 1] = {
      stream.length, stream['last-generated-id'], stream['entries-added'], stream['max-deleted-entry-id'],
      first and first[1], last and last[1], redis.call('PEXPIRETIME', key), bytes, groups,
    }
    total = total + bytes
  end
end
return answer`;

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

/** Entry and group counters are far below 2^53. */
function count(reply: KvReply | undefined): number {
  return typeof reply === 'number' ? reply : 0;
}

/** Reads the state of one stream. */
export async function readStream(connection: KvConnection, { database, name }: StreamKey): Promise<StreamState> {
  return (await readSnapshot(connection, [{ database, name }])).streams[0] as StreamState;
}

/** Reads the state of the first of the streams, as many as one request may cost. Give at most a hundred. */
export async function readSnapshot(
  connection: KvConnection,
  requests: readonly SnapshotRequest[],
): Promise<KvSnapshot> {
  const [witness, server, replication, time, ...streams] = (await connection.command(0, [
    'EVAL_RO',
    SNAPSHOT,
    requests.length + 1,
    WITNESS_KEY,
    ...requests.map(({ name }) => name),
    BYTES_MAX,
    ...requests.flatMap(({ database, presence }) => [database, presence === true ? 1 : 0]),
  ])) as KvReply[];
  const { replicationId, role } = parseServerIdentity(String(replication));
  return {
    witness: parseWitness(witness!),
    runId: parseServerIdentity(String(server)).runId,
    replicationId,
    role,
    nowMs: kvTimeMs(time!),
    streams: streams.map(streamState),
  };
}

/** TIME's reply as Unix milliseconds. */
export function kvTimeMs(reply: KvReply): number {
  const [seconds, microseconds] = reply as [Buffer, Buffer];
  return Number(seconds) * 1000 + Math.floor(Number(microseconds) / 1000);
}

function streamState(reply: KvReply): StreamState | 'present' {
  if (!Array.isArray(reply)) {
    const type = String(reply);
    return type === 'none' ? 'missing' : type === 'stream' ? 'present' : 'other';
  }
  const [length, lastId, entriesAdded, maxDeletedId, firstId, topId, expiry, bytes, groups] = reply;
  return {
    length: count(length),
    lastId: requireId(lastId),
    entriesAdded: count(entriesAdded),
    maxDeletedId: requireId(maxDeletedId),
    firstId: Buffer.isBuffer(firstId) ? requireId(firstId) : undefined,
    topId: Buffer.isBuffer(topId) ? requireId(topId) : undefined,
    expiresAtMs: count(expiry) > 0 ? count(expiry) : undefined,
    groups: new Map((groups as KvReply[][]).map((group) => [(group[0] as Buffer).toString('latin1'), groupOf(group)])),
    bytes: count(bytes),
  };
}

function groupOf([name, lastDeliveredId, pending, minPendingId, entriesRead]: KvReply[]): GroupSnapshot {
  return {
    name: name as Buffer,
    lastDeliveredId: requireId(lastDeliveredId),
    pending: count(pending),
    minPendingId: Buffer.isBuffer(minPendingId) ? requireId(minPendingId) : undefined,
    entriesRead: typeof entriesRead === 'number' ? entriesRead : undefined,
  };
}
