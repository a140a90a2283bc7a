/** Who holds leases and who waits for them, and what is remembered of those who lost one. */
import type { SessionView } from '../interceptor.ts';

/** Why a client's lease is no more. */
export type Lapse = 'expired' | 'voided';

/** What belongs to one session. */
export interface Client {
  readonly held: Set<Held>;
  readonly waiting: Set<Waiter>;
  /** By the lease's ID. */
  readonly lapsed: Map<string, { readonly why: Lapse; readonly at: number }>;
}

/** What is held or waited for. */
export interface Held {
  readonly id: string;
  holder: Client | undefined;
  /** In the order in which their time ends. */
  readonly waiters: Set<Waiter>;
}

export interface Waiter {
  readonly client: Client;
  /** What it waits for. */
  readonly lease: Held;
  /** The reply that tells it to fetch. */
  readonly nothing: Buffer;
  readonly since: number;
  readonly resolve: (reply: Buffer) => void;
  /** Until it is known that another client fetches. */
  asks: boolean;
}

const CLIENT = Symbol('leases');
/** For each client, and how long it is remembered that its write would be late. */
const LAPSED_MAX = 64;
const LAPSED_MS = 600_000;
const CIRCLE_STEPS_MAX = 1000;

export class LeaseClients {
  private readonly closed: (client: Client) => void;
  private readonly lapsed = new Set<Client>();

  /** `closed` is called once for each client that held or waited for anything, at the end of its session. */
  constructor(closed: (client: Client) => void) {
    this.closed = closed;
  }

  /** Some client has lost a lease lately. */
  get anyLapsed(): boolean {
    return this.lapsed.size > 0;
  }

  known(session: SessionView): Client | undefined {
    return session.state.get(CLIENT) as Client | undefined;
  }

  of(session: SessionView): Client {
    const known = this.known(session);
    if (known !== undefined) return known;
    const client: Client = { held: new Set(), waiting: new Set(), lapsed: new Map() };
    session.state.set(CLIENT, client);
    session.onClose(() => {
      this.lapsed.delete(client);
      this.closed(client);
    });
    return client;
  }

  remember(client: Client, id: string, why: Lapse): void {
    this.forget(client, id);
    client.lapsed.set(id, { why, at: performance.now() });
    this.lapsed.add(client);
    if (client.lapsed.size > LAPSED_MAX) this.forget(client, client.lapsed.keys().next().value!);
  }

  forget(client: Client, id: string): void {
    if (client.lapsed.delete(id) && client.lapsed.size === 0) this.lapsed.delete(client);
  }

  /** What happened long ago. */
  forgetOld(): void {
    const oldest = performance.now() - LAPSED_MS;
    for (const client of this.lapsed) {
      for (const [id, { at }] of client.lapsed) if (at < oldest) this.forget(client, id);
    }
  }
}

/** Whether `client`, through those it waits for, waits for `other`. */
export function waitsFor(client: Client, other: Client): boolean {
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
