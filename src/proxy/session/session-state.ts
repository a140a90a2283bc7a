/** What a session's parts share: why it waits, why it needs a lane of its own, and what all sessions stand on. */
import type { Logger } from 'pino';
import type { Interceptor } from '../../interceptor.ts';
import type { ClientRegistry } from '../commands/client-registry.ts';
import type { ProxyLimits } from '../limits.ts';
import type { CommandPlans } from '../request/command-plan.ts';
import type { PendingExchange } from '../request/pending-exchange.ts';
import type { Upstream } from '../upstream/upstream.ts';
import type { IdentityProvider } from './identity.ts';
import type { Peers } from './peers.ts';
import type { Tenant, Tenants } from './tenants.ts';

export type Pooling = 'transaction' | 'session';

/** What all sessions of a proxy share. */
export interface SessionContext {
  readonly upstream: Upstream;
  readonly plans: CommandPlans;
  /** For sessions with a scope. */
  readonly scopedPlans: CommandPlans;
  /** For sessions with a scope whose keys all need a look: without the fast path. */
  readonly guardedPlans: CommandPlans;
  /** Of sessions that must log in first. */
  readonly judgedPlans: CommandPlans;
  /** In the order of their calls. */
  readonly interceptors: readonly Interceptor[];
  /** The other processes of this sidecar; `undefined` when there are none. */
  readonly peers: Peers | undefined;
  /** Which pushes no client sees. */
  readonly hidesPush: ((frame: Buffer) => boolean) | undefined;
  readonly identities: IdentityProvider | undefined;
  readonly limits: ProxyLimits;
  readonly pooling: Pooling;
  readonly registry: ClientRegistry;
  readonly log: Logger;
  readonly counters: ProxyCounters;
  readonly tenants: Tenants;
}

/** Totals since start. */
export interface ProxyCounters {
  requests: number;
  exchanges: number;
  protocolErrors: number;
  overflows: number;
  /** Clients closed for a mistake of Holdfast's own. */
  faults: number;
  /** Clients closed because the KV store did not answer. */
  unserved: number;
}

/** Why a session takes no further request. */
export const Hold = {
  /** A lane is awaited. */
  lane: 1,
  /** A request is under way that those behind it must not pass. */
  request: 2,
  /** Too many requests in flight. */
  depth: 4,
  /** The client does not read its replies. */
  slowReader: 8,
  /** The KV store does not take requests. */
  congestion: 16,
  /** The session ends as soon as everything owed was written. */
  ending: 32,
  /** What the session may do depends on a subscription that is not confirmed yet. */
  undecided: 64,
  /** What it is blocked on is being asked again on another connection. */
  blocked: 128,
  /** Whether there is the database that a queued SELECT names is being asked. */
  database: 256,
} as const;

/** Why a session needs a lane of its own. */
export const Pin = {
  pooling: 1,
  transaction: 2,
  watch: 4,
  blocking: 8,
  subscribed: 16,
  sticky: 32,
  raw: 64,
  streaming: 128,
  redirectTarget: 256,
  /** Until nothing is in flight: what is under way changes its connection, and does not block. */
  passing: 512,
} as const;

export const LOST_TEXT =
  'the connection to the KV store was lost before the reply; the command may or may not have run';

/** SUBSCRIBE or its kin, queued. */
export interface QueuedSubscription {
  readonly command: string;
  readonly names: readonly Buffer[];
}

export interface Transaction {
  /** Where what is queued next will be executed: a SELECT that was queued before decides. */
  database: number;
  /** Commands queued so far. */
  slots: number;
  readonly members: PendingExchange[];
  /** By slot. */
  readonly subscriptions: Map<number, QueuedSubscription>;
  /** Why EXEC must fail: Holdfast refused a command, the connection was lost, or a watch cannot be trusted. */
  broken: 'refused' | 'lost' | 'watch' | undefined;
  /** Whose bytes are counted. */
  readonly tenant: Tenant;
  queuedBytes: number;
  /** The error that all further commands get, since they are not queued any more. */
  full: Buffer | undefined;
  /** Why it is lost. */
  lostBecause: string;
}

/** Nothing of it will be executed. */
export function discardTransaction(transaction: Transaction): void {
  for (const member of transaction.members) member.discard();
  transaction.members.length = 0;
  releaseTransaction(transaction);
}

/** It counts no longer for its identity. */
export function releaseTransaction(transaction: Transaction): void {
  transaction.tenant.giveTransactionBytes(transaction.queuedBytes);
  transaction.queuedBytes = 0;
}
