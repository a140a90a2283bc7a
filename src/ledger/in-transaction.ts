import type pg from 'pg';

/** BEGIN, `run`, COMMIT, on a session of the caller's own; ROLLBACK where it rejects. */
export async function inTransaction<T>(client: pg.Client, run: () => Promise<T>): Promise<T> {
  await client.query('BEGIN');
  try {
    const result = await run();
    await client.query('COMMIT');
    return result;
  } catch (thrown) {
    await client.query('ROLLBACK');
    throw thrown;
  }
}
