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
 * Where the KV store refuses the connection for it there are no leases.
 *
 * Invariants: a client never waits for itself, nor in a circle within one sidecar; every client that waits is told
 * something, once; the number of leases and of those who wait is bounded.
 */
import type { Logger } from 'pino';
import type { KvAddress } from '../control-redis.ts';
import type { SessionView } from '../interceptor.ts';
import { bulk } from '../resp/encode.ts';
import type { CacheStatistics } from './cache-statistics.ts';
import { type Client, type Held, type Lapse, LeaseClients, type Waiter, waitsFor } from './lease-clients.ts';
import { type LeaseCounters, noLeaseCounters } from './lease-counters.ts';
import { LEASE_MS, type LeaseAnswer, LeaseStore } from './lease-store.ts';

export interface LeaseRule {
  /** A glob over real keys, scope prefixes included. */
  readonly pattern: string;
  /** How long a client waits for another's fetch. */
  readonly waitMs: number;
  /** How long one client may take for its fetch before the next one is told to. */
  readonly leaseMs: number;
}

export interface LeaseLimits {
  /** Clients that wait, over all keys. */
  readonly waitersMax: number;
  /** Keys under lease or waited for. */
  readonly leasesMax: number;
}

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
  /**
   * Somebody deleted these keys through this sidecar: what is being fetched for them is out of date, and their leases
   * end. Resolves when the KV store has it; other sidecars hear of it by then or soon after.
   */
  deleted(database: number, keys: readonly Buffer[]): Promise<void>;
  /** The keys with this prefix that are being fetched, on any sidecar as far as the KV store can be asked. */
  fetched(database: number, prefix: Buffer): Promise<Buffer[]>;
  /** Some client has lost a lease lately, or may have, so that `lapse` may say something. */
  readonly anyLapsed: boolean;
  /**
   * How this client lost its lease of the key, if it did and has not been told anything since; `unsure` where its lease
   * would have ended by now without a renewal, and none is known: `ascertain` asks.
   */
  lapse(session: SessionView, database: number, key: Buffer): Lapse | 'unsure' | undefined;
  ascertain(session: SessionView, database: number, key: Buffer): Promise<Lapse | undefined>;
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
const RENEW_MS = 1000;
/** Reports may fail to come only where something is broken: those who wait ask again now and then. */
const ASK_AGAIN_MS = 1000;
const ASK_BUSY_MS = 50;
/** Longer than connections of other sidecars take to come back. */
const HOLDERS_FIRST_MS = 1000;

type State = 'asking' | 'here' | 'elsewhere';

interface Lease extends Held {
  readonly database: number;
  readonly key: Buffer;
  readonly rule: LeaseRule;
  readonly mark: number;
  state: State;
  /** Granted or asserted on this incarnation of the connection. */
  incarnation: number;
  /** When the KV store was asked that last said it is this sidecar's. */
  sureAt: number;
  asking: boolean;
  askAgain: boolean;
  /** Somebody wrote the key since it was found absent. */
  changed: boolean;
  askTimer: NodeJS.Timeout | undefined;
  /** The holder's time. */
  leaseTimer: NodeJS.Timeout | undefined;
  /** The time of who waits first. */
  waitTimer: NodeJS.Timeout | undefined;
}

function idOf(database: number, key: Buffer): string {
  return `${database} ${key.toString('latin1')}`;
}

