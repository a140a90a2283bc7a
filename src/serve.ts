/**
 * The composition of the sidecar. Parts start from the bottom up, each leaving behind how to end it; they end top down:
 *
 *   embedded KV store, embedded Postgres → ledger → recovery → proxy → HTTP
 *
 * so that a client in the middle of a request still finds everything that its reply needs.
 */
import { readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { type ConnectionOptions, createSecureContext } from 'node:tls';
import type { Logger } from 'pino';
import { type Address, formatAddress } from './config/address.ts';
import type { Config, Listener } from './config/config.ts';
import { loadConfig } from './config/load-config.ts';
import { settingsHelp } from './config/settings.ts';
import { type KvServer, startKvServer } from './embedded/kv-server.ts';
import { startPostgres } from './embedded/postgres.ts';
import type { EmbeddedServer } from './embedded/server-process.ts';
import { supervise } from './embedded/supervise.ts';
import { HoldfastError, messageOf } from './errors.ts';
import { createInterceptors } from './intercept/registry.ts';
import { openLedger } from './ledger/ledger.ts';
import { streamFilter } from './ledger/stream-filter.ts';
import { startHttpServer } from './operations/http-server.ts';
import { inspectKv, type KvTarget } from './operations/kv-inspector.ts';
import { ledgerFigures } from './operations/ledger-figures.ts';
import { reportLedger } from './operations/ledger-report.ts';
import { createLogger } from './operations/logger.ts';
import { addFigures, createMetrics } from './operations/metrics.ts';
import { proxyFigures } from './operations/proxy-figures.ts';
import type { StatusReport } from './operations/status-report.ts';
import { type ListenAddress, startProxy } from './proxy/proxy.ts';
import { startRecovery } from './recovery/recovery.ts';
import type { Subcommand } from './subcommand.ts';
import { readVersion } from './version.ts';

export interface Holdfast {
  /** Where clients connect, with the ports that were taken. */
  readonly addresses: readonly Address[];
  /** `undefined` when it is switched off. */
  readonly http: Address | undefined;
  /** The child that runs as the KV store, if it is one. */
  readonly kvServer: KvServer | undefined;
  status(): Promise<StatusReport>;
  /** Finishes what is in flight, within a bounded time, and ends everything that was started. */
  stop(): Promise<void>;
}

const DRAIN_MS = 5000;
/** One part that does not end must not keep the others. */
const STEP_MS = 25_000;
/** The path of a Unix socket may not be longer, on any platform. */
const SOCKET_PATH_BYTES_MAX = 100;

interface Steps {
  onStop(name: string, step: () => void | Promise<void>): void;
  stop(): Promise<void>;
}

function stopSteps(log: Logger): Steps {
  const steps: { name: string; step: () => void | Promise<void> }[] = [];
  let stopping: Promise<void> | undefined;

  async function runAll(): Promise<void> {
    for (const { name, step } of steps.reverse()) {
      let timer: NodeJS.Timeout | undefined;
      const limit = new Promise<never>((_, reject) => {
        timer = setTimeout(() => reject(new Error(`took more than ${STEP_MS} ms`)), STEP_MS);
      });
      try {
        await Promise.race([step(), limit]);
      } catch (error) {
        log.error({ part: name, reason: messageOf(error) }, 'a part did not end as it should');
      } finally {
        clearTimeout(timer);
      }
    }
  }
  return {
    onStop: (name, step) => void steps.push({ name, step }),
    stop: () => (stopping ??= runAll()),
  };
}

/** Throws `CONFIG` where the files are no certificate and key. */
function listenAddress({ address, tls }: Listener): ListenAddress {
  if (tls === undefined) return address;
  const { cert, key, ca, requireClientCert } = tls;
  const files = {
    cert: readFileSync(cert),
    key: readFileSync(key),
    ...(ca === undefined ? {} : { ca: readFileSync(ca) }),
  };
  try {
    createSecureContext(files);
  } catch (error) {
    throw new HoldfastError('CONFIG', `listen: ${formatAddress(address)}: tls: ${messageOf(error)}`, { cause: error });
  }
  return { ...address, tls: { ...files, requestCert: requireClientCert, rejectUnauthorized: requireClientCert } };
}

function kvTls(tls: Config['kv']['tls']): ConnectionOptions {
  return {
    rejectUnauthorized: tls.verify,
    ...(tls.ca === undefined ? {} : { ca: readFileSync(tls.ca) }),
    ...(tls.cert === undefined ? {} : { cert: readFileSync(tls.cert) }),
    ...(tls.key === undefined ? {} : { key: readFileSync(tls.key) }),
    ...(tls.serverName === undefined ? {} : { servername: tls.serverName }),
  };
}

function remoteTarget(kv: Config['kv']): KvTarget | undefined {
  if (kv.remote === undefined) return undefined;
  const { address, tls, user, password } = kv.remote;
  return {
    ...address,
    ...(tls ? { tls: kvTls(kv.tls) } : {}),
    ...(user === undefined ? {} : { username: user }),
    ...(password === undefined ? {} : { password: password.reveal() }),
  };
}

function embeddedTarget(server: KvServer): KvTarget {
  return server.unixSocket === undefined ? { host: '127.0.0.1', port: server.port } : { path: server.unixSocket };
}

function addressOf(target: { host?: string; port?: number; path?: string }): Address {
  return target.path === undefined
    ? { host: target.host ?? '127.0.0.1', port: target.port ?? 0 }
    : { path: target.path };
}

/** A database without who logs in there. */
function placeOf(databaseUrl: string): string {
  const { host, pathname } = new URL(databaseUrl);
  return `${host}${pathname}`;
}

async function startEmbeddedKv(config: Config): Promise<KvServer> {
  const dataDir = join(config.dataDir, 'kv');
  const unixSocket = join(dataDir, 'kv.sock');
  const { maxmemory, maxmemoryPolicy, loglevel } = config.kv;
  const privateSocket = Buffer.byteLength(unixSocket) <= SOCKET_PATH_BYTES_MAX ? { port: 0, unixSocket } : {};
  return startKvServer({ dataDir, ...privateSocket, maxmemory, maxmemoryPolicy, loglevel });
}

/** Resolves when clients are served. Throws `CONFIG`, `STARTUP` or `INUSE`, having ended what it had started. */
export async function startHoldfast(config: Config, log: Logger): Promise<Holdfast> {
  const steps = stopSteps(log);
  try {
    return await compose(config, log, steps);
  } catch (error) {
    await steps.stop();
    throw error;
  }
}

async function compose(config: Config, log: Logger, steps: Steps): Promise<Holdfast> {
  const startedAt = new Date().toISOString();
  const version = readVersion();

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
  if (kv.status === 'rejected') throw kv.reason;
  if (postgres.status === 'rejected') throw postgres.reason;
  const embeddedKv = kv.value;
  const kvServer = embeddedKv?.server;

  const target = kvServer === undefined ? remoteTarget(config.kv)! : embeddedTarget(kvServer);
  const databaseUrl = config.ledger.databaseUrl?.reveal() ?? postgres.value!.server.url;
  const ledger = await openLedger({
    databaseUrl,
    name: `${hostname()}:${process.pid}`,
    log,
    acknowledgementFlushMs: config.ledger.acknowledgementFlushMs,
  });
  steps.onStop('ledger', () => ledger.close());
  const recovery = await startRecovery({
    ledger,
    kv: target,
    ledgered: streamFilter(config.ledger.streams),
    lookIntervalMs: config.checkpoint.intervalMs,
    log,
  });
  steps.onStop('recovery', () => recovery.stop());

  const { username: _username, password: _password, ...upstream } = target;
  const proxy = await startProxy({
    listen: config.listen.map(listenAddress),
    upstream,
    pooling: config.pooling,
    limits: config.limits,
    interceptors: createInterceptors({
      ledger: {
        ledger,
        recovery,
        holdMs: config.limits.holdMs,
        entryBytesMax: config.ledger.entryBytesMax,
        onFailure: config.ledger.onFailure,
      },
      infoFields,
    }),
    upstreamListener: {
      connected: (facts) => void recovery.upstreamConnected(facts),
      lost: () => recovery.upstreamLost(),
    },
    log,
  });
  steps.onStop('proxy', () => proxy.stop(DRAIN_MS));

  function infoFields(): Record<string, string | number> {
    const { clients, lanes } = proxy.status();
    const { available, streams } = ledger.metrics();
    const { state, leads, lossesTotal, restoresTotal } = recovery.status();
    return {
      holdfast_version: version,
      holdfast_process_id: process.pid,
      pooling: config.pooling,
      clients,
      lanes,
      ledger_available: available ? 1 : 0,
      ledger_streams: streams,
      recovery_state: state,
      recovery_leads: leads ? 1 : 0,
      recovery_losses_total: lossesTotal,
      recovery_restores_total: restoresTotal,
    };
  }

  const inspector = inspectKv(target);
  steps.onStop('KV inspector', () => inspector.stop());
  const metrics = createMetrics();
  addFigures(metrics, [...proxyFigures(proxy), ...ledgerFigures(ledger, recovery)]);
  const addresses = proxy.addresses.map(addressOf);

  async function status(): Promise<StatusReport> {
    const { clients, clientsTotal, clientsRefused, requests, lanes } = proxy.status();
    const memory = process.memoryUsage();
    return {
      version,
      processId: process.pid,
      startedAt,
      listen: addresses.map(formatAddress),
      pooling: config.pooling,
      clients: {
        connected: clients,
        connectedTotal: clientsTotal,
        refusedTotal: clientsRefused,
        requestsTotal: requests,
        lanes,
      },
      kv: {
        ...(await inspector.report()),
        where: formatAddress(addressOf(target)),
        embedded: kvServer !== undefined,
        ...(embeddedKv === undefined ? {} : { restarts: embeddedKv.supervision.restarts }),
        ...(kvServer?.pid === undefined ? {} : { processId: kvServer.pid }),
      },
      ledger: await reportLedger(ledger, recovery, {
        where: placeOf(databaseUrl),
        embedded: config.ledger.databaseUrl === undefined,
      }),
      memory: { residentBytes: memory.rss, heapUsedBytes: memory.heapUsed },
    };
  }

  let http: Address | undefined;
  if (config.http !== 'off') {
    const server = await startHttpServer({
      address: config.http,
      metrics,
      log,
      status,
      async readiness() {
        const { state, troubled } = recovery.status();
        const checks = {
          kv: await inspector.reachable(),
          ledger: ledger.metrics().available,
          recovered: state === 'open' && troubled.length === 0,
        };
        return { ready: Object.values(checks).every(Boolean), checks };
      },
    });
    steps.onStop('HTTP', () => server.stop());
    http = server.address;
  }
  return { addresses, http, kvServer, status, stop: () => steps.stop() };
}

/** What a person types to get there. */
function cliHint(address: Address | undefined): string {
  if (address === undefined) return '';
  if ('path' in address) return `redis-cli -s ${address.path}`;
  const host = ['127.0.0.1', '0.0.0.0', '::', 'localhost'].includes(address.host) ? '' : ` -h ${address.host}`;
  return `redis-cli${host} -p ${address.port}`;
}

export const serve: Subcommand = {
  help: () => `Usage: holdfast serve [FLAGS]

Runs the sidecar until SIGINT or SIGTERM, which let it finish what is in flight; a second one ends it at once.
Settings: defaults < configuration file < environment < flags.

${settingsHelp()}
`,
  async run({ args, env, workingDirectory, terminal, stopRequested }) {
    const { config } = loadConfig({ args, env, workingDirectory });
    const log = createLogger({ level: config.log.level, pretty: terminal });
    // A signal during the start must not leave children behind: it is heeded as soon as there is something to stop.
    const holdfast = await startHoldfast(config, log);
    log.info(
      {
        listen: holdfast.addresses.map(formatAddress),
        http: holdfast.http === undefined ? 'off' : formatAddress(holdfast.http),
      },
      `ready: ${cliHint(holdfast.addresses[0])}`,
    );
    await stopRequested;
    log.info('stopping: what is in flight is finished first');
    await holdfast.stop();
    log.info('stopped');
    return 0;
  },
};
