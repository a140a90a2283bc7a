/**
 * Who a session is, where Holdfast decides it: by listener, or by AUTH with a user from the configuration. Everybody
 * else is the KV store's to judge.
 */
import type { CommandEntry } from '../../command/command.ts';
import type { Credentials } from '../upstream/upstream.ts';

/** Where a session stands when it asks: RESP2 clients with subscriptions may not ask much. */
export type Situation = 'plain' | 'transaction' | 'subscribed';

export type Confinement =
  /** The error to answer with. */
  | { readonly refused: Buffer }
  /** Other arguments in place of the request's; with `scope`, another command, in that scope. */
  | { readonly args: readonly Buffer[]; readonly scope: object | undefined };

export interface SessionIdentity {
  /** As `ACL WHOAMI` and `CLIENT LIST` should name it. */
  readonly user: string;
  /** `may: [admin]`. */
  readonly administers: boolean;
  /** False for who must log in before anything else: every request is judged by `confine`. */
  readonly authenticated: boolean;
  /** Read by interceptors through `SessionView.scope`; `undefined` for identities without one. */
  readonly scope: object | undefined;
  /** What the session's lanes log in with. */
  readonly credentials: Credentials | undefined;
  /**
   * A prefix for the keys of commands that are carried by `prefixedKeys` (see `CommandPlan`): their requests are
   * rewritten on the fast path, without an exchange.
   */
  readonly keyPrefix: Buffer | undefined;
  /** Clients of the same name see each other in CLIENT LIST, and no others; `undefined` without a scope. */
  readonly scopeName: string | undefined;
  /** Judges every request off the fast path before anything else is done with it; `undefined` lets it go its way. */
  confine?(command: CommandEntry | undefined, args: readonly Buffer[], situation: Situation): Confinement | undefined;
  /** Replies to what the session sends by itself (CLIENT TRACKING and its kin), as the client may see them. */
  rewriteReply?(command: CommandEntry | undefined, reply: Buffer): Buffer;
  /** Every push on its way to the client; `undefined` drops it. */
  rewritePush?(frame: Buffer): Buffer | undefined;
}

export interface IdentityProvider {
  /** Whether everything on this listener is in its scope, whoever logs in. */
  confines(index: number): boolean;
  /** Whether only those get in on this listener who log in as a user of Holdfast's own. */
  requiresAuth(index: number): boolean;
  /** A new client of the listener with this index. `undefined`: as the KV store takes a client without AUTH. */
  ofListener(index: number): SessionIdentity | undefined;
  /**
   * Judges credentials; `user` is undefined for AUTH with a password only. `unknown`: the KV store judges them.
   * `refused`: the user is Holdfast's and the password is wrong.
   */
  authenticate(user: string | undefined, password: Buffer): Promise<SessionIdentity | 'unknown' | 'refused'>;
}
