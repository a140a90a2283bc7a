/**
 * The composition of the sidecar. Parts start from the bottom up, each leaving behind how to end it; they end top down:
 *
 *   embedded KV store, embedded Postgres → ledger → recovery → proxy → HTTP
 *
 * so that a client in the middle of a request still finds everything that its reply needs.
 */

import { hostname } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from 'pino';
import { AggregatorRegistry } from 'prom-client';
import { createCache } from '../cache/cache.ts';
import { type Address, formatAddress } from '../config/address.ts';
import type { Config } from '../config/config.ts';
import type { KvServer } from '../embedded/kv-server.ts';
import { messageOf } from '../errors.ts';
import { isOwnPush } from '../intercept/hide-own-keys.ts';
import { StreamLimit } from '../intercept/ledger/stream-limit.ts';
import { createInterceptors } from '../intercept/registry.ts';
import { openLedger } from '../ledger/ledger.ts';
import { readLedgerSize } from '../ledger/retention/ledger-size.ts';
import { Retention } from '../ledger/retention/retention.ts';
import { streamFilter } from '../ledger/stream-filter.ts';
import { addCacheMetrics, cacheFigures, cacheInfoFields } from '../operations/cache-figures.ts';
import { type Readiness, startHttpServer } from '../operations/http-server.ts';
import { inspectKv } from '../operations/kv-inspector.ts';
import { ledgerFigures, streamLimitFigures } from '../operations/ledger-figures.ts';
import { reportLedger } from '../operations/ledger-report.ts';
import { addFigures, createMetrics } from '../operations/metrics.ts';
import { outboxFigures } from '../operations/outbox-figures.ts';
import { proxyFigures } from '../operations/proxy-figures.ts';
import { retentionFigures } from '../operations/retention-figures.ts';
import { formatStatus, type StatusReport } from '../operations/status-report.ts';
import type { Member } from '../processes/member.ts';
import { type RunningProxy, startProxy } from '../proxy/proxy.ts';
import { carriageOf } from '../proxy/request/command-plan.ts';
import { OutboxPublisher } from '../recovery/outbox/outbox-publisher.ts';
import { Recovery } from '../recovery/recovery.ts';
import { verify } from '../recovery/verify.ts';
import { createReloader, type Reloadable, type ReloadReport } from '../reload.ts';
import { createScriptRegistry } from '../scope/lua/script-registry.ts';
import { prefixedKeys } from '../scope/rules.ts';
import { connectScopeAdmin } from '../scope/scope-admin.ts';
import { readVersion } from '../version.ts';
import { type PreparedIdentities, prepareIdentities } from './identities.ts';
import { serversOf, startServers } from './servers.ts';
import type { Steps } from './stop-steps.ts';
import { addressOf, listenAddress, placeOf } from './targets.ts';

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
const OPEN_RETRY_MS = 250;

export async function compose(
  config: Config,
  log: Logger,
  steps: Steps,
  reread: () => Config,
  member?: Member,
): Promise<Holdfast> {
  const startedAt = new Date().toISOString();
  const version = readVersion();
  // What can be judged without servers is judged first, and addresses are taken before the lead is: a start that fails must have touched
  // neither the KV store nor the ledger.
  const listen = config.listen.map(listenAddress);
  const servers = member === undefined ? await startServers(config, log, steps) : serversOf(config, member);
  const { target, databaseUrl, kvServer } = servers;
  const scopeAdmin = connectScopeAdmin(target);
  steps.onStop('scopes', () => scopeAdmin.close());
  const identities = prepareIdentities(config, target, scopeAdmin, log);
  steps.onStop('ACL users of scopes', () => identities.close());
  const ledger = await openLedger({
    databaseUrl,
    name: `${hostname()}:${process.pid}`,
    log,
    acknowledgementFlushMs: config.ledger.acknowledgementFlushMs,
  });
  steps.onStop('ledger', () => ledger.close());
  let lanes: Pick<RunningProxy, 'closeLanes' | 'admitsNobody'> | undefined;
  const recovery = new Recovery({
    ledger,
    kv: target,
    ledgered: streamFilter(config.ledger.streams),
    lookIntervalMs: config.checkpoint.intervalMs,
    closeLanes: (runId, cause) => lanes?.closeLanes(runId, cause),
    admitsNobody: () => lanes?.admitsNobody() ?? false,
    log,
  });
  steps.onStop('recovery', () => recovery.stop());
  const outbox = new OutboxPublisher({ recovery, kv: target, log });
  const retention = new Retention({
    ledger,
    retentionMs: config.ledger.retentionDays * DAY_MS,
    leader: () => recovery.status(),
    log,
  });

  const { username: _username, password: _password, ...upstream } = target;
  const cache = createCache({ kv: target, rules: config.leases, log });
  const streamLimit = new StreamLimit(ledger.streams, config.ledger);
  const proxy = await startProxy({
    hidesPush: isOwnPush,
    held: true,
    listen,
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
        streamLimit,
      },
      cache,
      scripts: createScriptRegistry(scopeAdmin, config.limits.scopedScriptBytesMax),
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
    ...streamLimitFigures(streamLimit),
    ...outboxFigures(outbox),
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
      ledger: await reportLedger(
        ledger,
        recovery,
        retention,
        { where: placeOf(databaseUrl), embedded: config.ledger.databaseUrl === undefined },
        log,
      ),
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

  await recovery.start();
  outbox.start();
  steps.onStop('outbox', () => outbox.stop());
  retention.start();
  steps.onStop('retention', () => retention.stop());
  if ((await ledger.kv.lastCompared())?.admitsNobody === true) proxy.admitNobody();
  if (recovery.status().state === 'down') serveWhenOpened(identities, proxy, steps, log);
  else {
    await identities.open();
    proxy.serve();
  }
  return { addresses, http, kvServer, status, reload: reloadAll, stop: () => steps.stop() };
}

/** With a KV store that is away the scopes wait for it, and clients with them: nobody is let in without the fence. */
function serveWhenOpened(identities: PreparedIdentities, proxy: RunningProxy, steps: Steps, log: Logger): void {
  let retry: NodeJS.Timeout | undefined;
  let stopped = false;
  const open = (first: boolean): void => {
    identities.open().then(
      () => {
        if (!stopped) proxy.serve();
      },
      (thrown: unknown) => {
        if (first) log.warn({ reason: messageOf(thrown) }, 'scopes need the KV store: clients wait until it is there');
        if (!stopped) retry = setTimeout(open, OPEN_RETRY_MS, false);
      },
    );
  };
  steps.onStop('scopes that wait', () => {
    stopped = true;
    clearTimeout(retry);
  });
  open(true);
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
