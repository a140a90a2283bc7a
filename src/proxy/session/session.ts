/**
 * A client's session: its input, its replies in order, and the lane it is on. What each request needs is decided in
 * dispatch.ts; a session moves bytes.
 *
 * At any time a session is on one lane, shared or dedicated, so that its requests run in order. It changes lanes only
 * when nothing is in flight.
 *
 *                       pins ≠ 0 and nothing in flight
 *   on a shared lane ───────────────────────────────────▶ on a dedicated lane
 *                    ◀───────────────────────────────────
 *                       pins = 0 and nothing in flight
 *
 * `holds` says why no further request is taken now (bits, any of them); input waits in session-input.ts, and the socket is
 * not read when that is full. Whoever sets a hold goes on with its own request first and lifts the hold then, so that order is kept.
 */
import type { Socket } from 'node:net';
import type { Logger } from 'pino';
import { HoldfastError, messageOf } from '../../errors.ts';
import type { Interceptor, SessionView } from '../../interceptor.ts';
import type { Protocol } from '../../resp/encode.ts';
import * as encode from '../../resp/encode.ts';
import type { BlockedRequest } from '../commands/blocked-request.ts';
import { countClients } from '../commands/client-list.ts';
import { runBehind } from '../commands/forward.ts';
import { judgeFirst } from '../commands/judge.ts';
import type { SubscriptionRequest } from '../commands/subscription-request.ts';
import { planFor, SessionInput } from '../input/request-reader.ts';
import { SessionOutput } from '../io/reply-buffer.ts';
import type { ReadBuffer } from '../io/socket-reader.ts';
import type { CommandPlan, CommandPlans } from '../request/command-plan.ts';
import type { ExchangeHost, ReplyMode } from '../request/pending-exchange.ts';
import type { KnownInfo } from '../upstream/known-users.ts';
import type { Lane, LaneOwner } from '../upstream/lane.ts';
import type { LaneSet } from '../upstream/lane-pool.ts';
import type { OwedReply, ReplyReceiver } from '../upstream/reply-queue.ts';
import type { Credentials } from '../upstream/upstream.ts';
import type { SessionIdentity } from './identity.ts';
import { attachDedicated, leaveDedicated, resendOn, runOnLane } from './lane-link.ts';
import { discardTransaction, Hold, LOST_TEXT, Pin, type SessionContext, type Transaction } from './session-state.ts';
import { Subscriptions } from './subscriptions.ts';
import type { Tenant } from './tenants.ts';

const LINGER_MS = 1000;
const INVALIDATE_ALL = Buffer.from('>2\r\n$10\r\ninvalidate\r\n_\r\n');

export class Session implements SessionView, ReplyReceiver, LaneOwner, ExchangeHost {
  readonly id: number;
  readonly socket: Socket;
  /** Bytes from the client, in a buffer that is used again after the return. */
  readonly receive: (buffer: Buffer, length: number) => void;
  readonly output: SessionOutput;
  readonly log: Logger;
  readonly context: SessionContext;
  readonly state = new Map<symbol, unknown>();
  readonly subscriptions = new Subscriptions<SubscriptionRequest>();
  readonly createdAt = Date.now();
  readonly remoteAddress: string | undefined;
  readonly remotePort: number | undefined;
  readonly localAddress: string | undefined;
  readonly localPort: number | undefined;
  readonly unixPath: string;
  readonly fd: number;
  /** Commands to repeat on a new dedicated lane, by what they set. */
  readonly setup = new Map<string, readonly Buffer[]>();
  /** Takes the replies that CLIENT REPLY OFF and SKIP suppress. */
  readonly sink: ReplyReceiver;
  /** Where Holdfast decides who the session is; `undefined` where the KV store does. */
  identity: SessionIdentity | undefined;
  user = 'default';
  name = '';
  libraryName = '';
  libraryVersion = '';
  credentials: Credentials | undefined;
  database = 0;
  protocol: Protocol = 2;
  replyMode: ReplyMode = 'on';
  /** Holdfast's ID of the client that this one's invalidations go to; 0 for none. */
  redirectsTo = 0;
  lastCommand = '';
  commandsTotal = 0;
  lastActiveAt = this.createdAt;
  closed = false;
  /** The client has ended its side. */
  clientEnded = false;
  /** What the session is blocked on while its connection is another one, or none. */
  blocked: BlockedRequest | undefined;
  /** Which of the proxy's listeners it came through. */
  listener = 0;
  pins = 0;
  inFlight = 0;
  transaction: Transaction | undefined;
  /** The next script is debugged: what it says has no framing, and its end is that of the connection. */
  debugs = false;
  /** Watched keys may have changed unseen, since the connection that watched them is gone. */
  watchLost = false;
  /** Keys that are watched, while `Pin.watch` says that any are. */
  readonly watched = new Set<string>();
  lane: Lane | undefined;
  dedicated = false;
  /** The dedicated lane holds state that only its end removes. */
  laneDirty = false;

