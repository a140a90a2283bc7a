/**
 * Notices that the KV store lost something, and sees to it that it comes back. One per process; the work that only one
 * may do is the leader's.
 *
 *               connection lost, other server,            look succeeded: every stream compared,
 *               a signal of loss                          those that lost are marked `restoring`
 *   open ───────────────────────────────▶ comparing ───────────────────────────────▶ open
 *                                          │     ▲
 *                             unreachable, │     │ reachable
 *                     loading, a replica   ▼     │
 *                                           down
 *
 * `open` says that what the KV store answers about a stream in mode `normal` may be believed. In any other state commands
 * on ledgered streams wait, and XADDs are accepted by the ledger while it is `down`. Each stream has its mode besides.
 *
 * A look that began before a signal does not answer it: `look()` resolves after one that began later.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from 'pino';
import { explainKvFailure, isKvAway, type KvAddress } from '../control-redis.ts';
import { HoldfastError, messageOf } from '../errors.ts';
import { encodeFields } from '../ledger/encoding/entry-fields.ts';
import { explainLedgerFailure } from '../ledger/explain-failure.ts';
import type { SentUnder } from '../ledger/intention-store.ts';
import type { Ledger, LedgerNotice } from '../ledger/ledger.ts';
import type { StreamFilter } from '../ledger/stream-filter.ts';
import type { Stream } from '../ledger/stream-registry.ts';
import { type Compared, compareStreams, UnreadStreams } from './detect/compare-streams.ts';
import { Discovery } from './detect/discover.ts';
import { learnProgress, outdatedStreams, readKnownStreams } from './detect/known-streams.ts';
import { ReadingOrder } from './detect/reading-order.ts';
import { compare, type KnownStream } from './detect/verdict.ts';
import { KvConnection } from './kv/connection.ts';
import { presentEntries } from './kv/entries.ts';
import { placeWitness, readWitness, refuseForeignWitness } from './kv/epoch-key.ts';
import { withdrawEntry } from './kv/remove-entry.ts';
import { parseServerIdentity, readSnapshot, type ServerIdentity, type StreamState } from './kv/snapshot.ts';
import { Leadership } from './leadership.ts';
import { Acknowledgements } from './reconcile/acknowledgements.ts';
import { saveCheckpoints } from './reconcile/checkpoint.ts';
import { PendingPages } from './reconcile/pending-pages.ts';
import { applyAcknowledgements } from './reconcile/reapply-acknowledgements.ts';
import { Reconciler } from './reconcile/reconciler.ts';
import { Publications } from './restore/publications.ts';
import { Mending } from './restore/repair-loop.ts';
import { ClientChanges } from './settle/client-changes.ts';
import { expireStream } from './settle/end-streams.ts';
import { ScriptRuns } from './settle/script-runs.ts';
import { type KvState, StreamGate } from './stream-gate.ts';

export interface RecoveryOptions {
  readonly ledger: Ledger;
  readonly kv: KvAddress;
  /** Which streams are ledgered. */
  readonly ledgered: StreamFilter;
  /** Closes the data plane's connections to any server but that of `runId`, or all of them. */
  readonly closeLanes?: (runId: string | undefined, cause: HoldfastError) => void;
  /** Whether the KV store lets in clients that do not log in, as far as known. */
  readonly admitsNobody?: () => boolean;
  /** Every how many milliseconds everything is compared and checkpoints are saved. */
  readonly lookIntervalMs?: number;
  readonly log: Logger;
}

export interface RecoveryStatus {
  readonly state: KvState;
  readonly stateSince: number;
  readonly leads: boolean;
  readonly leaderEpoch: number;
  readonly runId: string;
  readonly streams: number;
  readonly troubled: readonly {
    readonly stream: string;
    readonly database: number;
    readonly mode: string;
    readonly cause: string;
  }[];
  /** `troubled` has the first of them. */
  readonly troubledTotal: number;
  /** Of them those that could not be restored, published or read at the last attempt. */
  readonly failing: number;
  readonly failuresTotal: number;
  readonly looksTotal: number;
  readonly lossesTotal: number;
  readonly restoresTotal: number;
  readonly entriesRestoredTotal: number;
  readonly aliasesTotal: number;
  readonly possibleDuplicatesTotal: number;
  /** Entries taken in that had not passed through Holdfast. */
  readonly observedTotal: number;
  readonly lastLookMs: number;
  readonly lastRestoreMs: number;
  readonly lastError: string | undefined;
}

