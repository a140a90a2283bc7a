/** The database of resources: the ledger's own, with tables in the schema `flight_control`. */
import pg from 'pg';
import { HoldfastError, messageOf } from '../../errors.ts';
import { migrate } from '../../ledger/migrate.ts';

const CONNECT_MS = 5000;
const STATEMENT_MS = 120_000;

export type Database = pg.Pool | pg.PoolClient;

/** Throws `CONFIG` where it cannot be reached or prepared. */
export async function openStore(databaseUrl: string, connectionsMax: number): Promise<pg.Pool> {
  const pool = new pg.Pool({
    connectionString: databaseUrl,
    connectionTimeoutMillis: CONNECT_MS,
    statement_timeout: STATEMENT_MS,
    keepAlive: true,
    application_name: 'holdfast flight-control',
    max: connectionsMax,
  });
  pool.on('error', () => undefined);
  try {
    const client = await pool.connect();
    try {
      await migrate(client, new URL('../../ledger/sql/', import.meta.url));
      await migrate(client, new URL('../sql/', import.meta.url), undefined, 'flight_control');
    } finally {
      client.release();
    }
  } catch (error) {
    await pool.end();
    if (error instanceof HoldfastError) throw error;
    throw new HoldfastError('CONFIG', `ledger.database: ${messageOf(error)}`, { cause: error });
  }
  return pool;
}
