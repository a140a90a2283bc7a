/**
 * Scripts that scoped clients loaded with SCRIPT LOAD, kept in the KV store: for the other processes and sidecars on it,
 * and for this one after a restart, since a server's own scripts are known on all of its connections.
 *
 *   holdfast:epoch:scripts   hash in database 0:  SHA1 and owner → the client's script
 *                                                 `flushed ` and owner → how often the owner flushed its scripts
 *
 * Hidden from clients by its name. Nothing depends on it: where it is lost (evicted, flushed), scripts are known to those
 * who loaded them, and to the rest after the client's next SCRIPT LOAD or EVAL, as behind a server that was restarted.
 */
import { OWN_KEY_START } from '../../own-keys.ts';
import type { ScopeAdmin } from '../scope-admin.ts';

export const SCRIPTS_KEY = `${OWN_KEY_START}:scripts`;

const FLUSH = `
for _,field in ipairs(redis.call('HKEYS',KEYS[1])) do
 if string.find(field,'^'..string.rep('%x',40)) and string.sub(field,41)==ARGV[1] then redis.call('HDEL',KEYS[1],field) end
end
return redis.call('HINCRBY',KEYS[1],'flushed '..ARGV[1],1)`;

export interface ScriptStore {
  put(owner: string, sha: string, body: Buffer): Promise<void>;
  get(owner: string, sha: string): Promise<Buffer | undefined>;
  flush(owner: string): Promise<void>;
  /** How often the owner flushed its scripts, through whichever process. */
  flushes(owner: string): Promise<number>;
}

/** All reject where the KV store does not do it. */
export function scriptStore(admin: ScopeAdmin): ScriptStore {
  return {
    async put(owner, sha, body) {
      await admin.command(['HSET', SCRIPTS_KEY, sha + owner, body]);
    },
    async get(owner, sha) {
      const body = await admin.command(['HGET', SCRIPTS_KEY, sha + owner]);
      return Buffer.isBuffer(body) ? body : undefined;
    },
    async flush(owner) {
      await admin.command(['EVAL', FLUSH, '1', SCRIPTS_KEY, owner]);
    },
    async flushes(owner) {
      return Number(String((await admin.command(['HGET', SCRIPTS_KEY, `flushed ${owner}`])) ?? 0));
    },
  };
}
