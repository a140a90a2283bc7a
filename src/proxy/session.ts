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
 * `holds` says why no further request is taken now (bits, any of them); input waits in `partial`, and the socket is not
 * read when that is full. Whoever sets a hold goes on with its own request first and lifts the hold then, so that order is kept.
 */
import type { Socket } from 'node:net';
import type { Logger } from 'pino';
import { HoldfastError, messageOf } from '../errors.ts';
import { EXCHANGE, type Interceptor, PLAIN, type SessionView } from '../intercept/interceptor.ts';
import type { Protocol } from '../resp/encode.ts';
import * as encode from '../resp/encode.ts';
import { RequestScanner } from '../resp/request-scanner.ts';
import type { ReadBuffer } from './byte-source.ts';
import type { CommandPlan, CommandPlans } from './carriage.ts';
import { dispatch } from './dispatch.ts';
import { runBehind } from './forward.ts';
import { GlancedRun } from './glanced-run.ts';
import type { KeyRange, SessionIdentity } from './identity.ts';
import type { KnownInfo } from './known-users.ts';
import type { Lane, LaneOwner, OwedReply, ReplyReceiver } from './lane.ts';
import type { LaneSet } from './lane-set.ts';
import type { ExchangeHost } from './pending-exchange.ts';
import { lastKeyOf, prefixKeys } from './prefix-keys.ts';
import { Request } from './request.ts';
import { resetSession } from './session-commands.ts';
import { SessionOutput } from './session-output.ts';
import { Hold, LOST_TEXT, Pin, type SessionContext, type Transaction } from './session-state.ts';
import { failWaiting, type SubscriptionRequest, subscribeAgain } from './subscribe.ts';
import { Subscriptions } from './subscriptions.ts';
import type { Credentials } from './upstream.ts';

const EMPTY = Buffer.alloc(0);
const RESETS: readonly string[] = ['*1\r\n$5\r\nreset\r\n', 'reset\r\n', 'reset\n'];
const LINGER_MS = 1000;
/** Until a session that must have a lane asks for one again. */
const ATTACH_RETRY_MS = 200;
const HELD_BYTES_MAX = 1024 * 1024;
const INVALIDATE_ALL = Buffer.from('>2\r\n$10\r\ninvalidate\r\n_\r\n');
export class Session implements SessionView, ReplyReceiver, LaneOwner, ExchangeHost {
  readonly id: number;
  readonly socket: Socket;
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
  replyMode: 'on' | 'off' | 'skip' = 'on';
  /** Holdfast's ID of the client that this one's invalidations go to; 0 for none. */
  redirectsTo = 0;
  lastCommand = '';
  commandsTotal = 0;
  lastActiveAt = this.createdAt;
  closed = false;
  /** Which of the proxy's listeners it came through. */
  listener = 0;
  pins = 0;
  inFlight = 0;
  transaction: Transaction | undefined;
  /** Watched keys may have changed unseen, since the connection that watched them is gone. */
  watchLost = false;
  lane: Lane | undefined;
  dedicated = false;
  /** The dedicated lane holds state that only its end removes. */
  laneDirty = false;

  /** The plan of the requests of the current run, where a glance has marked them; undefined in a plain run. */
  private glancedPlan: CommandPlan | undefined;
  private marks: number[] = [];
  private holds = 0;
  private scanner: RequestScanner;
  private partial: Buffer = EMPTY;
  private partialLength = 0;
  /** Bytes of the request at the start of `partial` that were passed on already. */
  private streamedBytes = 0;
  private laneSetInUse: LaneSet | undefined;
  private endWait: (() => void) | undefined;
  private attachTimer: NodeJS.Timeout | undefined;
  private socketPaused = false;
  private clientEnded = false;
  /** Requests are being taken from what was kept: `partial` does not tell whether there are more. */
  private consuming = false;
  private skipRequested = false;
  private skipUsed = false;
  private quietListeners: (() => void)[] = [];
  private readonly closeListeners: (() => void)[] = [];
  private readonly resendLanes = new Set<Lane>();

