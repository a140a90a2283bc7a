import type { Logger } from 'pino';
import type { Config } from '../config/config.ts';
import type { KvAddress } from '../control-redis.ts';
import type { Reloadable } from '../reload.ts';
import { buildFence, type Fence } from '../scope/fence.ts';
import { createIdentities, type Identities, type IdentityUser } from '../scope/identities.ts';
import type { ScopeAdmin } from '../scope/scope-admin.ts';

/**
 * Who clients are, where the configuration says so; nothing where it does not. Throws `CONFIG` where scopes are malformed, having asked
 * no server anything: `open` does.
 */
export function prepareIdentities(
  config: Config,
  { username, password }: KvAddress,
  admin: ScopeAdmin,
  log: Logger,
): PreparedIdentities {
  const listenerScopes = config.listen.map((listener) => listener.scope);
  const upstream = password === undefined ? undefined : { username, password: Buffer.from(password) };
  let fence: Fence | undefined;

  function usersOf({ users: configured }: Config): Map<string, IdentityUser> {
    return new Map(
      [...configured].map(([name, user]) => [name, { ...user, passwordHash: user.passwordHash.reveal() }]),
    );
  }

  async function read(next: Config): Promise<Identities> {
    const users = usersOf(next);
    const fenced = [...users.values()].some((user) => user.scope !== undefined || !user.may.includes('admin'));
    // Judged before anything is done at the KV store.
    createIdentities({ users, listenerScopes, upstream, fence: undefined });
    if (fenced || listenerScopes.some(Boolean)) fence ??= await buildFence(admin, log);
    return createIdentities({ users, listenerScopes, upstream, fence });
  }

  const close = async (): Promise<void> => fence?.close();
  if (config.users.size === 0 && listenerScopes.every((scope) => scope === undefined)) {
    return { provider: undefined, reloadable: [], open: async () => undefined, close };
  }
  let current = createIdentities({ users: usersOf(config), listenerScopes, upstream, fence: undefined });
  return {
    async open() {
      current = await read(config);
    },
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

export interface PreparedIdentities {
  /** Makes what scopes need at the KV store. Before it resolves no client may be let in. Rejects with KVDOWN, and may be repeated. */
  open(): Promise<void>;
  readonly provider: Identities | undefined;
  /** Clients that are there keep who they are. The first user of a sidecar that had none needs a restart. */
  readonly reloadable: readonly Reloadable[];
  close(): Promise<void>;
}
