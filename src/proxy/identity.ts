/**
 * Who a session is, where Holdfast decides it: by listener, or by AUTH with a user from the configuration. Everybody
 * else is the KV store's to judge.
 */
import type { Credentials } from './upstream.ts';

export interface SessionIdentity {
  /** As `ACL WHOAMI` and `CLIENT LIST` should name it. */
  readonly user: string;
  /** Read by interceptors through `SessionView.scope`; `undefined` for identities without one. */
  readonly scope: object | undefined;
  /** What the session's lanes log in with. */
  readonly credentials: Credentials | undefined;
  /**
   * A prefix for the keys of commands that are carried by `prefixedKeys` (see `CommandPlan`): their requests are
   * rewritten on the fast path, without an exchange.
   */
  readonly keyPrefix: Buffer | undefined;
  /** Every push on its way to the client; `undefined` drops it. */
  rewritePush?(frame: Buffer): Buffer | undefined;
}

export interface IdentityProvider {
  /** A new client of the listener with this index. `undefined`: as the KV store takes a client without AUTH. */
  ofListener(index: number): SessionIdentity | undefined;
  /**
   * Judges credentials; `user` is undefined for AUTH with a password only. `unknown`: the KV store judges them.
   * `refused`: the user is Holdfast's and the password is wrong.
   */
  authenticate(user: string | undefined, password: Buffer): Promise<SessionIdentity | 'unknown' | 'refused'>;
}

/** Which arguments of a request are keys: from `first` to `last` (from the end where negative), every `step`. */
export interface KeyRange {
  readonly first: number;
  readonly last: number;
  readonly step: number;
}
