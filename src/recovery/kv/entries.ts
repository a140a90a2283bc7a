/** Entries of a stream as the KV store has them: all of a range, in pages, or those with given IDs. */
import { encodeFields } from '../../ledger/encoding/entry-fields.ts';
import { ENTRY_ID_ZERO, formatEntryId, parseEntryId } from '../../ledger/encoding/entry-id.ts';
import { isWrongType } from '../detect/replaced-key.ts';
import type { KvConnection, KvReply } from './connection.ts';
import type { StreamKey } from './snapshot.ts';

export interface KvEntry {
  readonly id: Buffer;
  /** As the ledger keeps them. */
  readonly fields: Buffer;
}

/** A page is at most so many entries, or the first of them that have so many bytes together. */
const PAGE_ENTRIES = 1000;
const PAGE_BYTES = 4 * 1024 * 1024;

/**
 * Entries of a range, in steps so small that few of them can be large and unexpected. KEYS: the stream. ARGV: from, to, most
 * entries, most bytes, which are exceeded by what is left of one.
 */
const PAGE = `
local page, bytes, from, step = {}, 0, ARGV[1], 1
local most, mostBytes = tonumber(ARGV[3]), tonumber(ARGV[4])
while true do
  local entries = redis.call('XRANGE', KEYS[1], from, ARGV[2], 'COUNT', math.min(step, most - #page))
  for _, entry in ipairs(entries) do
    page[#page + 1] = entry
    for _, field in ipairs(entry[2]) do bytes = bytes + #field end
    if #page >= most or bytes >= mostBytes then return { page, 1 } end
  end
  if #entries < step then return { page, 0 } end
  from = '(' .. entries[#entries][1]
  step = math.min(step * 2, 8)
end`;

/** KEYS: the stream. ARGV: most bytes, IDs. Gives of each of the first of them its entry, or nothing. */
const ENTRIES_AT = `
local found, bytes = {}, 0
for at = 2, #ARGV do
  local entry = redis.call('XRANGE', KEYS[1], ARGV[at], ARGV[at])[1]
  found[#found + 1] = entry and entry[2] or false
  if entry then for _, field in ipairs(entry[2]) do bytes = bytes + #field end end
  if bytes >= tonumber(ARGV[1]) then break end
end
return found`;

/** Above `after` up to `until`, in pages of bounded bytes. Rejects as `KvConnection.command` does. */
export async function* kvEntries(
  connection: KvConnection,
  { database, name }: StreamKey,
  after: Buffer,
  until: Buffer,
): AsyncGenerator<KvEntry[]> {
  for (let last = after; ; ) {
    const from = last.equals(ENTRY_ID_ZERO) ? '-' : `(${formatEntryId(last)}`;
    const reply = await connection.command(database, [
      ...['EVAL_RO', PAGE, 1, name],
      ...[from, formatEntryId(until), PAGE_ENTRIES, PAGE_BYTES],
    ]);
    const [entries, more] = reply as [[Buffer, Buffer[]][], number];
    const page = entries.map(([id, fields]): KvEntry => ({ id: parseEntryId(id)!, fields: encodeFields(fields) }));
    if (page.length > 0) yield page;
    if (more === 0) return;
    last = page.at(-1)!.id;
  }
}

/** Fields by ID (as latin1) of those that the stream has. The caller bounds how many bytes these can be together. */
export async function entriesAt(
  connection: KvConnection,
  { database, name }: StreamKey,
  ids: readonly Buffer[],
): Promise<ReadonlyMap<string, Buffer>> {
  const found = new Map<string, Buffer>();
  for (let from = 0; from < ids.length; ) {
    const asked = ids.slice(from, from + PAGE_ENTRIES);
    const reply = await connection.command(database, [
      ...['EVAL_RO', ENTRIES_AT, 1, name],
      ...[PAGE_BYTES, ...asked.map(formatEntryId)],
    ]);
    for (const [at, fields] of (reply as (Buffer[] | null)[]).entries()) {
      if (fields !== null) found.set(asked[at]!.toString('latin1'), encodeFields(fields));
    }
    from += (reply as KvReply[]).length;
  }
  return found;
}

/** The same, but nothing where something else than a stream has the name by now. */
export async function presentEntries(
  connection: KvConnection,
  stream: StreamKey,
  ids: readonly Buffer[],
): Promise<ReadonlyMap<string, Buffer>> {
  try {
    return await entriesAt(connection, stream, ids);
  } catch (thrown) {
    if (isWrongType(thrown)) return new Map();
    throw thrown;
  }
}
