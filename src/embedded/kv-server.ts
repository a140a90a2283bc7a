/**
 * A redis-server or valkey-server from PATH as a child process that keeps nothing on disk: what must outlive it is in
 * the ledger. Its configuration is a file in its directory, whose path in the process title identifies an orphan.
 */
import { execFile } from 'node:child_process';
import { mkdir, realpath, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import { HoldfastError } from '../errors.ts';
import { freePort } from './free-port.ts';
import { type EmbeddedServer, ServerProcess } from './server-process.ts';

export type KvServerKind = 'redis' | 'valkey';

export interface KvServerOptions {
  /** Created where needed; one server at a time. */
  readonly dataDir: string;
  /** `any` (default): Valkey where there is one, else Redis. */
  readonly kind?: KvServerKind | 'any';
  /** On 127.0.0.1; a free one by default. 0 with a `unixSocket`: no TCP at all. */
  readonly port?: number;
  /** A path of at most 107 bytes. */
  readonly unixSocket?: string;
  /** As the server's own directive: `1gb`. */
  readonly maxmemory?: string;
  readonly maxmemoryPolicy?: string;
  readonly loglevel?: string;
  /** Further command line arguments of the server, such as `['--appendonly', 'yes']`; they win over everything else. */
  readonly extraArgs?: readonly string[];
  onOutput?(line: string): void;
}

export interface KvServer extends EmbeddedServer {
  readonly kind: KvServerKind;
  readonly unixSocket: string | undefined;
}

const READY_TIMEOUT_MS = 60_000;
const PROBE_TIMEOUT_MS = 1000;
const START_ATTEMPTS = 3;

/** `8.0.1` for `valkey`, or `undefined` where there is no such server on PATH. */
export function findKvServer(kind: KvServerKind): Promise<string | undefined> {
  return new Promise((resolve) => {
    execFile(`${kind}-server`, ['--version'], (error, stdout) => {
      resolve(error === null ? (/v=(\S+)/.exec(stdout)?.[1] ?? 'unknown') : undefined);
    });
  });
}

async function chooseKind(wanted: KvServerKind | 'any'): Promise<KvServerKind> {
  const kinds: readonly KvServerKind[] = wanted === 'any' ? ['valkey', 'redis'] : [wanted];
  for (const kind of kinds) if ((await findKvServer(kind)) !== undefined) return kind;
  const names = kinds.map((kind) => `${kind}-server`).join(' or ');
  throw new HoldfastError('STARTUP', `no ${names} on PATH: install one, or point --kv at one that runs`);
}

/** True when the process `pid` itself answers there: a port can be another server's by now. */
function servesAs(pid: number, target: { path: string } | { host: string; port: number }): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(target);
    let received = '';
    let serves = false;
    socket.setTimeout(PROBE_TIMEOUT_MS, () => socket.destroy());
    socket.once('connect', () => socket.write('PING\r\nINFO server\r\n'));
    socket.on('data', (chunk) => {
      received += chunk.toString('latin1');
      serves =
        received.startsWith('-NOAUTH') || (received.startsWith('+PONG') && received.includes(`process_id:${pid}\r`));
      if (serves) socket.destroy();
    });
    socket.on('error', () => {});
    socket.once('close', () => resolve(serves));
  });
}

function quoted(value: string): string {
  return `"${value.replace(/["\\]/g, '\\$&')}"`;
}

async function tryStart(options: KvServerOptions, kind: KvServerKind, port: number): Promise<KvServer> {
  await mkdir(options.dataDir, { recursive: true });
  const directory = await realpath(options.dataDir);
  const configFile = join(directory, 'kv.conf');
  const { unixSocket } = options;
  const lines = [
    'bind 127.0.0.1',
    `port ${port}`,
    ...(unixSocket === undefined ? [] : [`unixsocket ${quoted(unixSocket)}`, 'unixsocketperm 700']),
    `dir ${quoted(directory)}`,
    'save ""',
    'appendonly no',
    `loglevel ${options.loglevel ?? 'warning'}`,
    ...(options.maxmemory === undefined ? [] : [`maxmemory ${options.maxmemory}`]),
    ...(options.maxmemoryPolicy === undefined ? [] : [`maxmemory-policy ${options.maxmemoryPolicy}`]),
    'proc-title-template "{title} {listen-addr} {config-file}"',
  ];
  const target = unixSocket === undefined ? { host: '127.0.0.1', port } : { path: unixSocket };
  const server = await ServerProcess.create({
    name: `${kind}-server`,
    directory,
    proof: configFile,
    async launch() {
      await writeFile(configFile, `${lines.join('\n')}\n`);
      return {
        command: `${kind}-server`,
        args: [configFile, ...(options.extraArgs ?? [])],
        parentDeathSignal: 'SIGTERM',
      };
    },
    probe: (pid) => servesAs(pid, target),
    readyTimeoutMs: READY_TIMEOUT_MS,
    stopSteps: [{ signal: 'SIGTERM', graceMs: 5000 }],
    ...(options.onOutput === undefined ? {} : { onOutput: options.onOutput }),
  });
  try {
    await server.start();
  } catch (error) {
    await server.stop();
    throw error;
  }
  return {
    kind,
    url: unixSocket === undefined ? `redis://127.0.0.1:${port}` : `unix:${unixSocket}`,
    port,
    unixSocket,
    get pid() {
      return server.pid;
    },
    stop: () => server.stop(),
    kill9: () => server.kill9(),
    restart: () => server.restart(),
    onExit: (listener) => server.onExit(listener),
  };
}

/** Resolves when the server answers PING. Throws `STARTUP` (none on PATH, or it ends at once) or `INUSE`. */
export async function startKvServer(options: KvServerOptions): Promise<KvServer> {
  const kind = await chooseKind(options.kind ?? 'any');
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await tryStart(options, kind, options.port ?? (await freePort()));
    } catch (error) {
      const portTaken = error instanceof HoldfastError && /address already in use/i.test(error.message);
      if (options.port !== undefined || !portTaken || attempt === START_ATTEMPTS) throw error;
    }
  }
}
