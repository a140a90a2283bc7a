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
}

const PAGE_ROWS = 10_000;
const PAGE_BYTES = 4 * 1024 * 1024;
/** `PGCOPY\n\377\r\n\0`, flags, length of the header's extension. */
const HEADER_LENGTH = 19;
const COLUMNS = 3;
const BLOCK_BYTES = 1024 * 1024;

/** Of the first row that begins in it the whole, however long. */
function pageQuery(streamId: number, after: Buffer): string {
  return `COPY (
    SELECT id, maxlen, fields
      FROM (SELECT *, sum(octet_length(fields)) OVER (ORDER BY id) - octet_length(fields) AS before
              FROM (SELECT id, maxlen, fields FROM holdfast.entry
                     WHERE stream_id = ${streamId} AND id > '\\x${after.toString('hex')}'
                     ORDER BY id LIMIT ${PAGE_ROWS}) AS page) AS measured
     WHERE before < ${PAGE_BYTES} ORDER BY id
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
    this.entries.push({ id, maxlen, fields: this.#kept(chunk, at, chunk.length) });
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

async function readPage(client: pg.PoolClient, streamId: number, after: Buffer): Promise<StoredEntry[]> {
  const copy = new CopyOut(pageQuery(streamId, after));
  await new Promise<void>((resolve, reject) => {
    copy.callback = (failure) => (failure === null ? resolve() : reject(failure));
    client.query(copy);
  });
  return copy.entries;
}

/** All above `after`, in ID order. Rejects with Postgres's errors. */
export async function* ledgerEntries(ledger: Ledger, streamId: number, after: Buffer): AsyncGenerator<StoredEntry[]> {
  const client = await ledger.pool.connect();
  let next: Promise<StoredEntry[]> | undefined = readPage(client, streamId, after);
  try {
    for (;;) {
      const page: StoredEntry[] = await next;
      next = undefined;
      if (page.length === 0) break;
      next = readPage(client, streamId, page.at(-1)!.id);
      // Awaited later, or never.
      next.catch(() => undefined);
      yield page;
    }
  } finally {
    // One that is on its way is not worth waiting for.
    client.release(next !== undefined);
  }
}
