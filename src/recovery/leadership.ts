/**
 * One sidecar restores, publishes and keeps checkpoints; the others watch. Who it is, a Postgres advisory lock on a
 * session of its own decides; what an ousted leader may still do, its epoch decides: the next leader raises it, and every
 * write of a leader, in Postgres and in the KV store, is conditional on the epoch being still its own.
 *
 * A leader that is stopped keeps its session. It is given up after `STALE_MS` without a sign of life: its session is
 * ended by whoever wants to lead.
 */
import type pg from 'pg';
import type { Logger } from 'pino';
import { messageOf } from '../errors.ts';
import type { Ledger } from '../ledger/ledger.ts';
import { endSession, SESSION_ANSWER_MS } from '../ledger/postgres.ts';

const LEADER_LOCK = 0x4846_0002;
const STALE_MS = 4000;
const SIGN_OF_LIFE_MS = 500;

export class Leadership {
  readonly #ledger: Ledger;
  readonly #log: Logger;
  #session: pg.Client | undefined;
  #epoch = 0;
  #leads = false;

  constructor(ledger: Ledger, log: Logger) {
    this.#ledger = ledger;
    this.#log = log;
  }

  /** As far as this process knows. Writes prove it. */
  get leads(): boolean {
    return this.#leads;
  }

  /** The fencing epoch of this leader. */
  get epoch(): number {
    return this.#epoch;
  }

  /** Tries to lead, unless it does. Gives whether it leads. Rejects with Postgres's errors. */
  async renew(): Promise<boolean> {
    if (this.#leads) return true;
    const session = this.#session ?? (await this.#open());
    try {
      return await this.#tryToLead(session);
    } catch (thrown) {
      this.#drop(session);
      throw thrown;
    }
  }

  async #tryToLead(session: pg.Client): Promise<boolean> {
    const { rows } = await session.query<{ locked: boolean }>('SELECT pg_try_advisory_lock($1) AS locked', [
      LEADER_LOCK,
    ]);
    if (rows[0]!.locked) {
      const { rows: raised } = await session.query<{ epoch: string }>('SELECT holdfast.lead($1) AS epoch', [
        this.#ledger.name,
      ]);
      this.#epoch = Number(raised[0]!.epoch);
      this.#leads = true;
      this.#live(session);
      this.#log.info({ epoch: this.#epoch }, 'leading recovery');
      return true;
    }
    const { rows: ended } = await session.query<{ ended: boolean }>(
      `SELECT pg_terminate_backend(pid) AS ended FROM pg_locks
        WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND (classid::bigint << 32 | objid::bigint) = $1
          AND (SELECT seen_at < clock_timestamp() - $2 * interval '1 millisecond' FROM holdfast.leader)`,
      [LEADER_LOCK, STALE_MS],
    );
    if (ended.length > 0) this.#log.warn('the leading sidecar gives no sign of life, taking over');
    return false;
  }

  /** Signs of life come by the clock, on the session that holds the lock, whatever else this process does. */
  #live(session: pg.Client): void {
    let asking = false;
    const timer = setInterval(() => {
      if (asking) return;
      asking = true;
      session
        .query('UPDATE holdfast.leader SET seen_at = clock_timestamp() WHERE epoch = $1', [this.#epoch])
        .then(({ rowCount }) => (rowCount === 0 ? this.resign('another sidecar leads') : undefined))
        .catch((thrown: unknown) => {
          this.#log.debug({ err: messageOf(thrown) }, 'no sign of life could be given');
          this.#drop(session);
        })
        .finally(() => {
          asking = false;
        });
    }, SIGN_OF_LIFE_MS);
    session.once('end', () => clearInterval(timer));
  }

  async #open(): Promise<pg.Client> {
    const session = await this.#ledger.postgres.connect(SESSION_ANSWER_MS);
    session.once('end', () => this.#drop(session));
    this.#session = session;
    return session;
  }

  #drop(session: pg.Client): void {
    if (this.#session !== session) return;
    this.#session = undefined;
    if (this.#leads) this.#log.warn('lost the lead with the ledger session');
    this.#leads = false;
    void endSession(session);
  }

  /** Lets another one lead. */
  async resign(reason: string): Promise<void> {
    const session = this.#session;
    this.#session = undefined;
    if (this.#leads) this.#log.info({ reason }, 'no longer leading recovery');
    this.#leads = false;
    if (session !== undefined) await endSession(session);
  }
}
