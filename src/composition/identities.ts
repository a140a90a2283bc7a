import type { Logger } from 'pino';
import { formatAddress } from '../config/address.ts';
import type { Config } from '../config/config.ts';
import type { KvAddress } from '../control-redis.ts';
import { HoldfastError } from '../errors.ts';
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
  const listeners = config.listen;
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
    createIdentities({ users, listeners, upstream, fence: undefined });
    if (fenced || listeners.some(({ scope }) => scope !== undefined)) fence ??= await buildFence(admin, log);
    return createIdentities({ users, listeners, upstream, fence });
  }

  const close = async (): Promise<void> => fence?.close();
  if (config.users.size === 0 && listeners.every(({ scope }) => scope === undefined)) {
    return { provider: undefined, reloadable: [], open: async () => undefined, close };
  }
  let current = createIdentities({ users: usersOf(config), listeners, upstream, fence: undefined });
  return {
    async open() {
      current = await read(config);
      await warnOfOpenListeners(config, admin, log);
    },
    provider: {
      confines: (index) => current.confines(index),
      requiresAuth: (index) => current.requiresAuth(index),
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

/**
 * Scopes bind those who log in. On a listener that asks nobody to, a client that does not, or has sent RESET, is the KV store's
 * default user, whose rights are mostly all there are.
 */
async function warnOfOpenListeners(config: Config, admin: ScopeAdmin, log: Logger): Promise<void> {
  const open = config.listen.filter(({ scope, requireAuth }) => scope === undefined && !requireAuth);
  const scoped = [...config.users.values()].some(({ scope }) => scope !== undefined);
  if (!scoped || open.length === 0 || (await asksForPassword(admin))) return;
  log.warn(
    { listen: open.map(({ address }) => formatAddress(address)) },
    "clients that do not log in here have the rights of the KV store's default user, past all scopes: set requireAuth on the listener, or give that user a password",
  );
}

/** Whether the KV store's default user is nobody's without a password; false where it cannot be known. */
async function asksForPassword(admin: ScopeAdmin): Promise<boolean> {
  try {
    const user = await admin.command(['ACL', 'GETUSER', 'default']);
    const flags = Array.isArray(user) ? user[user.findIndex((field) => String(field) === 'flags') + 1] : undefined;
    if (!Array.isArray(flags)) return false;
    const names = flags.map(String);
    return names.includes('off') || !names.includes('nopass');
  } catch (thrown) {
    if (thrown instanceof HoldfastError) throw thrown;
    return false;
  }
}
