/**
 * Publishes what was added by `holdfast.xadd()` in SQL, in the order in which the transactions committed. The leader of
 * recovery does; where two believe to lead, the note in the KV store lets one batch through (outbox-script.ts).
 *
 *   wanted? ─ no ─▶ asleep ◀──────────── nothing came for AWAKE_MS ──────────┐
 *      │ yes          │ notification, or POLL_MS                             │
 *      ▼              ▼                                                      │
 *   resume: what the note says is published ─▶ scan ─▶ add to the stream ─▶ record in the ledger, leave the outbox
 *      ▲                                         └────── every SCAN_MS while awake ◀──┘
 *      └── whenever an outcome is unknown
 *
 * Adding gives the ID, as for every XADD; recording acknowledges it. A crash in between leaves the note, from which the
 * next publisher records what was added. Entries whose stream is in trouble stay, and so do those behind them in that
 * stream; other streams go on. Delivered at least once: twice only if the note was lost (evicted) and the entries not.
 */
import { randomUUID } from 'node:crypto';
import type pg from 'pg';
import type { Logger } from 'pino';
import { Condition } from '../../async/wakeup.ts';
import type { KvAddress } from '../../control-redis.ts';
import { HoldfastError, messageOf } from '../../errors.ts';
import { bigintArray, byteaArray } from '../../ledger/encoding/binary-array.ts';
import { encodeFields } from '../../ledger/encoding/entry-fields.ts';
import { ENTRY_ID_ZERO, formatEntryId, maxEntryId, parseEntryId } from '../../ledger/encoding/entry-id.ts';
import { endSession, SESSION_ANSWER_MS } from '../../ledger/postgres.ts';
import type { Stream } from '../../ledger/stream-registry.ts';
import { KvConnection } from '../kv/connection.ts';
import { entriesAt } from '../kv/entries.ts';
import { lastGeneratedId } from '../kv/last-generated-id.ts';
import type { Recovery } from '../recovery.ts';
import { type Added, type Addition, addFromOutbox, readNote } from './outbox-script.ts';

export interface OutboxOptions {
  readonly recovery: Recovery;
  readonly kv: KvAddress;
  readonly log: Logger;
}

export interface OutboxMetrics {
  readonly publishedTotal: number;
  /** Batches of which a publisher had to find out what became of them. */
  readonly resumedTotal: number;
}

interface Row {
  readonly xid: string;
  readonly entry_number: string;
  readonly database: number;
  readonly stream: Buffer;
  readonly maxlen: string | null;
  readonly fields: string[];
}

const BATCH_ROWS = 1000;
const BATCH_BYTES = 4 * 1024 * 1024;
const COMMAND_TIMEOUT_MS = 15_000;
const SCAN_MS = 5;
const AWAKE_MS = 500;
/** For so long after a scan committing transactions need not notify; it ends well before the publisher falls asleep. */
const PROMISED_MS = 250;
const POLL_MS = 250;
const RETRY_MS = 100;
/** A stream that cannot be written to is tried again after this time. */
const BLOCKED_MS = 500;
/** How long a comparison may take before nothing is believed. */
const NOTICE_MS = 2000;
const COMPLAINT_MS = 10_000;
/** Smaller than any stream's. */
const EPOCH_OF_NONE = 0;
const CHANNEL = 'holdfast_outbox';

const NEXT = {
  name: 'holdfast-outbox-next',
  text: 'SELECT * FROM holdfast.outbox_next($1, $2, $3::integer[], $4::bytea[])',
};
const RECORD = {
  name: 'holdfast-outbox-record',
  text: `SELECT holdfast.outbox_record($1::smallint, $2, $3, $4, $5::bytea[], $6, $7::bytea[], $8::bigint[], $9::xid8[],
    $10::bigint[]) AS outcome`,
};
const REMOVE = {
  name: 'holdfast-outbox-remove',
  text: 'SELECT holdfast.outbox_remove($1::xid8[], $2::bigint[])',
};
const PROMISE = {
  name: 'holdfast-outbox-promise',
  text: `SELECT setval('holdfast.outbox_awake_until', (extract(epoch FROM clock_timestamp()) * 1000)::bigint + $1)`,
};

export class OutboxPublisher {
  readonly #options: OutboxOptions;
  readonly #slot = Math.floor(Math.random() * 64);
  readonly #woken = new Condition();
  /** Streams that wait, by database and name, until this time. */
  readonly #blocked = new Map<string, { readonly database: number; readonly stream: Buffer; readonly until: number }>();
  #running: Promise<void> | undefined;
  #stopped = false;
  #connection: KvConnection | undefined;
  /** Of recovery when the connection was opened. */
  #era = -1;
  #session: pg.Client | undefined;
  #notified = false;
  /** The token of the note; `undefined` while it is not known what the KV store has. */
  #token: string | undefined;
  #promisedUntil = 0;
  #busyAt = 0;
  #complained = '';
  #complainedAt = 0;
  #published = 0;
  #resumed = 0;

