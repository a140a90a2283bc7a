/**
 * Finds streams that the ledger does not know: all of them when a ledger meets its KV store for the first time, then a
 * step of SCAN at each look, since streams can also come from scripts, RESTORE, COPY and clients connected directly.
 */
import type { Ledger } from '../../ledger/ledger.ts';
import type { StreamFilter } from '../../ledger/stream-filter.ts';
import type { KvConnection } from '../kv/connection.ts';
import { WITNESS_KEY } from '../kv/epoch-key.ts';

const KEYS_PER_STEP = 1000;

export class Discovery {
  readonly #ledger: Ledger;
  readonly #ledgered: StreamFilter;
  #databases: number[] = [];
  #cursor = '0';

  constructor(ledger: Ledger, ledgered: StreamFilter) {
    this.#ledger = ledger;
    this.#ledgered = ledgered;
  }

  /** One step; gives true when all databases were walked through since the last time it did. */
  async step(connection: KvConnection): Promise<boolean> {
    if (this.#databases.length === 0) {
      const info = String(await connection.command(0, ['INFO', 'keyspace']));
      this.#databases = [...info.matchAll(/^db(\d+):/gm)].map((match) => Number(match[1]));
      if (this.#databases.length === 0) return true;
    }
    const database = this.#databases[0]!;
    const reply = await connection.command(database, ['SCAN', this.#cursor, 'COUNT', KEYS_PER_STEP, 'TYPE', 'stream']);
    const [cursor, keys] = reply as [Buffer, Buffer[]];
    this.#cursor = cursor.toString();
    const found = keys.filter(
      (key) =>
        key.indexOf(WITNESS_KEY) !== 0 && this.#ledgered(key) && this.#ledger.streams.find(database, key) === undefined,
    );
    if (found.length > 0) await this.#ledger.streams.discover(database, found);
    if (this.#cursor === '0') this.#databases.shift();
    return this.#cursor === '0' && this.#databases.length === 0;
  }
}
