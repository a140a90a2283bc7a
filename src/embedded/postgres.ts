/**
 * A real Postgres as a child process, for the ledger of an installation that has none. Durable as any: fsync and
 * synchronous_commit are on unless the caller (a test) says otherwise.
 *
 * In the data directory: `cluster/` (Postgres's own), `password` (of the superuser; the server listens on 127.0.0.1,
 * where other users of the machine are too), `holder` and `server.pid`.
 */
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { chmod, chown, mkdir, mkdtemp, readFile, realpath, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import pg from 'pg';
import { HoldfastError, messageOf } from '../errors.ts';
import { freePort } from './free-port.ts';
import { embeddedPostgresBinaries, type PostgresBinaries, postgresBinariesIn } from './postgres-binaries.ts';
import { choosePostgresUser, type PostgresUser } from './postgres-user.ts';
import { type EmbeddedServer, type Launch, ServerProcess } from './server-process.ts';

export interface PostgresOptions {
  /** Created where needed; one server at a time. The cluster is made at the first start. */
  readonly dataDir: string;
  /** `embedded` (default): the one that npm ships; else the bin directory of an installed one. */
  readonly version?: string;
  /** On 127.0.0.1; a free one by default. */
  readonly port?: number;
  /** Further settings, such as `{ max_connections: '300' }`; they win over everything else. */
  readonly settings?: Readonly<Record<string, string>>;
  onOutput?(line: string): void;
}

const run = promisify(execFile);

const SUPERUSER = 'holdfast';
const DATABASE = 'holdfast';
/** A start after a crash replays the write-ahead log, which takes what it takes. */
const READY_TIMEOUT_MS = 300_000;
const PROBE_TIMEOUT_MS = 5000;
const START_ATTEMPTS = 3;
const DUPLICATE_DATABASE = '42P04';

function privileged(user: PostgresUser, command: string, args: readonly string[]): Omit<Launch, 'parentDeathSignal'> {
  if (user.privileges !== undefined) return { command, args, privileges: user.privileges };
  return { command, args, ...(user.owner ?? {}) };
}

async function runInitdb(user: PostgresUser, initdb: string, args: readonly string[], cwd: string): Promise<void> {
  const { command, args: own, privileges, uid, gid } = privileged(user, initdb, args);
  const wrapped = privileges === undefined ? own : [...privileges, '--', command, ...own];
  try {
    await run(privileges === undefined ? command : 'setpriv', wrapped, {
      cwd,
      ...(uid === undefined ? {} : { uid }),
      ...(gid === undefined ? {} : { gid }),
    });
  } catch (error) {
    const { stderr } = error as { stderr?: string };
    throw new HoldfastError('STARTUP', `initdb failed: ${stderr?.trim() || messageOf(error)}`, { cause: error });
  }
}

/** Beside its place first and renamed at the end: a start that was killed leaves no half cluster behind. */
async function createCluster(directory: string, binaries: PostgresBinaries, user: PostgresUser): Promise<void> {
  const workshop = await mkdtemp(join(directory, 'initdb-'));
  try {
    const password = randomBytes(24).toString('base64url');
    const passwordFile = join(workshop, 'password');
    const cluster = join(workshop, 'cluster');
    await writeFile(passwordFile, `${password}\n`, { mode: 0o600 });
    await mkdir(cluster, { mode: 0o700 });
    if (user.owner !== undefined) {
      for (const path of [workshop, passwordFile, cluster]) await chown(path, user.owner.uid, user.owner.gid);
    }
    await runInitdb(
      user,
      binaries.initdb,
      [
        ...['-D', cluster, '--username', SUPERUSER, '--pwfile', passwordFile, '--auth', 'scram-sha-256'],
        ...['--encoding', 'UTF8', '--locale', 'C'],
      ],
      workshop,
    );
    await writeFile(join(directory, 'password'), `${password}\n`, { mode: 0o600 });
    await rename(cluster, join(directory, 'cluster'));
  } finally {
    await rm(workshop, { recursive: true, force: true });
  }
}

async function readClusterVersion(directory: string): Promise<string | undefined> {
  const text = await readFile(join(directory, 'cluster', 'PG_VERSION'), 'utf8').catch(
    (error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return undefined;
      throw error;
    },
  );
  return text?.trim();
}

function urlOf(port: number, password: string, database: string): string {
  return `postgres://${SUPERUSER}:${password}@127.0.0.1:${port}/${database}`;
}

/** Runs `work` on a connection of its own to the maintenance database. */
async function withAdmin<T>(port: number, password: string, work: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client({
    connectionString: urlOf(port, password, 'postgres'),
    connectionTimeoutMillis: PROBE_TIMEOUT_MS,
    query_timeout: PROBE_TIMEOUT_MS,
  });
  client.on('error', () => {});
  try {
    await client.connect();
    return await work(client);
  } finally {
    await client.end().catch(() => {});
  }
}

async function createDatabase(port: number, password: string): Promise<void> {
  await withAdmin(port, password, async (client) => {
    const { rowCount } = await client.query('SELECT 1 FROM pg_database WHERE datname = $1', [DATABASE]);
    if (rowCount !== 0) return;
    await client.query(`CREATE DATABASE ${DATABASE}`).catch((error: { code?: string }) => {
      if (error.code !== DUPLICATE_DATABASE) throw error;
    });
  });
}

async function tryStart(options: PostgresOptions, port: number): Promise<EmbeddedServer> {
  const version = options.version ?? 'embedded';
  const binaries = version === 'embedded' ? await embeddedPostgresBinaries() : postgresBinariesIn(version);
  await mkdir(options.dataDir, { recursive: true });
  const directory = await realpath(options.dataDir);
  const cluster = join(directory, 'cluster');
  const user = await choosePostgresUser([await realpath(binaries.postgres), cluster]);
  const settings = {
    listen_addresses: '127.0.0.1',
    port: String(port),
    unix_socket_directories: '',
    fsync: 'on',
    synchronous_commit: 'on',
    max_connections: '200',
    log_min_messages: 'warning',
    ...options.settings,
  };
  let password = '';
  const server = await ServerProcess.create({
    name: 'postgres',
    directory,
    proof: `-D ${cluster} `,
    async launch() {
      return {
        ...privileged(user, binaries.postgres, [
          ...['-D', cluster],
          ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]),
        ]),
        parentDeathSignal: 'SIGINT',
      };
    },
    async probe(pid) {
      // The port may be another server's: only our own knows the password, and its cluster.
      try {
        return await withAdmin(port, password, async (client) => {
          const { rows } = await client.query("SELECT pg_read_file('postmaster.pid') AS file");
          return Number.parseInt(rows[0].file, 10) === pid;
        });
      } catch {
        return false;
      }
    },
    readyTimeoutMs: READY_TIMEOUT_MS,
    // Backends of a postmaster that was killed take a moment to notice.
    transientFailure: /pre-existing shared memory block|lock file ".*" already exists/,
    // Fast shutdown, then immediate (which replays the log at the next start).
    stopSteps: [
      { signal: 'SIGINT', graceMs: 15_000 },
      { signal: 'SIGQUIT', graceMs: 5000 },
    ],
    ...(options.onOutput === undefined ? {} : { onOutput: options.onOutput }),
  });
  try {
    const found = await readClusterVersion(directory);
    if (found === undefined) await createCluster(directory, binaries, user);
    const passwordFile = join(directory, 'password');
    await chmod(passwordFile, 0o600);
    password = (await readFile(passwordFile, 'utf8')).trim();
    await server.start();
    await createDatabase(port, password);
  } catch (error) {
    await server.stop();
    throw error;
  }
  return {
    url: urlOf(port, password, DATABASE),
    port,
    get pid() {
      return server.pid;
    },
    stop: () => server.stop(),
    kill9: () => server.kill9(),
    restart: () => server.restart(),
    onExit: (listener) => server.onExit(listener),
  };
}

/**
 * The URL of the server that another process runs in this directory; `undefined` where none does, as far as its files
 * tell.
 */
export async function runningPostgresUrl(dataDir: string): Promise<string | undefined> {
  try {
    const password = await readFile(join(dataDir, 'password'), 'utf8');
    // Its fourth line is the port: https://www.postgresql.org/docs/current/storage-file-layout.html
    const facts = (await readFile(join(dataDir, 'cluster', 'postmaster.pid'), 'utf8')).split('\n');
    const port = Number(facts[3]);
    return port > 0 ? urlOf(port, password.trim(), DATABASE) : undefined;
  } catch {
    return undefined;
  }
}

/** Resolves when the server answers queries. Throws `STARTUP` or `INUSE`. */
export async function startPostgres(options: PostgresOptions): Promise<EmbeddedServer> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await tryStart(options, options.port ?? (await freePort()));
    } catch (error) {
      const portTaken = error instanceof HoldfastError && /could not bind|already in use/i.test(error.message);
      if (options.port !== undefined || !portTaken || attempt === START_ATTEMPTS) throw error;
    }
  }
}