  constructor(options: OutboxOptions) {
    this.#options = options;
  }

  metrics(): OutboxMetrics {
    return { publishedTotal: this.#published, resumedTotal: this.#resumed };
  }

  start(): void {
    this.#running = this.#run();
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    this.#woken.wake();
    await this.#running;
    await this.#rest();
  }

  get #wanted(): boolean {
    const { leads, gate } = this.#options.recovery;
    return leads && gate.state === 'open';
  }

  async #run(): Promise<void> {
    while (!this.#stopped) {
      if (!this.#wanted) {
        await this.#rest();
        await this.#woken.changed(POLL_MS);
        continue;
      }
      try {
        await this.#listen();
        if (await this.#publishSome()) this.#busyAt = performance.now();
        else await this.#pause();
      } catch (thrown) {
        this.#failed(thrown);
        await this.#woken.changed(RETRY_MS);
      }
    }
  }

  /** Where nothing waits: a moment while awake, then until somebody wakes it. */
  async #pause(): Promise<void> {
    const now = performance.now();
    if (now - this.#busyAt < AWAKE_MS || now < this.#promisedUntil) {
      await this.#woken.changed(SCAN_MS);
      return;
    }
    if (!this.#notified) await this.#woken.changed(POLL_MS);
    this.#notified = false;
  }

