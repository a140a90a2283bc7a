/**
 * The composition of the sidecar. Parts start from the bottom up, each leaving behind how to end it; they end top down:
 *
 *   embedded KV store, embedded Postgres → ledger → recovery → proxy → HTTP
 *
 * so that a client in the middle of a request still finds everything that its reply needs.
 */
import cluster from 'node:cluster';
import { readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type ConnectionOptions, createSecureContext } from 'node:tls';
import type { Logger } from 'pino';
import { AggregatorRegistry } from 'prom-client';
import { createCache } from './cache/cache.ts';
import { type Address, formatAddress, parseAddress } from './config/address.ts';
import type { Config, Listener } from './config/config.ts';
import { loadConfig } from './config/load-config.ts';
import { settingsHelp } from './config/settings.ts';
import type { KvAddress } from './control-redis.ts';
import { type KvServer, startKvServer } from './embedded/kv-server.ts';
import { startPostgres } from './embedded/postgres.ts';
import type { EmbeddedServer } from './embedded/server-process.ts';
import { supervise } from './embedded/supervise.ts';
import { HoldfastError, messageOf } from './errors.ts';
import { isOwnPush } from './intercept/hide-own-keys.ts';
import { createInterceptors } from './intercept/registry.ts';
import { openLedger } from './ledger/ledger.ts';
import { readLedgerSize } from './ledger/ledger-size.ts';
import { Retention } from './ledger/retention.ts';
import { streamFilter } from './ledger/stream-filter.ts';
import { addCacheMetrics, cacheFigures, cacheInfoFields } from './operations/cache-figures.ts';
import { type Readiness, startHttpServer } from './operations/http-server.ts';
import { inspectKv } from './operations/kv-inspector.ts';
import { ledgerFigures } from './operations/ledger-figures.ts';
import { reportLedger } from './operations/ledger-report.ts';
import { createLogger } from './operations/logger.ts';
import { mergeStatus } from './operations/merge-status.ts';
import { addFigures, createMetrics } from './operations/metrics.ts';
import { proxyFigures } from './operations/proxy-figures.ts';
import { retentionFigures } from './operations/retention-figures.ts';
import { formatStatus, type StatusReport } from './operations/status-report.ts';
import { joinPrimary, type Member } from './processes/member.ts';
import { startMembers } from './processes/primary.ts';
import { carriageOf } from './proxy/carriage.ts';
import { type ListenAddress, type RunningProxy, removeStaleSocket, startProxy } from './proxy/proxy.ts';
import { startRecovery } from './recovery/recovery.ts';
import { verify } from './recovery/verify.ts';
import { createReloader, type Reloadable, type ReloadReport } from './reload.ts';
import { buildFence, type Fence } from './scope/fence.ts';
import { createIdentities, type Identities } from './scope/identities.ts';
import { prefixedKeys } from './scope/rules.ts';
import { connectScopeAdmin, type ScopeAdmin } from './scope/scope-admin.ts';
import { createScriptRegistry } from './scope/script-registry.ts';
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
  /** Reads the configuration again, in every process. Rejects with `CONFIG`, having changed nothing. */
  reload(): Promise<ReloadReport>;
  /** Finishes what is in flight, within a bounded time, and ends everything that was started. */
  stop(): Promise<void>;
}

