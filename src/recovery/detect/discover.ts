/**
 * Finds streams that the ledger does not know: all of them when a ledger meets its KV store for the first time, then
 * some steps of SCAN at each look, since streams can also come from scripts, RESTORE, COPY and clients connected directly.
 * The keys that a script declared are looked at first.
 */
import type { Ledger } from '../../ledger/ledger.ts';
import type { StreamFilter } from '../../ledger/stream-filter.ts';
import type { KvConnection } from '../kv/connection.ts';
import { WITNESS_KEY } from '../kv/epoch-key.ts';

const KEYS_PER_STEP = 1000;
const SUSPECTS_MAX = 1000;

export class Discovery {
  readonly #ledger: Ledger;
  readonly #ledgered: StreamFilter;
  #databases: number[] = [];
  #cursor = '0';
  /** By database, as latin1. */
  readonly #suspects = new Map<number, Set<string>>();
  /** Looked at before; a script that was on its way then may have run since. */
  #again: { readonly database: number; readonly name: string }[] = [];

  constructor(ledger: Ledger, ledgered: StreamFilter) {
    this.#ledger = ledger;
    this.#ledgered = ledgered;
  }

  /** `name` as latin1. Where there are very many, SCAN finds the rest. */
  suspect(database: number, name: string): void {
    let suspects = this.#suspects.get(database);
    if (suspects === undefined) this.#suspects.set(database, (suspects = new Set()));
    if (suspects.size < SUSPECTS_MAX) suspects.add(name);
  }

  /** Rejects with KVDOWN, or with Postgres's errors. */
  async lookAtSuspects(connection: KvConnection): Promise<void> {
    const fresh = [...this.#suspects].flatMap(([database, names]) => [...names].map((name) => ({ database, name })));
    const due = [...this.#again, ...fresh];
    this.#suspects.clear();
    this.#again = fresh;
    for (const database of new Set(due.map((suspect) => suspect.database))) {
      const names = due
        .filter((suspect) => suspect.database === database)
        .map(({ name }) => Buffer.from(name, 'latin1'))
        .filter((name) => this.#isUnknown(database, name));
      const types = await Promise.all(names.map((name) => connection.command(database, ['TYPE', name])));
      const found = names.filter((_, at) => String(types[at]) === 'stream');
      if (found.length > 0) await this.#ledger.streams.discover(database, found);
    }
  }

  #isUnknown(database: number, name: Buffer): boolean {
    return (
      name.indexOf(WITNESS_KEY) !== 0 && this.#ledgered(name) && this.#ledger.streams.find(database, name) === undefined
    );
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
    const found = keys.filter((key) => this.#isUnknown(database, key));
    if (found.length > 0) await this.#ledger.streams.discover(database, found);
    if (this.#cursor === '0') this.#databases.shift();
    return this.#cursor === '0' && this.#databases.length === 0;
  }
}
