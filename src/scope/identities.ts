/**
 * Who a client is, where the configuration says so: by the listener it came through, or by AUTH with a configured user.
 * Everybody else is the KV store's to judge.
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import type { CommandEntry } from '../command/command.ts';
import { HoldfastError } from '../errors.ts';
import * as encode from '../resp/encode.ts';
import { listeningPatterns } from './channels.ts';
import { type Confinement, confine, type Situation } from './confine.ts';
import type { Fence, FenceCredentials } from './fence.ts';
import { rewriteReply } from './rewrite-reply.ts';
import { scopeRule } from './rules.ts';
import { createScope, escapeGlob } from './scope.ts';
import { parseScopeTemplate } from './scope-template.ts';
import { type ScopedIdentity, ScopedSession } from './scoped-session.ts';

/**
 * What a user may do besides reading and writing its keys: choose its scope; have keys sent to another server; administer
 * Holdfast and the KV store (of users without a scope).
 */
export type Permission = 'set-scope' | 'migrate' | 'admin';

export interface IdentityUser {
  /** SHA-256 of the password, 64 lower-case hex digits. */
  readonly passwordHash: string;
  /** A prefix or a template; `undefined` for a user without a scope. */
  readonly scope: string | undefined;
  readonly may: readonly Permission[];
  readonly shared: readonly string[];
}

export interface IdentityListener {
  /** Of everything that comes through it. */
  readonly scope?: string | undefined;
  /** Who comes through it must log in as a configured user first. */
  readonly requireAuth?: boolean;
}

export interface IdentitySettings {
  readonly users: ReadonlyMap<string, IdentityUser>;
  /** By index of the proxy's listeners. */
  readonly listeners: readonly IdentityListener[];
  /** What lanes log in with where there is no fence, and those of administrators. */
  readonly upstream: { readonly username: string | undefined; readonly password: Buffer } | undefined;
  readonly fence: Fence | undefined;
}

/** An identity for the proxy (`SessionIdentity`), one for each session. */
export interface IssuedIdentity {
  readonly user: string;
  readonly administers: boolean;
  readonly authenticated: boolean;
  readonly scope: ScopedSession | undefined;
  readonly credentials:
    | FenceCredentials
    | { readonly username: string | undefined; readonly password: Buffer }
    | undefined;
  readonly keyPrefix: Buffer | undefined;
  readonly scopeName: string | undefined;
  confine?(command: CommandEntry | undefined, args: readonly Buffer[], situation: Situation): Confinement | undefined;
  rewriteReply?(command: CommandEntry | undefined, reply: Buffer): Buffer;
  rewritePush?(frame: Buffer): Buffer | undefined;
}

export interface Identities {
  confines(index: number): boolean;
  requiresAuth(index: number): boolean;
  ofListener(index: number): IssuedIdentity | undefined;
  authenticate(user: string | undefined, password: Buffer): Promise<IssuedIdentity | 'unknown' | 'refused'>;
}

/** Throws `CONFIG` where scopes are malformed, or one identity could reach into another's. */
export function createIdentities({ users, listeners, upstream, fence }: IdentitySettings): Identities {
  const scoped = new Map<string, ScopedIdentity>();
  const unscoped = new Map<string, IssuedIdentity>();
  for (const [name, user] of users) {
    if (user.scope === undefined) unscoped.set(name, unscopedIdentity(name, user, upstream, fence));
    else scoped.set(name, identityOf(`users.${name}`, name, user.scope, user, upstream, fence));
  }
  const scopedListeners = listeners.map(({ scope }) =>
    scope === undefined
      ? undefined
      : identityOf(`listen scope "${scope}"`, 'default', scope, { may: [], shared: [] }, upstream, fence),
  );
  requireApart([...scoped.values(), ...scopedListeners.filter((identity) => identity !== undefined)]);

  return {
    confines: (index) => scopedListeners[index] !== undefined,
    requiresAuth: (index) => listeners[index]?.requireAuth === true,
    ofListener(index) {
      const identity = scopedListeners[index];
      if (identity !== undefined) return issue(identity);
      return listeners[index]?.requireAuth === true ? STRANGER : undefined;
    },
    async authenticate(name, password) {
      const user = name === undefined ? undefined : users.get(name);
      if (name === undefined || user === undefined) return 'unknown';
      const hash = createHash('sha256').update(password).digest();
      if (!timingSafeEqual(hash, Buffer.from(user.passwordHash, 'hex'))) return 'refused';
      const identity = scoped.get(name);
      return identity === undefined ? unscoped.get(name)! : issue(identity);
    },
  };
}

