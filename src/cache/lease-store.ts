/**
 * What one sidecar says and asks about leases at the KV store (lease-scripts.ts): over one tracked connection, on which
 * every key under lease has been read, so that a write of it, by whomever, is reported.
 */
import { randomBytes } from 'node:crypto';
import type { Logger } from 'pino';
import type { KvAddress } from '../control-redis.ts';
import { HoldfastError } from '../errors.ts';
import { errorText, type Reply } from '../resp/reply.ts';
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

/** What the KV store says about a key. */
export type LeaseAnswer =
  | { readonly is: 'value'; readonly value: Buffer }
  /** Absent, and the lease is this sidecar's. */
  | { readonly is: 'granted' }
  /** Absent, and the lease is another sidecar's for so long. */
  | { readonly is: 'elsewhere'; readonly leftMs: number }
  /** Absent, and the lease that this sidecar wants to keep is not its own. */
  | { readonly is: 'lapsed' }
  /** The KV store is about to answer again. */
  | { readonly is: 'busy' }
  /** Not a string, no memory, no permission. */
  | { readonly is: 'refused'; readonly reason: string };

export interface LeaseStoreEvents {
  /** The connection is open, for the first time or again. */
  opened(): void;
  /** Somebody wrote or deleted this key, in whichever database. */
  changed(key: Buffer): void;
  /** A lease has ended somewhere, or everything may have changed. */
  released(): void;
}

/** A lease in the KV store lasts so long without its sidecar's renewal. */
export const LEASE_MS = 3000;
const KEYS_MAX = 500;
const PASSING = /^(LOADING|BUSY|MASTERDOWN|TRYAGAIN) /;

/** Everything that is asked rejects with KVDOWN where the connection is not open or breaks. */
export class LeaseStore {
  private readonly connection: TrackedConnection;
  private readonly sidecar = randomBytes(9).toString('base64url');
  private word = 0;

  constructor(kv: KvAddress, log: Logger, events: LeaseStoreEvents) {
    this.connection = new TrackedConnection(kv, {
      opened: () => events.opened(),
      lost: (cause) => log.debug({ reason: cause.message }, 'leases: the connection to the KV store was lost'),
      changed(key) {
        if (key === undefined || key.toString('latin1') === RELEASED_KEY) events.released();
        else events.changed(key);
      },
    });
  }

  get open(): boolean {
    return this.connection.open;
  }

  /** There can be no leases, as the KV store refuses the connection. */
  get refused(): boolean {
    return this.connection.refusal !== undefined;
  }

  /** `keep`: takes no lease that is not this sidecar's already. `lastsMs`: at the most. */
  async ask(database: number, key: Buffer, lastsMs: number, mode: 'take' | 'keep'): Promise<LeaseAnswer> {
    const reply = await this.connection.command(database, [
      ...['EVAL', ASK, 4, LEASES_KEY, OWNERS_KEY, RELEASED_KEY, key],
      ...[this.sidecar, Math.min(LEASE_MS, lastsMs), mode],
    ]);
    return answerOf(reply);
  }

  /** Gives the keys whose lease is this sidecar's no more. Rejects as well where the KV store refuses it. */
  async renew(database: number, keys: readonly Buffer[]): Promise<Buffer[]> {
    const lost: Buffer[] = [];
    for (const some of portions(keys)) {
      const args = ['EVAL', RENEW, 2, LEASES_KEY, OWNERS_KEY, this.sidecar, LEASE_MS, ...some];
      const reply = await this.connection.command(database, args);
      const { items } = reply;
      if (items === undefined) throw new HoldfastError('KVDOWN', errorText(reply) ?? 'an unexpected reply');
      lost.push(...some.filter((_, i) => items[i]!.bytes.toString() === '0'));
    }
    return lost;
  }

  /** Ends leases: this sidecar's own, or anybody's. */
  async release(database: number, keys: readonly Buffer[], whose: 'own' | "anybody's"): Promise<void> {
    const sidecar = whose === 'own' ? this.sidecar : '';
    await Promise.all(
      portions(keys).map((some) => {
        this.word += 1;
        return this.connection.command(database, [
          ...['EVAL', RELEASE, 3, LEASES_KEY, OWNERS_KEY, RELEASED_KEY, sidecar, `${this.sidecar} ${this.word}`],
          ...some,
        ]);
      }),
    );
  }

  /** All keys under lease, whosever it is. */
  async keys(database: number): Promise<Buffer[]> {
    const { items = [] } = await this.connection.command(database, ['HKEYS', OWNERS_KEY]);
    return items.map(({ bytes }) => bytes);
  }

  /** What was said before is on its way. */
  async stop(): Promise<void> {
    if (this.open) await this.connection.command(0, ['PING']).catch(() => undefined);
    this.connection.stop();
  }
}

function answerOf(reply: Reply): LeaseAnswer {
  const [outcome, detail] = reply.items ?? [];
  switch (outcome === undefined ? undefined : Number(outcome.bytes.toString())) {
    case VALUE:
      return { is: 'value', value: detail!.bytes };
    case GRANTED:
      return { is: 'granted' };
    case ELSEWHERE:
      return { is: 'elsewhere', leftMs: Number(detail!.bytes.toString()) };
    case LAPSED:
      return { is: 'lapsed' };
    default: {
      const reason = errorText(reply) ?? 'an unexpected reply';
      return PASSING.test(reason) ? { is: 'busy' } : { is: 'refused', reason };
    }
  }
}

function portions(keys: readonly Buffer[]): Buffer[][] {
  const all: Buffer[][] = [];
  for (let at = 0; at < keys.length; at += KEYS_MAX) all.push(keys.slice(at, at + KEYS_MAX));
  return all;
}
