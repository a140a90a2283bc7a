import { join } from 'node:path';
import { runningPostgresUrl } from '../embedded/postgres.ts';
import type { Config } from './config.ts';

/** The ledger's database, also where another process runs it in the data directory; `undefined` where there is none. */
export async function ledgerDatabaseUrl(config: Config): Promise<string | undefined> {
  return config.ledger.databaseUrl?.reveal() ?? (await runningPostgresUrl(join(config.dataDir, 'postgres')));
}
