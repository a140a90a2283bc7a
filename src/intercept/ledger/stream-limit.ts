/**
 * How many streams the ledger may have, in all and in one scope: each is kept in memory and compared with the KV store for as
 * long as it is there, whoever made it.
 */
import { HoldfastError } from '../../errors.ts';
import type { Exchange } from '../../interceptor.ts';
import type { StreamRegistry } from '../../ledger/stream-registry.ts';
import { ScopedSession } from '../../scope/scoped-session.ts';

export interface StreamLimits {
  readonly streamsMax: number;
  /** Of one scope. */
  readonly scopeStreamsMax: number;
}

/** How long a count of a scope's streams is believed, with what has begun here since added. */
const COUNTED_FOR_MS = 1000;
const SCOPES_MAX = 1024;

export class StreamLimit {
  refusedTotal = 0;
  private readonly streams: Pick<StreamRegistry, 'all' | 'size'>;
  private readonly limits: StreamLimits;
  private readonly counts = new Map<string, { streams: number; readonly at: number }>();

  constructor(streams: Pick<StreamRegistry, 'all' | 'size'>, limits: StreamLimits) {
    this.streams = streams;
    this.limits = limits;
  }

  /** A stream that the ledger does not know is about to begin for this exchange. Throws `LIMIT` where there are too many. */
  take(exchange: Exchange): void {
    const { streamsMax, scopeStreamsMax } = this.limits;
    if (this.streams.size >= streamsMax) this.refuse('the ledger', `ledger.streamsMax (${streamsMax})`);
    const { scope } = exchange.session;
    if (!(scope instanceof ScopedSession)) return;
    const { prefix, id } = scope.scope;
    let count = this.counts.get(id);
    if (count === undefined || Date.now() - count.at >= COUNTED_FOR_MS) {
      count = { streams: this.countOf(prefix), at: Date.now() };
      if (this.counts.size >= SCOPES_MAX) this.counts.clear();
      this.counts.set(id, count);
    }
    if (count.streams >= scopeStreamsMax) this.refuse('this scope', `ledger.scopeStreamsMax (${scopeStreamsMax})`);
    count.streams += 1;
  }

  private countOf(prefix: Buffer): number {
    let count = 0;
    for (const { name } of this.streams.all()) if (name.subarray(0, prefix.length).equals(prefix)) count += 1;
    return count;
  }

  private refuse(whose: string, limit: string): never {
    this.refusedTotal += 1;
    throw new HoldfastError(
      'LIMIT',
      `${whose} has as many streams as ${limit} allows; nothing was written: delete some, or leave them out of ledger.streams`,
    );
  }
}
