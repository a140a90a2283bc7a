/** A proxy with scopes in front of a real KV server, and clients in them. */
import { createHash } from 'node:crypto';
import { afterAll } from 'vitest';
import { createInvalidations } from '../../src/cache/invalidations.ts';
import { holdfastCommand } from '../../src/intercept/holdfast/command.ts';
import { holdfastCommands } from '../../src/intercept/holdfast/commands.ts';
import { holdfastScope, holdfastWith } from '../../src/intercept/holdfast/scope.ts';
import { scopeInterceptors } from '../../src/intercept/scope/interceptors.ts';
import type { LedgeredStreams } from '../../src/intercept/scope/keyspace.ts';
import type { Interceptor } from '../../src/interceptor.ts';
import type { ProxyOptions } from '../../src/proxy/proxy.ts';
import type { Reply, ReplyValue } from '../../src/resp/reply.ts';
import { replyValue } from '../../src/resp/reply.ts';
import { buildFence, type Fence } from '../../src/scope/fence.ts';
import { createIdentities, type IdentityUser } from '../../src/scope/identities.ts';
import { createScriptRegistry } from '../../src/scope/lua/script-registry.ts';
import { prefixedKeys } from '../../src/scope/rules.ts';
import { connectScopeAdmin, type ScopeAdmin } from '../../src/scope/scope-admin.ts';
import { front, silent } from '../proxy/through-proxy.ts';
import { connectRaw, type RawClient } from '../support/raw-client.ts';

const cleanups: (() => Promise<void> | void)[] = [];

afterAll(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

export interface ScopedProxy {
  readonly port: number;
  readonly admin: ScopeAdmin;
  readonly fence: Fence | undefined;
  /** A client that has logged in. */
  login(user: string, protocol?: 2 | 3): Promise<RawClient>;
  /** A client of nobody's scope. */
  unscoped(): Promise<RawClient>;
  /** A client of the listener's scope. */
  through(listener: number): Promise<RawClient>;
}

export interface ScopedProxyOptions {
  readonly users: Readonly<Record<string, Partial<IdentityUser>>>;
  /** `open`: behind a user that may do everything, so that nothing but Holdfast keeps scopes apart. */
  readonly fence?: 'closed' | 'open' | 'none';
  readonly interceptors?: readonly Interceptor[];
  readonly ledgered?: LedgeredStreams;
  readonly proxy?: Partial<ProxyOptions>;
  /** On the first listener. */
  readonly requireAuth?: boolean;
  /** Of the KV store's default user. */
  readonly kvPassword?: string;
  /** By listener: the scope of all that comes through it. One without a scope by default. */
  readonly listenerScopes?: readonly (string | undefined)[];
}

function openFence(admin: ScopeAdmin): Fence {
  const credentials = () => ({
    username: 'open',
    password: Buffer.from('open'),
    prepare: async () => {
      await admin.command(['ACL', 'SETUSER', 'open', 'on', '>open', '~*', '&*', '+@all']);
    },
  });
  return {
    credentials,
    unscopedCredentials: credentials,
    close: async () => undefined,
  };
}

/** Users have their name as password. */
export async function startScopedProxy(kvPort: number, options: ScopedProxyOptions): Promise<ScopedProxy> {
  const { users, fence: kind = 'closed', interceptors = [], ledgered = () => [], proxy = {} } = options;
  const { listenerScopes = [undefined], kvPassword: password, requireAuth = false } = options;
  const admin = connectScopeAdmin({ port: kvPort, ...(password === undefined ? {} : { password }) });
  cleanups.push(() => admin.close());
  const fence = kind === 'closed' ? await buildFence(admin, silent) : kind === 'open' ? openFence(admin) : undefined;
  cleanups.push(() => fence?.close());
  const identities = createIdentities({
    users: new Map(
      Object.entries(users).map(([name, user]) => [
        name,
        {
          passwordHash: createHash('sha256').update(name).digest('hex'),
          scope: undefined,
          may: [],
          shared: [],
          ...user,
        },
      ]),
    ),
    listeners: listenerScopes.map((scope, index) => ({ scope, requireAuth: requireAuth && index === 0 })),
    upstream: password === undefined ? undefined : { username: undefined, password: Buffer.from(password) },
    fence,
  });
  const { port, proxy: running } = await front(kvPort, {
    listen: listenerScopes.map(() => ({ port: 0 })),
    interceptors: [
      ...scopeInterceptors(createScriptRegistry(admin), ledgered, Buffer.from('secret')),
      holdfastCommand([
        holdfastScope(createInvalidations(undefined, silent), ledgered),
        holdfastWith(),
        holdfastCommands(() => 'somehow'),
      ]),
      ...interceptors,
    ],
    identities,
    prefixedKeys,
    ...proxy,
  });
  const through = async (listener: number): Promise<RawClient> => {
    const client = await connectRaw(running.addresses[listener]!.port!);
    cleanups.push(() => {
      client.socket.destroy();
    });
    return client;
  };
  return {
    port,
    admin,
    fence,
    unscoped: () => through(0),
    through,
    async login(user, protocol = 2) {
      const client = await through(0);
      const greeting = await client.send('HELLO', String(protocol), 'AUTH', user, user);
      if (greeting.type === '-') throw new Error(greeting.bytes.toString());
      return client;
    },
  };
}

/** A reply as plain values; an error as `!text`. */
export function plain(reply: Reply): ReplyValue {
  if (reply.type === '-' || reply.type === '!') return `!${reply.bytes.toString()}`;
  if (reply.type === '=') return reply.bytes.toString('utf8', 4);
  if (reply.items !== undefined && !reply.isNull) return reply.items.map(plain);
  return replyValue(reply);
}

export type Ask = (...args: (string | Buffer | number)[]) => Promise<ReplyValue>;

/** Sends and gives plain values. */
export function asking(client: RawClient): Ask {
  return async (...args) =>
    plain(await client.send(...args.map((arg) => (typeof arg === 'number' ? String(arg) : arg))));
}
