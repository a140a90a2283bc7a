/**
 * Plain SQL migrations in numbered files (`sql/001-….sql`), forward only, each in one transaction, all under one
 * advisory lock, so that several sidecars may start at once. Files lie beside this module, in `src` and in `dist`.
 */
import { readdir, readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
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

/** Where tables are. */
export type MigratedSchema = 'holdfast' | 'flight_control';

/** Asked for the lock so often; the migrations of another process take seconds. */
const LOCK_POLL_MS = 250;
const LOCK_TELL_MS = 2_000;
const LOCK_WAIT_MS_MAX = 60_000;
/** A statement of a migration waits for no longer than this behind another session's lock on a table. */
const TABLE_LOCK_MS_MAX = 30_000;

/**
 * Applies what is missing and gives how many that were. Throws `CONFIG` when the database is newer than this program, or another process
 * holds the migration lock for a minute; `waiting` is called once when it holds it for longer than a moment.
 * Each schema has a series of its own.
 */
export async function migrate(
  client: pg.Client | pg.PoolClient,
  directory: URL,
  waiting: (seconds: number) => void = () => undefined,
  schema: MigratedSchema = 'holdfast',
): Promise<number> {
  const migrations = await readMigrations(directory);
  await lock(client, waiting);
  try {
    await createSchema(client, schema);
    const { rows } = await client.query<{ number: number }>(`SELECT number FROM ${schema}.migration ORDER BY number`);
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
        await client.query(`SET LOCAL lock_timeout = ${TABLE_LOCK_MS_MAX}`);
        await client.query(migration.sql);
        await client.query(`INSERT INTO ${schema}.migration (number, name) VALUES ($1, $2)`, [
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

async function lock(client: pg.Client | pg.PoolClient, waiting: (seconds: number) => void): Promise<void> {
  const startedAt = Date.now();
  let told = false;
  for (;;) {
    const { rows } = await client.query<{ locked: boolean }>('SELECT pg_try_advisory_lock($1) AS locked', [
      MIGRATION_LOCK,
    ]);
    if (rows[0]!.locked) return;
    const waitedMs = Date.now() - startedAt;
    if (waitedMs > LOCK_WAIT_MS_MAX) {
      throw new HoldfastError(
        'CONFIG',
        `ledger.database: another process has held the migration lock for ${Math.round(waitedMs / 1000)} s; ` +
          `it is in pg_locks as advisory lock ${MIGRATION_LOCK}, end it or wait for it`,
      );
    }
    if (!told && waitedMs > LOCK_TELL_MS) {
      waiting(Math.round(LOCK_WAIT_MS_MAX / 1000));
      told = true;
    }
    await sleep(LOCK_POLL_MS);
  }
}

/** `IF NOT EXISTS` asks for the right to create, also where there is nothing to create. */
async function createSchema(client: pg.Client | pg.PoolClient, schema: MigratedSchema): Promise<void> {
  const { rows } = await client.query<{ there: string | null; migrations: string | null }>(
    'SELECT to_regnamespace($1) AS there, to_regclass($2) AS migrations',
    [schema, `${schema}.migration`],
  );
  const { there, migrations } = rows[0]!;
  if (there === null) await client.query(`CREATE SCHEMA IF NOT EXISTS ${schema}`);
  if (migrations !== null) return;
  await client.query(`CREATE TABLE IF NOT EXISTS ${schema}.migration (
    number integer PRIMARY KEY,
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
  )`);
}
