/**
 * The data plane as a whole: listeners, sessions, lanes. Started by `serve`, which gives it addresses, limits and the
 * interceptors; it knows no policy of its own.
 */
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import tls from 'node:tls';
import type { Logger } from 'pino';
import { HoldfastError, messageOf } from '../errors.ts';
import type { Interceptor } from '../interceptor.ts';
import { killClients, listClients } from './commands/client-list.ts';
import { ClientRegistry } from './commands/client-registry.ts';
import { adoptAccepted, readByEvents } from './io/socket-reader.ts';
import { DEFAULT_LIMITS, type ProxyLimits } from './limits.ts';
import { type CommandPlans, judgedPlans, type PrefixedKeys, planCommands } from './request/command-plan.ts';
import type { IdentityProvider } from './session/identity.ts';
import type { PeerService, Peers } from './session/peers.ts';
import { Session } from './session/session.ts';
import type { Pooling, ProxyCounters, SessionContext } from './session/session-state.ts';
import { Tenants } from './session/tenants.ts';
import { Upstream, type UpstreamAddress, type UpstreamListener } from './upstream/upstream.ts';

export interface ListenAddress {
  /** TCP; port 0 takes any free one. */
  readonly host?: string;
  readonly port?: number;
  /** A unix socket, instead of host and port. */
  readonly path?: string;
  readonly tls?: tls.TlsOptions;
}

export interface ProxyOptions {
  readonly listen: readonly ListenAddress[];
  readonly upstream: UpstreamAddress;
  readonly pooling?: Pooling;
  readonly limits?: Partial<ProxyLimits>;
  /** In the order in which requests pass them. */
  readonly interceptors?: readonly Interceptor[];
  /** Which commands of scoped sessions need nothing but a prefix before their keys. */
  readonly prefixedKeys?: PrefixedKeys;
  readonly identities?: IdentityProvider;
  readonly upstreamListener?: UpstreamListener;
  /** Gives the other processes of this sidecar, and takes what this one answers them. */
  readonly peers?: (service: PeerService) => Peers;
  /** Which pushes no client sees: those that tell of Holdfast's own keys. */
  readonly hidesPush?: (frame: Buffer) => boolean;
  /** Keeps clients waiting, and opens no connection to the KV store, until `serve()`. Addresses are taken at once. */
  readonly held?: boolean;
  readonly log: Logger;
}

export interface ProxyStatus extends ProxyCounters {
  readonly clients: number;
  readonly clientsTotal: number;
  readonly clientsRefused: number;
  readonly lanes: number;
  readonly lanesRetired: number;
  /** Of all clients, and the most of one identity. */
  readonly ownLanes: number;
  readonly tenantLanesMost: number;
  readonly ownLanesRefused: number;
  readonly tenantTransactionBytesMost: number;
  readonly transactionsRefused: number;
  readonly upstreamReachable: boolean;
  /** Since when the KV store has not been reachable, in milliseconds; `undefined` while it is. */
  readonly upstreamAwayMs: number | undefined;
  readonly upstreamConnects: number;
  readonly upstreamLosses: number;
}

export interface RunningProxy {
  /** Where it listens, with the ports that were taken. */
  readonly addresses: readonly ListenAddress[];
  readonly plans: CommandPlans;
  /** Lets clients in, where `held` kept them. */
  serve(): void;
  /** Clients that do not log in may be served while the KV store is away: it let them in before. */
  admitNobody(): void;
  /** Whether the KV store lets in clients that do not log in, as far as known. */
  admitsNobody(): boolean;
  status(): ProxyStatus;
  /** New certificates for the TLS listener with this index: for clients that come from now on, those there stay. */
  setCertificates(listener: number, options: tls.SecureContextOptions): void;
  /** Closes upstream connections to any other server than that of `runId`, or all. What is in flight there is lost. */
  closeLanes(runId: string | undefined, cause: HoldfastError): void;
  /** Takes no new client, lets those there finish what is in flight for `drainMs`, closes everything. */
  stop(drainMs?: number): Promise<void>;
}

const SHARED_READ_BYTES = 64 * 1024;
const BACKLOG = 4096;
const ignored = (): void => undefined;
const NO_LISTENER: UpstreamListener = { connected: () => undefined, lost: () => undefined };

