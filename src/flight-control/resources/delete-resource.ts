import type pg from 'pg';
import { inPooledTransaction } from '../../ledger/in-transaction.ts';
import { addEvents } from '../events/event.ts';

/** With its event. Gives whether there was one. */
export async function deleteResource(
  pool: pg.Pool,
  { org, actor }: { readonly org: string; readonly actor: string },
  kind: string,
  name: string,
): Promise<boolean> {
  return inPooledTransaction(pool, async (client) => {
    const { rows } = await client.query<{ owner: string | null }>(
      'DELETE FROM flight_control.resource WHERE org = $1 AND kind = $2 AND name = $3 RETURNING owner',
      [org, kind, name],
    );
    if (rows.length === 0) return false;
    await addEvents(client, org, [
      { kind, name, reason: 'ResourceDeleted', message: `${kind} was deleted successfully`, actor },
    ]);
    return true;
  });
}
