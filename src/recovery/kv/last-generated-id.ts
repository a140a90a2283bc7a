import { ENTRY_ID_ZERO } from '../../ledger/encoding/entry-id.ts';
import type { KvConnection } from './connection.ts';
import { readStream } from './snapshot.ts';

/** 0-0 where there is no such stream. Rejects with the server's other errors. */
export async function lastGeneratedId(connection: KvConnection, database: number, name: Buffer): Promise<Buffer> {
  const state = await readStream(connection, { database, name });
  return typeof state === 'string' ? ENTRY_ID_ZERO : state.lastId;
}
