/**
 * A stream's entries out of the ledger, for restores: pages of bounded bytes, the next one on its way while one is used, by COPY in
 * Postgres's binary format. As rows of an ordinary query, whose bytes come as hexadecimal text, they cost several times as much.
 */
import type pg from 'pg';
import type { Connection, Submittable } from 'pg';
import { ENTRY_ID_LENGTH } from '../../ledger/encoding/entry-id.ts';
import type { Ledger } from '../../ledger/ledger.ts';

export interface StoredEntry {
  readonly id: Buffer;
  /** As the ledger keeps them. */
  readonly fields: Buffer;
  /** An exact MAXLEN that its XADD carried: what it trimmed stays away. */
  readonly maxlen: number | undefined;
  /** By a client. */
  readonly deleted: boolean;
}

const PAGE_ROWS = 10_000;
const PAGE_BYTES = 4 * 1024 * 1024;
/** `PGCOPY\n\377\r\n\0`, flags, length of the header's extension. */
const HEADER_LENGTH = 19;
const COLUMNS = 4;
const BLOCK_BYTES = 1024 * 1024;

/**
 * Of the first row that begins in it the whole, however long. The deletions of a stream can be many millions: they are looked up for the
 * rows of a page (with LIMIT, or they would be read whole for each). Of what is deleted and not wanted nothing comes but the last row,
 * without its fields, to go on from.
 */
function pageQuery(streamId: number, after: Buffer, deletedToo: boolean): string {
  return `COPY (
    SELECT id, maxlen, deleted, fields
      FROM (SELECT *, lead(id) OVER (ORDER BY id) IS NULL AS is_last
              FROM (SELECT *, sum(octet_length(fields)) OVER (ORDER BY id) - octet_length(fields) AS before
                      FROM (SELECT id, maxlen, deleted, CASE WHEN deleted AND NOT ${deletedToo} THEN '' ELSE fields END AS fields
                              FROM (SELECT id, maxlen, fields, coalesce((
                                             SELECT true FROM holdfast.deletion AS d
                                              WHERE d.stream_id = ${streamId} AND d.id = entry.id LIMIT 1), false) AS deleted
                                      FROM holdfast.entry
                                     WHERE stream_id = ${streamId} AND id > '\\x${after.toString('hex')}'
                                     ORDER BY id LIMIT ${PAGE_ROWS}) AS page) AS marked) AS measured
             WHERE before < ${PAGE_BYTES}) AS bounded
     WHERE NOT deleted OR is_last OR ${deletedToo} ORDER BY id
  ) TO STDOUT (FORMAT binary)`;
}

/** What `pg` calls for a query of somebody else's making; it names these methods, and `callback`, itself. */
class CopyOut implements Submittable {
  readonly entries: StoredEntry[] = [];
  callback: ((failure: Error | null) => void) | undefined;
  readonly #text: string;
  #begun = false;
  #block = Buffer.alloc(0);
  #used = 0;

  constructor(text: string) {
    this.#text = text;
  }

  submit(connection: Connection): void {
    connection.query(this.#text);
  }

  /** One row in each message; the first begins with the header, the last is the end mark. */
  handleCopyData({ chunk }: { readonly chunk: Buffer }): void {
    let at = this.#begun ? 0 : HEADER_LENGTH;
    this.#begun = true;
    if (chunk.length - at < 2 || chunk.readInt16BE(at) !== COLUMNS) return;
    at += 2 + 4;
    const id = this.#kept(chunk, at, at + ENTRY_ID_LENGTH);
    at += ENTRY_ID_LENGTH;
    const maxlenLength = chunk.readInt32BE(at);
    at += 4;
    const maxlen = maxlenLength < 0 ? undefined : Number(chunk.readBigInt64BE(at));
    at += Math.max(0, maxlenLength) + 4;
    const deleted = chunk[at] === 1;
    at += 1 + 4;
    this.entries.push({ id, maxlen, deleted, fields: this.#kept(chunk, at, chunk.length) });
  }

  /** A copy, since the message's own bytes are of a buffer that is used again; one block for very many. */
  #kept(chunk: Buffer, from: number, to: number): Buffer {
    const length = to - from;
    if (length > this.#block.length - this.#used) {
      this.#block = Buffer.allocUnsafeSlow(Math.max(BLOCK_BYTES, length));
      this.#used = 0;
    }
    const start = this.#used;
    chunk.copy(this.#block, start, from, to);
    this.#used += length;
    return this.#block.subarray(start, this.#used);
  }

  handleError(failure: Error): void {
    this.callback?.(failure);
  }

  handleReadyForQuery(): void {
    this.callback?.(null);
  }

  handleCommandComplete(): void {}
}

async function readPage(client: pg.PoolClient, query: string): Promise<StoredEntry[]> {
  const copy = new CopyOut(query);
  await new Promise<void>((resolve, reject) => {
    copy.callback = (failure) => (failure === null ? resolve() : reject(failure));
    client.query(copy);
  });
  return copy.entries;
}

/** All above `after`, in ID order, those that clients deleted only with `deletedToo`. Rejects with Postgres's errors. */
export async function* ledgerEntries(
  ledger: Ledger,
  streamId: number,
  after: Buffer,
  deletedToo: boolean,
): AsyncGenerator<StoredEntry[]> {
  const client = await ledger.pool.connect();
  const read = (from: Buffer) => readPage(client, pageQuery(streamId, from, deletedToo));
  let next: Promise<StoredEntry[]> | undefined = read(after);
  try {
    for (;;) {
      const page: StoredEntry[] = await next;
      next = undefined;
      const last = page.at(-1);
      if (last === undefined) break;
      next = read(last.id);
      // Awaited later, or never.
      next.catch(() => undefined);
      if (last.deleted && !deletedToo) page.pop();
      if (page.length > 0) yield page;
    }
  } finally {
    // One that is on its way is not worth waiting for.
    client.release(next !== undefined);
  }
}