  /** `unixPath` is the listener's socket path, empty for TCP. */
  constructor(id: number, socket: Socket, unixPath: string, context: SessionContext) {
    this.id = id;
    this.socket = socket;
    this.context = context;
    this.log = context.log;
    this.scanner = new RequestScanner(context.limits);
    this.output = new SessionOutput(socket, context.limits.outputBytesMax, {
      slow: () => this.slowReader(),
      overflow: () => {
        context.counters.overflows += 1;
        this.log.warn(
          { client: id, limit: context.limits.outputBytesMax },
          'client closed: it does not read its replies',
        );
        this.close(`its output buffer exceeded ${context.limits.outputBytesMax} bytes`);
      },
      finished: () => this.linger(),
    });
    this.sink = {
      deliver: () => undefined,
      repliesDone: (count) => this.repliesDone(count),
      repliesLost: (count) => this.repliesDone(count),
    };
    this.remoteAddress = socket.remoteAddress;
    this.remotePort = socket.remotePort;
    this.localAddress = socket.localAddress;
    this.localPort = socket.localPort;
    this.fd = (socket as { _handle?: { fd?: number } })._handle?.fd ?? -1;
    this.unixPath = unixPath;
    if (context.pooling === 'session') this.pins = Pin.pooling;
    socket.on('drain', () => this.outputDrained());
    socket.on('end', () => this.clientEnd());
    socket.on('error', (thrown) => this.close(`its connection failed: ${messageOf(thrown)}`));
    socket.on('close', () => this.close('it closed the connection'));
  }

  /** The KV store cannot be asked now, and it let this session's user in before. */
  get admittedOffline(): boolean {
    return !this.context.upstream.reachable && this.admitted;
  }

  get admitted(): boolean {
    return this.identity !== undefined || this.context.upstream.known.knows(this.credentials);
  }

  get administers(): boolean | undefined {
    return this.identity?.administers;
  }

