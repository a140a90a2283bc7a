/**
 * A client put a key of another type in a stream's place: SET and its kin go out without a word to the ledger, so that
 * their path stays short. Such a key is the client's. The incarnation is over, whatever the ledger still has of it.
 */
import type { Logger } from 'pino';
import { messageOf } from '../../errors.ts';
import type { Ledger } from '../../ledger/ledger.ts';
import type { KvConnection } from '../kv/connection.ts';
import { REPLACED } from './verdict.ts';

/** What the server says of a stream command on a key of another type. */
export function isWrongType(thrown: unknown): boolean {
  return messageOf(thrown).startsWith('WRONGTYPE ');
}

/** Ends the stream where another key has its name; gives whether it did. */
export async function endWhereReplaced(
  ledger: Ledger,
  connection: KvConnection,
  log: Logger,
  stream: { readonly streamId: number; readonly database: number; readonly name: Buffer },
): Promise<boolean> {
  const type = String(await connection.command(stream.database, ['TYPE', stream.name]));
  if (type === 'none' || type === 'stream') return false;
  // A stream that is on its way to another place may be there by now.
  const { rowCount } = await ledger.pool.query(
    `SELECT holdfast.end_stream($1, $2)
      WHERE NOT EXISTS (SELECT FROM holdfast.intention WHERE stream_id = $1 AND change_id IS NOT NULL)`,
    [stream.streamId, REPLACED],
  );
  if (rowCount === 0) return false;
  await ledger.streams.refresh(stream.streamId);
  log.warn(
    { stream: stream.name.toString(), database: stream.database, type },
    'a client put another key in the place of a stream, which is over',
  );
  return true;
}