/** Listens and serves. Rejects with `CONFIG` when an address cannot be listened on. */
export async function startProxy(options: ProxyOptions): Promise<RunningProxy> {
  const limits: ProxyLimits = { ...DEFAULT_LIMITS, ...options.limits };
  const { log } = options;
  const peers = options.peers?.({
    list: (query) => listClients(registry, query),
    kill: (query) => killClients(registry, query),
    laneOf: (clientId, pin, scope) => registry.laneOf(clientId, pin, scope),
    clients: () => registry.size,
  });
  const registry = new ClientRegistry(peers?.index ?? 0, peers?.count ?? 1);
  const upstream = new Upstream({
    address: options.upstream,
    limits,
    listener: options.upstreamListener ?? NO_LISTENER,
    log,
  });
  const counters: ProxyCounters = {
    requests: 0,
    exchanges: 0,
    protocolErrors: 0,
    overflows: 0,
    faults: 0,
    unserved: 0,
  };
  const plans = planCommands(options.interceptors ?? []);
  const context: SessionContext = {
    upstream,
    plans,
    judgedPlans: judgedPlans(plans),
    scopedPlans: planCommands(options.interceptors ?? [], options.prefixedKeys ?? (() => undefined)),
    guardedPlans: planCommands(options.interceptors ?? [], () => undefined),
    interceptors: options.interceptors ?? [],
    identities: options.identities,
    limits,
    pooling: options.pooling ?? 'transaction',
    registry,
    peers,
    hidesPush: options.hidesPush,
    log,
    counters,
    tenants: new Tenants(limits),
  };
  const readBuffer = Buffer.allocUnsafeSlow(SHARED_READ_BYTES);
  let clientsTotal = 0;
  let clientsRefused = 0;

  /** Clients that came before `serve()`. */
  let held: { socket: net.Socket; address: ListenAddress; listener: number }[] | undefined =
    options.held === true ? [] : undefined;

  function accept(accepted: net.Socket, address: ListenAddress, listener: number): void {
    const waiting = held?.length ?? 0;
    if (registry.size + waiting + (peers?.clientsElsewhere ?? 0) >= limits.clientsMax) {
      clientsRefused += 1;
      accepted.on('error', () => undefined);
      accepted.end('-ERR max number of clients reached\r\n');
      return;
    }
    if (held !== undefined) {
      accepted.on('error', ignored);
      held.push({ socket: accepted, address, listener });
      return;
    }
    accepted.off('error', ignored);
    clientsTotal += 1;
    let session: Session | undefined;
    const receive = (buffer: Buffer, length: number): void => session?.receive(buffer, length);
    let socket = accepted;
    if (address.tls === undefined) socket = adoptAccepted(accepted, readBuffer, receive);
    else readByEvents(accepted, receive);
    if (address.path === undefined) {
      socket.setNoDelay(true);
      socket.setKeepAlive(true, 300_000);
    }
    session = new Session(registry.allocateId(), socket, address.path ?? '', context);
    session.listener = listener;
    session.become(options.identities?.ofListener(listener), undefined);
    registry.add(session);
    socket.resume();
  }

  async function listen(address: ListenAddress, index: number): Promise<{ server: net.Server; bound: ListenAddress }> {
    const server =
      address.tls === undefined
        ? net.createServer({ pauseOnConnect: true, allowHalfOpen: true }, (socket) => accept(socket, address, index))
        : tls.createServer({ ...address.tls, allowHalfOpen: true }, (socket) => accept(socket, address, index));
    server.on('tlsClientError', (thrown) => log.debug({ reason: messageOf(thrown) }, 'TLS handshake failed'));
    const { path, host, port } = address;
    // Of several processes the first one's socket is the others' too; who started them has looked.
    if (path !== undefined && peers === undefined) await removeStaleSocket(path);
    server.listen(path === undefined ? { host: host ?? '127.0.0.1', port: port ?? 0, backlog: BACKLOG } : { path });
    try {
      await once(server, 'listening');
    } catch (thrown) {
      throw new HoldfastError('CONFIG', `listen: ${path ?? `${host}:${port}`}: ${messageOf(thrown)}`, {
        cause: thrown,
      });
    }
    server.on('error', (thrown) => log.error({ err: thrown }, 'a listener failed'));
    const bound = server.address();
    return { server, bound: bound !== null && typeof bound === 'object' ? { ...address, port: bound.port } : address };
  }

  const servers: net.Server[] = [];
  const addresses: ListenAddress[] = [];
  try {
    for (const [index, address] of options.listen.entries()) {
      const { server, bound } = await listen(address, index);
      servers.push(server);
      addresses.push(bound);
    }
  } catch (thrown) {
    for (const server of servers) server.close();
    upstream.stop();
    throw thrown;
  }

  if (held === undefined) upstream.learn();

  function serve(): void {
    const waiting = held ?? [];
    held = undefined;
    upstream.learn();
    for (const { socket, address, listener } of waiting) if (!socket.destroyed) accept(socket, address, listener);
  }

  async function stop(drainMs = 2_000): Promise<void> {
    for (const server of servers) server.close();
    for (const { socket } of held ?? []) socket.destroy();
    const deadline = Date.now() + drainMs;
    while (Date.now() < deadline && [...registry.all()].some((session) => session.busy)) {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    for (const session of [...registry.all()]) session.close('Holdfast is shutting down');
    upstream.stop();
  }

  return {
    addresses,
    plans: context.plans,
    serve,
    admitNobody: () => upstream.known.admitted(undefined, 0),
    admitsNobody: () => upstream.known.knows(undefined),
    status: () => ({
      ...counters,
      clients: registry.size,
      clientsTotal,
      clientsRefused,
      lanes: upstream.laneCount,
      lanesRetired: upstream.retiredTotal,
      ownLanes: context.tenants.ownLanes,
      tenantLanesMost: context.tenants.greatest(({ ownLanes }) => ownLanes),
      ownLanesRefused: context.tenants.lanesRefused,
      tenantTransactionBytesMost: context.tenants.greatest(({ transactionBytes }) => transactionBytes),
      transactionsRefused: context.tenants.transactionsRefused,
      upstreamReachable: upstream.reachable,
      upstreamAwayMs: upstream.awayMs,
      upstreamConnects: upstream.connectsTotal,
      upstreamLosses: upstream.lossesTotal,
    }),
    setCertificates(listener, secureContext) {
      const server = servers[listener];
      if (server instanceof tls.Server) server.setSecureContext(secureContext);
    },
    closeLanes: (runId, cause) => upstream.closeLanes(runId, cause),
    stop,
  };
}

/** A socket file that nobody listens on is left over from a crash. */
export async function removeStaleSocket(path: string): Promise<void> {
  if (!fs.existsSync(path)) return;
  const probe = net.connect({ path });
  const alive = await new Promise<boolean>((resolve) => {
    probe.once('connect', () => resolve(true));
    probe.once('error', () => resolve(false));
  });
  probe.destroy();
  if (alive) throw new HoldfastError('CONFIG', `listen: ${path}: another process listens there`);
  fs.unlinkSync(path);
}
