/**
 * What sidecars agree on about leases, in the KV store itself. A lease belongs to a sidecar, which knows the client it
 * stands for; it lasts a few seconds and is renewed while that client is there, so that the leases of a sidecar that dies
 * lapse soon.
 *
 *   holdfast:epoch:leases            sorted set: key under lease → end of the lease, ms since 1970 by the KV store's clock
 *   holdfast:epoch:leases:owners     hash: key under lease → the sidecar's name
 *   holdfast:epoch:leases:released   changes when a lease ends without a value, so that sidecars that wait ask again
 *
 * The three are made anew in each database that has leases, and vanish a minute after the last use.
 */
import { WITNESS_KEY } from '../recovery/kv/epoch-key.ts';

/** Under the witness's name, as all that is hidden from clients. */
export const LEASES_KEY = `${WITNESS_KEY}:leases`;
export const OWNERS_KEY = `${WITNESS_KEY}:leases:owners`;
export const RELEASED_KEY = `${WITNESS_KEY}:leases:released`;

const CLOCK = `local t=redis.call('TIME') local now=t[1]*1000+math.floor(t[2]/1000)`;
const KEEP = `redis.call('PEXPIRE',KEYS[1],60000) redis.call('PEXPIRE',KEYS[2],60000)`;

export const VALUE = 0;
export const GRANTED = 1;
export const ELSEWHERE = 2;
export const LAPSED = 3;

/**
 * KEYS leases, owners, released, key; ARGV sidecar, lease ms, mode (`take`; `keep`: only what is held already).
 * Gives {VALUE, value}, {GRANTED}, {ELSEWHERE, ms left} or {LAPSED}; an error where the key holds no string.
 */
export const ASK = `
local value=redis.call('GET',KEYS[4])
redis.call('GET',KEYS[3])
local owner=redis.call('HGET',KEYS[2],KEYS[4])
if value then
  if owner==ARGV[1] then redis.call('ZREM',KEYS[1],KEYS[4]) redis.call('HDEL',KEYS[2],KEYS[4]) end
  return {${VALUE},value}
end
${CLOCK}
local ended=redis.call('ZRANGEBYSCORE',KEYS[1],'-inf',now,'LIMIT',0,100)
for _,key in ipairs(ended) do redis.call('ZREM',KEYS[1],key) redis.call('HDEL',KEYS[2],key) end
local till=redis.call('ZSCORE',KEYS[1],KEYS[4])
if till and tonumber(till)>now and owner and owner~=ARGV[1] then return {${ELSEWHERE},math.ceil(till-now)} end
if ARGV[3]=='keep' and not (till and owner==ARGV[1]) then return {${LAPSED}} end
redis.call('ZADD',KEYS[1],now+ARGV[2],KEYS[4])
redis.call('HSET',KEYS[2],KEYS[4],ARGV[1])
${KEEP}
return {${GRANTED}}`;

/** KEYS leases, owners; ARGV sidecar, lease ms, key…. Gives 1 for each lease that is still the sidecar's, else 0. */
export const RENEW = `
${CLOCK}
local held={}
for i=3,#ARGV do
  if redis.call('HGET',KEYS[2],ARGV[i])==ARGV[1] then redis.call('ZADD',KEYS[1],now+ARGV[2],ARGV[i]) held[#held+1]=1
  else held[#held+1]=0 end
end
${KEEP}
return held`;

/** KEYS leases, owners, released; ARGV sidecar or empty for any, a word that differs each time, key…. */
export const RELEASE = `
local ended=0
for i=3,#ARGV do
  local owner=redis.call('HGET',KEYS[2],ARGV[i])
  if owner and (ARGV[1]=='' or owner==ARGV[1]) then
    redis.call('ZREM',KEYS[1],ARGV[i]) redis.call('HDEL',KEYS[2],ARGV[i])
    ended=ended+1
  end
end
if ended>0 then redis.call('SET',KEYS[3],ARGV[2],'PX',60000) end
return ended`;