const DAY_MS = 86_400_000;
const DRAIN_MS = 5000;
/** What a comparison takes, generously. */
const LOOK_MS = 1000;
/** One part that does not end must not keep the others, and all of them together not who waits for the process. */
const STOP_MS = 20_000;
const STEP_MS_MIN = 1_000;
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
    const deadline = Date.now() + STOP_MS;
    for (const { name, step } of steps.reverse()) {
      let timer: NodeJS.Timeout | undefined;
      const limit = new Promise<never>((_, reject) => {
        const stepMs = Math.max(STEP_MS_MIN, deadline - Date.now());
        timer = setTimeout(() => reject(new Error(`took more than ${stepMs} ms`)), stepMs);
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

function remoteTarget(kv: Config['kv']): KvAddress | undefined {
  if (kv.remote === undefined) return undefined;
  const { address, tls, user, password } = kv.remote;
  return {
    ...address,
    ...(tls ? { tls: kvTls(kv.tls) } : {}),
    ...(user === undefined ? {} : { username: user }),
    ...(password === undefined ? {} : { password: password.reveal() }),
  };
}

function embeddedTarget(server: KvServer): KvAddress {
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

/** Who clients are, where the configuration says so; nothing where it does not. */
async function startIdentities(
  config: Config,
  { username, password }: KvAddress,
  admin: ScopeAdmin,
  log: Logger,
): Promise<RunningIdentities> {
  const listenerScopes = config.listen.map((listener) => listener.scope);
  const upstream = password === undefined ? undefined : { username, password: Buffer.from(password) };
  let fence: Fence | undefined;

  async function read({ users: configured }: Config): Promise<Identities> {
    const users = new Map(
      [...configured].map(([name, user]) => [name, { ...user, passwordHash: user.passwordHash.reveal() }]),
    );
    const scoped = [...users.values()].some((user) => user.scope !== undefined) || listenerScopes.some(Boolean);
    // Judged before anything is done at the KV store.
    createIdentities({ users, listenerScopes, upstream, fence: undefined });
    if (scoped) fence ??= await buildFence(admin, log);
    return createIdentities({ users, listenerScopes, upstream, fence });
  }

  const close = async (): Promise<void> => fence?.close();
  if (config.users.size === 0 && listenerScopes.every((scope) => scope === undefined)) {
    return { provider: undefined, reloadable: [], close };
  }
  let current = await read(config);
  return {
    provider: {
      confines: (index) => current.confines(index),
      ofListener: (index) => current.ofListener(index),
      authenticate: (user, secret) => current.authenticate(user, secret),
    },
    reloadable: [
      {
        setting: 'users',
        async prepare(next) {
          const identities = await read(next);
          return () => {
            current = identities;
          };
        },
      },
    ],
    close,
  };
}

interface RunningIdentities {
  readonly provider: Identities | undefined;
  /** Clients that are there keep who they are. The first user of a sidecar that had none needs a restart. */
  readonly reloadable: readonly Reloadable[];
  close(): Promise<void>;
}

/** The files of TLS listeners, of which there are the same ones after a reload; and the log's level. */
function reloadableParts(config: Config, proxy: RunningProxy, log: Logger): Reloadable[] {
  return [
    {
      setting: 'certificates',
      async prepare() {
        const addresses = config.listen.map(listenAddress);
        return () => {
          for (const [index, { tls }] of addresses.entries()) if (tls !== undefined) proxy.setCertificates(index, tls);
        };
      },
    },
    {
      setting: 'log.level',
      async prepare(next) {
        return () => {
          log.level = next.log.level;
        };
      },
    },
  ];
}

/** Resolves when clients are served. Throws `CONFIG`, `STARTUP` or `INUSE`, having ended what it had started. */
export async function startHoldfast(
  config: Config,
  log: Logger,
  reread: () => Config = () => config,
): Promise<Holdfast> {
  const steps = stopSteps(log);
  try {
    return await (config.processes > 1 ? composeProcesses(config, log, steps) : compose(config, log, steps, reread));
  } catch (error) {
    await steps.stop();
    throw error;
  }
}

/** The servers that a sidecar stands on: where they are, and those of them that are its own children. */
interface Servers {
  readonly target: KvAddress;
  readonly databaseUrl: string;
  readonly kvServer: KvServer | undefined;
  readonly kvRestarts: () => number | undefined;
}

async function startServers(config: Config, log: Logger, steps: Steps): Promise<Servers> {
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
  const kvServer = kv.value?.server;
  return {
    target: kvServer === undefined ? remoteTarget(config.kv)! : embeddedTarget(kvServer),
    databaseUrl: config.ledger.databaseUrl?.reveal() ?? postgres.value!.server.url,
    kvServer,
    kvRestarts: () => kv.value?.supervision.restarts,
  };
}

async function compose(
  config: Config,
  log: Logger,
  steps: Steps,
  reread: () => Config,
  member?: Member,
): Promise<Holdfast> {
  const startedAt = new Date().toISOString();
  const version = readVersion();
  const servers = member === undefined ? await startServers(config, log, steps) : serversOf(config, member);
  const { target, databaseUrl, kvServer } = servers;
  const ledger = await openLedger({
    databaseUrl,
    name: `${hostname()}:${process.pid}`,
    log,
    acknowledgementFlushMs: config.ledger.acknowledgementFlushMs,
  });
  steps.onStop('ledger', () => ledger.close());
  let lanes: Pick<RunningProxy, 'closeLanes'> | undefined;
  const recovery = await startRecovery({
    ledger,
    kv: target,
    ledgered: streamFilter(config.ledger.streams),
    lookIntervalMs: config.checkpoint.intervalMs,
    closeLanes: (runId, cause) => lanes?.closeLanes(runId, cause),
    log,
  });
  steps.onStop('recovery', () => recovery.stop());
  const retention = new Retention({
    ledger,
    retentionMs: config.ledger.retentionDays * DAY_MS,
    leader: () => recovery.status(),
    log,
  });
  retention.start();
  steps.onStop('retention', () => retention.stop());

  const scopeAdmin = connectScopeAdmin(target);
  steps.onStop('scopes', () => scopeAdmin.close());
  const identities = await startIdentities(config, target, scopeAdmin, log);
  steps.onStop('ACL users of scopes', () => identities.close());

  const { username: _username, password: _password, ...upstream } = target;
  const cache = createCache({ kv: target, rules: config.leases, log });
  const proxy = await startProxy({
    hidesPush: isOwnPush,
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
      cache,
      scripts: createScriptRegistry(scopeAdmin),
      carriedAs: carriageOf,
      reload: reloadAll,
      status: async (json) => {
        const report = await status();
        return json ? JSON.stringify(report) : formatStatus(report, new Date());
      },
      ledgerAdmin: {
        size: () => readLedgerSize(ledger.pool),
        verify: () => verify(ledger, target, nextLook),
      },
      infoFields,
    }),
    prefixedKeys,
    ...(identities.provider === undefined ? {} : { identities: identities.provider }),
    upstreamListener: {
      connected: (facts) => void recovery.upstreamConnected(facts),
      lost: () => recovery.upstreamLost(),
    },
    ...(member === undefined ? {} : { peers: (service) => member.peers(service) }),
    log,
  });
  lanes = proxy;
  steps.onStop('proxy', () => proxy.stop(DRAIN_MS));
  // First of all: who waits for a value would keep the proxy from finishing.
  steps.onStop('cache', () => cache.stop());

  /** When recovery has compared twice more, wherever its leader is. */
  async function nextLook(): Promise<void> {
    await ledger.notify('look');
    await sleep(2 * config.checkpoint.intervalMs + LOOK_MS);
  }

  function infoFields(): Record<string, string | number> {
    const { clients, lanes, upstreamAwayMs } = proxy.status();
    const { available, streams } = ledger.metrics();
    const { state, leads, lossesTotal, restoresTotal } = recovery.status();
    return {
      holdfast_version: version,
      holdfast_process_id: process.pid,
      pooling: config.pooling,
      clients,
      lanes,
      kv_reachable: upstreamAwayMs === undefined ? 1 : 0,
      kv_away_seconds: Math.round((upstreamAwayMs ?? 0) / 1000),
      ledger_available: available ? 1 : 0,
      ledger_streams: streams,
      recovery_state: state,
      recovery_leads: leads ? 1 : 0,
      recovery_losses_total: lossesTotal,
      recovery_restores_total: restoresTotal,
      ...cacheInfoFields(cache),
    };
  }

  const reload = createReloader({
    config,
    reread,
    parts: [...identities.reloadable, ...reloadableParts(config, proxy, log)],
    log,
  });

  /** What one process says where all say the same; else what each says. */
  async function reloadAll(): Promise<ReloadReport> {
    const own = await reload();
    if (member === undefined) return own;
    const others = await member.reloadOthers();
    const differing = others.filter((report) => report.join('\n') !== own.join('\n'));
    return [...own, `processes: ${others.length + 1} of ${member.role.count}`, ...differing.flat()];
  }

  const inspector = inspectKv(target);
  steps.onStop('KV inspector', () => inspector.stop());
  const metrics = createMetrics();
  addFigures(metrics, [
    ...proxyFigures(proxy),
    ...ledgerFigures(ledger, recovery),
    ...retentionFigures(retention),
    ...cacheFigures(cache),
  ]);
  addCacheMetrics(metrics, cache);
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
        ...(kvServer === undefined ? {} : { restarts: servers.kvRestarts() ?? 0 }),
        ...(kvServer?.pid === undefined ? {} : { processId: kvServer.pid }),
      },
      ledger: await reportLedger(ledger, recovery, retention, {
        where: placeOf(databaseUrl),
        embedded: config.ledger.databaseUrl === undefined,
      }),
      cache: cache.snapshot(),
      memory: { residentBytes: memory.rss, heapUsedBytes: memory.heapUsed },
    };
  }

  async function readiness(): Promise<Readiness> {
    const { state, troubled } = recovery.status();
    const checks = {
      kv: await inspector.reachable(),
      ledger: ledger.metrics().available,
      recovered: state === 'open' && troubled.length === 0,
    };
    return { ready: Object.values(checks).every(Boolean), checks };
  }

  let http: Address | undefined;
  if (member !== undefined) {
    member.answerWith({ status, readiness, reload });
    // The instance listens for the primary's questions.
    new AggregatorRegistry();
    AggregatorRegistry.setRegistries(metrics);
  } else if (config.http !== 'off') {
    const server = await startHttpServer({ address: config.http, metrics, log, status, readiness });
    steps.onStop('HTTP', () => server.stop());
    http = server.address;
  }
  return { addresses, http, kvServer, status, reload: reloadAll, stop: () => steps.stop() };
}

