/**
 * Plain SQL migrations in numbered files (`sql/001-….sql`), forward only, each in one transaction, all under one
 * advisory lock, so that several sidecars may start at once. Files lie beside this module, in `src` and in `dist`.
 */
import { readdir, readFile } from 'node:fs/promises';
import type pg from 'pg';
import { HoldfastError } from '../errors.ts';
import { inTransaction } from './in-transaction.ts';

/** 'HF' and a number: the advisory locks that are not those of a stream. */
const MIGRATION_LOCK = 0x4846_0001;

export interface Migration {
  readonly number: number;
  readonly name: string;
  readonly sql: string;
}

export async function readMigrations(directory: URL): Promise<Migration[]> {
  const names = (await readdir(directory)).filter((name) => /^\d{3}-.*\.sql$/.test(name)).sort();
  return Promise.all(
    names.map(async (name) => ({
      number: Number(name.slice(0, 3)),
      name,
      sql: await readFile(new URL(name, directory), 'utf8'),
    })),
  );
}

/** Applies what is missing and gives how many that were. Throws `CONFIG` when the database is newer than this program. */
export async function migrate(client: pg.Client | pg.PoolClient, directory: URL): Promise<number> {
  const migrations = await readMigrations(directory);
  await client.query('SELECT pg_advisory_lock($1)', [MIGRATION_LOCK]);
  try {
    await client.query('CREATE SCHEMA IF NOT EXISTS holdfast');
    await client.query(`CREATE TABLE IF NOT EXISTS holdfast.migration (
      number integer PRIMARY KEY,
      name text NOT NULL,
      applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
    )`);
    const { rows } = await client.query<{ number: number }>('SELECT number FROM holdfast.migration ORDER BY number');
    const applied = new Set(rows.map((row) => row.number));
    const newest = migrations.at(-1)?.number ?? 0;
    const unknown = rows.find((row) => row.number > newest);
    if (unknown !== undefined) {
      throw new HoldfastError(
        'CONFIG',
        `ledger.database: migration ${unknown.number} was applied by a newer Holdfast; run that version or newer`,
      );
    }
    let count = 0;
    for (const migration of migrations) {
      if (applied.has(migration.number)) continue;
      await inTransaction(client, async () => {
        await client.query(migration.sql);
        await client.query('INSERT INTO holdfast.migration (number, name) VALUES ($1, $2)', [
          migration.number,
          migration.name,
        ]);
      });
      count += 1;
    }
    return count;
  } finally {
    await client.query('SELECT pg_advisory_unlock($1)', [MIGRATION_LOCK]);
  }
}