  /** Another one publishes, or nobody can. */
  async #rest(): Promise<void> {
    this.#token = undefined;
    this.#connection?.close();
    this.#connection = undefined;
    const session = this.#session;
    this.#session = undefined;
    if (session !== undefined) await endSession(session);
  }

  #failed(thrown: unknown): void {
    // What became of a batch is known only by looking.
    this.#token = undefined;
    this.#connection?.close();
    this.#connection = undefined;
    const passing = this.#options.recovery.ledger.postgres.failed(thrown);
    if (passing || (thrown instanceof HoldfastError && thrown.code === 'KVDOWN')) {
      this.#options.log.debug({ err: messageOf(thrown) }, 'the outbox waits');
    } else {
      this.#complain('the outbox could not be published, it is tried again', messageOf(thrown));
    }
  }

  /** What is tried again and again is said now and then. */
  #complain(text: string, reason: string): void {
    const now = performance.now();
    if (this.#complained === reason && now - this.#complainedAt < COMPLAINT_MS) return;
    this.#complained = reason;
    this.#complainedAt = now;
    this.#options.log.error({ reason }, text);
  }

  async #listen(): Promise<void> {
    if (this.#session !== undefined) return;
    const session = await this.#options.recovery.ledger.postgres.connect(SESSION_ANSWER_MS);
    session.once('end', () => {
      if (this.#session === session) this.#session = undefined;
    });
    session.on('notification', () => {
      this.#notified = true;
      this.#woken.wake();
    });
    try {
      await session.query(`LISTEN ${CHANNEL}`);
    } catch (thrown) {
      await endSession(session);
      throw thrown;
    }
    this.#session = session;
  }

  async #connect(): Promise<KvConnection> {
    const { recovery, kv } = this.#options;
    if (this.#connection?.open === true && this.#era === recovery.era) return this.#connection;
    this.#connection?.close();
    this.#token = undefined;
    this.#era = recovery.era;
    this.#connection = await KvConnection.open(kv, COMMAND_TIMEOUT_MS, 'outbox');
    return this.#connection;
  }

  /** Gives whether there was something that could be published. */
  async #publishSome(): Promise<boolean> {
    const { pool } = this.#options.recovery.ledger;
    const connection = await this.#connect();
    if (this.#token === undefined) await this.#resume(connection);
    const now = performance.now();
    for (const [key, { until }] of this.#blocked) if (until <= now) this.#blocked.delete(key);
    const blocked = [...this.#blocked.values()];
    if (now - this.#busyAt < AWAKE_MS && this.#promisedUntil - now < PROMISED_MS / 2) {
      await pool.query({ ...PROMISE, values: [PROMISED_MS] });
      this.#promisedUntil = now + PROMISED_MS;
    }
    const { rows } = await pool.query<Row>({
      ...NEXT,
      values: [
        BATCH_ROWS,
        BATCH_BYTES,
        blocked.map(({ database }) => database),
        byteaArray(blocked.map(({ stream }) => stream)),
      ],
    });
    for (const batch of byStream(rows)) {
      if (!this.#wanted || this.#stopped || this.#token === undefined) return true;
      await this.#publish(connection, batch);
    }
    return rows.length > 0;
  }

  async #publish(connection: KvConnection, rows: readonly Row[]): Promise<void> {
    const { recovery } = this.#options;
    const { database, stream: name } = rows[0]!;
    const stream = recovery.ledgered(name) ? await recovery.ledger.streams.resolve(database, name) : undefined;
    if (stream !== undefined && !recovery.gate.isWhole(stream)) return this.#block(rows[0]!);
    const epoch = stream?.epoch ?? 0;
    const token = randomUUID();
    const added = await this.#add(connection, {
      database,
      stream: name,
      after: this.#token!,
      token,
      rows: rows.map(({ xid, entry_number: number }) => `${xid}.${number}`),
      lastId: stream === undefined || stream.lastId.equals(ENTRY_ID_ZERO) ? '' : formatEntryId(stream.lastId),
      present: stream?.present ?? false,
      entries: rows,
    });
    if (added === 'refused') return this.#block(rows[0]!);
    if (added === 'noted') {
      this.#token = undefined;
      return;
    }
    if (added === 'lost') {
      this.#block(rows[0]!);
      await recovery.noticed('the outbox found a stream that is behind what the ledger knows', NOTICE_MS);
      return;
    }
    if (added === 'type') {
      this.#complain(
        'entries of the outbox wait: their key is no stream',
        `${name.toString()} in database ${database}`,
      );
      return this.#block(rows[0]!);
    }
    this.#token = token;
    const ids = added.ids.map((id) => parseEntryId(Buffer.from(id))!);
    if (stream === undefined) await this.#remove(rows);
    else await this.#record(connection, stream, epoch, rows, ids, false);
    this.#published += rows.length;
  }

  /** `refused`: by the server, as for a database that it does not have. Other streams go on. */
  async #add(connection: KvConnection, addition: Addition): Promise<Added | 'refused'> {
    try {
      return await addFromOutbox(connection, addition);
    } catch (thrown) {
      if (!(thrown instanceof Error) || thrown.name !== 'ReplyError') throw thrown;
      const place = `${addition.stream.toString()} in database ${addition.database}`;
      this.#complain('entries of the outbox wait: the KV store refuses them', `${place}: ${thrown.message}`);
      return 'refused';
    }
  }

  /**
   * What the note says was added, by whoever it was, and is still in the outbox. What is not in the stream any more leaves the
   * outbox only where the ledger knows why; else it was lost, and is added again.
   */
  async #resume(connection: KvConnection): Promise<void> {
    const { recovery } = this.#options;
    const note = await readNote(connection);
    if (note === undefined) {
      this.#token = '';
      return;
    }
    const rows = await this.#stillWaiting(note.rows);
    if (rows.length > 0) {
      this.#resumed += 1;
      const idOf = new Map(note.rows.map((row, at) => [row, parseEntryId(Buffer.from(note.ids[at]!))!]));
      const idsOf = (some: readonly Row[]): Buffer[] => some.map((row) => idOf.get(`${row.xid}.${row.entry_number}`)!);
      const last = await lastGeneratedId(connection, note.database, note.stream);
      const added = rows.filter((row) => idsOf([row])[0]!.compare(last) <= 0);
      if (added.length > 0 && !recovery.ledgered(note.stream)) await this.#remove(added);
      else if (added.length > 0) {
        const stream = await recovery.ledger.streams.resolve(note.database, note.stream);
        // Where it is in trouble they are late commits, whatever the epoch was under which they were added.
        const epoch = recovery.gate.isWhole(stream) ? stream.epoch : EPOCH_OF_NONE;
        const there = await entriesAt(connection, stream, idsOf(added));
        const present = added.filter((row) => there.has(idsOf([row])[0]!.toString('latin1')));
        if (present.length > 0) await this.#record(connection, stream, epoch, present, idsOf(present), true);
        const gone = added.filter((row) => !present.includes(row));
        const known = await this.#knownGone(stream, idsOf(gone));
        await this.#remove(gone.filter((row) => known.has(idsOf([row])[0]!.toString('latin1'))));
      }
    }
    this.#token = note.token;
  }

  /**
   * IDs, as latin1, that the ledger has as entries, or that clients deleted. That of a trimmed one may as well be that of a lost one, in
   * a stream that was made anew: it is added again.
   */
  async #knownGone({ streamId }: Stream, ids: readonly Buffer[]): Promise<ReadonlySet<string>> {
    if (ids.length === 0) return new Set();
    const { rows } = await this.#options.recovery.ledger.pool.query<{ id: Buffer }>(
      `SELECT given.id FROM unnest($2::bytea[]) AS given (id)
        WHERE EXISTS (SELECT FROM holdfast.entry WHERE entry.stream_id = $1 AND entry.id = given.id)
           OR EXISTS (SELECT FROM holdfast.deletion WHERE deletion.stream_id = $1 AND deletion.id = given.id)`,
      [streamId, byteaArray(ids)],
    );
    return new Set(rows.map(({ id }) => id.toString('latin1')));
  }

  async #stillWaiting(rows: readonly string[]): Promise<Row[]> {
    const pairs = rows.map((row) => row.split('.') as [string, string]);
    const { rows: waiting } = await this.#options.recovery.ledger.pool.query<Row>(
      `SELECT o.xid::text, o.entry_number, o.database, o.stream, o.maxlen, o.fields
         FROM holdfast.outbox AS o JOIN unnest($1::xid8[], $2::bigint[]) AS given (xid, entry_number) USING (xid, entry_number)
        ORDER BY o.xid, o.entry_number`,
      [pairs.map(([xid]) => xid), pairs.map(([, number]) => number)],
    );
    return waiting;
  }

  async #record(
    connection: KvConnection,
    stream: Stream,
    epoch: number,
    rows: readonly Row[],
    ids: readonly Buffer[],
    checked: boolean,
  ): Promise<void> {
    const { recovery } = this.#options;
    const last = ids.reduce(maxEntryId);
    const { rows: answers } = await recovery.ledger.pool.query<{ outcome: string }>({
      ...RECORD,
      values: [
        this.#slot,
        checked || last.compare(stream.lastId) <= 0,
        stream.streamId,
        epoch,
        byteaArray(ids),
        last,
        byteaArray(rows.map(({ fields }) => encodeFields(fields.map((text) => Buffer.from(text))))),
        bigintArray(rows.map(({ maxlen }) => (maxlen === null ? undefined : Number(maxlen)))),
        rows.map(({ xid }) => xid),
        rows.map(({ entry_number: number }) => number),
      ],
    });
    const outcome = answers[0]!.outcome;
    if (outcome === 'committed') {
      stream.lastId = maxEntryId(stream.lastId, last);
      stream.present = true;
      return;
    }
    await recovery.ledger.streams.refresh(stream.streamId);
    if (outcome === 'late') return;
    if (outcome === 'ended') return this.#recordInNext(connection, stream, rows, ids);
    // The KV store forgot the entry that the ledger has under this ID.
    for (const [at, id] of ids.entries())
      await recovery.withdraw(
        stream,
        id,
        rows[at]!.fields.map((text) => Buffer.from(text)),
      );
    this.#block(rows[0]!);
    await recovery.proved(stream, epoch, 'the KV store gave an ID that the ledger has with other fields', NOTICE_MS);
  }

  /** The incarnation ended meanwhile: what went with it went by somebody's will, what is there is the next one's. */
  async #recordInNext(
    connection: KvConnection,
    ended: Stream,
    rows: readonly Row[],
    ids: readonly Buffer[],
  ): Promise<void> {
    const next = await this.#options.recovery.ledger.streams.resolve(ended.database, ended.name);
    if (next.streamId === ended.streamId) throw new HoldfastError('RECOVERING', 'the stream is about to end');
    const { epoch } = next;
    const there = await entriesAt(connection, next, ids);
    const present = rows.filter((_, at) => there.has(ids[at]!.toString('latin1')));
    if (present.length > 0) {
      await this.#record(
        connection,
        next,
        epoch,
        present,
        present.map((row) => ids[rows.indexOf(row)]!),
        true,
      );
    }
    await this.#remove(rows.filter((row) => !present.includes(row)));
  }

  async #remove(rows: readonly Row[]): Promise<void> {
    if (rows.length === 0) return;
    const values = [rows.map(({ xid }) => xid), rows.map(({ entry_number: number }) => number)];
    await this.#options.recovery.ledger.pool.query({ ...REMOVE, values });
  }

  #block({ database, stream }: Row): void {
    const until = performance.now() + BLOCKED_MS;
    this.#blocked.set(`${database}:${stream.toString('latin1')}`, { database, stream, until });
  }
}

/** In order within each stream. */
function byStream(rows: readonly Row[]): Row[][] {
  const groups = new Map<string, Row[]>();
  for (const row of rows) {
    const key = `${row.database}:${row.stream.toString('latin1')}`;
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [row]);
    else group.push(row);
  }
  return [...groups.values()];
}
