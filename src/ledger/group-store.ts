/** Consumer groups in the ledger: one row for each generation, which XGROUP CREATE, SETID and DESTROY begin and end. */
import type pg from 'pg';
import { retryContention } from './retry-contention.ts';

export interface GroupState {
  readonly name: Buffer;
  readonly checkpointId: Buffer;
  readonly lastDeliveredId: Buffer;
  readonly entriesRead: number | undefined;
}

export class GroupStore {
  readonly #pool: pg.Pool;

  constructor(pool: pg.Pool) {
    this.#pool = pool;
  }

  /**
   * Writes down what became of a group. `replace` ends the present generation first; without a state the group is gone.
   * Without `replace` a group that is there already stays as it is.
   */
  async settle(streamId: number, name: Buffer, state: GroupState | undefined, replace: boolean): Promise<void> {
    await this.#query('SELECT holdfast.settle_group($1, $2, $3, $4, $5, $6)', [
      streamId,
      name,
      replace,
      state?.checkpointId ?? null,
      state?.lastDeliveredId ?? null,
      state?.entriesRead ?? null,
    ]);
  }

  async #query(text: string, values: readonly unknown[]): Promise<void> {
    await retryContention(() => this.#pool.query(text, [...values]));
  }
}