  lastInfo(): KnownInfo | undefined {
    const { upstream } = this.context;
    return upstream.reachable ? undefined : upstream.known.info(this.credentials);
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

  /** The lanes that fit who the session is now. */
  get laneSet(): LaneSet {
    const { credentials, database, protocol } = this;
    return this.context.upstream.laneSet({ credentials, database, protocol });
  }

  get pinned(): boolean {
    return (this.pins & ~Pin.pooling) !== 0;
  }

  get queryBufferBytes(): number {
    return this.partialLength;
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

  /** Bytes from the client, in a buffer that is used again after the return. */
  readonly receive = (buffer: Buffer, length: number): void => {
    if (this.closed || this.holds & Hold.ending) return;
    this.lastActiveAt = Date.now();
    if (this.partialLength > 0 || this.holds !== 0) {
      this.keep(buffer, 0, length);
      if (this.holds === 0) this.consumePartial();
      else this.pauseWhenFull();
      return;
    }
    const taken = this.consume(buffer, 0, length);
    if (taken < length && !this.closed) {
      this.keep(buffer, taken, length);
      this.considerStreaming();
    }
  };

  /** Adds a hold: no request is taken until it is lifted. */
  hold(reason: number): void {
    this.holds |= reason;
  }

  /**
   * A held session goes on reading for a while: only who reads learns that the client is gone, and a blocked client
   * that is gone must not be given an element.
   */
  private pauseWhenFull(): void {
    if (this.partialLength < HELD_BYTES_MAX || this.socketPaused || this.closed) return;
    this.socketPaused = true;
    this.socket.pause();
  }

  /** Lifts a hold; input goes on when it was the last. */
  lift(reason: number): void {
    if ((this.holds & reason) === 0) return;
    this.holds &= ~reason;
    if (this.holds !== 0 || this.closed) return;
    this.consumePartial();
    if (this.holds !== 0 || this.closed) return;
    if (this.socketPaused) {
      this.socketPaused = false;
      this.socket.resume();
    }
    this.finishIfEnded();
  }

  private consumePartial(): void {
    // An incomplete request is looked at again when the bytes it lacks are there.
    if (this.partialLength === 0 || this.scanner.needed > this.partialLength + this.streamedBytes) {
      if (this.partialLength > 0) this.considerStreaming();
      return;
    }
    const buffer = this.partial;
    const length = this.partialLength;
    this.partial = EMPTY;
    this.partialLength = 0;
    this.consuming = true;
    const taken = this.consume(buffer, 0, length);
    this.consuming = false;
    if (this.closed || taken === length) return;
    if (taken > 0) buffer.copyWithin(0, taken, length);
    this.partial = buffer;
    this.partialLength = length - taken;
    this.considerStreaming();
  }

  private keep(buffer: Buffer, start: number, end: number): void {
    const length = this.partialLength + end - start;
    const { queryBufferBytesMax, streamingBytesMin } = this.context.limits;
    if (length > queryBufferBytesMax) {
      this.close(`its query buffer exceeded ${queryBufferBytesMax} bytes`);
      return;
    }
    if (this.partial.length < length) {
      const needed = Math.min(this.scanner.needed, streamingBytesMin);
      const larger = Buffer.allocUnsafe(
        Math.max(length, Math.min(this.partial.length * 2, queryBufferBytesMax), needed),
      );
      this.partial.copy(larger, 0, 0, this.partialLength);
      this.partial = larger;
    }
    buffer.copy(this.partial, this.partialLength, start, end);
    this.partialLength = length;
  }

  /** Takes the requests in `buffer[start, end)`; gives the offset of the first byte that was not taken. */
  private consume(buffer: Buffer, start: number, end: number): number {
    const { limits } = this.context;
    const { scanner } = this;
    let { plans } = this;
    const { table } = plans;
    let at = start;
    let runStart = start;
    let runCount = 0;

    while (at < end) {
      if (this.pins & Pin.raw) {
        if (this.lastCommand === 'monitor' && isReset(buffer, at, end)) resetSession(this);
        else this.lane?.append(buffer, at, end);
        return end;
      }
      if (this.pins & Pin.streaming) {
        const reached = this.stream(buffer, at, end);
        if (reached < 0) return at - reached - 1;
        at = reached;
        runStart = at;
        if (this.holds !== 0) return at;
        continue;
      }
      const length = scanner.scan(buffer, at, end);
      if (length <= 0) {
        this.sendRun(buffer, runStart, at, runCount);
        if (length < 0) this.protocolError(scanner.error);
        return at;
      }
      let plan: CommandPlan | undefined;
      if (scanner.argc > 0 && scanner.inlineArguments === undefined && scanner.canonical) {
        const { bounds } = scanner;
        const command = table.lookupBytes(buffer, at + bounds[0]!, at + bounds[1]!);
        plan = command === undefined ? plans.unknown : plans.plans[command.index]!;
        const mark = plan.glance === undefined ? PLAIN : this.glanceAt(plan, buffer, at);
        if (mark >= 0) {
          if (this.glancedPlan !== plan) {
            this.sendRun(buffer, runStart, at, runCount);
            runStart = at;
            runCount = 0;
            this.glancedPlan = plan;
          }
          this.marks.push(mark);
          this.lastCommand = plan.command!.name;
          this.commandsTotal += 1;
          if (this.rewrites(plan)) this.appendRewritten(plan, buffer, at, length);
          at += length;
          scanner.reset();
          runCount += 1;
          if (this.inFlight + runCount >= limits.pipelineDepthMax) {
            this.sendRun(buffer, runStart, at, runCount);
            this.hold(Hold.depth);
            return at;
          }
          continue;
        }
        if (this.glancedPlan !== undefined) {
          this.sendRun(buffer, runStart, at, runCount);
          runStart = at;
          runCount = 0;
        }
        if (plan.prefixedKeys !== undefined && mark !== EXCHANGE && this.onFastPath()) {
          this.sendRun(buffer, runStart, at, runCount);
          runCount = 0;
          this.lastCommand = plan.command!.name;
          this.commandsTotal += 1;
          this.sendPrefixed(plan.prefixedKeys, buffer, at, length);
          at += length;
          runStart = at;
          scanner.reset();
          if (this.inFlight >= limits.pipelineDepthMax) {
            this.hold(Hold.depth);
            return at;
          }
          continue;
        }
        if ((plan.simple || (plan.glance !== undefined && mark === PLAIN)) && this.onFastPath()) {
          this.lastCommand = command === undefined ? 'unknown' : command.name;
          this.commandsTotal += 1;
          at += length;
          scanner.reset();
          runCount += 1;
          if (this.inFlight + runCount >= limits.pipelineDepthMax) {
            this.sendRun(buffer, runStart, at, runCount);
            this.hold(Hold.depth);
            return at;
          }
          continue;
        }
      }
      this.sendRun(buffer, runStart, at, runCount);
      runCount = 0;
      const request = scanner.argc > 0 ? this.readRequest(plan, buffer, at, length) : undefined;
      at += length;
      runStart = at;
      scanner.reset();
      if (request !== undefined) this.takeRequest(request);
      else this.skipUsed = true;
      if (this.closed || this.holds !== 0) return at;
      // The request may have changed the session's scope.
      plans = this.plans;
    }
    this.sendRun(buffer, runStart, at, runCount);
    return at;
  }

  /** Whether a plain request may go on as it is, without a closer look at the session's state. */
  private onFastPath(): boolean {
    const { lane } = this;
    return (
      lane !== undefined &&
      lane.state === 'ready' &&
      !lane.congested &&
      this.transaction === undefined &&
      this.replyMode === 'on' &&
      (this.dedicated ||
        (this.pins === 0 && !(lane.stalled && this.inFlight === 0) && this.context.upstream.paused === undefined))
    );
  }

  private sendRun(buffer: Buffer, start: number, end: number, count: number): void {
    if (count === 0) return;
    this.context.counters.requests += count;
    this.inFlight += count;
    const plan = this.glancedPlan;
    if (plan === undefined) {
      this.lane!.sendPlain(this, buffer, start, end, count);
      return;
    }
    this.glancedPlan = undefined;
    const bytes = Buffer.allocUnsafe(end - start);
    buffer.copy(bytes, 0, start, end);
    const run = new GlancedRun(this, plan, this.prefixFor(plan), bytes, this.marks);
    this.marks = [];
    // What is rewritten was appended request by request.
    this.lane!.sendGlanced(this, run, buffer, start, this.rewrites(plan) ? start : end, count);
  }

  /** What a glance makes of the request that the scanner has just found. */
  private glanceAt(plan: CommandPlan, buffer: Buffer, start: number): number {
    if (this.pinned || !this.onFastPath()) return EXCHANGE;
    const { bounds, argc } = this.scanner;
    return plan.glance!.look(buffer, start, bounds, argc, this.prefixFor(plan));
  }

  private prefixFor(plan: CommandPlan): Buffer | undefined {
    return plan.prefixedKeys === undefined ? undefined : this.identity!.keyPrefix;
  }

  private rewrites(plan: CommandPlan): boolean {
    return plan.prefixedKeys !== undefined || plan.glance!.form !== undefined;
  }

  /** Appends the request that the scanner has just found in its glance's form and with the identity's prefix. */
  private appendRewritten(plan: CommandPlan, buffer: Buffer, start: number, length: number): void {
    const lane = this.lane!;
    const form = plan.glance!.form;
    let from = start;
    if (form !== undefined) {
      lane.append(form.head, 0, form.head.length);
      from = this.argumentStart(form.argumentsFrom, start);
    }
    if (plan.prefixedKeys === undefined) lane.append(buffer, from, start + length);
    else this.appendPrefixed(plan.prefixedKeys, buffer, start, from, length);
    if (form !== undefined) lane.append(form.tail, 0, form.tail.length);
  }

  /** Where the `$` of argument `i` stands. */
  private argumentStart(i: number, start: number): number {
    const { bounds } = this.scanner;
    const argument = bounds[i * 2]!;
    return start + argument - 3 - decimalDigits(bounds[i * 2 + 1]! - argument);
  }

  /** Sends one request with the identity's prefix before its keys, which the scanner has just found. */
  private sendPrefixed(keys: KeyRange, buffer: Buffer, start: number, length: number): void {
    this.appendPrefixed(keys, buffer, start, start, length);
    this.context.counters.requests += 1;
    this.inFlight += 1;
    this.lane!.sendPlain(this, EMPTY, 0, 0, 1);
  }

  /** Appends what stands from `from` on. */
  private appendPrefixed(keys: KeyRange, buffer: Buffer, start: number, from: number, length: number): void {
    const { bounds, argc } = this.scanner;
    const prefix = this.identity!.keyPrefix!;
    const lane = this.lane!;
    const last = lastKeyOf(keys, argc);
    let copied = from;
    for (let i = keys.first; i <= last; i += keys.step) {
      const keyStart = start + bounds[i * 2]!;
      const keyLength = start + bounds[i * 2 + 1]! - keyStart;
      lane.append(buffer, copied, this.argumentStart(i, start));
      lane.appendText(`$${keyLength + prefix.length}\r\n`);
      lane.append(prefix, 0, prefix.length);
      copied = keyStart;
    }
    lane.append(buffer, copied, start + length);
  }

  private readRequest(found: CommandPlan | undefined, buffer: Buffer, start: number, length: number): Request {
    const { scanner } = this;
    const { plans } = this;
    const frame = Buffer.from(buffer.subarray(start, start + length));
    let args = scanner.inlineArguments;
    if (args === undefined) {
      args = [];
      for (let i = 0; i < scanner.argc; i += 1) {
        args.push(frame.subarray(scanner.bounds[i * 2]!, scanner.bounds[i * 2 + 1]!));
      }
    }
    const plan = found === undefined || found.container ? planFor(plans, args) : found;
    if (plan.prefixedKeys !== undefined)
      return new Request(plan, prefixKeys(args, plan.prefixedKeys, this.identity!.keyPrefix!), undefined);
    return new Request(plan, args, scanner.inlineArguments === undefined && scanner.canonical ? frame : undefined);
  }

  private takeRequest(request: Request): void {
    this.context.counters.requests += 1;
    this.lastCommand = request.command?.name ?? 'unknown';
    this.commandsTotal += 1;
    this.endSkip();
    this.skipUsed = this.replyMode === 'skip';
    dispatch(this, request);
    if (this.skipRequested) {
      this.skipRequested = false;
      this.skipUsed = false;
      this.replyMode = 'skip';
    }
    if (this.inFlight >= this.context.limits.pipelineDepthMax) this.hold(Hold.depth);
  }

  /**
   * The request whose reply CLIENT REPLY SKIP meant, an empty one too, is over when the next one is taken: it may have
   * had to wait.
   */
  private endSkip(): void {
    if (this.skipUsed && this.replyMode === 'skip') this.replyMode = 'on';
    this.skipUsed = false;
  }

  // ---------------------------------------------------------------- large requests

  /**
   * A large request is passed on while it arrives, on a lane of its own, unless somebody must look at it. What must be
   * looked at is collected whole, up to `queryBufferBytesMax`.
   */
  private considerStreaming(): void {
    const { scanner } = this;
    if (this.holds !== 0 || this.pins & (Pin.streaming | Pin.raw)) return;
    if (scanner.needed <= this.context.limits.streamingBytesMin || scanner.argc <= 0) return;
    if (this.transaction !== undefined || this.replyMode !== 'on' || scanner.found === 0 || !scanner.canonical) return;
    const { plans } = this;
    const command = plans.table.lookupBytes(this.partial, scanner.bounds[0]!, scanner.bounds[1]!);
    const plan = command === undefined ? plans.unknown : plans.plans[command.index]!;
    if (!plan.simple) return;
    this.onLane(
      Pin.streaming,
      () => {
        this.streamedBytes = 0;
        const buffer = this.partial;
        const length = this.partialLength;
        this.partial = EMPTY;
        this.partialLength = 0;
        const reached = this.stream(buffer, 0, length);
        const taken = reached < 0 ? -reached - 1 : reached;
        if (taken < length) this.keep(buffer, taken, length);
      },
      // Without a lane the rest of the request cannot be told from further ones.
      (reply) => {
        this.output.write(reply);
        this.hold(Hold.ending);
        this.output.finish();
      },
    );
  }

  /**
   * Passes on what has come of a large request. Gives the offset behind the request's end, or, while it is incomplete,
   * `-1 - offset` of the first byte that is still needed.
   */
  private stream(buffer: Buffer, start: number, end: number): number {
    const { scanner } = this;
    const lane = this.lane!;
    const base = start - this.streamedBytes;
    const length = scanner.scan(buffer, base, end);
    if (length < 0) {
      this.close(`it sent a malformed request: ${scanner.error}`);
      return -1 - end;
    }
    const reached = length > 0 ? base + length : base + scanner.settledBytes(end - base);
    lane.append(buffer, start, reached);
    if (length > 0) {
      this.streamedBytes = 0;
      scanner.reset();
      this.pins &= ~Pin.streaming;
      this.context.counters.requests += 1;
      this.inFlight += 1;
      lane.sendPlain(this, EMPTY, 0, 0, 1);
      return reached;
    }
    this.streamedBytes += reached - start;
    lane.flush();
    if (lane.congested) this.holdForCongestion(lane);
    return -1 - reached;
  }

  // ---------------------------------------------------------------- lanes

  /**
   * Runs `action` on a lane that fits: at once where it can, else when everything in flight was answered and a lane is
   * there; requests behind it wait. `pin` says what the session needs a dedicated lane for, 0 where any lane does.
   */
  onLane(pin: number, action: () => void, refused: (reply: Buffer) => void): void {
    if (this.closed) return;
    if (this.laneFits(pin)) {
      this.pins |= pin;
      action();
      return;
    }
    this.hold(Hold.lane);
    this.whenQuiet(() => this.awaitLane(pin, action, refused));
  }

  private awaitLane(pin: number, action: () => void, refused: (reply: Buffer) => void): void {
    const set = this.laneSet;
    const dedicated = pin !== 0 || this.pins !== 0;
    const proceed = (): void => {
      this.pins |= pin;
      action();
      this.lift(Hold.lane);
    };
    if (this.laneFits(pin)) {
      proceed();
      return;
    }
    const lane = dedicated ? set.dedicatedLane() : set.sharedLane();
    if (lane !== undefined) {
      if (dedicated) this.enterDedicated(set, lane);
      else this.lane = lane;
      proceed();
      return;
    }
    this.endWait = set.wait(dedicated, {
      ready: (ready) => {
        this.endWait = undefined;
        // Somebody else may have waited too, and have found one.
        if (dedicated && this.laneFits(pin)) set.release(ready, true);
        else if (dedicated) this.enterDedicated(set, ready);
        else this.lane = ready;
        proceed();
      },
      failed: (cause, byServer) => {
        this.endWait = undefined;
        refused(encode.error(byServer ? cause.message : cause.toReplyText()));
        this.lift(Hold.lane);
      },
    });
  }

  private laneFits(pin: number): boolean {
    const { lane } = this;
    if (lane === undefined || lane.state !== 'ready') return false;
    if (this.dedicated) {
      if (lane.congested) this.holdForCongestion(lane);
      return true;
    }
    if (pin !== 0 || this.pins !== 0) return false;
    if (lane.congested) this.holdForCongestion(lane);
    return !(lane.stalled && this.inFlight === 0);
  }

  /** The request at hand is still sent; those behind it wait until the KV store takes bytes again. */
  private holdForCongestion(lane: Lane): void {
    if (this.holds & Hold.congestion) return;
    this.hold(Hold.congestion);
    lane.drainWaiters.add(() => this.lift(Hold.congestion));
  }

  private enterDedicated(set: LaneSet, lane: Lane): void {
    this.lane = lane;
    this.laneSetInUse = set;
    this.dedicated = true;
    this.laneDirty = false;
    lane.owner = this;
    if (this.pins & Pin.pooling) {
      this.laneDirty = true;
      this.sendIgnored(['CLIENT', 'SETNAME', Buffer.from(this.name, 'latin1')]);
    }
    for (const args of this.setup.values()) {
      this.laneDirty = true;
      this.sendIgnored(args);
    }
    if (this.subscriptions.expected) subscribeAgain(this);
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
    };
    this.lane!.sendWhole(task, encode.request(args));
  }

  /** Goes back to shared lanes; a lane that is not provably clean is closed. Nothing is in flight, or the session ends. */
  leaveDedicated(): void {
    const { lane, laneSetInUse } = this;
    this.lane = undefined;
    this.dedicated = false;
    this.laneSetInUse = undefined;
    if (lane === undefined) return;
    const dirty = this.laneDirty || this.inFlight > 0 || (this.pins & ~Pin.pooling) !== 0;
    lane.socket.resume();
    laneSetInUse?.release(lane, !dirty);
  }

  /** Asks for a dedicated lane without a request: for a redirection target, or a subscriber whose lane was lost. */
  attachDedicated(pin: number): void {
    if (this.closed) return;
    this.onLane(
      pin,
      () => undefined,
      (reply) => {
        failWaiting(this, reply);
        if ((this.pins & (Pin.subscribed | Pin.sticky | Pin.redirectTarget)) === 0) return;
        clearTimeout(this.attachTimer);
        this.attachTimer = setTimeout(() => this.attachDedicated(pin), ATTACH_RETRY_MS);
      },
    );
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
    const reply = encode.error(`KVDOWN ${cause.code === 'KVDOWN' ? LOST_TEXT : cause.message}`);
    for (let i = 0; i < count; i += 1) this.output.write(reply);
    this.repliesDone(count);
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
    if (this.closed) return;
    if (leaving) {
      this.output.finish();
      return;
    }
    if (this.pins & (Pin.raw | Pin.streaming)) {
      this.close(`the connection to the KV store was lost: ${cause.message}`);
      return;
    }
    if (this.transaction !== undefined) this.transaction.broken = 'lost';
    else if (this.pins & Pin.watch) this.watchLost = true;
    if (this.pins & (Pin.subscribed | Pin.sticky | Pin.redirectTarget)) {
      // What changed while nobody watched is not known: a caching client must forget everything.
      if (this.setup.has('client|tracking') && this.protocol === 3) this.output.write(INVALIDATE_ALL);
      this.attachDedicated(0);
    }
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
    this.lane.whenReached({ reply: reached, lost: () => (this.leaving ? this.replyDone() : reached()) });
  }

  /** Writes a reply of the session's own in its turn, unless the client wants none. */
  answer(reply: Buffer): void {
    if (this.replyMode !== 'on') return;
    this.inTurn(() => this.output.write(reply));
  }

  private quiet(): void {
    const { leaving } = this;
    this.pins &= ~Pin.blocking;
    if (this.closed) return;
    if (leaving) {
      // The server closed behind the last reply it gave; what waited behind that is not asked any more.
      this.hold(Hold.ending);
      this.output.finish();
      return;
    }
    if (this.dedicated && this.pins === 0) this.leaveDedicated();
    if (this.quietListeners.length > 0) {
      const listeners = this.quietListeners;
      this.quietListeners = [];
      for (const listener of listeners) listener();
    }
    this.lift(Hold.depth);
    this.finishIfEnded();
  }

  // ---------------------------------------------------------------- back pressure and the end

  private slowReader(): void {
    if (this.closed) return;
    if (this.dedicated) this.lane?.socket.pause();
    else this.hold(Hold.slowReader);
  }

  private outputDrained(): void {
    if (this.closed) return;
    if (this.dedicated) this.lane?.socket.resume();
    this.lift(Hold.slowReader);
  }

  private protocolError(text: string): void {
    this.endSkip();
    this.context.counters.protocolErrors += 1;
    this.log.debug({ client: this.id, text }, 'protocol error');
    this.endWith(this.replyMode === 'on' ? encode.errorOfBytes(`ERR ${text}`) : undefined);
  }

  /** CLIENT REPLY SKIP: the reply of the next command is not written. */
  skipNextReply(): void {
    this.skipRequested = true;
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
    this.whenQuiet(() => {
      if (reply !== undefined) this.output.write(reply);
      this.output.finish();
    });
  }

  /**
   * Our side has ended. What the client still sends is read and dropped for a moment: to close now would reset the
   * connection and with it lose the last reply on the way to a client that is still writing.
   */
  private linger(): void {
    if (this.closed) return;
    this.holds |= Hold.ending;
    this.context.registry.remove(this);
    if (this.dedicated) this.leaveDedicated();
    this.socket.resume();
    const timer = setTimeout(() => this.close('it was asked to go'), LINGER_MS);
    this.closeListeners.push(() => clearTimeout(timer));
  }

  private clientEnd(): void {
    this.clientEnded = true;
    this.finishIfEnded();
    if (this.holds === 0 || this.closed) return;
    // Something waits behind a command that may block for good, and nobody is left to wait for that.
    const timer = setTimeout(() => this.finishBlocked(), LINGER_MS);
    this.closeListeners.push(() => clearTimeout(timer));
  }

  /**
   * What was asked before the client ended its side is still owed. What waits without end is not: there the server is
   * told of the end as well, and decides which of the two it is. A client that went away is not given an element.
   */
  private finishIfEnded(): void {
    if (!this.clientEnded || this.consuming || this.holds !== 0 || this.closed) return;
    if (!this.finishBlocked() && this.inFlight === 0) this.output.finish();
  }

  private finishBlocked(): boolean {
    if (!this.dedicated || (this.pins & (Pin.blocking | Pin.subscribed | Pin.raw | Pin.streaming)) === 0) return false;
    this.laneDirty = true;
    this.lane?.finish();
    return true;
  }

  /** The one teardown. `reason` completes "the client was closed because …". */
  close(reason: string): void {
    if (this.closed) return;
    this.closed = true;
    this.context.registry.remove(this);
    this.output.end();
    this.socket.destroy();
    this.endWait?.();
    clearTimeout(this.attachTimer);
    for (const lane of this.resendLanes) lane.close(new HoldfastError('RETIRED', 'its client is gone'));
    if (this.transaction !== undefined) for (const member of this.transaction.members) member.discard();
    if (this.dedicated) this.leaveDedicated();
    for (const listener of this.closeListeners) listener();
    this.partial = EMPTY;
    this.partialLength = 0;
    this.log.debug({ client: this.id, reason }, 'client closed');
  }

  async resend(args: readonly Buffer[]): Promise<Buffer> {
    return this.resendOn(this.laneSet, args);
  }

  /** Sends what concerns no database: a new connection needs no SELECT for it, which a busy server refuses. */
  resendAnywhere(args: readonly Buffer[]): Promise<Buffer> {
    const { credentials, protocol } = this;
    return this.resendOn(this.context.upstream.laneSet({ credentials, database: 0, protocol }), args);
  }

  async run(behind: Interceptor, args: readonly Buffer[], database: number): Promise<Buffer> {
    return runBehind(this, behind, args, database);
  }

  async resendOn(set: LaneSet, args: readonly Buffer[]): Promise<Buffer> {
    const lane =
      set.dedicatedLane() ??
      (await new Promise<Lane>((resolve, reject) => {
        set.wait(true, { ready: resolve, failed: reject });
      }));
    if (this.closed) {
      set.release(lane, true);
      throw new HoldfastError('KVDOWN', 'the client is gone');
    }
    this.resendLanes.add(lane);
    try {
      return await new Promise<Buffer>((resolve, reject) => {
        lane.sendWhole({ reply: resolve, lost: reject }, encode.request(args));
      });
    } finally {
      this.resendLanes.delete(lane);
      set.release(lane, true);
    }
  }
}

function planFor({ table, plans, unknown }: CommandPlans, args: readonly Buffer[]): CommandPlan {
  const command = table.lookupBytes(args[0]!, 0, args[0]!.length);
  if (command === undefined) return unknown;
  const sub = args[1] === undefined ? undefined : table.subcommand(command, args[1], 0, args[1].length);
  return plans[(sub ?? command).index]!;
}

function decimalDigits(value: number): number {
  let digits = 1;
  for (let rest = value; rest >= 10; rest = Math.floor(rest / 10)) digits += 1;
  return digits;
}

/** Whether the bytes are one RESET, the only request that a monitoring client sends. */
function isReset(buffer: Buffer, start: number, end: number): boolean {
  return end - start <= 15 && RESETS.includes(buffer.toString('latin1', start, end).toLowerCase());
}
