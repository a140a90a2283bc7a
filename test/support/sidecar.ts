/** A sidecar in this process, put together from its parts, so that a test may have several of them and look inside. */
import { Redis } from 'ioredis';
import pino from 'pino';
import { afterEach } from 'vitest';
import { ledgerInterceptors } from '../../src/intercept/ledger/interceptors.ts';
import { StreamLimit } from '../../src/intercept/ledger/stream-limit.ts';
import { type Ledger, type LedgerOptions, openLedger } from '../../src/ledger/ledger.ts';
import { streamFilter } from '../../src/ledger/stream-filter.ts';
import type { ProxyLimits } from '../../src/proxy/limits.ts';
import { type RunningProxy, startProxy } from '../../src/proxy/proxy.ts';
import { OutboxPublisher } from '../../src/recovery/outbox/outbox-publisher.ts';
import { type Recovery, startRecovery } from '../../src/recovery/recovery.ts';
import { startTestPostgres } from './servers.ts';

export interface Sidecar {
  readonly ledger: Ledger;
  readonly recovery: Recovery;
  readonly outbox: OutboxPublisher;
  readonly proxy: RunningProxy;
  readonly port: number;
  /** A client of this sidecar; closed with it. */
  client(): Redis;
  stop(): Promise<void>;
}

export interface SidecarOptions {
  readonly kvPort: number;
  readonly databaseUrl: string;
  readonly streams?: readonly string[];
  readonly onFailure?: 'refuse' | 'degrade';
  readonly entryBytesMax?: number;
  readonly holdMs?: number;
  /** What becomes of a client whose request the KV store does not answer. */
  readonly onLost?: 'close' | 'error';
  readonly lookIntervalMs?: number;
  readonly limits?: LedgerOptions['limits'];
  readonly proxyLimits?: Partial<ProxyLimits>;
  /** Who Holdfast itself is at the KV store; clients are whoever they log in as. */
  readonly kvUser?: { readonly username: string; readonly password: string };
}

const running = new Set<Sidecar>();
const clients = new Set<Redis>();

afterEach(async () => {
  for (const client of clients) client.disconnect();
  clients.clear();
  for (const sidecar of running) await sidecar.stop();
});

/** A client of any server on this machine, closed at the end of the test. It never reconnects nor repeats by itself. */
export function clientOf(port: number): Redis {
  const client = new Redis({ port, protocol: 2, retryStrategy: () => null, maxRetriesPerRequest: 0 });
  client.on('error', () => undefined);
  clients.add(client);
  return client;
}

/**
 * A sidecar with a ledger of its own before a KV store that is emptied first, a client of it and one that goes past it. With a
 * `kvPort` in `options` the sidecar goes that way, and only it.
 */
export async function startAnew(
  kvPort: number,
  options: Partial<Omit<SidecarOptions, 'databaseUrl'>>,
): Promise<{ readonly sidecar: Sidecar; readonly client: Redis; readonly direct: Redis }> {
  const direct = clientOf(kvPort);
  await direct.flushall();
  const { url: databaseUrl } = await startTestPostgres();
  const sidecar = await startSidecar({ kvPort, ...options, databaseUrl });
  return { sidecar, client: sidecar.client(), direct };
}

export async function startSidecar(options: SidecarOptions): Promise<Sidecar> {
  const log = pino({ level: process.env.HOLDFAST_TEST_LOG ?? 'silent' });
  // Long, for a test is about what happens, not about how fast this machine is.
  const holdMs = options.holdMs ?? 30_000;
  const ledger = await openLedger({
    databaseUrl: options.databaseUrl,
    name: `test:${process.pid}`,
    log,
    ...(options.limits === undefined ? {} : { limits: options.limits }),
  });
  const address = { host: '127.0.0.1', port: options.kvPort };
  const kv = { ...address, ...options.kvUser };
  let lanes: RunningProxy | undefined;
  const recovery = await startRecovery({
    ledger,
    kv,
    ledgered: streamFilter(options.streams ?? ['*']),
    lookIntervalMs: options.lookIntervalMs ?? 200,
    closeLanes: (runId, cause) => lanes?.closeLanes(runId, cause),
    log,
  }).catch(async (thrown: unknown) => {
    await ledger.close();
    throw thrown;
  });
  const proxy = await startProxy({
    listen: [{ host: '127.0.0.1', port: 0 }],
    upstream: address,
    limits: { ...options.proxyLimits, holdMs, onLost: options.onLost ?? 'close' },
    interceptors: ledgerInterceptors({
      ledger,
      recovery,
      holdMs,
      entryBytesMax: options.entryBytesMax ?? 16 * 1024 * 1024,
      onFailure: options.onFailure ?? 'refuse',
      streamLimit: new StreamLimit(ledger.streams, { streamsMax: 1e6, scopeStreamsMax: 1e6 }),
    }),
    upstreamListener: {
      connected: (facts) => void recovery.upstreamConnected(facts),
      lost: () => recovery.upstreamLost(),
    },
    log,
  });
  lanes = proxy;
  const outbox = new OutboxPublisher({ recovery, kv, log });
  outbox.start();
  const port = proxy.addresses[0]!.port!;
  const sidecar: Sidecar = {
    ledger,
    recovery,
    outbox,
    proxy,
    port,
    client: () => clientOf(port),
    async stop() {
      if (!running.delete(sidecar)) return;
      await proxy.stop(0);
      await outbox.stop();
      await recovery.stop();
      await ledger.close();
    },
  };
  running.add(sidecar);
  return sidecar;
}

/** Resolves when `condition` holds; throws with `what` after `limitMs`. */
export async function eventually(what: string, condition: () => unknown, limitMs = 10_000): Promise<void> {
  const until = Date.now() + limitMs;
  while (!(await condition())) {
    if (Date.now() > until) throw new Error(`never came true: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** Resolves after so many further looks. */
export async function looks({ recovery }: Sidecar, count = 3): Promise<void> {
  const from = recovery.status().looksTotal;
  await eventually('looks', () => recovery.status().looksTotal >= from + count);
}

/** Resolves when there have been so many restores since the start, and nothing is left to be restored or published. */
export async function restored({ recovery }: Sidecar, count = 1): Promise<void> {
  await eventually('restored', () => recovery.status().restoresTotal >= count);
  await eventually('open', () => recovery.status().troubled.length === 0);
}

/** A reply to XREAD or XREADGROUP. */
export type Events = [string, [string, string[]][]][] | null;

/** The IDs in `Events`. */
export function idsIn(events: unknown): string[] {
  return ((events as Events) ?? []).flatMap(([, entries]) => entries.map(([id]) => id));
}
