/**
 * Leases: of many clients that miss one key at once, one is told to fetch it and the others wait for the value.
 *
 * A *lease* here is one key that somebody fetches, as this sidecar sees it:
 *
 *                    ┌────────────────────────── value ──▶ all waiting get it; gone
 *   miss ──▶ asking ─┼─ granted ──▶ here       a client of this sidecar fetches; the others of this sidecar wait
 *              ▲     └─ taken ────▶ elsewhere  a client of another sidecar fetches; all of this sidecar wait
 *              │                     │    │
 *              └── key changed, lease released, a second has passed, reconnected
 *
 *   here: holder gone, time is up, key deleted ──▶ the next that waits becomes the holder; nobody waits ──▶ released
 *
 * Who waits holds no upstream connection, and waits for `waitMs` at the most; then it is told to fetch as well.
 * What is asked of the KV store goes over one tracked connection for each sidecar, on which every key under lease has
 * been read, so that a write of it, by whomever, is reported. Where that connection is refused there are no leases.
 *
 * Invariants: a client never waits for itself, nor in a circle within one sidecar; every client that waits is told
 * something, once; the number of leases and of those who wait is bounded.
 */
import { randomBytes } from 'node:crypto';
import type { Logger } from 'pino';
import type { KvAddress } from '../control-redis.ts';
import type { SessionView } from '../intercept/interceptor.ts';
import { bulk } from '../resp/encode.ts';
import { errorText, type Reply } from '../resp/reply.ts';
import type { CacheStatistics } from './cache-statistics.ts';
import {
  ASK,
  ELSEWHERE,
  GRANTED,
  LAPSED,
  LEASES_KEY,
  OWNERS_KEY,
  RELEASE,
  RELEASED_KEY,
  RENEW,
  VALUE,
} from './lease-scripts.ts';
import { TrackedConnection } from './tracked-connection.ts';

export interface LeaseRule {
  /** A glob over real keys, scope prefixes included. */
  readonly pattern: string;
  /** How long a client waits for another's fetch. */
  readonly waitMs: number;
  /** How long one client may take for its fetch before the next one is told to. */
  readonly leaseMs: number;
}

/** Since the start, but for `waiting` and `held`. */
export interface LeaseCounters {
  granted: number;
  waits: number;
  /** Clients that waited and got the value. */
  saved: number;
  /** Clients that were told to fetch after `waitMs`. */
  waitsExpired: number;
  /** Leases whose holder took more than `leaseMs`. */
  expired: number;
  /** Leases that ended because their holder's connection did. */
  abandoned: number;
  /** Leases that ended because the key was deleted. */
  voided: number;
  /** Late writes that were not stored. */
  fenced: number;
  /** Misses without a lease: at a limit, or no word from the KV store. */
  unguarded: number;
  waitMsTotal: number;
  waiting: number;
  held: number;
}

export interface LeaseLimits {
  /** Clients that wait, over all keys. */
  readonly waitersMax: number;
  /** Keys under lease or waited for. */
  readonly leasesMax: number;
}

/** Why a client's lease is no more. */
export type Lapse = 'expired' | 'voided';

export interface Leases {
  readonly counters: Readonly<LeaseCounters>;
  /**
   * A client missed a key that `rule` names. Gives the reply: `nothing` where it is to fetch, at once or after a wait, or
   * the value that another client fetched.
   */
  miss(
    session: SessionView,
    database: number,
    key: Buffer,
    rule: LeaseRule,
    mark: number,
    nothing: Buffer,
  ): Buffer | Promise<Buffer>;
  /** Clients deleted these keys through this sidecar: what is being fetched for them is out of date. */
  deleted(database: number, keys: readonly Buffer[]): void;
  /** All keys with this prefix were deleted, or are about to be. */
  invalidated(database: number, prefix: Buffer): void;
  /** Some client has lost a lease lately, so that `lapse` may say something. */
  readonly anyLapsed: boolean;
  /** How this client lost its lease of the key, if it did and has not been told anything since. */
  lapse(session: SessionView, database: number, key: Buffer): Lapse | undefined;
  /** A late write of this client was not stored. */
  fence(session: SessionView, database: number, key: Buffer): void;
  stop(): Promise<void>;
}

export interface LeaseOptions {
  readonly kv: KvAddress;
  readonly statistics: CacheStatistics;
  readonly log: Logger;
  readonly limits?: LeaseLimits;
}