const COMMAND_TIMEOUT_MS = 1500;
/** Code of a failure to read some streams from a KV store that is not down. */
const UNREAD = 'UNREAD';
const RETRY_MS = 50;
const LOOK_INTERVAL_MS_MAX = 5_000;
const HANGING_MS_MAX = 10_000;
const LEAD_WITHOUT_KV_MS = 2_000;
/** Of each look: some 100,000 keys, and a twentieth of the KV store's time. */
const DISCOVERY_MS = 50;
const FIRST_DISCOVERY_MS_MAX = 1_000;
/** Sidecars take note of their KV store at every look; looks are at most `LOOK_INTERVAL_MS_MAX` apart. */
const SIGN_OF_LIFE_MS_MAX = LOOK_INTERVAL_MS_MAX + 1_000;
const OTHER_KV_POLL_MS = 250;
const OTHER_KV_MS_MAX = SIGN_OF_LIFE_MS_MAX + 2_000;

export class Recovery {
  readonly ledgered: StreamFilter;
  readonly ledger: Ledger;
  readonly gate = new StreamGate();
  readonly publications: Publications;
  /** What clients did on purpose, to be taken in. */
  readonly changes: ClientChanges;
  readonly acknowledgements: Acknowledgements;
  /** Scripts on their way. */
  readonly scripts: ScriptRuns;
  readonly #address: KvAddress;
  readonly #lookIntervalMs: number;
  readonly #closeLanes: RecoveryOptions['closeLanes'];
  readonly #admitsNobody: () => boolean;
  readonly #log: Logger;
  readonly #leadership: Leadership;
  readonly #reconciler = new Reconciler();
  readonly #pendingPages = new PendingPages();
  readonly #discovery: Discovery;
  readonly #order = new ReadingOrder();
  readonly #mending: Mending;
  #discovered = false;

  #gaveUpHanging = false;
  /** The KV store may have pending what is recorded as acknowledged. */
  #applyAcknowledgements = true;
  /** Something contradicts the last look: the next one reads all there is. */
  #doubted = false;
  /** Counts the events after which an earlier look proves nothing. */
  #era = 0;
  #identity: ServerIdentity | undefined;
  #connection: KvConnection | undefined;
  #connecting: Promise<KvConnection> | undefined;
  #looking: Promise<void> | undefined;
  #lookAgain: Promise<void> | undefined;
  #tick: NodeJS.Timeout | undefined;
  #guard: NodeJS.Timeout | undefined;
  /** `performance.now()` when the KV store was asked last what it is. */
  #identifiedAt = 0;
  #retry: NodeJS.Timeout | undefined;
  #started = false;
  /** Streams that this look found to have lost something, and could not mark. */
  #unmarked = new Set<number>();
  #stopped = false;
  /** By stream ID. */
  readonly #enteringOutage = new Map<number, Promise<boolean>>();
  readonly #unsubscribe: (() => void)[] = [];

  #looks = 0;
  #losses = 0;
  #lastLookMs = 0;
  #lastError: string | undefined;
  /** What the ledger was told last of the KV store that was compared. */
  #noted = '';

