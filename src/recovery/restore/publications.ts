/** The waiting of clients whose entry the ledger took in an outage for the ID under which it reaches the KV store. */

import { Condition } from '../../async/wakeup.ts';
import type { Ledger } from '../../ledger/ledger.ts';
import type { Stream } from '../../ledger/stream-registry.ts';
import { publishedIds } from './publish-backlog.ts';

/** Notices make it sooner. */
const WAIT_MS_MAX = 1_000;

export class Publications {
  readonly #ledger: Ledger;
  readonly #condition = new Condition();
  readonly #unsubscribe: () => void;
  #stopped = false;

  constructor(ledger: Ledger) {
    this.#ledger = ledger;
    this.#unsubscribe = ledger.onNotice(({ kind }) => {
      if (kind === 'published') this.#condition.wake();
    });
  }

  /** The ID under which a backlog entry was published, awaited at most `limitMs`; `undefined` if it was not. */
  async idOf(stream: Stream, id: Buffer, limitMs: number): Promise<Buffer | undefined> {
    const until = Date.now() + limitMs;
    for (;;) {
      // What is published while the ledger is asked is heard.
      const heard = this.#condition.changed(Math.max(0, Math.min(until - Date.now(), WAIT_MS_MAX)));
      try {
        const [found] = await publishedIds(this.#ledger.pool, stream.streamId, [id]);
        if (found !== undefined) return found;
      } catch (thrown) {
        if (!this.#ledger.postgres.failed(thrown)) throw thrown;
      }
      if (Date.now() >= until || this.#stopped) return undefined;
      await heard;
    }
  }

  /** Whoever waits is answered after one more look. */
  stop(): void {
    this.#stopped = true;
    this.#unsubscribe();
    this.#condition.wake();
  }
}