const DEFAULT_LIMITS: LeaseLimits = { waitersMax: 20_000, leasesMax: 20_000 };
/** A lease in the KV store lasts so long without its sidecar's renewal. */
const LEASE_MS = 3000;
const RENEW_MS = 1000;
const RENEW_KEYS_MAX = 500;
const RELEASE_KEYS_MAX = 500;
/** Reports may fail to come only where something is broken: those who wait ask again now and then. */
const ASK_AGAIN_MS = 1000;
/** The KV store is about to answer again. */
const PASSING = /^(LOADING|BUSY|MASTERDOWN|TRYAGAIN) /;
const ASK_BUSY_MS = 50;
/** Longer than connections of other sidecars take to come back. */
const HOLDERS_FIRST_MS = 1000;
/** For each client, and how long it is remembered that its write would be late. */
const LAPSED_MAX = 64;
const LAPSED_MS = 600_000;
const CIRCLE_STEPS_MAX = 1000;
const CLIENT = Symbol('leases');

type State = 'asking' | 'here' | 'elsewhere';

interface Lease {
  readonly id: string;
  readonly database: number;
  readonly key: Buffer;
  readonly rule: LeaseRule;
  readonly mark: number;
  state: State;
  holder: Client | undefined;
  /** Granted or asserted on this incarnation of the connection. */
  incarnation: number;
  readonly waiters: Set<Waiter>;
  asking: boolean;
  askAgain: boolean;
  /** Somebody wrote the key since it was found absent. */
  changed: boolean;
  timer: NodeJS.Timeout | undefined;
}

interface Waiter {
  readonly client: Client;
  readonly lease: Lease;
  readonly nothing: Buffer;
  readonly since: number;
  readonly timer: NodeJS.Timeout;
  readonly resolve: (reply: Buffer) => void;
  /** Until it is known that another client fetches. */
  asks: boolean;
}

/** What belongs to one session. */
interface Client {
  readonly held: Set<Lease>;
  readonly waiting: Set<Waiter>;
  readonly lapsed: Map<string, { readonly why: Lapse; readonly at: number }>;
}

