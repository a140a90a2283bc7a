/**
 * Takes the name for a side key in one step, for a stream that is written to so often that a WATCH never holds: checks
 * the fence, merges what was appended since the last look, and renames. Bounded: what was appended must be little, or it
 * gives up and is tried again.
 */
import type { KvConnection, KvReply } from '../kv/connection.ts';

/**
 * KEYS: fence, stream, side key, place for the replaced stream.
 * ARGV: database, fence's value, the stream's last merged ID, its entries-added then, the side key's last ID,
 *       entries-added and max-deleted-entry-id for it, most entries to merge, names of groups that the side key has.
 * Gives how many entries it merged, or `fence`, `many`, `rebuild`.
 */
const SCRIPT = `
local fence, stream, side, parked = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
redis.call('SELECT', 0)
if redis.call('GET', fence) ~= ARGV[2] then return 'fence' end
redis.call('SELECT', ARGV[1])
if redis.call('TYPE', stream).ok ~= 'stream' or redis.call('EXISTS', side) == 0 then return 'rebuild' end
local info = redis.call('XINFO', 'STREAM', stream)
local fields = {}
for at = 1, #info, 2 do fields[info[at]] = info[at + 1] end
local came = redis.call('XRANGE', stream, ARGV[3] == '0-0' and '-' or '(' .. ARGV[3], '+', 'COUNT', ARGV[8])
if #came >= tonumber(ARGV[8]) then return 'many' end
if fields['entries-added'] - tonumber(ARGV[4]) ~= #came then return 'rebuild' end
for _, entry in ipairs(came) do if #entry[2] > 4000 then return 'rebuild' end end
local last = ARGV[5]
for _, entry in ipairs(came) do
  local added = redis.pcall('XADD', side, entry[1], unpack(entry[2]))
  if type(added) == 'table' and added.err then return 'rebuild' end
  last = entry[1]
end
redis.call('XSETID', side, last, 'ENTRIESADDED', string.format('%.0f', ARGV[6] + #came), 'MAXDELETEDID', ARGV[7])
local known = {}
for at = 9, #ARGV do known[ARGV[at]] = true end
for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local about = {}
  for at = 1, #group, 2 do about[group[at]] = group[at + 1] end
  if not known[about['name']] then
    redis.call('XGROUP', 'CREATE', side, about['name'], about['pending'] == 0 and about['last-delivered-id'] or '0')
  end
end
redis.call('RENAME', stream, parked)
redis.call('PERSIST', side)
redis.call('RENAME', side, stream)
redis.call('UNLINK', parked)
return #came
`;

const MERGE_MAX = 2000;

export interface Swap {
  readonly database: number;
  readonly fenceKey: string;
  readonly fence: string;
  readonly stream: Buffer;
  readonly side: Buffer;
  readonly parked: Buffer;
  readonly mergedId: string;
  readonly mergedAdded: number;
  readonly lastId: string;
  readonly entriesAdded: number;
  readonly maxDeletedId: string;
  readonly groups: readonly Buffer[];
}

export async function swapByScript(
  connection: KvConnection,
  swap: Swap,
): Promise<number | 'fence' | 'many' | 'rebuild'> {
  const reply: KvReply = await connection.command(swap.database, [
    'EVAL',
    SCRIPT,
    4,
    swap.fenceKey,
    swap.stream,
    swap.side,
    swap.parked,
    swap.database,
    swap.fence,
    swap.mergedId,
    swap.mergedAdded,
    swap.lastId,
    swap.entriesAdded,
    swap.maxDeletedId,
    MERGE_MAX,
    ...swap.groups,
  ]);
  return typeof reply === 'number' ? reply : (String(reply) as 'fence' | 'many' | 'rebuild');
}
