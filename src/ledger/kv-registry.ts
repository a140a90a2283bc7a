/**
 * Which KV store this ledger belongs to: the server that each sidecar compares, in Postgres. A sidecar that starts in front of another
 * server while one that came before it lives is refused, since it would restore the one's streams into the other.
 */
import type pg from 'pg';

/** What a server says of itself, as in `INFO`. */
export interface KvIdentity {
  readonly runId: string;
  readonly replicationId: string;
  /** Of the primary that it followed before it became one itself; empty where it did not. */
  readonly previousReplicationId: string;
}

export interface OtherKv {
  /** The sidecar: host and process ID. */
  readonly name: string;
  readonly address: string;
  readonly runId: string;
}

export interface LastCompared {
  readonly runId: string;
  /** The KV store let in clients that do not log in. */
  readonly admitsNobody: boolean;
}

export class KvRegistry {
  readonly #pool: pg.Pool;
  readonly #owner: string;
  readonly #name: string;

  /** `owner` is of this run of the process, `name` is what operators read. */
  constructor(pool: pg.Pool, owner: string, name: string) {
    this.#pool = pool;
    this.#owner = owner;
    this.#name = name;
  }

  /** This sidecar is about to compare that server. Gives Postgres's time. Rejects with Postgres's errors. */
  async note(address: string, { runId, replicationId, previousReplicationId }: KvIdentity): Promise<Date> {
    const { rows } = await this.#pool.query<{ now: Date }>({
      name: 'note-kv',
      text: 'SELECT holdfast.note_kv($1, $2, $3, $4, $5, $6) AS now',
      values: [this.#owner, this.#name, address, runId, replicationId, previousReplicationId],
    });
    return rows[0]!.now;
  }

  /**
   * A sidecar that came before this one, gave a sign of life within `freshMs`, and has another server as its KV store; `undefined` where
   * there is none. Call `note` first. Rejects with Postgres's errors.
   */
  async other(freshMs: number): Promise<OtherKv | undefined> {
    const { rows } = await this.#pool.query<{ name: string; kv_address: string; run_id: string }>(
      'SELECT name, kv_address, run_id FROM holdfast.other_kv($1, $2)',
      [this.#owner, freshMs],
    );
    const [row] = rows;
    return row === undefined ? undefined : { name: row.name, address: row.kv_address, runId: row.run_id };
  }

  /** The server that a leader compared last; `undefined` where none ever was. Rejects with Postgres's errors. */
  async lastCompared(): Promise<LastCompared | undefined> {
    const { rows } = await this.#pool.query<{ run_id: string | null; admits_nobody: boolean }>(
      'SELECT run_id, admits_nobody FROM holdfast.kv_store',
    );
    const { run_id, admits_nobody } = rows[0]!;
    return run_id === null ? undefined : { runId: run_id, admitsNobody: admits_nobody };
  }

  /** A leader of `epoch` has compared that server. Does nothing where another one leads. Rejects with Postgres's errors. */
  async compared(epoch: number, { runId, replicationId }: KvIdentity, admitsNobody: boolean): Promise<void> {
    await this.#pool.query(
      `UPDATE holdfast.kv_store
          SET run_id = $2, replication_id = $3, admits_nobody = $4, compared_at = clock_timestamp()
        WHERE epoch = $1`,
      [epoch, runId, replicationId, admitsNobody],
    );
  }

  /** This sidecar ends; rows that killed ones left behind go along. Rejects with Postgres's errors. */
  async leave(): Promise<void> {
    await this.#pool.query(
      `DELETE FROM holdfast.sidecar WHERE owner = $1 OR seen_at < clock_timestamp() - interval '1 day'`,
      [this.#owner],
    );
  }
}