export function createLeases(options: LeaseOptions): Leases {
  const { statistics, log } = options;
  const limits = options.limits ?? DEFAULT_LIMITS;
  const leases = new Map<string, Lease>();
  /** By key, for reports, which do not name the database. */
  const byKey = new Map<string, Set<Lease>>();
  const counters = noLeaseCounters();
  /** Reports of changes do not name one: with several, a write elsewhere would look like one that came and went. */
  const databases = new Set<number>();
  let incarnation = 0;
  /** The KV store may have come back empty: until then only those who hold a lease take it, so that no second one is given. */
  let holdersFirstUntil = 0;
  /** Leases of before are sure since then. */
  let renewedAt = performance.now();
  let releasedSoon = false;
  let stopped = false;
  let refusalLogged: string | undefined;

  const clients = new LeaseClients((client) => {
    for (const waiter of [...client.waiting]) settle(waiter, waiter.nothing);
    for (const { id } of [...client.held]) {
      const lease = leases.get(id)!;
      counters.abandoned += 1;
      loseHolder(lease, undefined);
      passOn(lease);
    }
  });
  const store = new LeaseStore(options.kv, log, {
    opened() {
      incarnation += 1;
      if (incarnation > 1) holdersFirstUntil = performance.now() + HOLDERS_FIRST_MS;
      for (const lease of leases.values()) ask(lease);
    },
    changed(key) {
      for (const lease of byKey.get(key.toString('latin1')) ?? []) {
        lease.changed = true;
        ask(lease);
      }
    },
    released() {
      // Many in a row are one reason to ask.
      if (releasedSoon) return;
      releasedSoon = true;
      setImmediate(() => {
        releasedSoon = false;
        for (const lease of leases.values()) ask(lease);
      });
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
    if (!store.open || stopped) return;
    lease.asking = true;
    const keeps =
      lease.holder === undefined ? performance.now() < holdersFirstUntil : lease.incarnation === incarnation;
    const asked = incarnation;
    const askedAt = performance.now();
    store.ask(lease.database, lease.key, lease.rule.leaseMs, keeps ? 'keep' : 'take').then(
      (answer) => {
        lease.asking = false;
        if (leases.get(lease.id) !== lease) return;
        lease.incarnation = asked;
        if (answer.is === 'granted') lease.sureAt = askedAt;
        take(lease, answer);
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

  function askLater(lease: Lease, delayMs: number): void {
    clearTimeout(lease.askTimer);
    lease.askTimer = setTimeout(() => ask(lease), delayMs);
  }

  function take(lease: Lease, answer: LeaseAnswer): void {
    const { changed } = lease;
    lease.changed = false;
    clearTimeout(lease.askTimer);
    switch (answer.is) {
      case 'value':
        serve(lease, answer.value);
        return;
      case 'granted':
        // Written, and gone again: its holder has done what it was to do.
        if (changed && databases.size === 1) loseHolder(lease, 'voided');
        if (lease.holder !== undefined) lease.state = 'here';
        else grantNext(lease);
        return;
      case 'elsewhere':
        loseHolder(lease, 'voided');
        lease.state = 'elsewhere';
        countAsker(lease);
        if (lease.waiters.size === 0) remove(lease);
        else askLater(lease, Math.min(answer.leftMs + 1, ASK_AGAIN_MS));
        return;
      case 'lapsed':
        if (lease.holder === undefined) {
          askLater(lease, Math.max(holdersFirstUntil - performance.now(), 0) + 1);
          return;
        }
        loseHolder(lease, 'voided');
        ask(lease);
        return;
      case 'busy':
        lease.changed ||= changed;
        askLater(lease, ASK_BUSY_MS);
        return;
      case 'refused':
        // Everybody sees for themselves.
        if (answer.reason !== refusalLogged) log.warn({ reason: answer.reason }, 'leases: the KV store refused one');
        refusalLogged = answer.reason;
        counters.unguarded += lease.waiters.size;
        loseHolder(lease, undefined);
        for (const waiter of [...lease.waiters]) settle(waiter, waiter.nothing);
        remove(lease);
    }
  }

  function renew(): void {
    clients.forgetOld();
    if (!store.open) return;
    const byDatabase = new Map<number, Map<Buffer, Lease>>();
    for (const lease of leases.values()) {
      if (lease.state !== 'here' || lease.incarnation !== incarnation) continue;
      const others = byDatabase.get(lease.database);
      if (others === undefined) byDatabase.set(lease.database, new Map([[lease.key, lease]]));
      else others.set(lease.key, lease);
    }
    const askedAt = performance.now();
    const renewals = [...byDatabase].map(async ([database, held]) => {
      for (const key of await store.renew(database, [...held.keys()])) {
        const lease = held.get(key)!;
        held.delete(key);
        if (leases.get(lease.id) === lease) ask(lease);
      }
      for (const lease of held.values()) lease.sureAt = Math.max(lease.sureAt, askedAt);
    });
    Promise.all(renewals).then(
      () => {
        renewedAt = askedAt;
      },
      () => undefined,
    );
  }

  function release({ database, key }: Lease): void {
    store.release(database, [key], 'own').catch(() => undefined);
  }

  // ------------------------------------------------------------------ who holds and who waits

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
    clients.forget(client, lease.id);
    counters.granted += 1;
    counters.held += 1;
    statistics.count(lease.mark, 'leases');
    lease.leaseTimer = setTimeout(() => {
      counters.expired += 1;
      loseHolder(lease, 'expired');
      passOn(lease);
    }, lease.rule.leaseMs);
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
      if (store.open) grantNext(lease);
      return;
    }
    remove(lease);
    release(lease);
  }

  function loseHolder(lease: Lease, why: Lapse | undefined): void {
    const { holder } = lease;
    if (holder === undefined) return;
    clearTimeout(lease.leaseTimer);
    lease.holder = undefined;
    holder.held.delete(lease);
    counters.held -= 1;
    if (why === 'voided') counters.voided += 1;
    if (why !== undefined) clients.remember(holder, lease.id, why);
  }

  /** The value is there: everybody who waits gets it. */
  function serve(lease: Lease, value: Buffer): void {
    loseHolder(lease, undefined);
    if (lease.waiters.size > 0) {
      const reply = bulk(value);
      counters.saved += lease.waiters.size;
      statistics.count(lease.mark, 'saved', lease.waiters.size);
      for (const waiter of [...lease.waiters]) {
        clients.forget(waiter.client, lease.id);
        settle(waiter, reply);
      }
    }
    remove(lease);
  }

  function add(database: number, key: Buffer, rule: LeaseRule, mark: number): Lease {
    const lease: Lease = {
      ...{ id: idOf(database, key), database, key: Buffer.from(key), rule, mark },
      ...{ state: 'asking', holder: undefined, incarnation, sureAt: 0, waiters: new Set() },
      ...{ asking: false, askAgain: false, changed: false },
      ...{ askTimer: undefined, leaseTimer: undefined, waitTimer: undefined },
    };
    leases.set(lease.id, lease);
    const name = key.toString('latin1');
    const others = byKey.get(name);
    if (others === undefined) byKey.set(name, new Set([lease]));
    else others.add(lease);
    return lease;
  }

  function remove(lease: Lease): void {
    clearTimeout(lease.askTimer);
    clearTimeout(lease.waitTimer);
    leases.delete(lease.id);
    const name = lease.key.toString('latin1');
    const others = byKey.get(name);
    others?.delete(lease);
    if (others?.size === 0) byKey.delete(name);
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
      const waiter: Waiter = { client, lease, nothing, since: performance.now(), resolve, asks };
      lease.waiters.add(waiter);
      client.waiting.add(waiter);
      counters.waiting += 1;
      lease.waitTimer ??= setTimeout(() => endWaits(lease), lease.rule.waitMs);
    });
  }

  /** One timer for all who wait: it is set for the first of them, who may be gone when it strikes. */
  function endWaits(lease: Lease): void {
    lease.waitTimer = undefined;
    const { waitMs } = lease.rule;
    const now = performance.now();
    for (const waiter of lease.waiters) {
      const leftMs = waiter.since + waitMs - now;
      // A timer may strike a fraction of a millisecond early.
      if (leftMs >= 1) {
        lease.waitTimer = setTimeout(() => endWaits(lease), leftMs);
        return;
      }
      counters.waitsExpired += 1;
      settle(waiter, waiter.nothing);
    }
    if (lease.holder === undefined) remove(lease);
  }

  function settle(waiter: Waiter, reply: Buffer): void {
    if (!waiter.lease.waiters.delete(waiter)) return;
    waiter.client.waiting.delete(waiter);
    counters.waiting -= 1;
    counters.waitMsTotal += performance.now() - waiter.since;
    waiter.resolve(reply);
  }

  return {
    counters,
    get anyLapsed() {
      return clients.anyLapsed || (counters.held > 0 && performance.now() - renewedAt > LEASE_MS);
    },
    miss(session, database, key, rule, mark, nothing) {
      const lease = leases.get(idOf(database, key));
      if (
        stopped ||
        session.closed ||
        store.refused ||
        counters.waiting >= limits.waitersMax ||
        (lease === undefined && leases.size >= limits.leasesMax)
      ) {
        counters.unguarded += 1;
        return nothing;
      }
      databases.add(database);
      const client = clients.of(session);
      if (lease === undefined) {
        const asked = add(database, key, rule, mark);
        ask(asked);
        return wait(asked, client, nothing, true);
      }
      const { holder } = lease;
      if (holder === client) return nothing;
      if (holder !== undefined && client.held.size > 0 && waitsFor(holder, client)) {
        counters.unguarded += 1;
        return nothing;
      }
      countWait(lease);
      return wait(lease, client, nothing, false);
    },
    async deleted(database, keys) {
      const released = store.release(database, keys, "anybody's").catch(() => undefined);
      for (const key of keys) {
        const lease = leases.get(idOf(database, key));
        if (lease?.holder === undefined) continue;
        loseHolder(lease, 'voided');
        lease.state = 'asking';
        if (lease.waiters.size === 0) remove(lease);
        else ask(lease);
      }
      await released;
    },
    async fetched(database, prefix) {
      const everywhere = await store.keys(database).catch(() => []);
      const here = [...leases.values()].filter((lease) => lease.database === database).map(({ key }) => key);
      const names = new Set([...everywhere, ...here].map((key) => key.toString('latin1')));
      return [...names].map((name) => Buffer.from(name, 'latin1')).filter((key) => startsWith(key, prefix));
    },
    lapse(session, database, key) {
      const client = clients.known(session);
      if (client === undefined) return undefined;
      const id = idOf(database, key);
      const lease = leases.get(id);
      const unsure = lease?.holder === client && performance.now() - lease.sureAt > LEASE_MS;
      return unsure ? 'unsure' : client.lapsed.get(id)?.why;
    },
    async ascertain(session, database, key) {
      const lease = leases.get(idOf(database, key));
      // Where the KV store does not say, its client is told nothing else either.
      const answer = lease && (await store.ask(database, key, lease.rule.leaseMs, 'keep').catch(() => undefined));
      if (answer !== undefined && leases.get(lease!.id) === lease) take(lease!, answer);
      return clients.known(session)?.lapsed.get(idOf(database, key))?.why;
    },
    fence(session, database, key) {
      const client = clients.known(session);
      if (client === undefined) return;
      counters.fenced += 1;
      const id = idOf(database, key);
      clients.forget(client, id);
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
          release(lease);
        }
        remove(lease);
      }
      await store.stop();
    },
  };
}

function startsWith(key: Buffer, prefix: Buffer): boolean {
  return key.subarray(0, prefix.length).equals(prefix);
}
