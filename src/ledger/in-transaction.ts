import type pg from 'pg';

/** BEGIN, `run`, COMMIT, on a session of the caller's own; ROLLBACK where it rejects. */
export async function inTransaction<T>(client: pg.Client | pg.PoolClient, run: () => Promise<T>): Promise<T> {
  await client.query('BEGIN');
  try {
    const result = await run();
    await client.query('COMMIT');
    return result;
  } catch (thrown) {
    await client.query('ROLLBACK').catch(() => undefined);
    throw thrown;
  }
}

/** The same on a connection that is borrowed from the pool, and not given back where it may be broken. */
export async function inPooledTransaction<T>(pool: pg.Pool, run: (client: pg.PoolClient) => Promise<T>): Promise<T> {
  const client = await pool.connect();
  let broken: Error | undefined;
  try {
    return await inTransaction(client, () => run(client));
  } catch (thrown) {
    broken = thrown instanceof Error ? thrown : new Error(String(thrown));
    throw thrown;
  } finally {
    client.release(broken);
  }
}
