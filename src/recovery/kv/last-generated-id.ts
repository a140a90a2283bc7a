import { ENTRY_ID_ZERO, parseEntryId } from '../../ledger/encoding/entry-id.ts';
import { byField, type KvConnection } from './connection.ts';

/** 0-0 where there is no such stream. Rejects with the server's other errors. */
export async function lastGeneratedId(connection: KvConnection, database: number, name: Buffer): Promise<Buffer> {
  const [info] = await connection.pipeline(database, [['XINFO', 'STREAM', name]]);
  if (info instanceof Error) {
    if (/no such key|WRONGTYPE/i.test(info.message)) return ENTRY_ID_ZERO;
    throw info;
  }
  return parseEntryId(byField(info!).get('last-generated-id') as Buffer)!;
}