  constructor(options: RecoveryOptions) {
    this.ledger = options.ledger;
    this.ledgered = options.ledgered;
    this.publications = new Publications(options.ledger);
    this.#address = options.kv;
    this.#lookIntervalMs = options.lookIntervalMs ?? 1000;
    this.#closeLanes = options.closeLanes;
    this.#admitsNobody = options.admitsNobody ?? (() => false);
    this.#log = options.log;
    this.#leadership = new Leadership(options.ledger, options.log);
    this.#discovery = new Discovery(options.ledger, options.ledgered);
    const connect = () => this.#connect();
    this.changes = new ClientChanges(options.ledger, connect, options.log);
    this.scripts = new ScriptRuns(options.ledger, connect, this.changes, options.log);
    this.acknowledgements = new Acknowledgements(options.ledger, connect, options.log);
    this.#mending = new Mending({
      ledger: options.ledger,
      address: options.kv,
      log: options.log,
      wanted: () => this.#leadership.leads && this.gate.state === 'open' && !this.#stopped,
      leaderEpoch: () => this.#leadership.epoch,
      connect,
      failed: (text) => {
        this.#lastError = text;
      },
      kvLost: () => this.upstreamLost(),
    });
  }

  /** Whether this process does what only one may do, as far as it knows. */
  get leads(): boolean {
    return this.#leadership.leads;
  }

  /** Of the server that was compared last; empty before. */
  get runId(): string {
    return this.#identity?.runId ?? '';
  }

  /** A script may have made streams of these keys: they are looked at first. */
  suspectStream(database: number, name: string): void {
    this.#discovery.suspect(database, name);
  }

  /** Changes whenever the KV store may have become another one: compare what was read at two moments. */
  get era(): number {
    return this.#era;
  }

  /**
   * The first comparison. Rejects with CONFIG where the KV store cannot be reached and the ledger has never known one, or where it belongs to
   * another ledger, or this ledger to another KV store.
   */
  async start(): Promise<void> {
    this.#unsubscribe.push(
      this.ledger.streams.onChange(() => this.gate.wake()),
      this.ledger.onNotice((notice) => this.#heard(notice)),
    );
    this.#started = true;
    try {
      await this.#firstLook();
    } catch (thrown) {
      if (!(await this.#mayStartWithout(thrown))) {
        await this.stop();
        throw this.#startFailure(thrown);
      }
      this.#lookFailed(thrown);
    }
    this.#mending.work();
    this.#schedule();
    this.#guard = setInterval(() => void this.#identify(), this.#lookIntervalMs);
  }

  /** Again where a stream could not be read, which is left out then. */
  async #firstLook(): Promise<void> {
    for (;;) {
      try {
        return await this.#lookOnce();
      } catch (thrown) {
        if (!(thrown instanceof HoldfastError) || thrown.code !== UNREAD) throw thrown;
        this.#log.error({ err: thrown }, 'a stream of the KV store could not be compared with the ledger');
      }
    }
  }

  /** A KV store that is away takes nothing from a ledger that knows it: this sidecar starts in an outage. */
  async #mayStartWithout(thrown: unknown): Promise<boolean> {
    if (!(thrown instanceof HoldfastError) || thrown.code !== 'KVDOWN' || !isKvAway(thrown.cause ?? thrown))
      return false;
    const last = await this.ledger.kv.lastCompared();
    if (last === undefined) return false;
    this.#log.warn({ reason: thrown.message }, 'starting without the KV store, the ledger accepts entries alone');
    return true;
  }

  #startFailure(thrown: unknown): HoldfastError {
    if (thrown instanceof HoldfastError) {
      const text = thrown.code === 'KVDOWN' ? `kv.url: ${thrown.message}` : thrown.message;
      return new HoldfastError('CONFIG', text, { cause: thrown });
    }
    const ofKv = thrown instanceof Error && thrown.name === 'ReplyError';
    const text = ofKv ? `kv.url: ${explainKvFailure(this.#address, thrown)}` : explainLedgerFailure(thrown);
    return new HoldfastError('CONFIG', text, { cause: thrown });
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#tick);
    clearTimeout(this.#retry);
    clearInterval(this.#guard);
    for (const unsubscribe of this.#unsubscribe) unsubscribe();
    this.gate.stop();
    this.publications.stop();
    await this.#looking?.catch(() => undefined);
    await this.#mending.ended();
    await this.#leadership.resign('stopping');
    this.#connection?.close();
  }

  status(): RecoveryStatus {
    const { restores, entriesRestored, aliases, observed, possibleDuplicates, lastRestoreMs } = this.#mending.totals;
    const troubled = [...this.ledger.streams.all()].filter((stream) => stream.mode !== 'normal');
    const { failing } = this.#mending;
    const unread = [...this.#order.unanswered].flatMap((streamId) => this.ledger.streams.byId(streamId) ?? []);
    return {
      state: this.gate.state,
      stateSince: this.gate.stateSince,
      leads: this.#leadership.leads,
      leaderEpoch: this.#leadership.epoch,
      runId: this.#identity?.runId ?? '',
      streams: this.ledger.streams.size,
      troubled: [
        ...troubled.map((stream) => ({ stream, cause: causeOf(stream, failing.get(stream.streamId)) })),
        ...unread.map((stream) => ({ stream, cause: 'the KV store does not answer when it is read' })),
      ]
        .slice(0, 100)
        .map(({ stream: { name, database, mode }, cause }) => ({ stream: name.toString(), database, mode, cause })),
      troubledTotal: troubled.length + unread.length,
      failing: failing.size + unread.length,
      failuresTotal: this.#mending.totals.failures,
      looksTotal: this.#looks,
      lossesTotal: this.#losses,
      restoresTotal: restores,
      entriesRestoredTotal: entriesRestored,
      aliasesTotal: aliases,
      possibleDuplicatesTotal: possibleDuplicates,
      observedTotal: this.#reconciler.observedTotal + observed,
      lastLookMs: this.#lastLookMs,
      lastRestoreMs,
      lastError: this.#lastError,
    };
  }

  /**
   * A connection of the data plane did its handshake. Resolves, soon, when a comparison of that server has been made or
   * has failed; ledgered commands hold by themselves meanwhile.
   */
  async upstreamConnected(facts: { readonly runId: string }): Promise<void> {
    if (this.gate.state === 'open' && (facts.runId === '' || facts.runId === this.#identity?.runId)) return;
    // Our own connection may still be to the server of before.
    if (facts.runId !== '' && facts.runId !== this.#identity?.runId) this.#dropConnection();
    this.#suspect();
    await this.look();
  }

  /** A connection of the data plane broke. */
  upstreamLost(): void {
    this.#suspect();
    this.#lookSoon();
  }

  /** Looks, in a look that begins after this call. Resolves when it ended, whether it succeeded or not. */
  look(): Promise<void> {
    if (this.#stopped || !this.#started) return Promise.resolve();
    if (this.#looking === undefined) {
      this.#looking = this.#lookOnce()
        .catch((thrown: unknown) => this.#lookFailed(thrown))
        .finally(() => {
          this.#looking = undefined;
        });
      return this.#looking;
    }
    this.#lookAgain ??= this.#looking.then(() => {
      this.#lookAgain = undefined;
      return this.look();
    });
    return this.#lookAgain;
  }

  /**
   * Something a client was told, or nearly was, cannot be if nothing was lost. Compares at once; where that fails, or has not
   * ended within `limitMs`, as while the ledger does not answer, nothing is believed until it succeeds.
   */
  async noticed(cause: string, limitMs: number): Promise<void> {
    this.#log.warn({ cause }, 'signs of a loss in the KV store');
    const looks = this.#looks;
    this.#doubted = true;
    const ended = await endsWithin(this.look(), limitMs);
    if (!ended || this.#looks === looks) this.#suspect();
  }

  /**
   * What the KV store has said of this stream under `epoch` proves that it has lost something: compares at once, as `noticed` does,
   * and has it restored even where nothing else shows the loss, as when it was made up for in number. Rejects with Postgres's errors.
   */
  async proved(stream: Stream, epoch: number, cause: string, limitMs: number): Promise<void> {
    await this.noticed(cause, limitMs);
    if (stream.ended || stream.epoch !== epoch || !this.gate.isOpen(stream)) return;
    const { rows } = await this.ledger.pool.query<{ now: Date }>('SELECT clock_timestamp() AS now');
    await this.#lost({ ...stream, epoch }, cause, rows[0]!.now);
    this.#shutUnmarked();
  }

  /**
   * Makes the outage of a stream a fact for all sidecars, unless it is in trouble already. Those who come together go on in the order
   * in which they came, which is that of a client's XADDs. Rejects with Postgres's errors.
   */
  async enterOutage(stream: Stream, cause: string): Promise<void> {
    if (stream.mode !== 'normal' || stream.ended) return;
    const { streamId } = stream;
    let entering = this.#enteringOutage.get(streamId);
    if (entering === undefined) {
      entering = this.#raise(streamId, stream.epoch, 'outage', cause).finally(() =>
        this.#enteringOutage.delete(streamId),
      );
      this.#enteringOutage.set(streamId, entering);
    }
    await entering;
  }

  /** The server that was compared last: a command that is sent now is, as far as known, sent to it. */
  get sentUnder(): SentUnder {
    return { runId: this.#identity?.runId ?? '', replicationId: this.#identity?.replicationId ?? '' };
  }

  /** Whether nothing has the stream's name in the KV store. Rejects with KVDOWN. */
  async isMissing({ database, name }: Stream): Promise<boolean> {
    return (await (await this.#connect()).command(database, ['EXISTS', name])) === 0;
  }

  /** Whether the KV store has this very entry now. Rejects with KVDOWN. */
  async hasEntry(stream: Stream, id: Buffer, args: readonly Buffer[], firstField: number): Promise<boolean> {
    const connection = await this.#connect();
    const found = await presentEntries(connection, stream, [id]);
    return found.get(id.toString('latin1'))?.equals(encodeFields(args, firstField)) === true;
  }

  /** Takes this very entry out of the KV store again. Rejects with KVDOWN. */
  async withdraw(stream: Stream, id: Buffer, fields: readonly Buffer[]): Promise<void> {
    await withdrawEntry(await this.#connect(), stream, id, fields);
  }

  #heard(notice: LedgerNotice): void {
    if (this.#stopped) return;
    if (notice.kind === 'look') this.#lookSoon();
    if (notice.kind === 'backlog' || notice.kind === 'stream') this.#mending.work();
    this.gate.wake();
  }

  #become(state: KvState): void {
    const before = this.gate.state;
    if (!this.gate.become(state)) return;
    if (state !== 'open') this.#applyAcknowledgements = true;
    if (state === 'down') this.#log.warn('the KV store is down, the ledger accepts entries alone');
    if (before === 'down' && state === 'open') this.#log.warn('the KV store is up');
    this.#gaveUpHanging = false;
  }

  /** What was compared may not hold any more. A KV store that is down stays so until a look succeeds. */
  #suspect(): void {
    this.#era += 1;
    if (this.gate.state === 'open') this.#become('comparing');
  }

  #dropConnection(): void {
    this.#connection?.close();
    this.#connection = undefined;
  }

  #lookSoon(): void {
    this.look().catch((thrown: unknown) => this.#log.error({ err: thrown }, 'look failed unexpectedly'));
  }

  #schedule(): void {
    if (this.#stopped) return;
    clearTimeout(this.#tick);
    // With very many streams a look is work for the KV store: not more than a quarter of its time.
    const waitMs = Math.max(this.#lookIntervalMs, Math.min(this.#lastLookMs * 3, LOOK_INTERVAL_MS_MAX));
    this.#tick = setTimeout(() => {
      this.look()
        .then(() => this.#schedule())
        .catch((thrown: unknown) => this.#log.error({ err: thrown }, 'look failed unexpectedly'));
    }, waitMs);
  }

  /**
   * A look may wait for Postgres for long, and a KV store that becomes another one by REPLICAOF closes no connection: what it is
   * is asked meanwhile.
   */
  async #identify(): Promise<void> {
    const waits = this.#looking !== undefined && performance.now() - this.#identifiedAt >= this.#lookIntervalMs;
    const connection = this.#connection;
    const before = this.#identity;
    if (!waits || this.gate.state !== 'open' || connection?.open !== true || before === undefined) return;
    this.#identifiedAt = performance.now();
    try {
      const now = parseServerIdentity(String(await connection.command(0, ['INFO'])));
      if (before === this.#identity && (now.role !== 'master' || now.loading || isOther(before, now))) this.#suspect();
    } catch {
      // Of one that was given up meanwhile nothing follows.
      if (connection === this.#connection) this.#suspect();
    }
  }

  #lookFailed(thrown: unknown): void {
    this.#lastError = messageOf(thrown);
    this.#doubted = true;
    const ofLedger = !(thrown instanceof HoldfastError) && this.ledger.postgres.failed(thrown);
    if (!ofLedger) {
      this.#dropConnection();
      if (thrown instanceof HoldfastError && thrown.code === 'KVDOWN') {
        this.#era += 1;
        this.#become('down');
        this.#giveUpHanging(thrown);
        if (Date.now() - this.gate.stateSince > LEAD_WITHOUT_KV_MS) this.#resign();
      } else this.#log.error({ err: thrown }, 'the KV store could not be compared with the ledger');
    }
    this.#lookAgainSoon();
  }

  #lookAgainSoon(): void {
    if (this.#stopped || this.#retry !== undefined) return;
    this.#retry = setTimeout(() => {
      this.#retry = undefined;
      this.#lookSoon();
    }, RETRY_MS);
  }

  /** Another sidecar may still reach the KV store. */
  #resign(): void {
    if (!this.#leadership.leads) return;
    this.#leadership
      .resign('the KV store is out of reach')
      .catch((thrown: unknown) => this.#log.debug({ err: messageOf(thrown) }, 'resigning'));
  }

  /** A server that is there and does not answer keeps what is in flight: not for ever. */
  #giveUpHanging(cause: HoldfastError): void {
    if (this.#gaveUpHanging || Date.now() - this.gate.stateSince < HANGING_MS_MAX) return;
    this.#gaveUpHanging = true;
    this.#closeLanes?.(undefined, cause);
  }

  /** One connection for all who ask at once: of two nobody would ever close the first. Rejects with KVDOWN. */
  #connect(): Promise<KvConnection> {
    if (this.#connection?.open === true) return Promise.resolve(this.#connection);
    this.#connecting ??= this.#open().finally(() => {
      this.#connecting = undefined;
    });
    return this.#connecting;
  }

  async #open(): Promise<KvConnection> {
    const connection = await KvConnection.open(this.#address, COMMAND_TIMEOUT_MS);
    if (this.#stopped) {
      connection.close();
      throw new HoldfastError('KVDOWN', 'Holdfast is stopping');
    }
    this.#connection = connection;
    connection.onClose(() => {
      if (this.#connection !== connection || this.#stopped) return;
      this.#connection = undefined;
      this.#suspect();
      this.#lookSoon();
    });
    return connection;
  }

  async #lookOnce(): Promise<void> {
    const started = performance.now();
    let era = this.#era;
    const connection = await this.#connect();
    this.#identifiedAt = performance.now();
    const identity = parseServerIdentity(String(await connection.command(0, ['INFO'])));
    if (identity.loading) throw new HoldfastError('KVDOWN', 'the KV store is loading');
    if (identity.role !== 'master') throw new HoldfastError('KVDOWN', 'the KV store is a replica');
    if (this.#identity === undefined) await this.#refuseAnotherKv(identity);
    // Who cannot reach the KV store does not lead.
    const leads = await this.#leadership.renew();
    const before = this.#identity;
    if (before !== undefined && isOther(before, identity)) {
      // Replies to come may be of another data set than what was compared last.
      this.#suspect();
      era = this.#era;
    }
    refuseForeignWitness(await readWitness(connection), this.ledger.identity, before === undefined);

    const lookedAt = await this.ledger.kv.note(placeOf(this.#address), identity);
    const known = await readKnownStreams(this.ledger.pool, undefined);
    // Notices make it sooner; that nothing is missed for long does not depend on them.
    await Promise.all(outdatedStreams(this.ledger.streams, known).map((id) => this.ledger.streams.refresh(id)));
    learnProgress(this.ledger.streams, known);
    const isAnother = before === undefined || isOther(before, identity);
    this.#unmarked = new Set();
    const lost = (stream: KnownStream, cause: string) => this.#lostUnlessWilled(stream, cause, lookedAt);
    const unjudged = ({ streamId }: KnownStream) => void this.#unmarked.add(streamId);
    const expired = (stream: KnownStream) => expireStream(this.ledger, connection, stream);
    const whole = this.#doubted || isAnother || this.gate.state !== 'open';
    this.#doubted = false;
    this.#order.begin(`${identity.runId} ${identity.replicationId}`);
    const compared = await compareStreams(
      { ledger: this.ledger, connection, identity, isAnother, order: this.#order, whole, lost, unjudged, expired },
      known,
    ).catch(async (thrown: unknown) => {
      if (thrown instanceof UnreadStreams) await this.#judgeUnread(thrown, identity);
      throw thrown;
    });
    if (leads) await this.#keep(connection, lookedAt, compared);
    await this.#discovery.lookAtSuspects(connection);
    this.#looks += 1;
    this.#lastLookMs = Math.round(performance.now() - started);
    this.#identity = identity;
    if (leads) await this.#noteCompared(identity);
    if (before !== undefined && before.runId !== identity.runId) {
      this.#closeLanes?.(identity.runId, new HoldfastError('KVDOWN', 'another server is the KV store now'));
    }
    await this.acknowledgements.payOwed(connection);
    if (this.#era !== era) {
      this.#lookSoon();
      return;
    }
    if (this.gate.state !== 'open') this.#lastError = undefined;
    this.#shutUnmarked();
    this.#become('open');
    this.#mending.work();
  }

  /**
   * The ledger of a KV store that other sidecars compare is not the ledger of this one. Waits a little: after a restart of the KV store,
   * or a failover, the others' rows still name the server of before. Rejects with CONFIG.
   */
  async #refuseAnotherKv(identity: ServerIdentity): Promise<void> {
    const { kv } = this.ledger;
    const until = performance.now() + OTHER_KV_MS_MAX;
    for (;;) {
      await kv.note(placeOf(this.#address), identity);
      const other = await kv.other(SIGN_OF_LIFE_MS_MAX);
      if (other === undefined) return;
      if (performance.now() > until || this.#stopped) {
        throw new HoldfastError(
          'CONFIG',
          `kv.url: ${placeOf(this.#address)} is not the KV store of this ledger: the sidecar ${other.name} serves ${other.address} with it ` +
            '(another run_id and replication ID); give this sidecar a ledger.database of its own, or stop the others first',
        );
      }
      await sleep(OTHER_KV_POLL_MS);
    }
  }

  /** Rejects with another error than KVDOWN where the server that did not answer gives other answers: it is not down. */
  async #judgeUnread(unread: UnreadStreams, identity: ServerIdentity): Promise<void> {
    if (unread.streams.length === 0) return;
    this.#dropConnection();
    const connection = await this.#connect();
    const now = parseServerIdentity(String(await connection.command(0, ['INFO'])));
    if (isOther(identity, now)) return;
    const pauseMs = this.#order.unread(unread.streams.map(({ streamId }) => streamId));
    const [first] = unread.streams;
    const text =
      first === undefined || pauseMs === undefined
        ? 'the KV store did not answer when streams were read, they are read one by one'
        : `the KV store does not answer when the stream ${first.name.toString()} is read; it is not compared for ${pauseMs / 1000} s`;
    throw new HoldfastError(UNREAD, text, { cause: unread });
  }

  /** What the leader does with a good look. */
  async #keep(connection: KvConnection, lookedAt: Date, { looked, deferred }: Compared): Promise<void> {
    const { ledger } = this;
    const leaderEpoch = this.#leadership.epoch;
    await placeWitness(ledger, connection, leaderEpoch);
    if (this.#applyAcknowledgements) {
      const applied = await applyAcknowledgements(ledger, connection, looked);
      if (applied > 0) this.#log.info({ applied }, 'acknowledgements that the KV store did not know were made again');
      this.#applyAcknowledgements = false;
    }
    await saveCheckpoints(ledger.pool, leaderEpoch, lookedAt, looked);
    await this.#pendingPages.record(ledger, connection, leaderEpoch, lookedAt, looked);
    await this.#reconciler.reconcile(
      {
        ledger,
        connection,
        leaderEpoch,
        log: this.#log,
        lost: async ({ known }, cause) => {
          await this.#lostUnlessWilled(known, cause, lookedAt);
        },
      },
      looked,
      deferred,
    );
    // The first time all at once: what is there must be known before it can be missed.
    const until = Date.now() + (this.#discovered ? DISCOVERY_MS : FIRST_DISCOVERY_MS_MAX);
    let walked = await this.#discovery.step(connection);
    while (!walked && Date.now() < until) walked = await this.#discovery.step(connection);
    this.#discovered ||= walked;
  }

  async #noteCompared(identity: ServerIdentity): Promise<void> {
    const admitsNobody = this.#admitsNobody();
    const noted = `${identity.runId} ${identity.replicationId} ${admitsNobody} ${this.#leadership.epoch}`;
    if (noted === this.#noted) return;
    await this.ledger.kv.compared(this.#leadership.epoch, identity, admitsNobody);
    this.#noted = noted;
  }

  /** What a script that came through Holdfast did is no loss: those that run are waited for, then the stream is looked at again. */
  async #lostUnlessWilled(known: KnownStream, cause: string, lookedAt: Date): Promise<void> {
    if (!(await this.scripts.settled(known.streamId))) {
      await this.#lost(known, cause, lookedAt);
      return;
    }
    const { rows } = await this.ledger.pool.query<{ now: Date }>('SELECT clock_timestamp() AS now');
    const [now] = await readKnownStreams(this.ledger.pool, [known.streamId]);
    if (now === undefined || now.epoch !== known.epoch || now.ending) return;
    const { streams, nowMs } = await readSnapshot(await this.#connect(), [now]);
    const verdict = compare(now, streams[0] as StreamState, nowMs);
    if (verdict.kind === 'lost') await this.#lost(now, verdict.cause, rows[0]!.now);
  }

  /** What has lost something and is not marked must not be believed. */
  #shutUnmarked(): void {
    this.gate.shut(new Set(this.#unmarked));
    if (this.#unmarked.size > 0) this.#lookAgainSoon();
  }

  async #lost(
    known: Pick<KnownStream, 'streamId' | 'epoch' | 'name' | 'database'>,
    cause: string,
    lookedAt: Date,
  ): Promise<void> {
    if (!(await this.#raise(known.streamId, known.epoch, 'restoring', cause, lookedAt))) {
      const now = this.ledger.streams.byId(known.streamId);
      // A client's change is under way, or was within this look: looked at again soon, and closed until then.
      if (now !== undefined && !now.ended && now.epoch === known.epoch && now.mode !== 'restoring') {
        this.#unmarked.add(known.streamId);
      }
      // An outage began meanwhile, which says nothing of the loss: this look proves nothing, the next one finds it again.
      if (now !== undefined && now.epoch !== known.epoch && now.mode !== 'restoring') this.#suspect();
      return;
    }
    this.#losses += 1;
    this.#log.warn({ stream: known.name.toString(), database: known.database, cause }, 'a stream lost something');
  }

  async #raise(
    streamId: number,
    epoch: number,
    mode: 'outage' | 'restoring',
    cause: string,
    lookedAt?: Date,
  ): Promise<boolean> {
    const { rows } = await this.ledger.pool.query<{ epoch: string | null }>(
      // A time to live that a client gave it since it was looked at may have passed already.
      `SELECT holdfast.raise_epoch($1, $2, $3, $4, $5) AS epoch
        WHERE $5::timestamptz IS NULL OR NOT EXISTS (
          SELECT FROM holdfast.stream WHERE stream_id = $1 AND expires_at_ms <= 1000 * extract(epoch FROM clock_timestamp()))`,
      [streamId, epoch, mode, cause, lookedAt ?? null],
    );
    const raised = rows[0]?.epoch ?? null;
    const stream = this.ledger.streams.byId(streamId);
    if (raised === null) {
      // Another one was first: what is known here of the stream is older than that, and must not be believed any longer.
      await this.ledger.streams.refresh(streamId);
      return false;
    }
    if (stream !== undefined) this.ledger.streams.moved(stream, Number(raised), mode, cause);
    return true;
  }
}

/** For messages. */
function placeOf({ host = '127.0.0.1', port = 6379, path }: KvAddress): string {
  return path ?? `${host}:${port}`;
}

/** Why a stream is in trouble, and why it still is, where the ledger could not be told. */
function causeOf({ modeCause = '' }: Stream, failure: string | undefined): string {
  return failure === undefined || modeCause.includes(failure) ? modeCause : `${modeCause} (${failure})`;
}

/** Another process, or another data set in the same one. */
function isOther(before: ServerIdentity, now: ServerIdentity): boolean {
  return before.runId !== now.runId || before.replicationId !== now.replicationId;
}

async function endsWithin(work: Promise<void>, limitMs: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<false>((resolve) => {
    timer = setTimeout(() => resolve(false), limitMs);
  });
  const ended = await Promise.race([work.then(() => true), late]);
  clearTimeout(timer);
  return ended;
}

/** Compares for the first time, then goes on by itself until `stop()`. Rejects with CONFIG, see `Recovery.start`. */
export async function startRecovery(options: RecoveryOptions): Promise<Recovery> {
  const recovery = new Recovery(options);
  await recovery.start();
  return recovery;
}
