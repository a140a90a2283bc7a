/**
 * The second fence around scopes: a user of the KV store's own ACL for each identity, limited to the keys and channels of
 * its scopes and to the commands that Holdfast sends for it. A name that the scope table misses is refused by the server.
 * A user of the configuration without a scope has such a user too, for all keys, that does not administer the server.
 *
 *   needed ──▶ ACL SETUSER ──▶ there ──▶ lanes log in
 *     ▲                          │
 *     └── the server restarted ──┘   (another connection, or WRONGPASS at a lane's login)
 *
 * Users have random passwords and names of this process run's own, so that several sidecars do not disturb each other.
 * What a run that was killed left behind is removed by the next one.
 */
import { createHash, randomBytes } from 'node:crypto';
import type { Logger } from 'pino';
import { commandTable } from '../command/table.ts';
import { HoldfastError, messageOf } from '../errors.ts';
import { sha1 } from './lua/script-registry.ts';
import { scopeRule } from './rules.ts';
import { escapeGlob } from './scope.ts';
import type { ScopeAdmin } from './scope-admin.ts';

/** What a lane logs in with. */
export interface FenceCredentials {
  readonly username: string;
  readonly password: Buffer;
  /** Makes the user where it is not there; `refused` says that the server has just not known it. */
  prepare(refused: boolean): Promise<void>;
}

export interface Fence {
  /**
   * The user for everything that `pattern` (a glob without its last `*`) begins, and for the shared keys. `more`: commands
   * besides those that every scope has.
   */
  credentials(name: string, pattern: Buffer, shared: readonly string[], more?: readonly string[]): FenceCredentials;
  /** The user for all keys, without what administers the server. `more` as above. */
  unscopedCredentials(name: string, more: readonly string[]): FenceCredentials;
  /** Removes this run's users. Their connections end. */
  close(): Promise<void>;
}

interface FenceUser {
  readonly credentials: FenceCredentials;
  readonly secret: string;
  readonly scoped: boolean;
  readonly rules: readonly (string | Buffer)[];
}

const USER = /^holdfast-([0-9a-f]{8})-[0-9a-f]{12}$/;
const ATTEMPTS_MAX = 64;
const UNKNOWN_MODIFIER = /modifier '\+([^']+)'/;
/** Of commands whose subcommands are no commands of their own. */
const DEBUG_ALLOWED = ['debug|object', 'debug|digest-value'];
/** What Holdfast sends in place of commands that it carries out itself. */
const SENT_INSTEAD = ['keys', 'scan', 'unlink', 'eval', 'select', 'exists', 'ping'];
const NEVER_SENT = new Set([
  'migrate',
  'flushdb',
  'flushall',
  'dbsize',
  'randomkey',
  'script|flush',
  'script|show',
  'acl|whoami',
  'client|list',
  'client|kill',
]);

/**
 * What a user without a scope may do: everything but what the servers themselves call administration, or dangerous for
 * another reason than that it reads or empties the whole keyspace, which such a user has.
 */
const UNSCOPED_COMMANDS = [
  ...['+@all', '-@admin', '-@dangerous'],
  ...'info keys sort sort_ro restore flushdb flushall role lastsave client|list client|unblock'
    .split(' ')
    .map((name) => `+${name}`),
];

function allowedCommands(): string[] {
  const allowed = new Set(SENT_INSTEAD);
  for (const entry of commandTable().entries) {
    if (entry.own || entry.name === 'debug' || NEVER_SENT.has(entry.name)) continue;
    if (scopeRule(entry).kind !== 'refused') allowed.add(entry.name);
  }
  return [...allowed, ...DEBUG_ALLOWED];
}