export function createLeases(options: LeaseOptions): Leases {
  const { statistics, log } = options;
  const limits = options.limits ?? DEFAULT_LIMITS;
  const sidecar = randomBytes(9).toString('base64url');
  const leases = new Map<string, Lease>();
  /** By key, for reports, which do not name the database. */
  const byKey = new Map<string, Set<Lease>>();
  const counters = noLeaseCounters();
  const lapsed = new Set<Client>();
  /** Reports of changes do not name one: with several, a write elsewhere would look like one that came and went. */
  const databases = new Set<number>();
  let incarnation = 0;
  /** The KV store may have come back empty: until then only those who hold a lease take it, so that no second one is given. */
  let holdersFirstUntil = 0;
  let word = 0;
  let releasedSoon = false;
  let stopped = false;
  let refusalLogged: string | undefined;

  const connection = new TrackedConnection(options.kv, {
    opened() {
      incarnation += 1;
      if (incarnation > 1) holdersFirstUntil = performance.now() + HOLDERS_FIRST_MS;
      for (const lease of leases.values()) ask(lease);
    },
    lost: (cause) => log.debug({ reason: cause.message }, 'leases: the connection to the KV store was lost'),
    changed(key) {
      const name = key?.toString('latin1');
      if (name === undefined || name === RELEASED_KEY) askAllSoon();
      else
        for (const lease of byKey.get(name) ?? []) {
          lease.changed = true;
          ask(lease);
        }
    },
  });
  const renewal = setInterval(renew, RENEW_MS);
  renewal.unref();

  // ------------------------------------------------------------------ what is asked of the KV store

  function ask(lease: Lease): void {
    if (lease.asking) {
      lease.askAgain = true;
      return;
    }
    if (!connection.open || stopped) return;
    lease.asking = true;
    const keeps =
      lease.holder === undefined ? performance.now() < holdersFirstUntil : lease.incarnation === incarnation;
    const asked = incarnation;
    connection
      .command(lease.database, [
        ...['EVAL', ASK, 4, LEASES_KEY, OWNERS_KEY, RELEASED_KEY, lease.key],
        ...[sidecar, Math.min(LEASE_MS, lease.rule.leaseMs), keeps ? 'keep' : 'take'],
      ])
      .then(
        (reply) => {
          lease.asking = false;
          if (leases.get(lease.id) !== lease) return;
          lease.incarnation = asked;
          answer(lease, reply);
          if (lease.askAgain && leases.get(lease.id) === lease) {
            lease.askAgain = false;
            ask(lease);
          }
        },
        // Asked again as soon as there is a connection.
        () => {
          lease.asking = false;
          lease.askAgain = false;
        },
      );
  }

  function answer(lease: Lease, reply: Reply): void {
    const outcome = reply.items === undefined ? undefined : Number(reply.items[0]?.bytes.toString());
    const { changed } = lease;
    lease.changed = false;
    switch (outcome) {
      case VALUE:
        serve(lease, reply.items![1]!.bytes);
        return;
      case GRANTED:
        // Written, and gone again: its holder has done what it was to do.
        if (changed && databases.size === 1) loseHolder(lease, 'voided');
        if (lease.holder !== undefined) lease.state = 'here';
        else grantNext(lease);
        return;
      case ELSEWHERE:
        if (lease.holder !== undefined) loseHolder(lease, 'voided');
        lease.state = 'elsewhere';
        countAsker(lease);
        if (lease.waiters.size === 0) remove(lease);
        else setTimer(lease, Math.min(Number(reply.items![1]!.bytes.toString()) + 1, ASK_AGAIN_MS), () => ask(lease));
        return;
      case LAPSED:
        if (lease.holder === undefined) {
          setTimer(lease, Math.max(holdersFirstUntil - performance.now(), 0) + 1, () => ask(lease));
          return;
        }
        loseHolder(lease, 'voided');
        ask(lease);
        return;
      default: {
        // Not a string, no memory, no permission: everybody sees for themselves.
        const refusal = errorText(reply) ?? 'an unexpected reply';
        if (PASSING.test(refusal)) {
          setTimer(lease, ASK_BUSY_MS, () => ask(lease));
          return;
        }
        if (refusal !== refusalLogged) log.warn({ reason: refusal }, 'leases: the KV store refused one');
        refusalLogged = refusal;
        counters.unguarded += lease.waiters.size;
        if (lease.holder !== undefined) loseHolder(lease, undefined);
        for (const waiter of [...lease.waiters]) settle(waiter, waiter.nothing);
        remove(lease);
      }
    }
  }

  /** Many releases in a row are one reason to ask. */
  function askAllSoon(): void {
    if (releasedSoon) return;
    releasedSoon = true;
    setImmediate(() => {
      releasedSoon = false;
      for (const lease of leases.values()) ask(lease);
    });
  }

  function renew(): void {
    const oldest = performance.now() - LAPSED_MS;
    for (const client of lapsed) {
      for (const [id, { at }] of client.lapsed) if (at < oldest) forgetLapse(client, id);
    }
    if (!connection.open) return;
    const byDatabase = new Map<number, Lease[]>();
    for (const lease of leases.values()) {
      if (lease.state !== 'here' || lease.incarnation !== incarnation) continue;
      const others = byDatabase.get(lease.database);
      if (others === undefined) byDatabase.set(lease.database, [lease]);
      else others.push(lease);
    }
    for (const [database, held] of byDatabase) {
      for (let at = 0; at < held.length; at += RENEW_KEYS_MAX) {
        const some = held.slice(at, at + RENEW_KEYS_MAX);
        connection
          .command(database, [
            'EVAL',
            RENEW,
            2,
            LEASES_KEY,
            OWNERS_KEY,
            sidecar,
            LEASE_MS,
            ...some.map(({ key }) => key),
          ])
          .then((reply) => {
            for (const [i, lease] of some.entries()) {
              if (reply.items?.[i]?.bytes.toString() === '0' && leases.get(lease.id) === lease) ask(lease);
            }
          })
          .catch(() => undefined);
      }
    }
  }

  /** Ends leases in the KV store: this sidecar's, or anybody's. */
  function release(database: number, keys: readonly Buffer[], whose: string): void {
    word += 1;
    connection
      .command(database, [
        ...['EVAL', RELEASE, 3, LEASES_KEY, OWNERS_KEY, RELEASED_KEY, whose, `${sidecar} ${word}`],
        ...keys,
      ])
      .catch(() => undefined);
  }

  // ------------------------------------------------------------------ who holds and who waits

  function clientOf(session: SessionView): Client {
    const known = session.state.get(CLIENT) as Client | undefined;
    if (known !== undefined) return known;
    const client: Client = { held: new Set(), waiting: new Set(), lapsed: new Map() };
    session.state.set(CLIENT, client);
    session.onClose(() => {
      for (const waiter of [...client.waiting]) settle(waiter, waiter.nothing);
      lapsed.delete(client);
      for (const lease of [...client.held]) {
        counters.abandoned += 1;
        loseHolder(lease, undefined);
        passOn(lease);
      }
    });
    return client;
  }

  /** Gives the lease, which is this sidecar's, to whoever waits first. */
  function grantNext(lease: Lease): void {
    const next = lease.waiters.values().next().value;
    if (next === undefined) {
      passOn(lease);
      return;
    }
    const { client } = next;
    lease.state = 'here';
    lease.holder = client;
    client.held.add(lease);
    forgetLapse(client, lease.id);
    counters.granted += 1;
    counters.held += 1;
    statistics.count(lease.mark, 'leases');
    setTimer(lease, lease.rule.leaseMs, () => {
      counters.expired += 1;
      loseHolder(lease, 'expired');
      passOn(lease);
    });
    settle(next, next.nothing);
    // Requests of the same client that wait for the key would wait for themselves, and others perhaps in a circle.
    for (const waiter of [...lease.waiters]) {
      if (waiter.client === client || (client.waiting.size > 0 && waitsFor(client, waiter.client))) {
        settle(waiter, waiter.nothing);
      }
    }
  }

  /** A lease without a holder goes to the next who waits, or ends. */
  function passOn(lease: Lease): void {
    if (lease.waiters.size > 0) {
      if (connection.open) grantNext(lease);
      return;
    }
    remove(lease);
    release(lease.database, [lease.key], sidecar);
  }

  function loseHolder(lease: Lease, why: Lapse | undefined): void {
    const { holder } = lease;
    if (holder === undefined) return;
    lease.holder = undefined;
    holder.held.delete(lease);
    counters.held -= 1;
    if (why === 'voided') counters.voided += 1;
    if (why === undefined) return;
    forgetLapse(holder, lease.id);
    holder.lapsed.set(lease.id, { why, at: performance.now() });
    lapsed.add(holder);
    if (holder.lapsed.size > LAPSED_MAX) forgetLapse(holder, holder.lapsed.keys().next().value!);
  }

  function forgetLapse(client: Client, id: string): void {
    if (client.lapsed.delete(id) && client.lapsed.size === 0) lapsed.delete(client);
  }

  /** The value is there: everybody who waits gets it. */
  function serve(lease: Lease, value: Buffer): void {
    const holder = lease.holder;
    if (holder !== undefined) loseHolder(lease, undefined);
    if (lease.waiters.size > 0) {
      const reply = bulk(value);
      counters.saved += lease.waiters.size;
      statistics.count(lease.mark, 'saved', lease.waiters.size);
      for (const waiter of [...lease.waiters]) {
        forgetLapse(waiter.client, lease.id);
        settle(waiter, reply);
      }
    }
    remove(lease);
  }

  function remove(lease: Lease): void {
    clearTimeout(lease.timer);
    leases.delete(lease.id);
    const name = lease.key.toString('latin1');
    const others = byKey.get(name);
    others?.delete(lease);
    if (others?.size === 0) byKey.delete(name);
  }

  function setTimer(lease: Lease, delayMs: number, action: () => void): void {
    clearTimeout(lease.timer);
    lease.timer = setTimeout(action, delayMs);
  }

  function countWait(lease: Lease): void {
    counters.waits += 1;
    statistics.count(lease.mark, 'waits');
  }

  /** Who asked waits like the others, now that the lease is another sidecar's. */
  function countAsker(lease: Lease): void {
    const first = lease.waiters.values().next().value;
    if (first?.asks !== true) return;
    first.asks = false;
    countWait(lease);
  }

  function wait(lease: Lease, client: Client, nothing: Buffer, asks: boolean): Promise<Buffer> {
    return new Promise((resolve) => {
      const timer = setTimeout(() => {
        counters.waitsExpired += 1;
        settle(waiter, nothing);
        if (lease.waiters.size === 0 && lease.holder === undefined) remove(lease);
      }, lease.rule.waitMs);
      const waiter: Waiter = { client, lease, nothing, since: performance.now(), timer, resolve, asks };
      lease.waiters.add(waiter);
      client.waiting.add(waiter);
      counters.waiting += 1;
    });
  }

  function settle(waiter: Waiter, reply: Buffer): void {
    if (!waiter.lease.waiters.delete(waiter)) return;
    clearTimeout(waiter.timer);
    waiter.client.waiting.delete(waiter);
    counters.waiting -= 1;
    counters.waitMsTotal += performance.now() - waiter.since;
    waiter.resolve(reply);
  }

  /** Whether `client`, through those it waits for, waits for `other`. */
  function waitsFor(client: Client, other: Client): boolean {
    const seen = new Set<Client>([client]);
    for (const each of seen) {
      if (seen.size > CIRCLE_STEPS_MAX) return true;
      for (const { lease } of each.waiting) {
        if (lease.holder === other) return true;
        if (lease.holder !== undefined) seen.add(lease.holder);
      }
    }
    return false;
  }

  // ------------------------------------------------------------------ what clients do

  function deleted(database: number, keys: readonly Buffer[]): void {
    release(database, keys, '');
    for (const key of keys) {
      const lease = leases.get(`${database} ${key.toString('latin1')}`);
      if (lease?.holder === undefined) continue;
      loseHolder(lease, 'voided');
      lease.state = 'asking';
      clearTimeout(lease.timer);
      if (lease.waiters.size === 0) remove(lease);
      else ask(lease);
    }
  }

  return {
    counters,
    get anyLapsed() {
      return lapsed.size > 0;
    },
    miss(session, database, key, rule, mark, nothing) {
      const id = `${database} ${key.toString('latin1')}`;
      let lease = leases.get(id);
      if (
        stopped ||
        session.closed ||
        connection.refusal !== undefined ||
        counters.waiting >= limits.waitersMax ||
        (lease === undefined && leases.size >= limits.leasesMax)
      ) {
        counters.unguarded += 1;
        return nothing;
      }
      databases.add(database);
      const client = clientOf(session);
      if (lease !== undefined) {
        const { holder } = lease;
        if (holder === client) return nothing;
        if (holder !== undefined && client.held.size > 0 && waitsFor(holder, client)) {
          counters.unguarded += 1;
          return nothing;
        }
        countWait(lease);
        return wait(lease, client, nothing, false);
      }
      lease = {
        ...{ id, database, key: Buffer.from(key), rule, mark, state: 'asking', holder: undefined, incarnation },
        ...{ waiters: new Set(), asking: false, askAgain: false, changed: false, timer: undefined },
      };
      leases.set(id, lease);
      const name = key.toString('latin1');
      const others = byKey.get(name);
      if (others === undefined) byKey.set(name, new Set([lease]));
      else others.add(lease);
      ask(lease);
      return wait(lease, client, nothing, true);
    },
    deleted,
    invalidated(database, prefix) {
      connection.command(database, ['HKEYS', OWNERS_KEY]).then(
        ({ items = [] }) => {
          const fetched = items.map(({ bytes }) => bytes).filter((key) => startsWith(key, prefix));
          for (let at = 0; at < fetched.length; at += RELEASE_KEYS_MAX) {
            deleted(database, fetched.slice(at, at + RELEASE_KEYS_MAX));
          }
        },
        () => undefined,
      );
    },
    lapse(session, database, key) {
      const client = session.state.get(CLIENT) as Client | undefined;
      return client?.lapsed.get(`${database} ${key.toString('latin1')}`)?.why;
    },
    fence(session, database, key) {
      const client = session.state.get(CLIENT) as Client | undefined;
      if (client === undefined) return;
      counters.fenced += 1;
      const id = `${database} ${key.toString('latin1')}`;
      forgetLapse(client, id);
      const lease = leases.get(id);
      if (lease === undefined || lease.holder !== client) return;
      loseHolder(lease, undefined);
      passOn(lease);
    },
    async stop() {
      stopped = true;
      clearInterval(renewal);
      for (const lease of [...leases.values()]) {
        for (const waiter of [...lease.waiters]) settle(waiter, waiter.nothing);
        if (lease.holder !== undefined) {
          loseHolder(lease, undefined);
          release(lease.database, [lease.key], sidecar);
        }
        remove(lease);
      }
      // One more turn, so that the releases go out.
      if (connection.open) await connection.command(0, ['PING']).catch(() => undefined);
      connection.stop();
    },
  };
}

function startsWith(key: Buffer, prefix: Buffer): boolean {
  return key.subarray(0, prefix.length).equals(prefix);
}

export function noLeaseCounters(): LeaseCounters {
  return {
    granted: 0,
    waits: 0,
    saved: 0,
    waitsExpired: 0,
    expired: 0,
    abandoned: 0,
    voided: 0,
    fenced: 0,
    unguarded: 0,
    waitMsTotal: 0,
    waiting: 0,
    held: 0,
  };
}
