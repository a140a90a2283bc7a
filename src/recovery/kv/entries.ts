/** Entries of a stream as the KV store has them: all of a range, in pages, or those with given IDs. */
import { encodeFields } from '../../ledger/encoding/entry-fields.ts';
import { ENTRY_ID_ZERO, formatEntryId, parseEntryId } from '../../ledger/encoding/entry-id.ts';
import { isWrongType } from '../detect/replaced-key.ts';
import type { KvArgument, KvConnection, KvReply } from './connection.ts';

export interface KvEntry {
  readonly id: Buffer;
  /** As the ledger keeps them. */
  readonly fields: Buffer;
}

interface StreamKey {
  readonly database: number;
  readonly name: Buffer;
}

const KV_PAGE_ENTRIES = 1000;

/** Above `after` up to `until`, in pages of `KV_PAGE_ENTRIES`. Rejects as `KvConnection.command` does. */
export async function* kvEntries(
  connection: KvConnection,
  { database, name }: StreamKey,
  after: Buffer,
  until: Buffer,
): AsyncGenerator<KvEntry[]> {
  for (let last = after; ; ) {
    const from = last.equals(ENTRY_ID_ZERO) ? '-' : `(${formatEntryId(last)}`;
    const to = formatEntryId(until);
    const reply = await connection.command(database, ['XRANGE', name, from, to, 'COUNT', KV_PAGE_ENTRIES]);
    const page = (reply as KvReply[]).map((member): KvEntry => {
      const [id, fields] = member as [Buffer, Buffer[]];
      return { id: parseEntryId(id)!, fields: encodeFields(fields) };
    });
    if (page.length > 0) yield page;
    if (page.length < KV_PAGE_ENTRIES) return;
    last = page.at(-1)!.id;
  }
}

/** Fields by ID (as latin1) of those that the stream has, in one round trip. Rejects with the first refusal. */
export async function entriesAt(
  connection: KvConnection,
  { database, name }: StreamKey,
  ids: readonly Buffer[],
): Promise<ReadonlyMap<string, Buffer>> {
  const found = new Map<string, Buffer>();
  if (ids.length === 0) return found;
  const replies = await connection.pipeline(
    database,
    ids.map((id): KvArgument[] => ['XRANGE', name, formatEntryId(id), formatEntryId(id)]),
  );
  for (const [at, reply] of replies.entries()) {
    if (reply instanceof Error) throw reply;
    const member = (reply as KvReply[])[0] as [Buffer, Buffer[]] | undefined;
    if (member !== undefined) found.set(ids[at]!.toString('latin1'), encodeFields(member[1]));
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
