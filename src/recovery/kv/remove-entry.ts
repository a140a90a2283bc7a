/** Takes one entry out of a stream again, provided that it is still the one that is meant. */
import { formatEntryId } from '../../ledger/encoding/entry-id.ts';
import { isWrongType } from '../detect/replaced-key.ts';
import type { KvConnection } from './connection.ts';

/** KEYS: stream. ARGV: ID, fields and values. */
const SCRIPT = `
local entry = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if not entry or #entry[2] ~= #ARGV - 1 then return 0 end
for at, part in ipairs(entry[2]) do if part ~= ARGV[at + 1] then return 0 end end
return redis.call('XDEL', KEYS[1], ARGV[1])
`;

/** Nothing happens where the ID holds other fields by now, or none. Rejects with KVDOWN. */
export async function withdrawEntry(
  connection: KvConnection,
  { database, name }: { readonly database: number; readonly name: Buffer },
  id: Buffer,
  fields: readonly Buffer[],
): Promise<void> {
  try {
    await connection.command(database, ['EVAL', SCRIPT, 1, name, formatEntryId(id), ...fields]);
  } catch (thrown) {
    if (!isWrongType(thrown)) throw thrown;
  }
}
