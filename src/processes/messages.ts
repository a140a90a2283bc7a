/** What the primary and the members of a sidecar with several processes say to each other. Plain data only. */
import type { ClientQuery } from '../proxy/commands/client-query.ts';

/** What a member needs to know before it starts; secrets come this way, not by the environment. */
export interface Role {
  readonly kind: 'role';
  readonly index: number;
  readonly count: number;
  /** Where the primary's embedded servers are; `undefined` where the configuration names others. */
  readonly kvSocket: { readonly path?: string; readonly host?: string; readonly port?: number } | undefined;
  readonly databaseUrl: string | undefined;
}

export type Question =
  | { readonly kind: 'list'; readonly query: ClientQuery }
  | { readonly kind: 'kill'; readonly query: ClientQuery }
  | {
      readonly kind: 'lane';
      readonly clientId: number;
      readonly pin: boolean;
      readonly scope: string | undefined;
    }
  | { readonly kind: 'reload' }
  | { readonly kind: 'status' }
  | { readonly kind: 'readiness' };

export type ToMember =
  | Role
  | { readonly kind: 'question'; readonly id: number; readonly question: Question }
  | { readonly kind: 'answers'; readonly id: number; readonly values: readonly unknown[] }
  | { readonly kind: 'clients-elsewhere'; readonly count: number }
  | { readonly kind: 'stop' };

export type ToPrimary =
  /** The member listens now: what was said before it did is lost. */
  | { readonly kind: 'join' }
  | { readonly kind: 'ready'; readonly listen: readonly string[] }
  | { readonly kind: 'failed'; readonly message: string }
  | { readonly kind: 'ask'; readonly id: number; readonly question: Question }
  | { readonly kind: 'answer'; readonly id: number; readonly value: unknown }
  | { readonly kind: 'clients'; readonly count: number };