  /** Why no request is taken now; see `Hold`. */
  holds = 0;
  private readonly input: SessionInput;
  /** Where the dedicated lane goes back to. */
  laneSetInUse: LaneSet | undefined;
  /** Ends the wait for a lane. */
  endWait: (() => void) | undefined;
  attachTimer: NodeJS.Timeout | undefined;
  private blockedTimer: NodeJS.Timeout | undefined;
  private stalledTimer: NodeJS.Timeout | undefined;
  /** Whose connection it is that this session has to itself. */
  private laneTenant: Tenant | undefined;
  private slowTenant: Tenant | undefined;
  private socketPaused = false;
  private corked = false;
  private quietListeners: (() => void)[] = [];
  private readonly closeListeners: (() => void)[] = [];
  /** Lanes on which something is sent once more. */
  readonly resendLanes = new Set<Lane>();

  /** `unixPath` is the listener's socket path, empty for TCP. */
  constructor(id: number, socket: Socket, unixPath: string, context: SessionContext) {
    this.id = id;
    this.socket = socket;
    this.context = context;
    this.log = context.log;
    this.input = new SessionInput(this);
    this.receive = (buffer, length) => {
      try {
        this.input.receive(buffer, length);
      } catch (thrown) {
        this.fault(thrown);
      }
    };
    this.output = new SessionOutput(socket, context.limits.outputBytesMax, {
      slow: () => this.guarded(() => this.slowReader()),
      overflow: () =>
        this.guarded(() => this.overflow(`its output buffer exceeded ${context.limits.outputBytesMax} bytes`)),
      finished: () => this.guarded(() => this.linger()),
    });
    this.sink = {
      deliver: () => undefined,
      repliesDone: (count) => this.repliesDone(count),
      repliesLost: (count, _partial, cause) => {
        if (!this.closed && !this.leaving && this.closesOnLoss) this.write(lostReply(cause));
        this.repliesDone(count);
      },
      fault: (thrown) => this.fault(thrown),
    };
    this.remoteAddress = socket.remoteAddress;
    this.remotePort = socket.remotePort;
    this.localAddress = socket.localAddress;
    this.localPort = socket.localPort;
    this.fd = (socket as { _handle?: { fd?: number } })._handle?.fd ?? -1;
    this.unixPath = unixPath;
    if (context.pooling === 'session') this.pins = Pin.pooling;
    socket.on('drain', () => this.guarded(() => this.outputDrained()));
    socket.on('end', () => this.guarded(() => this.clientEnd()));
    socket.on('error', (thrown) => this.close(`its connection failed: ${messageOf(thrown)}`));
    socket.on('close', () => this.close('it closed the connection'));
  }

  /** The KV store cannot be asked now, and it let this session's user in before. */
  get admittedOffline(): boolean {
    return !this.context.upstream.reachable && this.admitted;
  }

