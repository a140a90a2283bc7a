/** One Postgres for a run, with a fresh database for each Holdfast that asks. */
import { join } from 'node:path';
import pg from 'pg';
import { startPostgres } from '../src/embedded/postgres.ts';
import { temporaryDirectory } from './processes.ts';

export interface LedgerDatabases {
  /** The URL of a new, empty database. */
  create(): Promise<string>;
  stop(): Promise<void>;
}

/** What a power cut would lose these databases may forget: not for measuring durable writes. */
const FAST_SETTINGS = { fsync: 'off', full_page_writes: 'off', max_connections: '200' };

export async function startLedgerDatabases(): Promise<LedgerDatabases> {
  const server = await startPostgres({ dataDir: join(temporaryDirectory('ledger'), 'data'), settings: FAST_SETTINGS });
  let created = 0;
  return {
    async create() {
      created += 1;
      const name = `holdfast_${created}`;
      const client = new pg.Client({ connectionString: server.url });
      await client.connect();
      try {
        await client.query(`CREATE DATABASE ${name}`);
      } finally {
        await client.end();
      }
      const url = new URL(server.url);
      url.pathname = `/${name}`;
      return url.href;
    },
    stop: () => server.stop(),
  };
}
