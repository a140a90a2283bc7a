/**
 * What the KV store has said of the users that came through this process, for the time when it cannot be asked: that it
 * let them in, into which databases, and what INFO gave them last. Nobody is let in who was not before, with the same
 * password; what the server refuses is forgotten at once.
 *
 * Passwords are kept as a keyed hash of which the key never leaves this process.
 */
import { createHmac, randomBytes } from 'node:crypto';
import { AdmittedRequests } from './admitted-requests.ts';
import type { Credentials } from './upstream.ts';

export interface KnownInfo {
  /** As latin1 text. */
  readonly text: string;
  readonly at: number;
}

interface KnownUser {
  readonly databases: Set<number>;
  info: KnownInfo | undefined;
  readonly requests: AdmittedRequests;
}

/** The least recently seen go first. */
const USERS_MAX = 1024;
const DATABASES_MAX = 64;
/** Until a handshake asks for all of INFO again. */
const INFO_FRESH_MS = 10_000;

export class KnownUsers {
  private readonly hashKey = randomBytes(32);
  private readonly users = new Map<string, KnownUser>();

  /** The server let `credentials` in, and into `database`. */
  admitted(credentials: Credentials | undefined, database: number): void {
    const key = this.keyOf(credentials);
    const user = this.users.get(key) ?? {
      databases: new Set([0]),
      info: undefined,
      requests: new AdmittedRequests(),
    };
    this.users.delete(key);
    this.users.set(key, user);
    if (user.databases.size < DATABASES_MAX) user.databases.add(database);
    const [oldest] = this.users.keys();
    if (this.users.size > USERS_MAX) this.users.delete(oldest!);
  }

  refused(credentials: Credentials | undefined): void {
    this.users.delete(this.keyOf(credentials));
  }

  /** Whether the server let them in, into `database`. */
  knows(credentials: Credentials | undefined, database = 0): boolean {
    return this.users.get(this.keyOf(credentials))?.databases.has(database) === true;
  }

  info(credentials: Credentials | undefined): KnownInfo | undefined {
    return this.users.get(this.keyOf(credentials))?.info;
  }

  /** What the server let this user ask; `undefined` for a user that it has not let in. */
  requests(credentials: Credentials | undefined): AdmittedRequests | undefined {
    return this.users.get(this.keyOf(credentials))?.requests;
  }

  wantsInfo(credentials: Credentials | undefined): boolean {
    return (this.info(credentials)?.at ?? 0) + INFO_FRESH_MS < Date.now();
  }

  /** What INFO without arguments gave an admitted user. */
  noteInfo(credentials: Credentials | undefined, text: string): void {
    const user = this.users.get(this.keyOf(credentials));
    if (user !== undefined) user.info = { text, at: Date.now() };
  }

  /** AUTH with a password alone is for `default`. */
  private keyOf(credentials: Credentials | undefined): string {
    if (credentials === undefined) return '';
    const { username = 'default', password } = credentials;
    return createHmac('sha256', this.hashKey)
      .update(`${username.length}:${username}`)
      .update(password)
      .digest('base64');
  }
}
