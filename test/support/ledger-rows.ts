/** What the ledger has of a stream, in the form in which ioredis gives what the KV store has. */
import type { Redis } from 'ioredis';
import { decodeFields } from '../../src/ledger/encoding/entry-fields.ts';
import { formatEntryId } from '../../src/ledger/encoding/entry-id.ts';
import { eventually, type Sidecar } from './sidecar.ts';

/** ID and fields of each committed entry of the stream's current incarnation, in ID order; what waits to be published is not among them. */
export async function ledgerRows({ ledger }: Sidecar, stream: string): Promise<[string, string[]][]> {
  const { rows } = await ledger.pool.query<{ id: Buffer; fields: Buffer }>(
    `SELECT id, fields FROM holdfast.entry JOIN holdfast.stream USING (stream_id)
      WHERE name = $1 AND ended_at IS NULL ORDER BY id`,
    [Buffer.from(stream)],
  );
  return rows.map(({ id, fields }) => [formatEntryId(id), decodeFields(fields).map(String)]);
}

/** Resolves once ledger and KV store have the same entries of the stream, and nothing waits to be restored or published. */
export async function agreed(sidecar: Sidecar, direct: Redis, stream: string): Promise<void> {
  await eventually(
    'ledger and KV store agree',
    async () => {
      if (sidecar.recovery.status().troubled.length > 0) return false;
      const [rows, there] = await Promise.all([ledgerRows(sidecar, stream), direct.xrange(stream, '-', '+')]);
      return JSON.stringify(rows) === JSON.stringify(there);
    },
    20_000,
  );
}
