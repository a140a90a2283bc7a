import type { Logger } from 'pino';
import type { Config } from '../config/config.ts';
import type { KvAddress } from '../control-redis.ts';
import type { Reloadable } from '../reload.ts';
import { buildFence, type Fence } from '../scope/fence.ts';
import { createIdentities, type Identities } from '../scope/identities.ts';
import type { ScopeAdmin } from '../scope/scope-admin.ts';

/** Who clients are, where the configuration says so; nothing where it does not. */
export async function startIdentities(
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

export interface RunningIdentities {
  readonly provider: Identities | undefined;
  /** Clients that are there keep who they are. The first user of a sidecar that had none needs a restart. */
  readonly reloadable: readonly Reloadable[];
  close(): Promise<void>;
}
