/**
 * Real servers for tests. Whatever a test file starts here is stopped, and its files removed, when the file ends, however
 * its tests went; a test that wants it gone earlier calls `stop`.
 */
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { afterAll, inject } from 'vitest';
import {
  findKvServer,
  type KvServer,
  type KvServerKind,
  type KvServerOptions,
  startKvServer,
} from '../../src/embedded/kv-server.ts';
import { type PostgresOptions, startPostgres } from '../../src/embedded/postgres.ts';
import type { EmbeddedServer } from '../../src/embedded/server-process.ts';

const cleanups: (() => Promise<void>)[] = [];

afterAll(async () => {
  const failures: unknown[] = [];
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup().catch((error) => failures.push(error));
  if (failures.length > 0) throw new AggregateError(failures, 'a server of this file could not be stopped');
});

/** A directory that is removed at the end of the test file. */
export async function temporaryDirectory(): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'holdfast-test-'));
  cleanups.push(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

/**
 * The Postgres that belongs to the KV server started last: Redis 7 is tested with Postgres 15 where that is installed, as they
 * ship together in RHEL 9 and Debian 12; Valkey 8 with the embedded Postgres. So every test on both KV servers is on both.
 */
let pairedPostgres = 'embedded';

async function owned<T extends EmbeddedServer>(start: (dataDir: string) => Promise<T>): Promise<T> {
  const dataDir = await mkdtemp(join(tmpdir(), 'holdfast-test-'));
  let server: T | undefined;
  cleanups.push(async () => {
    await server?.stop();
    await rm(dataDir, { recursive: true, force: true });
  });
  server = await start(dataDir);
  return server;
}

export type TestKvOptions = Omit<KvServerOptions, 'dataDir' | 'kind'>;

export function startRedis(options: TestKvOptions = {}): Promise<KvServer> {
  pairedPostgres = postgres15 ?? 'embedded';
  return owned((dataDir) => startKvServer({ ...options, dataDir, kind: 'redis' }));
}

export function startValkey(options: TestKvOptions = {}): Promise<KvServer> {
  pairedPostgres = 'embedded';
  return owned((dataDir) => startKvServer({ ...options, dataDir, kind: 'valkey' }));
}

const versions = await Promise.all([findKvServer('redis'), findKvServer('valkey')]);

/** The kinds of KV server on this machine, for `describe.each`. */
export const kvKinds = (['redis', 'valkey'] as const).filter((_, index) => versions[index] !== undefined);

export function startKv(kind: KvServerKind, options: TestKvOptions = {}): Promise<KvServer> {
  return kind === 'redis' ? startRedis(options) : startValkey(options);
}

/** Where Debian puts Postgres 15; `undefined` where it is not installed. */
const DEBIAN_POSTGRES_15 = '/usr/lib/postgresql/15/bin';
export const postgres15: string | undefined = existsSync(join(DEBIAN_POSTGRES_15, 'postgres'))
  ? DEBIAN_POSTGRES_15
  : undefined;

/** The Postgres versions on this machine, oldest first, for `describe.each` and as `version` below. */
export const postgresVersions: readonly string[] = [...(postgres15 === undefined ? [] : [postgres15]), 'embedded'];

function askForSharedPostgres(version: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(inject('sharedPostgresPort'), '127.0.0.1', () => socket.write(`${version}\n`));
    let answer = '';
    socket.on('data', (chunk) => {
      answer += chunk.toString();
    });
    socket.once('error', reject);
    socket.once('close', () => (answer.startsWith('postgres://') ? resolve(answer) : reject(new Error(answer))));
  });
}

async function runOn(url: string, sql: string): Promise<void> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    await client.query(sql);
  } finally {
    await client.end();
  }
}

export interface TestDatabase {
  readonly url: string;
  /** Drops it, under the feet of whoever is still connected. */
  stop(): Promise<void>;
}

/** A fresh, empty database on a server that the whole test run shares. */
export async function startTestPostgres(options: { version?: string } = {}): Promise<TestDatabase> {
  const serverUrl = await askForSharedPostgres(options.version ?? pairedPostgres);
  const name = `test_${randomBytes(6).toString('hex')}`;
  await runOn(serverUrl, `CREATE DATABASE ${name}`);
  const url = new URL(serverUrl);
  url.pathname = `/${name}`;
  const stop = () => runOn(serverUrl, `DROP DATABASE IF EXISTS ${name} WITH (FORCE)`);
  cleanups.push(stop);
  return { url: url.href, stop };
}

/** A Postgres of the test's own, as durable as the product's: for tests that stop or kill it. */
export function startOwnPostgres(options: Omit<PostgresOptions, 'dataDir'> = {}): Promise<EmbeddedServer> {
  return owned((dataDir) => startPostgres({ version: pairedPostgres, ...options, dataDir }));
}