  get admitted(): boolean {
    return this.identity?.authenticated ?? this.context.upstream.known.knows(this.credentials);
  }

  get administers(): boolean | undefined {
    return this.identity?.administers;
  }

  lastInfo(): KnownInfo | undefined {
    const { upstream } = this.context;
    return upstream.reachable ? undefined : upstream.known.info(this.credentials);
  }

  clientsInScope(): Promise<{ connected: number; blocked: number }> {
    return countClients(this);
  }

  noteInfo(text: string): void {
    this.context.upstream.known.noteInfo(this.credentials, text);
  }

  get view(): SessionView {
    return this;
  }

  get leaving(): boolean {
    return this.lane?.finishing === true;
  }

  get scope(): object | undefined {
    return this.identity?.scope;
  }

  get plans(): CommandPlans {
    const { identity, context } = this;
    if (identity?.authenticated === false) return context.judgedPlans;
    if (identity?.scope === undefined) return context.plans;
    return identity.keyPrefix === undefined ? context.guardedPlans : context.scopedPlans;
  }

  /** What to do with a request that was not read off the fast path. */
  planOf(args: readonly Buffer[]): CommandPlan {
    const { plans, guardedPlans } = this.context;
    return planFor(this.identity?.scope === undefined ? plans : guardedPlans, args);
  }

  /** Becomes `identity`, or with nothing whoever the KV store makes of `credentials`. The session is on no lane. */
  become(identity: SessionIdentity | undefined, credentials: Credentials | undefined): void {
    this.identity = identity;
    this.credentials = identity === undefined ? credentials : identity.credentials;
    this.user = identity?.user ?? credentials?.username ?? 'default';
  }

  /** Who it is, for limits: whoever logged in; all others of the listener together. */
  get tenant(): Tenant {
    const { identity, context, listener } = this;
    const confined = context.identities?.confines(listener) === true;
    return context.tenants.of(confined ? `listener ${listener}` : `user ${identity?.user ?? this.user}`);
  }

  /** Counts the connection that the session is about to have to itself. Throws `LIMIT`. */
  takeOwnLane(): void {
    if (this.laneTenant !== undefined) return;
    const { tenant } = this;
    tenant.takeLane();
    this.laneTenant = tenant;
  }

  /** The same for one that is there, whatever the limits. */
  countOwnLane(): void {
    if (this.laneTenant !== undefined) return;
    this.laneTenant = this.tenant;
    this.laneTenant.countLane();
  }

  giveOwnLane(): void {
    const { laneTenant } = this;
    this.laneTenant = undefined;
    laneTenant?.giveLane();
  }

  /** The lanes that fit who the session is now. */
  get laneSet(): LaneSet {
    const { credentials, database, protocol } = this;
    return this.context.upstream.laneSet({ credentials, database, protocol });
  }

  get pinned(): boolean {
    return (this.pins & ~Pin.pooling) !== 0;
  }

  get queryBufferBytes(): number {
    return this.input.waitingBytes;
  }

  /** Something is owed to the client, short of what blocks without end. */
  get busy(): boolean {
    const endless = Pin.blocking | Pin.subscribed | Pin.raw;
    return (this.inFlight > 0 && (this.pins & endless) === 0) || this.output.holding || this.output.waitingBytes > 0;
  }

  onClose(listener: () => void): void {
    this.closeListeners.push(listener);
  }

  // ---------------------------------------------------------------- input

  /** Adds a hold: no request is taken until it is lifted. */
  hold(reason: number): void {
    this.holds |= reason;
  }

  /** The client is not read from until `lift` or what it is pinned by allows it again. */
  pauseWhenFull(): void {
    if (this.readsOn || this.socketPaused || this.closed) return;
    this.socketPaused = true;
    this.socket.pause();
  }

