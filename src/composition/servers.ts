import { join } from 'node:path';
import type { Logger } from 'pino';
import type { Config } from '../config/config.ts';
import type { KvAddress } from '../control-redis.ts';
import { type KvServer, startKvServer } from '../embedded/kv-server.ts';
import { startPostgres } from '../embedded/postgres.ts';
import type { EmbeddedServer } from '../embedded/server-process.ts';
import { supervise } from '../embedded/supervise.ts';
import { HoldfastError } from '../errors.ts';
import type { Member } from '../processes/member.ts';
import type { Steps } from './stop-steps.ts';
import { embeddedTarget, remoteTarget } from './targets.ts';

/** The path of a Unix socket may not be longer, on any platform. */
const SOCKET_PATH_BYTES_MAX = 100;

/** The servers that a sidecar stands on: where they are, and those of them that are its own children. */
export interface Servers {
  readonly target: KvAddress;
  readonly databaseUrl: string;
  readonly kvServer: KvServer | undefined;
  readonly kvRestarts: () => number | undefined;
}

export async function startServers(config: Config, log: Logger, steps: Steps): Promise<Servers> {
  async function adopt<T extends EmbeddedServer>(name: string, start: Promise<T>) {
    const server = await start;
    const supervision = supervise(server, name, log);
    steps.onStop(name, () => {
      supervision.stop();
      return server.stop();
    });
    log.info({ server: name, pid: server.pid }, `the embedded ${name} is up`);
    return { server, supervision };
  }

  // Side by side, since the first start of Postgres takes its time.
  const [kv, postgres] = await Promise.allSettled([
    config.kv.remote === undefined ? adopt('KV store', startEmbeddedKv(config)) : undefined,
    config.ledger.databaseUrl === undefined
      ? adopt('Postgres', startPostgres({ dataDir: join(config.dataDir, 'postgres') }))
      : undefined,
  ]);
  if (kv.status === 'rejected') throw startFailure(kv.reason, config);
  if (postgres.status === 'rejected') throw startFailure(postgres.reason, config);
  const kvServer = kv.value?.server;
  return {
    target: kvServer === undefined ? remoteTarget(config.kv)! : embeddedTarget(kvServer),
    databaseUrl: config.ledger.databaseUrl?.reveal() ?? postgres.value!.server.url,
    kvServer,
    kvRestarts: () => kv.value?.supervision.restarts,
  };
}

/** An error of the file system, which says nothing of whose directory it is, names the setting. */
function startFailure(thrown: unknown, { dataDir }: Config): unknown {
  const ofFiles = thrown instanceof Error && 'syscall' in thrown && 'code' in thrown;
  if (!ofFiles) return thrown;
  return new HoldfastError('CONFIG', `dataDir: ${dataDir} cannot hold the embedded servers: ${thrown.message}`, {
    cause: thrown,
  });
}

/** Those of a member are its primary's. */
export function serversOf(config: Config, { role }: Member): Servers {
  return {
    target: role.kvSocket ?? remoteTarget(config.kv)!,
    databaseUrl: role.databaseUrl ?? config.ledger.databaseUrl!.reveal(),
    kvServer: undefined,
    kvRestarts: () => undefined,
  };
}

async function startEmbeddedKv(config: Config): Promise<KvServer> {
  const dataDir = join(config.dataDir, 'kv');
  const unixSocket = join(dataDir, 'kv.sock');
  const { maxmemory, maxmemoryPolicy, loglevel } = config.kv;
  const privateSocket = Buffer.byteLength(unixSocket) <= SOCKET_PATH_BYTES_MAX ? { port: 0, unixSocket } : {};
  return startKvServer({ dataDir, ...privateSocket, maxmemory, maxmemoryPolicy, loglevel });
}