function serversOf(config: Config, { role }: Member): Servers {
  return {
    target: role.kvSocket ?? remoteTarget(config.kv)!,
    databaseUrl: role.databaseUrl ?? config.ledger.databaseUrl!.reveal(),
    kvServer: undefined,
    kvRestarts: () => undefined,
  };
}

/** Several processes behind one port: this one holds the embedded servers and HTTP, the members serve. */
async function composeProcesses(config: Config, log: Logger, steps: Steps): Promise<Holdfast> {
  const { kvServer, kvRestarts, databaseUrl, target } = await startServers(config, log, steps);
  for (const { address } of config.listen) if ('path' in address) await removeStaleSocket(address.path);
  const primary = await startMembers({
    count: config.processes,
    kvSocket: kvServer === undefined ? undefined : { ...target },
    databaseUrl: config.ledger.databaseUrl === undefined ? databaseUrl : undefined,
    log,
  });
  steps.onStop('processes', () => primary.stop());
  const addresses = primary.listen.map(parseAddress);

  async function status(): Promise<StatusReport> {
    const reports = (await primary.ask({ kind: 'status' })) as StatusReport[];
    if (reports.length === 0) throw new HoldfastError('STARTUP', 'no process answers');
    const merged = mergeStatus(reports, process.pid);
    if (kvServer === undefined) return merged;
    const { pid } = kvServer;
    const embedded = { embedded: true, restarts: kvRestarts() ?? 0, ...(pid === undefined ? {} : { processId: pid }) };
    return { ...merged, kv: { ...merged.kv, ...embedded } };
  }

  let http: Address | undefined;
  if (config.http !== 'off') {
    const aggregator = new AggregatorRegistry();
    const server = await startHttpServer({
      address: config.http,
      metrics: { contentType: aggregator.contentType, metrics: () => aggregator.clusterMetrics() },
      log,
      status,
      async readiness() {
        const answers = (await primary.ask({ kind: 'readiness' })) as Readiness[];
        const checks: Record<string, boolean> = { processes: answers.length === config.processes };
        for (const answer of answers) {
          for (const [name, holds] of Object.entries(answer.checks)) checks[name] = holds && (checks[name] ?? true);
        }
        return { ready: Object.values(checks).every(Boolean), checks };
      },
    });
    steps.onStop('HTTP', () => server.stop());
    http = server.address;
  }
  async function reload(): Promise<ReloadReport> {
    const reports = (await primary.ask({ kind: 'reload' })) as ReloadReport[];
    return [...new Set(reports.flat()), `processes: ${reports.length} of ${config.processes}`];
  }

  return { addresses, http, kvServer, status, reload, stop: () => steps.stop() };
}