  /**
   * A held session goes on reading for a while: only who reads learns that the client is gone, and a blocked client
   * that is gone must not be given an element. One that is blocked it reads on to the limit of its query buffer, as a
   * server does: its command may never end.
   */
  private get readsOn(): boolean {
    return !this.input.full || (this.pins & Pin.blocking) !== 0;
  }

  /** Lifts a hold; input goes on when it was the last. */
  lift(reason: number): void {
    if ((this.holds & reason) === 0) return;
    this.holds &= ~reason;
    if (this.closed) return;
    if (this.holds === 0) this.guarded(() => this.input.resume());
    if (this.closed) return;
    if (this.socketPaused && (this.holds === 0 || this.readsOn)) {
      this.socketPaused = false;
      this.socket.resume();
    }
    if (this.holds === 0) this.finishIfEnded();
  }

  // ---------------------------------------------------------------- lanes

  /**
   * Runs `action` on a lane that fits: at once where it can, else when everything in flight was answered and a lane is
   * there; requests behind it wait. `pin` says what the session needs a dedicated lane for, 0 where any lane does.
   * `until`: how long it is waited for, where that is not for the server to come back.
   */
  onLane(pin: number, action: () => void, refused: (reply: Buffer) => void, until?: number): void {
    runOnLane(this, pin, action, refused, until);
  }

  /** Sends a request of the session's own; `then` is called when its reply, which nobody sees, has come or was lost. */
  sendIgnored(args: readonly (Buffer | string)[], then?: (reply: Buffer | undefined) => void): void {
    this.inFlight += 1;
    const task: OwedReply = {
      reply: (frame) => {
        then?.(frame);
        this.replyDone();
      },
      lost: () => {
        if (!this.leaving) then?.(undefined);
        this.replyDone();
      },
      fault: (thrown) => this.fault(thrown),
    };
    this.lane!.sendWhole(task, encode.request(args));
  }

  // ---------------------------------------------------------------- replies

  deliver(buffer: Buffer, start: number, end: number, readBuffer: ReadBuffer | undefined): void {
    if (!this.closed) this.output.deliver(buffer, start, end, readBuffer);
  }

  repliesDone(count: number): void {
    this.inFlight -= count;
    if (this.inFlight === 0) this.quiet();
    else if (this.holds & Hold.depth && this.inFlight < this.context.limits.pipelineDepthMax / 2) this.lift(Hold.depth);
  }

  replyDone(): void {
    this.repliesDone(1);
  }

  repliesLost(count: number, partial: boolean, cause: HoldfastError): void {
    if (this.closed) return;
    if (this.leaving) {
      this.repliesDone(count);
      return;
    }
    if (partial) {
      this.close('the connection to the KV store was lost within a reply');
      return;
    }
    const reply = lostReply(cause);
    for (let i = 0; i < count; i += 1) this.write(reply);
    this.repliesDone(count);
  }

  write(reply: Buffer): void {
    if (this.endsInstead(reply)) this.output.endHere();
    else this.output.write(reply);
  }

  /** `limits.onLost: close`: for what the KV store does not answer the connection ends, as without Holdfast. */
  endsInstead(reply: Buffer): boolean {
    if (!encode.isUnserved(reply) || !this.closesOnLoss) return false;
    if (!this.closed && (this.holds & Hold.ending) === 0) {
      this.context.counters.unserved += 1;
      this.log.info({ client: this.id, reason: reply.toString('utf8', 1, reply.length - 2) }, 'client closed');
    }
    this.hold(Hold.ending);
    return true;
  }

  get closesOnLoss(): boolean {
    return this.context.limits.onLost === 'close';
  }

  push(frame: Buffer): void {
    if (this.closed || this.context.hidesPush?.(frame) === true) return;
    const { identity } = this;
    const seen = identity?.rewritePush === undefined ? frame : identity.rewritePush(frame);
    if (seen !== undefined) this.output.write(seen);
  }

  rawBytes(buffer: Buffer, length: number): void {
    this.deliver(buffer, 0, length, undefined);
  }