/** Gives `undefined` where the upstream user may not manage users: there is no fence then. Rejects with KVDOWN. */
export async function buildFence(admin: ScopeAdmin, log: Logger): Promise<Fence | undefined> {
  const run = randomBytes(4).toString('hex');
  const users = new Map<string, FenceUser>();
  /** Users that are there, as far as known, on the connection of this generation. */
  let made = new Map<string, Promise<void>>();
  let madeIn = -1;
  let commands = allowedCommands();

  async function setUser(name: string, rules: readonly (string | Buffer)[], scoped: boolean): Promise<void> {
    for (let attempt = 0; ; attempt += 1) {
      const granted = scoped ? commands.map((command) => `+${command}`) : UNSCOPED_COMMANDS;
      try {
        await admin.command(['ACL', 'SETUSER', name, 'reset', ...granted, ...rules]);
        return;
      } catch (thrown) {
        const unknown = UNKNOWN_MODIFIER.exec(messageOf(thrown))?.[1];
        if (unknown === undefined || !commands.includes(unknown) || attempt >= ATTEMPTS_MAX) throw thrown;
        // Another server version: it does not have the command.
        commands = commands.filter((command) => command !== unknown);
      }
    }
  }

  try {
    await setUser(`holdfast-${run}-${'0'.repeat(12)}`, [], true);
    await admin.command(['ACL', 'DELUSER', `holdfast-${run}-${'0'.repeat(12)}`]);
    await removeStaleUsers();
  } catch (thrown) {
    if (thrown instanceof HoldfastError) throw thrown;
    log.warn(
      { reason: messageOf(thrown) },
      'the upstream user may not manage ACL users: scopes have no second fence, scripts are refused in them, and users without a scope may do all that the upstream user may',
    );
    return undefined;
  }

  /** Of runs that ended without a goodbye: users of whom no connection is left. */
  async function removeStaleUsers(): Promise<void> {
    const names = ((await admin.command(['ACL', 'USERS'])) as Buffer[]).map(String);
    const clients = String(await admin.command(['CLIENT', 'LIST']));
    const stale = names.filter((name) => USER.test(name) && !clients.includes(` user=${name} `));
    if (stale.length > 0) await admin.command(['ACL', 'DELUSER', ...stale]);
  }

  function prepare(name: string, refused: boolean): Promise<void> {
    if (madeIn !== admin.generation) {
      made = new Map();
      madeIn = admin.generation;
    }
    if (refused) made.delete(name);
    let making = made.get(name);
    if (making === undefined) {
      const { secret, scoped, rules } = users.get(name)!;
      making = setUser(name, ['on', `#${secret}`, ...rules], scoped).then(() => {
        // The first command may have opened the connection.
        madeIn = admin.generation;
      });
      made.set(name, making);
      const current = made;
      making.catch(() => current.delete(name));
    }
    return making;
  }

  /** `text` is all that decides what the user may do. */
  function issue(text: readonly string[], scoped: boolean, rules: (string | Buffer)[]): FenceCredentials {
    const username = `holdfast-${run}-${sha1(JSON.stringify(text)).slice(0, 12)}`;
    // After a reload sessions of before and of after are the same user.
    const known = users.get(username)?.credentials;
    if (known !== undefined) return known;
    const password = randomBytes(32).toString('hex');
    const credentials = {
      username,
      password: Buffer.from(password),
      prepare: (refused: boolean) => prepare(username, refused),
    };
    users.set(username, { credentials, secret: createHash('sha256').update(password).digest('hex'), scoped, rules });
    return credentials;
  }

  const also = (more: readonly string[]): string[] => more.map((command) => `+${command}`);

  return {
    unscopedCredentials: (name, more) => issue(['unscoped', name, ...more], false, [...also(more), '~*', '&*']),
    credentials(name, pattern, shared, more = []) {
      const own = Buffer.concat([pattern, Buffer.from('*')]);
      const keys = [own, ...shared.map((key) => escapeGlob(Buffer.from(key)))];
      const text = keys.map((key) => key.toString('latin1'));
      const rule = (start: string, key: Buffer): Buffer => Buffer.concat([Buffer.from(start), key]);
      return issue([name, ...text, ...more], true, [
        ...also(more),
        ...keys.map((key) => rule('~', key)),
        rule('&', own),
        ...keys.map((key) => rule('&__keyspace@*__:', key)),
        '&__keyevent@*__:*',
        '&__redis__:invalidate',
        // SORT BY and GET are refused to users that may not read every key; what they read is prefixed by Holdfast.
        Buffer.concat([
          Buffer.from('(+sort +sort_ro %R~* '),
          ...keys.flatMap((key) => [Buffer.from('%W~'), key, Buffer.from(' ')]),
          Buffer.from(')'),
        ]),
      ]);
    },
    async close() {
      if (users.size === 0) return;
      await admin.command(['ACL', 'DELUSER', ...users.keys()]).catch((thrown: unknown) => {
        log.debug({ reason: messageOf(thrown) }, 'the ACL users of scopes were left behind');
      });
    },
  };
}
