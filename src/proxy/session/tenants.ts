/**
 * What the clients of one identity hold together, so that one identity cannot use up what all share. An identity is who logged in;
 * those who did not are one identity for each listener.
 */
import { HoldfastError } from '../../errors.ts';
import type { ProxyLimits } from '../limits.ts';
import type { Session } from './session.ts';

export class Tenant {
  readonly name: string;
  /** Connections to the KV store that its clients have to themselves, or wait for. */
  ownLanes = 0;
  /** What its clients have queued in transactions. */
  transactionBytes = 0;
  /** Its clients that do not read what they asked for. */
  readonly slowReaders = new Set<Session>();
  private readonly tenants: Tenants;

  constructor(tenants: Tenants, name: string) {
    this.tenants = tenants;
    this.name = name;
  }

  /** Counts one more connection of a client's own. Throws `LIMIT` where there are too many. */
  takeLane(): void {
    const { limits } = this.tenants;
    if (this.ownLanes >= limits.tenantLanesMax) {
      this.tenants.lanesRefused += 1;
      throw new HoldfastError(
        'LIMIT',
        `the clients of ${this.name} have ${this.ownLanes} connections of their own to the KV store, as many as limits.tenantLanesMax; try again when one of them is done`,
      );
    }
    if (this.tenants.ownLanes >= limits.ownLanesMax) {
      this.tenants.lanesRefused += 1;
      throw new HoldfastError(
        'LIMIT',
        `${limits.ownLanesMax} clients have a connection of their own to the KV store, as many as limits.ownLanesMax; try again when one of them is done`,
      );
    }
    this.countLane();
  }

  countLane(): void {
    this.ownLanes += 1;
    this.tenants.ownLanes += 1;
  }

  giveLane(): void {
    this.ownLanes -= 1;
    this.tenants.ownLanes -= 1;
    this.tenants.forgetUnused(this);
  }

  /** Counts `bytes` more of a transaction that has `queued` already. Throws `LIMIT` where that is too much. */
  takeTransactionBytes(queued: number, bytes: number): void {
    const { limits } = this.tenants;
    const one = queued + bytes > limits.transactionBytesMax;
    if (one || this.transactionBytes + bytes > limits.tenantTransactionBytesMax) {
      this.tenants.transactionsRefused += 1;
      const limit = one ? `limits.transactionBytesMax` : `limits.tenantTransactionBytesMax of ${this.name}`;
      throw new HoldfastError('LIMIT', `the transaction holds more than ${limit} allows; send it in smaller ones`);
    }
    this.transactionBytes += bytes;
  }

  giveTransactionBytes(bytes: number): void {
    this.transactionBytes -= bytes;
    this.tenants.forgetUnused(this);
  }

  /** Whether its clients together have more unread than they may. */
  get readsTooSlowly(): boolean {
    let bytes = 0;
    for (const session of this.slowReaders) bytes += session.output.waitingBytes;
    return bytes > this.tenants.limits.tenantOutputBytesMax;
  }

  get unused(): boolean {
    return this.ownLanes === 0 && this.transactionBytes === 0 && this.slowReaders.size === 0;
  }
}

export class Tenants {
  readonly limits: ProxyLimits;
  ownLanes = 0;
  lanesRefused = 0;
  transactionsRefused = 0;
  private readonly byName = new Map<string, Tenant>();

  constructor(limits: ProxyLimits) {
    this.limits = limits;
  }

  /** To be asked for when something is taken; what was taken is given back to the same one. */
  of(name: string): Tenant {
    let tenant = this.byName.get(name);
    if (tenant === undefined) this.byName.set(name, (tenant = new Tenant(this, name)));
    return tenant;
  }

  forgetUnused(tenant: Tenant): void {
    if (tenant.unused) this.byName.delete(tenant.name);
  }

  /** The most that one identity has of what `measure` counts. */
  greatest(measure: (tenant: Tenant) => number): number {
    let greatest = 0;
    for (const tenant of this.byName.values()) greatest = Math.max(greatest, measure(tenant));
    return greatest;
  }
}