  /** A reply and what the client is told besides (an invalidation, a message) leave together, as the server sent them. */
  readBegins(): void {
    if ((this.pins & (Pin.sticky | Pin.subscribed | Pin.redirectTarget)) === 0) return;
    this.corked = true;
    this.socket.cork();
  }

  readEnds(): void {
    if (!this.corked) return;
    this.corked = false;
    this.output.flush();
    this.socket.uncork();
  }

  laneDrained(): void {
    this.lift(Hold.congestion);
  }

  laneClosed(cause: HoldfastError): void {
    const { lane, laneSetInUse } = this;
    if (lane !== undefined) laneSetInUse?.release(lane, false);
    const { leaving } = this;
    this.lane = undefined;
    this.dedicated = false;
    this.laneSetInUse = undefined;
    this.giveOwnLane();
    if (this.closed) return;
    if (leaving) {
      this.output.finish();
      return;
    }
    if (this.pins & (Pin.raw | Pin.streaming) || this.debugs) {
      this.close(`the connection to the KV store was lost: ${cause.message}`);
      return;
    }
    if (this.holds & Hold.ending) return;
    if (this.transaction !== undefined && this.closesOnLoss) {
      this.write(lostReply(cause));
      return;
    }
    if (this.transaction !== undefined) this.transaction.broken = 'lost';
    else if (this.pins & Pin.watch) this.watchLost = true;
    if (this.pins & (Pin.subscribed | Pin.sticky | Pin.redirectTarget)) {
      // What changed while nobody watched is not known: a caching client must forget everything.
      if (this.setup.has('client|tracking') && this.protocol === 3) this.output.write(INVALIDATE_ALL);
      attachDedicated(this);
    }
    this.blocked?.askAgain();
  }

  /** Runs `action` as soon as nothing is in flight. */
  whenQuiet(action: () => void): void {
    if (this.inFlight === 0) action();
    else this.quietListeners.push(action);
  }

  /** Runs `action` when everything sent before was answered, without keeping later requests back. */
  inTurn(action: () => void): void {
    if (this.inFlight === 0 || this.lane === undefined || this.lane.state !== 'ready') {
      action();
      return;
    }
    // In flight like a reply: who waits until everything was answered waits for this too.
    this.inFlight += 1;
    const reached = (): void => {
      action();
      this.replyDone();
    };
    // Behind what a client that is gone was blocked on, nothing is answered any more.
    this.lane.whenReached({
      reply: reached,
      lost: () => (this.leaving ? this.replyDone() : reached()),
      fault: (thrown) => this.fault(thrown),
    });
  }

  /** Writes a reply of the session's own in its turn, unless the client wants none. */
  answer(reply: Buffer): void {
    if (this.replyMode === 'on') this.inTurn(() => this.write(reply));
    else if (this.closesOnLoss && encode.isUnserved(reply)) this.inTurn(() => this.write(reply));
  }

  private quiet(): void {
    const { leaving } = this;
    this.pins &= ~(Pin.blocking | Pin.passing);
    if (this.closed) return;
    if (leaving) {
      // The server closed behind the last reply it gave; what waited behind that is not asked any more.
      this.hold(Hold.ending);
      this.output.finish();
      return;
    }
    if (this.dedicated && this.pins === 0) leaveDedicated(this);
    if (this.quietListeners.length > 0) {
      const listeners = this.quietListeners;
      this.quietListeners = [];
      for (const listener of listeners) listener();
    }
    this.lift(Hold.depth);
    this.finishIfEnded();
  }

  // ---------------------------------------------------------------- back pressure and the end