/** Of a user without a scope: all its sessions have the same. */
function unscopedIdentity(
  name: string,
  { may }: IdentityUser,
  upstream: IdentitySettings['upstream'],
  fence: Fence | undefined,
): IssuedIdentity {
  const administers = may.includes('admin');
  const credentials = administers ? undefined : fence?.unscopedCredentials(name, commandsOf(may));
  return {
    user: name,
    administers,
    authenticated: true,
    scope: undefined,
    credentials: credentials ?? upstream,
    keyPrefix: undefined,
    scopeName: undefined,
  };
}

/** Commands of the KV store that a permission is for. */
function commandsOf(may: readonly Permission[]): readonly string[] {
  return may.includes('migrate') ? ['migrate'] : [];
}

const BEFORE_LOGIN = new Set(['auth', 'hello', 'quit', 'reset']);
const NOAUTH = encode.error('NOAUTH Authentication required.');

/** Who has yet to log in on a listener that requires it: the KV store is asked nothing for it. */
const STRANGER: IssuedIdentity = {
  user: 'default',
  administers: false,
  authenticated: false,
  scope: undefined,
  credentials: undefined,
  keyPrefix: undefined,
  scopeName: undefined,
  confine: (command) => (BEFORE_LOGIN.has(command?.name ?? '') ? undefined : { refused: NOAUTH }),
};

function identityOf(
  setting: string,
  user: string,
  scope: string,
  { may, shared }: Pick<IdentityUser, 'may' | 'shared'>,
  upstream: IdentitySettings['upstream'],
  fence: Fence | undefined,
): ScopedIdentity {
  try {
    const template = scope.includes('{') ? parseScopeTemplate(scope) : undefined;
    // Judges the prefix and the shared keys; of a template, the part before its first placeholder and any value.
    if (template === undefined) createScope(scope, shared);
    else createScope(template.prefixOf(template.parts.map(() => '0')), shared);
    const pattern = template?.pattern ?? escapeGlob(Buffer.from(scope));
    return {
      user,
      owner: setting,
      shared,
      scope: template ?? scope,
      maySetScope: may.includes('set-scope'),
      mayMigrate: may.includes('migrate'),
      listening: listeningPatterns(pattern),
      fenced: fence !== undefined,
      credentials: fence?.credentials(setting, pattern, shared, commandsOf(may)) ?? upstream,
    };
  } catch (thrown) {
    if (thrown instanceof HoldfastError) throw new HoldfastError('CONFIG', `${setting}: ${thrown.message}`);
    throw thrown;
  }
}

/** Whether keys of a scope of `inner` can lie in a scope of `outer` that is not the same scope. */
function reachesInto(outer: ScopedIdentity['scope'], inner: ScopedIdentity['scope']): boolean {
  if (typeof outer === 'string') {
    return typeof inner === 'string' ? inner.startsWith(outer) && inner !== outer : inner.canGoOnFrom(outer);
  }
  // A fixed scope may be one of a template's; what begins with one and goes on lies inside it.
  if (typeof inner === 'string') return outer.beginsWithScope(inner);
  return inner.text !== outer.text && inner.prefixOf([]).startsWith(outer.prefixOf([]));
}

/** Two identities with one and the same scope share it on purpose; one inside the other is a mistake. */
function requireApart(identities: readonly ScopedIdentity[]): void {
  for (const outer of identities) {
    for (const inner of identities) {
      if (reachesInto(outer.scope, inner.scope)) {
        throw new HoldfastError('CONFIG', `${inner.owner}: its scope lies inside that of ${outer.owner}`);
      }
      const { scope } = inner;
      for (const key of outer.shared) {
        if (typeof scope === 'string' ? key.startsWith(scope) : scope.holds(key)) {
          throw new HoldfastError(
            'CONFIG',
            `${outer.owner}: the shared key "${key}" lies in the scope of ${inner.owner}`,
          );
        }
      }
    }
  }
}

function issue(identity: ScopedIdentity): IssuedIdentity {
  const session = new ScopedSession(identity);
  return {
    user: identity.user,
    administers: false,
    authenticated: true,
    scope: session,
    credentials: identity.credentials,
    /** With shared keys, or before a scope is chosen, each key needs a closer look. */
    get keyPrefix() {
      const { scope } = session;
      return scope.chosen && scope.shared.size === 0 ? scope.prefix : undefined;
    },
    get scopeName() {
      return session.scope.chosen ? session.scope.id : `${identity.owner} without a scope`;
    },
    confine: (command, args, situation) => confine(session, command, args, situation),
    rewriteReply(command, reply) {
      const rule = scopeRule(command);
      const shape = rule.kind === 'plain' || rule.kind === 'found' ? rule.reply : 'none';
      return rewriteReply(session.scope, shape, reply, { args: [], logical: [], keysAt: [] });
    },
    rewritePush: (frame) => session.subscriptions.push(frame),
  };
}