/** A member's life: until the primary, or a signal, ends it. */
async function serveAsMember(
  config: Config,
  log: Logger,
  reread: () => Config,
  signalled: Promise<void>,
): Promise<number> {
  const member = await joinPrimary();
  const steps = stopSteps(log);
  try {
    const holdfast = await compose(config, log, steps, reread, member);
    member.ready(holdfast.addresses.map(formatAddress));
    // The primary hears it too, and asks.
    process.on('SIGHUP', () => undefined);
    // A terminal's Ctrl-C reaches every process of the group; the primary says when it is time.
    void signalled;
    await member.stopRequested;
    await holdfast.stop();
  } catch (error) {
    member.failed(messageOf(error));
    await steps.stop();
    return 2;
  } finally {
    process.disconnect?.();
  }
  return 0;
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
SIGHUP reads users, passwords, certificates and the log level again.
Settings: defaults < configuration file < environment < flags.

${settingsHelp()}
`,
  async run({ args, env, workingDirectory, terminal, stopRequested }) {
    const reread = (): Config => loadConfig({ args, env, workingDirectory }).config;
    const config = reread();
    const log = createLogger({ level: config.log.level, pretty: terminal });
    if (cluster.isWorker) return serveAsMember(config, log, reread, stopRequested);
    // A signal during the start must not leave children behind: it is heeded as soon as there is something to stop.
    const holdfast = await startHoldfast(config, log, reread);
    process.on('SIGHUP', () => {
      holdfast.reload().catch((error) => log.error({ reason: messageOf(error) }, 'the configuration was not taken'));
    });
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