  /**
   * What it asks next waits until it reads. On a lane of its own the KV store keeps what is owed already; only what comes without
   * being asked for would pile up there without end, and is read on.
   */
  private slowReader(): void {
    if (this.closed) return;
    if (this.slowTenant === undefined) this.beginSlow();
    if (this.slowTenant?.readsTooSlowly === true) {
      this.overflow('the clients of its identity have more unread than limits.tenantOutputBytesMax');
      return;
    }
    const monitors = this.pins & Pin.raw && this.lastCommand === 'monitor';
    const unasked = this.pins & (Pin.subscribed | Pin.sticky | Pin.redirectTarget) || monitors;
    if (this.dedicated && !unasked) this.lane?.socket.pause();
    // A replica tells how far it is while it is sent everything.
    if (!(this.pins & Pin.raw)) this.hold(Hold.slowReader);
  }

  private beginSlow(): void {
    this.slowTenant = this.tenant;
    this.slowTenant.slowReaders.add(this);
    let taken = -1;
    const look = (): void => {
      const now = this.socket.bytesWritten - this.socket.writableLength;
      if (now === taken) this.overflow('it has read nothing for limits.outputStalledMs');
      taken = now;
    };
    look();
    this.stalledTimer = setInterval(() => this.guarded(look), this.context.limits.outputStalledMs);
  }

  private endSlow(): void {
    clearInterval(this.stalledTimer);
    const { slowTenant } = this;
    this.slowTenant = undefined;
    if (slowTenant === undefined) return;
    slowTenant.slowReaders.delete(this);
    this.context.tenants.forgetUnused(slowTenant);
  }

  private overflow(reason: string): void {
    this.context.counters.overflows += 1;
    this.log.warn({ client: this.id, user: this.user, reason }, 'client closed: it does not read its replies');
    this.close(reason);
  }

  private outputDrained(): void {
    if (this.closed) return;
    this.endSlow();
    if (this.dedicated) this.lane?.socket.resume();
    this.lift(Hold.slowReader);
  }

  protocolError(text: string): void {
    this.input.endSkip();
    this.context.counters.protocolErrors += 1;
    this.log.debug({ client: this.id, text }, 'protocol error');
    this.endWith(this.replyMode === 'on' ? encode.errorOfBytes(`ERR ${text}`) : undefined);
  }

  setReplyMode(mode: ReplyMode): void {
    if (mode !== 'skip' || this.replyMode !== 'off') this.replyMode = mode;
  }

  /** CLIENT REPLY SKIP: the reply of the next command is not written. */
  skipNextReply(): void {
    this.input.skipNextReply();
  }

  /** A request that had been kept back was dispatched. */
  dispatchedLate(): void {
    this.input.beginSkip();
  }

  /** The client killed itself: its reply is still sent. */
  endAfterReply(): void {
    this.endWith(undefined);
  }

  /** The server's ID of the connection on which this client is blocked; 0 where it is not. */
  blockedLaneId(): number {
    for (const lane of this.resendLanes) return lane.clientId;
    return this.dedicated && this.inFlight > 0 ? (this.lane?.clientId ?? 0) : 0;
  }

  /** Moves to a dedicated lane, to stay there for `pin`; `then` gets the server's ID of it. */
  whenDedicated(pin: number, then: (laneId: number) => void): void {
    this.onLane(
      pin,
      () => then(this.lane?.clientId ?? 0),
      () => then(Number.MAX_SAFE_INTEGER),
    );
  }

  /** Sends a last reply in its turn and ends the connection. */
  endWith(reply: Buffer | undefined): void {
    this.hold(Hold.ending);
    const end = (): void => {
      if (reply !== undefined) this.output.write(reply);
      this.output.finish();
    };
    // A message that the client published itself follows in the same read.
    this.whenQuiet(() => (this.pins & Pin.subscribed ? setImmediate(() => this.guarded(end)) : end()));
  }

  /**
   * Our side has ended. What the client still sends is read and dropped for a moment: to close now would reset the
   * connection and with it lose the last reply on the way to a client that is still writing.
   */
  private linger(): void {
    if (this.closed) return;
    this.holds |= Hold.ending;
    this.context.registry.remove(this);
    if (this.dedicated) leaveDedicated(this);
    this.socket.resume();
    const timer = setTimeout(() => this.close('it was asked to go'), LINGER_MS);
    this.closeListeners.push(() => clearTimeout(timer));
  }

