/** Sidecars that only cache, several of them on one KV store, in this process. */
import pino from 'pino';
import { afterEach } from 'vitest';
import { type Cache, createCache } from '../../src/cache/cache.ts';
import type { LeaseLimits, LeaseRule } from '../../src/cache/leases.ts';
import { cacheInterceptors } from '../../src/intercept/cache/interceptors.ts';
import { hideOwnKeysInterceptor } from '../../src/intercept/hide-own-keys.ts';
import { holdfastCommand } from '../../src/intercept/holdfast/command.ts';
import { holdfastScope } from '../../src/intercept/holdfast/scope.ts';
import { type RunningProxy, startProxy } from '../../src/proxy/proxy.ts';
import type { IdentityProvider } from '../../src/proxy/session/identity.ts';
import { connectRaw, type RawClient } from '../support/raw-client.ts';

export interface CacheSidecar {
  readonly cache: Cache;
  readonly proxy: RunningProxy;
  readonly port: number;
  client(): Promise<RawClient>;
  stop(): Promise<void>;
}

export interface CacheSidecarOptions {
  readonly kvPort: number;
  readonly rules?: readonly LeaseRule[];
  readonly limits?: LeaseLimits;
  readonly password?: string;
  readonly identities?: IdentityProvider;
}

/** The documented defaults, for the keys of Flight Control. */
export const RULES: readonly LeaseRule[] = [{ pattern: 'v1/*', waitMs: 10_000, leaseMs: 30_000 }];

const running = new Set<CacheSidecar>();
const clients = new Set<RawClient>();

afterEach(async () => {
  for (const client of clients) client.socket.destroy();
  clients.clear();
  for (const sidecar of running) await sidecar.stop();
});

export async function rawClient(port: number): Promise<RawClient> {
  const client = await connectRaw(port);
  client.socket.on('error', () => undefined);
  clients.add(client);
  return client;
}

export async function startCacheSidecar(options: CacheSidecarOptions): Promise<CacheSidecar> {
  const log = pino({ level: process.env.HOLDFAST_TEST_LOG ?? 'silent' });
  const kv = { host: '127.0.0.1', port: options.kvPort };
  const cache = createCache({
    kv: { ...kv, ...(options.password === undefined ? {} : { password: options.password }) },
    rules: options.rules ?? RULES,
    log,
    ...(options.limits === undefined ? {} : { limits: options.limits }),
  });
  const proxy = await startProxy({
    listen: [{ host: '127.0.0.1', port: 0 }],
    upstream: kv,
    interceptors: [
      holdfastCommand([holdfastScope(cache.invalidations, () => [])]),
      hideOwnKeysInterceptor(),
      ...cacheInterceptors(cache),
    ],
    ...(options.identities === undefined
      ? {}
      : { identities: options.identities, prefixedKeys: () => ({ first: 1, last: 1, step: 1 }) }),
    log,
  });
  const port = proxy.addresses[0]!.port!;
  const sidecar: CacheSidecar = {
    cache,
    proxy,
    port,
    client: () => rawClient(port),
    async stop() {
      if (!running.delete(sidecar)) return;
      await cache.stop();
      await proxy.stop(0);
    },
  };
  running.add(sidecar);
  return sidecar;
}
