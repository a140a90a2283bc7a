/**
 * What is done to pending entries in one step, as Lua. KEYS: the stream, where nothing else is said. An entry is looked at
 * before it is touched: it may have become another consumer's.
 */
import { createScript } from './lua.ts';

/** ARGV: group, consumer, ID… Gives the IDs that were not this consumer's. */
export const ACKNOWLEDGE = createScript(`
local acknowledge, lost = {'XACK', KEYS[1], ARGV[1]}, {}
for i = 3, #ARGV do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  if #pending == 1 then acknowledge[#acknowledge + 1] = ARGV[i] else lost[#lost + 1] = ARGV[i] end
end
if #acknowledge > 3 then redis.call(unpack(acknowledge)) end
return lost
`);

/** ARGV: group, consumer, ID… Gives, for each ID that is not this consumer's, the ID and its owner ('' for none). */
export const RENEW = createScript(`
local claim, lost = {'XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0}, {}
for i = 3, #ARGV do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)
  local owner = #pending == 1 and pending[1][2] or ''
  if owner == ARGV[2] then
    claim[#claim + 1] = ARGV[i]
  else
    lost[#lost + 1] = ARGV[i]
    lost[#lost + 1] = owner
  end
end
if #claim > 5 then
  claim[#claim + 1] = 'JUSTID'
  redis.call(unpack(claim))
end
return lost
`);

/** ARGV: group, consumer, new owner, then for each entry its ID, idle time and delivery count. Gives the lost IDs. */
export const MOVE = createScript(`
local lost = {}
for i = 4, #ARGV, 3 do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  if #pending == 1 then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, ARGV[i], 'IDLE', ARGV[i + 1], 'RETRYCOUNT', ARGV[i + 2], 'JUSTID')
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
`);

/**
 * Removes consumers with nothing pending. XGROUP DELCONSUMER drops pending entries, so looking and removing must be one
 * step. ARGV: group, least idle time, the one consumer to look at or '', consumers to keep… Gives the number removed.
 */
export const REMOVE_CONSUMERS = createScript(`
local removed = 0
for _, info in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local of = {}
  for i = 1, #info, 2 do of[info[i]] = info[i + 1] end
  local remove = of.pending == 0 and of.idle >= tonumber(ARGV[2]) and (ARGV[3] == '' or ARGV[3] == of.name)
  for i = 4, #ARGV do if ARGV[i] == of.name then remove = false end end
  if remove then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], of.name)
    removed = removed + 1
  end
end
return removed
`);

/**
 * Claims due entries of the retry consumer: those that come next in a round through all of them, so that none is passed
 * over for ever, and then the longest due. ARGV: group, retry consumer, consumer, idle time of what is due, how many to claim,
 * how many of them of the round, how many to look at, and the IDs after which the last look and the last round ended. Gives
 * where these ended ('-' at the end of all), then for each entry its ID, idle time, delivery count and fields. Those that were
 * deleted are acknowledged.
 */
export const CLAIM_DUE = createScript(`
local function due(from, count)
  if count == 0 then return {}, from end
  local found = redis.call('XPENDING', KEYS[1], ARGV[1], 'IDLE', ARGV[4], from, '+', count, ARGV[2])
  return found, #found == count and '(' .. found[#found][1] or '-'
end
local looked, lookFrom = due(ARGV[8], tonumber(ARGV[7]))
local round, roundFrom = due(ARGV[9], tonumber(ARGV[6]))
table.sort(looked, function(a, b) return a[3] > b[3] end)
for i = 1, #looked do round[#round + 1] = looked[i] end
local result, claimed, left = {lookFrom, roundFrom}, {}, tonumber(ARGV[5])
for _, entry in ipairs(round) do
  if left == 0 then break end
  local id = entry[1]
  if not claimed[id] then
    claimed[id], left = true, left - 1
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, id, 'JUSTID')
    local found = redis.call('XRANGE', KEYS[1], id, id)
    if #found == 1 then
      result[#result + 1] = {id, entry[3], entry[4], found[1][2]}
    else
      redis.call('XACK', KEYS[1], ARGV[1], id)
    end
  end
end
return result
`);

/** ARGV: group, consumer, ID, then fields and values of the report. KEYS: stream, dead letters. Gives 1 when it was done. */
export const BURY = createScript(`
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])
if #pending == 0 then return 0 end
redis.call('XADD', KEYS[2], '*', unpack(ARGV, 4))
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
return 1
`);