  private clientEnd(): void {
    this.clientEnded = true;
    if (this.blocked !== undefined && !this.dedicated) this.close('it ended its side while it was blocked');
    this.finishIfEnded();
    this.watchBlocked();
  }

  /** What waits behind a command that may block for good, and that nobody is left to wait for, makes no progress. */
  private watchBlocked(): void {
    if (this.holds === 0 || this.closed) return;
    const taken = this.commandsTotal;
    this.blockedTimer = setTimeout(() => {
      this.guarded(() => {
        if (this.commandsTotal === taken && this.pins & Pin.blocking) this.finishBlocked();
        this.watchBlocked();
      });
    }, LINGER_MS);
  }

  /**
   * What was asked before the client ended its side is still owed. What waits without end is not: there the server is
   * told of the end as well, and decides which of the two it is. A client that went away is not given an element.
   */
  private finishIfEnded(): void {
    if (!this.clientEnded || this.input.busy || (this.holds & ~Hold.blocked) !== 0 || this.closed) return;
    if (!this.finishBlocked() && this.inFlight === 0) this.output.finish();
  }

  private finishBlocked(): boolean {
    if (!this.dedicated || (this.pins & (Pin.blocking | Pin.subscribed | Pin.raw | Pin.streaming)) === 0) return false;
    this.laneDirty = true;
    this.lane?.finish();
    return true;
  }

  /** A mistake of Holdfast's own in what it does for this client: it ends with this client, and nobody else. */
  fault(thrown: unknown): void {
    if (this.closed) return;
    this.context.counters.faults += 1;
    this.log.error(
      { client: this.id, command: this.lastCommand, err: thrown },
      'client closed: a fault in its session',
    );
    this.close(`a fault in its session: ${messageOf(thrown)}`);
  }

  /** Runs what a timer, a socket or somebody else's session begins in this one. */
  guarded(action: () => void): void {
    try {
      action();
    } catch (thrown) {
      this.fault(thrown);
    }
  }

  /** The one teardown. `reason` completes "the client was closed because …". */
  close(reason: string): void {
    if (this.closed) return;
    this.closed = true;
    this.context.registry.remove(this);
    this.output.end();
    this.socket.destroy();
    this.endWait?.();
    this.blocked?.drop();
    clearTimeout(this.attachTimer);
    clearTimeout(this.blockedTimer);
    for (const lane of this.resendLanes) lane.close(new HoldfastError('RETIRED', 'its client is gone'));
    if (this.transaction !== undefined) discardTransaction(this.transaction);
    if (this.dedicated) leaveDedicated(this);
    this.giveOwnLane();
    this.endSlow();
    for (const listener of this.closeListeners) listener();
    this.input.drop();
    this.log.debug({ client: this.id, reason }, 'client closed');
  }

  async resend(args: readonly Buffer[], database = this.database): Promise<Buffer> {
    const { credentials, protocol } = this;
    return resendOn(this, this.context.upstream.laneSet({ credentials, database, protocol }), args);
  }

  /** Sends what concerns no database: a new connection needs no SELECT for it, which a busy server refuses. */
  resendAnywhere(args: readonly Buffer[]): Promise<Buffer> {
    return this.resend(args, 0);
  }

  judge(args: readonly Buffer[]): Promise<Buffer | undefined> {
    return judgeFirst(this, args);
  }

  forgetVerdicts(): void {
    this.context.upstream.known.requests(this.credentials)?.forget();
  }

  async run(behind: Interceptor, args: readonly Buffer[], database: number): Promise<Buffer> {
    return runBehind(this, behind, args, database);
  }
}

function lostReply(cause: HoldfastError): Buffer {
  return encode.error(`KVDOWN ${cause.code === 'KVDOWN' ? LOST_TEXT : cause.message}`);
}
