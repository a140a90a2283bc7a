import { chmod, cp, mkdir, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import pg from 'pg';
import { describe, expect, it } from 'vitest';
import { startPostgres } from '../../src/embedded/postgres.ts';
import { embeddedPostgresBinaries } from '../../src/embedded/postgres-binaries.ts';
import { postgresVersions, startOwnPostgres, startTestPostgres, temporaryDirectory } from '../support/servers.ts';

async function ask(url: string, sql: string): Promise<Record<string, unknown>[]> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    return (await client.query(sql)).rows;
  } finally {
    await client.end();
  }
}

describe.each(postgresVersions)('Postgres (%s)', (version) => {
  it('keeps what was committed across kill -9, restart and a second start', async () => {
    const dataDir = await temporaryDirectory();
    const first = await startPostgres({ dataDir, version });
    const settings = "SELECT current_setting('fsync') AS fsync, current_setting('synchronous_commit') AS commit";
    expect(await ask(first.url, settings)).toEqual([{ fsync: 'on', commit: 'on' }]);
    await ask(first.url, 'CREATE TABLE kept (a int); INSERT INTO kept VALUES (7)');
    await first.kill9();
    await first.restart();
    expect(await ask(first.url, 'SELECT a FROM kept')).toEqual([{ a: 7 }]);
    await first.stop();
    const second = await startPostgres({ dataDir, version });
    expect(await ask(second.url, 'SELECT a FROM kept')).toEqual([{ a: 7 }]);
    await second.stop();
  });
});

describe('the embedded Postgres', () => {
  it('runs in a directory that its own user could not reach, without being root', async () => {
    const home = join(await temporaryDirectory(), 'home');
    await mkdir(home);
    await chmod(home, 0o700);
    const server = await startPostgres({ dataDir: join(home, 'data') });
    const [row] = await ask(server.url, "SELECT (pg_stat_file('postmaster.pid')).size > 0 AS runs");
    expect(row).toEqual({ runs: true });
    const cluster = await stat(join(home, 'data', 'cluster'));
    if (process.getuid?.() === 0) expect(cluster.uid).not.toBe(0);
    else expect(cluster.uid).toBe(process.getuid?.());
    await server.stop();
  });

  it('runs from binaries that its own user could not reach', async () => {
    const home = join(await temporaryDirectory(), 'home');
    await mkdir(home);
    const { postgres } = await embeddedPostgresBinaries();
    await cp(join(dirname(postgres), '..'), join(home, 'native'), { recursive: true, verbatimSymlinks: true });
    await chmod(home, 0o700);
    const server = await startPostgres({ dataDir: join(home, 'data'), version: join(home, 'native', 'bin') });
    expect(await ask(server.url, 'SELECT 1 AS one')).toEqual([{ one: 1 }]);
    await server.stop();
  });

  it('lets nobody in without the password', async () => {
    const server = await startOwnPostgres();
    const url = new URL(server.url);
    url.password = 'guess';
    await expect(ask(url.href, 'SELECT 1')).rejects.toThrow(/password authentication failed/);
  });

  it('is refused while another runs in its directory', async () => {
    const dataDir = await temporaryDirectory();
    const first = await startPostgres({ dataDir });
    await expect(startPostgres({ dataDir })).rejects.toThrow(/in use by process/);
    await first.stop();
  });

  it('gives each test a database of its own', async () => {
    const [one, two] = [await startTestPostgres(), await startTestPostgres()];
    await ask(one.url, 'CREATE TABLE mine ()');
    await expect(ask(two.url, 'SELECT FROM mine')).rejects.toThrow(/does not exist/);
  });
});
