/**
 * Ends incarnations whose intention was carried out. An XADD that the KV store executed after the DEL, and that committed
 * before it was settled, named the incarnation that is over: under the stream's lock, which stops further commits to it,
 * what was committed since the intention opened and is in the KV store still is taken over by the next incarnation. Where
 * the KV store cannot be asked, all of it is.
 */
import { byteaArray } from '../ledger/binary-array.ts';
import { encodeFields } from '../ledger/entry-fields.ts';
import { formatEntryId } from '../ledger/entry-id.ts';
import type { EndIntention } from '../ledger/intention-store.ts';
import type { Ledger } from '../ledger/ledger.ts';
import type { KvArgument, KvConnection, KvReply } from './kv-connection.ts';

interface Candidate {
  readonly id: Buffer;
  readonly fields: Buffer;
}

const CANDIDATES_MAX = 10_000;

/** `successor`: the stream that has the name now, where it is known; else the name's next incarnation is begun if needed. */
export async function endStreams(
  ledger: Ledger,
  connection: KvConnection | undefined,
  intentions: readonly EndIntention[],
  successor?: number,
): Promise<void> {
  for (const intention of intentions) {
    await endStream(ledger, connection, intention, successor);
    await ledger.streams.refresh(intention.streamId);
  }
}

async function endStream(
  ledger: Ledger,
  connection: KvConnection | undefined,
  intention: EndIntention,
  successor: number | undefined,
): Promise<void> {
  const client = await ledger.pool.connect();
  let broken: Error | undefined;
  try {
    await client.query('BEGIN');
    await client.query('SELECT pg_advisory_xact_lock(holdfast.lock_key($1))', [intention.streamId]);
    const { rows } = await client.query<{ database: number; name: Buffer; command: string }>(
      `SELECT database, name, command FROM holdfast.intention JOIN holdfast.stream USING (stream_id)
        WHERE intention_id = $1 AND ended_at IS NULL`,
      [intention.intentionId],
    );
    const ending = rows[0];
    if (ending !== undefined) {
      const { rows: candidates } = await client.query<Candidate>(
        `SELECT id, fields FROM (
           SELECT id, fields, committed_at FROM holdfast.entry WHERE stream_id = $1 ORDER BY id DESC LIMIT ${CANDIDATES_MAX}
         ) AS latest
          WHERE committed_at >= (SELECT opened_at FROM holdfast.intention WHERE intention_id = $2)`,
        [intention.streamId, intention.intentionId],
      );
      const kept = await stillThere(connection, ending.database, ending.name, candidates);
      await client.query('SELECT holdfast.end_stream($1, $2)', [intention.streamId, ending.command]);
      if (kept.length > 0) {
        await client.query('SELECT holdfast.hand_over($1, $2, $3::bytea[])', [
          intention.streamId,
          successor ?? null,
          byteaArray(kept),
        ]);
      }
    }
    await client.query('DELETE FROM holdfast.intention WHERE intention_id = $1', [intention.intentionId]);
    await client.query('COMMIT');
  } catch (thrown) {
    broken = thrown instanceof Error ? thrown : new Error(String(thrown));
    throw thrown;
  } finally {
    client.release(broken);
  }
}

async function stillThere(
  connection: KvConnection | undefined,
  database: number,
  name: Buffer,
  candidates: readonly Candidate[],
): Promise<Buffer[]> {
  if (candidates.length === 0) return [];
  const all = candidates.map(({ id }) => id);
  if (connection === undefined) return all;
  try {
    const replies = await connection.pipeline(
      database,
      candidates.map(({ id }): KvArgument[] => {
        const text = formatEntryId(id);
        return ['XRANGE', name, text, text];
      }),
    );
    return all.filter((_, at) => {
      const found = replies[at] as KvReply[] | Error;
      const member = Array.isArray(found) ? (found[0] as [Buffer, Buffer[]] | undefined) : undefined;
      return member !== undefined && encodeFields(member[1]).equals(candidates[at]!.fields);
    });
  } catch {
    return all;
  }
}
