/**
 * What the names of all keys begin with that Holdfast keeps in the KV store. Clients without a scope do not find them in walks of the
 * keyspace; no scope can reach them.
 */
export const OWN_KEY_START = 'holdfast:epoch';
