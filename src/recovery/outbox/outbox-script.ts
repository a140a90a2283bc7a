/**
 * Adds entries of the outbox to a stream in the KV store, in one step with the note of which they were and what IDs they
 * got. The note is the key `holdfast:epoch:outbox` in database 0, a hash: it tells whoever publishes next what of the
 * outbox is in the stream already, and fences, for a batch goes through only if the note is still the one before it.
 */

import type { KvConnection, KvReply } from '../kv/connection.ts';
import { WITNESS_KEY } from '../kv/epoch-key.ts';

export const OUTBOX_KEY = `${WITNESS_KEY}:outbox`;

/** What the KV store notes of the batch that was added last. */
export interface OutboxNote {
  /** Names the batch; empty where none was ever added. */
  readonly token: string;
  readonly database: number;
  readonly stream: Buffer;
  /** Of each entry `xid.number`, and the ID that it got. */
  readonly rows: readonly string[];
  readonly ids: readonly string[];
}

export interface Addition {
  readonly database: number;
  readonly stream: Buffer;
  /** The note that must still be there. */
  readonly after: string;
  readonly token: string;
  readonly rows: readonly string[];
  /** The KV store had this ID in the stream; empty where it is not known to have had the stream. */
  readonly lastId: string;
  readonly present: boolean;
  readonly entries: readonly { readonly maxlen: string | null; readonly fields: readonly string[] }[];
}

/** `noted`: another batch was added meanwhile. `lost`: the stream is not what it was. `type`: it is no stream. */
export type Added = { readonly ids: string[] } | 'noted' | 'lost' | 'type';

/**
 * KEYS: note, stream. ARGV: database, the note before, token, rows, last ID, whether the stream must be there, then of each
 * entry its MAXLEN or nothing, how many fields and values it has, and these.
 */
const SCRIPT = `
local note, stream = KEYS[1], KEYS[2]
redis.call('SELECT', 0)
if (redis.call('HGET', note, 'token') or '') ~= ARGV[2] then return 'noted' end
redis.call('SELECT', ARGV[1])
local kind = redis.call('TYPE', stream).ok
if kind ~= 'none' and kind ~= 'stream' then return 'type' end
if kind == 'none' and ARGV[6] == '1' then return 'lost' end
if kind == 'stream' and ARGV[5] ~= '' then
  local info = redis.call('XINFO', 'STREAM', stream)
  local last = ''
  for at = 1, #info, 2 do if info[at] == 'last-generated-id' then last = info[at + 1] end end
  local function less(a, b) if #a ~= #b then return #a < #b end return a < b end
  local ms, seq = string.match(last, '(%d+)-(%d+)')
  local knownMs, knownSeq = string.match(ARGV[5], '(%d+)-(%d+)')
  if less(ms, knownMs) or (ms == knownMs and less(seq, knownSeq)) then return 'lost' end
end
local ids, at = {}, 7
while at <= #ARGV do
  local count = tonumber(ARGV[at + 1])
  local id
  if ARGV[at] == '' then id = redis.call('XADD', stream, '*', unpack(ARGV, at + 2, at + 1 + count))
  else id = redis.call('XADD', stream, 'MAXLEN', ARGV[at], '*', unpack(ARGV, at + 2, at + 1 + count)) end
  ids[#ids + 1] = id
  at = at + 2 + count
end
redis.call('SELECT', 0)
redis.call('HSET', note, 'token', ARGV[3], 'database', ARGV[1], 'stream', stream, 'rows', ARGV[4], 'ids', table.concat(ids, ','))
return ids
`;

export async function addFromOutbox(connection: KvConnection, addition: Addition): Promise<Added> {
  const { database, stream, entries } = addition;
  const reply: KvReply = await connection.command(0, [
    'EVAL',
    SCRIPT,
    2,
    OUTBOX_KEY,
    stream,
    database,
    addition.after,
    addition.token,
    addition.rows.join(','),
    addition.lastId,
    addition.present ? 1 : 0,
    ...entries.flatMap(({ maxlen, fields }) => [maxlen ?? '', fields.length, ...fields]),
  ]);
  if (Array.isArray(reply)) return { ids: reply.map(String) };
  return String(reply) as 'noted' | 'lost' | 'type';
}

export async function readNote(connection: KvConnection): Promise<OutboxNote | undefined> {
  const reply = await connection.command(0, ['HMGET', OUTBOX_KEY, 'token', 'database', 'stream', 'rows', 'ids']);
  const [token, database, stream, rows, ids] = reply as (Buffer | null)[];
  if (!token || !database || !stream || !rows || !ids) return undefined;
  return {
    token: token.toString(),
    database: Number(database.toString()),
    stream,
    rows: rows.toString().split(','),
    ids: ids.toString().split(','),
  };
}
