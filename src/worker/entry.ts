/**
 * An entry in this worker's hands, from its delivery until the KV store knows what became of it.
 *
 *   waiting ──▶ running ──▶ settling ──▶ (let go)
 *      ▲           │ next handler, or its retry in place (ordered streams)
 *      └───────────┘
 *
 * Whatever the state, the claim is renewed as long as the entry is held.
 */
import type { Fields, HandlerSpec } from './app.ts';

export type HeldState = 'waiting' | 'running' | 'settling' | 'resting' | 'gone';

export interface StepFailure {
  readonly handler: HandlerSpec;
  readonly message: string;
  /** Another attempt would be pointless. */
  readonly permanent: boolean;
}

export interface Held {
  readonly stream: string;
  readonly id: string;
  readonly fields: Fields;
  readonly trace: Readonly<Record<string, string>>;
  event: unknown;
  /** The attempt being made, from 1. */
  attempt: number;
  takeovers: number;
  /** The store has a row for it, to be forgotten at the end. */
  stored: boolean;
  /** Handlers to run, in order, and which one's turn it is. */
  steps: readonly HandlerSpec[];
  step: number;
  failures: StepFailure[];
  /** A shutdown or a lost claim cut it off: no failure of its own. */
  interrupted: boolean;
  state: HeldState;
  /** It came from the retry consumer. */
  readonly again: boolean;
  /** It counts as one that wants a slot. */
  queued: boolean;
  /** `performance.now()` since when it could have been handled, whoever held it meanwhile. */
  readonly dueAt: number;
  /** `performance.now()` when it began to wait. */
  waitingSince: number;
  /** `performance.now()` when the claim was last known to be fresh. */
  renewedAt: number;
  /** `elsewhere`: another worker's. `nowhere`: not pending at all, as after a restore: it may be delivered again. */
  claim: 'here' | 'elsewhere' | 'nowhere';
  key: string | undefined;
  /** Aborts the handler that is running. */
  abort: ((reason: string) => void) | undefined;
}
