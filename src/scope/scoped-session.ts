/**
 * What one client's session is in: its scope, and what it is subscribed to there. Made at login, changed by
 * `HOLDFAST SCOPE`, dropped with the session. The proxy reads the identity's part of it (`SessionIdentity`).
 */
import type { ListeningPatterns } from './channels.ts';
import type { FenceCredentials } from './fence.ts';
import { createScope, type Scope, unchosenScope } from './scope.ts';
import type { ScopeTemplate } from './scope-template.ts';
import { ScopedSubscriptions } from './subscriptions.ts';

/** What all sessions of one identity have in common. */
export interface ScopedIdentity {
  /** As `ACL WHOAMI` and `CLIENT LIST` name it. */
  readonly user: string;
  /** Whose scripts and libraries its sessions use. */
  readonly owner: string;
  readonly shared: readonly string[];
  /** The prefix, or the template that it is made from. */
  readonly scope: string | ScopeTemplate;
  /** Whether its sessions may choose their scope. */
  readonly maySetScope: boolean;
  /** Whether they may have the KV store send keys to another server. */
  readonly mayMigrate: boolean;
  readonly listening: ListeningPatterns;
  /** Scripts are for identities behind a second fence only. */
  readonly fenced: boolean;
  readonly credentials:
    | FenceCredentials
    | { readonly username: string | undefined; readonly password: Buffer }
    | undefined;
}

export class ScopedSession {
  readonly identity: ScopedIdentity;
  scope: Scope;
  subscriptions: ScopedSubscriptions;
  /** CLIENT TRACKING is on. */
  tracking = false;

  constructor(identity: ScopedIdentity) {
    this.identity = identity;
    this.scope =
      typeof identity.scope === 'string'
        ? createScope(identity.scope, identity.shared)
        : unchosenScope(identity.shared);
    this.subscriptions = new ScopedSubscriptions(this.scope, identity.listening);
  }

  get template(): ScopeTemplate | undefined {
    return typeof this.identity.scope === 'string' ? undefined : this.identity.scope;
  }

  /** The scope that these parts of the template name. Throws ERR or CONFIG. */
  scopeOf(template: ScopeTemplate, values: readonly string[]): Scope {
    return createScope(template.prefixOf(values), this.identity.shared);
  }

  /** From here on the session is in `scope`; `undefined`: in none, until it chooses again. Nothing is subscribed. */
  enter(scope: Scope | undefined): void {
    this.scope = scope ?? unchosenScope(this.identity.shared);
    this.subscriptions = new ScopedSubscriptions(this.scope, this.identity.listening);
  }
}
