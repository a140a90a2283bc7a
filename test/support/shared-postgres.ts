/**
 * One Postgres of each wanted version for a whole test run, started when the first test file asks for it: files that
 * need none do not wait for one. Workers ask over a socket, since vitest's main process must own what outlives them.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestProject } from 'vitest/node';
import { startPostgres } from '../../src/embedded/postgres.ts';
import type { EmbeddedServer } from '../../src/embedded/server-process.ts';
import { messageOf } from '../../src/errors.ts';

declare module 'vitest' {
  interface ProvidedContext {
    sharedPostgresPort: number;
  }
}

/** Databases of tests may forget what a power cut would lose; a kill -9 they survive. */
const FAST_SETTINGS = { fsync: 'off', full_page_writes: 'off', max_connections: '300' };

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const directory = await mkdtemp(join(tmpdir(), 'holdfast-test-postgres-'));
  const servers = new Map<string, Promise<EmbeddedServer>>();

  function serverOf(version: string): Promise<EmbeddedServer> {
    let server = servers.get(version);
    if (server === undefined) {
      const dataDir = join(directory, String(servers.size));
      server = startPostgres({ dataDir, version, settings: FAST_SETTINGS });
      servers.set(version, server);
    }
    return server;
  }

  /** A line in: the version. A line out: the URL, or `error …`. */
  const broker = createServer((socket) => {
    socket.on('error', () => {});
    socket.once('data', (line) => {
      serverOf(line.toString().trim()).then(
        (server) => socket.end(server.url),
        (error: unknown) => socket.end(`error ${messageOf(error)}`),
      );
    });
  });
  await new Promise<void>((resolve) => broker.listen(0, '127.0.0.1', resolve));
  const address = broker.address();
  if (typeof address !== 'object' || address === null) throw new Error('the broker has no port');
  project.provide('sharedPostgresPort', address.port);

  return async () => {
    broker.close();
    for (const server of servers.values()) await server.then((started) => started.stop()).catch(() => {});
    await rm(directory, { recursive: true, force: true });
  };
}
