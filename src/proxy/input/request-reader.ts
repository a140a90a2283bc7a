/**
 * What a client sends, up to where a request is on its way: bytes are scanned where they came, runs of plain requests go
 * to the lane as one write, everything else becomes a Request for dispatch.ts. What cannot be taken yet waits in `partial`.
 *
 *   receive ──▶ consume ──▶ a run of plain or glanced requests ──▶ lane
 *      │           │  ├───▶ keys that need a prefix, nothing else ──▶ lane, rewritten
 *      │           │  └───▶ Request ──▶ dispatch
 *      │           ▼
 *      └──────▶ partial ──(too large to hold)──▶ streamed to a lane of its own while it arrives
 *
 * Hot path: no promise, closure, string or array for a request that is forwarded as it is.
 */
import { EXCHANGE, PLAIN, type SentForm } from '../../interceptor.ts';
import * as encode from '../../resp/encode.ts';
import { RequestScanner } from '../../resp/request-scanner.ts';
import { dispatch } from '../commands/dispatch.ts';
import { resetSession } from '../commands/login.ts';
import type { CommandPlan, CommandPlans } from '../request/command-plan.ts';
import { GlancedRun } from '../request/glanced-run.ts';
import { prefixKeys } from '../request/prefix-keys.ts';
import { Request } from '../request/request.ts';
import { appendInForm, appendPrefixed } from '../request/rewritten-request.ts';
import { holdForCongestion, occupyLane } from '../session/lane-link.ts';
import type { Session } from '../session/session.ts';
import { Hold, Pin } from '../session/session-state.ts';

const EMPTY = Buffer.alloc(0);
const RESETS: readonly string[] = ['*1\r\n$5\r\nreset\r\n', 'reset\r\n', 'reset\n'];
const HELD_BYTES_MAX = 1024 * 1024;
/** Of one request of a client that must log in first: as the servers have it. */
const STRANGER_BYTES_MAX = 16 * 1024;
const TOO_LARGE_FOR_STRANGERS = encode.error('ERR Protocol error: unauthenticated bulk length');

export class SessionInput {
  private readonly session: Session;
  private readonly scanner: RequestScanner;
  /** The plan of the requests of the current run, where a glance has marked them; undefined in a plain run. */
  private glancedPlan: CommandPlan | undefined;
  /** What they are sent as, where that is not as they came. */
  private form: SentForm | undefined;
  /** Of that run: the mark of all requests so far, or one by one where they differ. */
  private mark = PLAIN;
  private marks: number[] | undefined;
  private partial: Buffer = EMPTY;
  private partialLength = 0;
  /** Bytes of the request at the start of `partial` that were passed on already. */
  private streamedBytes = 0;
  /** Requests are being taken from what was kept: `partial` does not tell whether there are more. */
  private consuming = false;
  private skipRequested = false;
  private skipUsed = false;

  constructor(session: Session) {
    this.session = session;
    this.scanner = new RequestScanner(session.context.limits);
  }

  /** Bytes that wait here. */
  get waitingBytes(): number {
    return this.partialLength;
  }

  /** More has been kept than a held session reads on for. */
  get full(): boolean {
    return this.partialLength >= HELD_BYTES_MAX;
  }

  /** In the middle of taking what was kept. */
  get busy(): boolean {
    return this.consuming;
  }

  /** The last hold was lifted: takes what has been kept. */
  resume(): void {
    this.consumePartial();
  }

  /** CLIENT REPLY SKIP: the reply of the next command is not written. */
  skipNextReply(): void {
    this.skipRequested = true;
  }

  /** The session is closed. */
  drop(): void {
    this.partial = EMPTY;
    this.partialLength = 0;
  }

  /** Bytes from the client, in a buffer that is used again after the return. */
  readonly receive = (buffer: Buffer, length: number): void => {
    if (this.session.closed || this.session.holds & Hold.ending) return;
    this.session.lastActiveAt = Date.now();
    if (this.partialLength > 0 || this.session.holds !== 0) {
      this.keep(buffer, 0, length);
      if (this.session.holds === 0) this.consumePartial();
      else this.session.pauseWhenFull();
      return;
    }
    const taken = this.consume(buffer, 0, length);
    if (taken < length && !this.session.closed) {
      this.keep(buffer, taken, length);
      this.considerStreaming();
    }
  };

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
    if (this.session.closed || taken === length) return;
    if (taken > 0) buffer.copyWithin(0, taken, length);
    this.partial = buffer;
    this.partialLength = length - taken;
    this.considerStreaming();
  }

  private keep(buffer: Buffer, start: number, end: number): void {
    const length = this.partialLength + end - start;
    const { queryBufferBytesMax, streamingBytesMin } = this.session.context.limits;
    const isStranger = this.session.identity?.authenticated === false && this.session.holds === 0;
    if (isStranger && Math.max(length, this.scanner.needed) > STRANGER_BYTES_MAX) {
      this.session.endWith(TOO_LARGE_FOR_STRANGERS);
      return;
    }
    if (length > queryBufferBytesMax) {
      const { id, log, context } = this.session;
      context.counters.overflows += 1;
      log.warn({ client: id, limit: queryBufferBytesMax }, 'client closed: its request is larger than may be held');
      this.session.close(`its query buffer exceeded ${queryBufferBytesMax} bytes`);
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
    const { limits } = this.session.context;
    const { scanner } = this;
    let { plans } = this.session;
    const { table } = plans;
    let at = start;
    let runStart = start;
    let runCount = 0;
    // It was so for the request before, of the same run, and nothing has been done since that could change it.
    let onFastPath = false;

    while (at < end) {
      if (this.session.pins & Pin.raw) {
        if (this.session.lastCommand === 'monitor' && isReset(buffer, at, end)) resetSession(this.session);
        else this.session.lane?.out.append(buffer, at, end);
        return end;
      }
      if (this.session.pins & Pin.streaming) {
        const reached = this.stream(buffer, at, end);
        if (reached < 0) return at - reached - 1;
        at = reached;
        runStart = at;
        onFastPath = false;
        if (this.session.holds !== 0) return at;
        continue;
      }
      const length = scanner.scan(buffer, at, end);
      if (length <= 0) {
        this.sendRun(buffer, runStart, at, runCount);
        if (length < 0) this.session.protocolError(scanner.error);
        return at;
      }
      let plan: CommandPlan | undefined;
      if (scanner.argc > 0 && scanner.inlineArguments === undefined && scanner.canonical) {
        const { bounds } = scanner;
        const command = table.lookupBytes(buffer, at + bounds[0]!, at + bounds[1]!);
        plan = command === undefined ? plans.unknown : plans.plans[command.index]!;
        const mark = plan.glance === undefined ? PLAIN : this.glanceAt(plan, buffer, at, onFastPath);
        if (mark >= 0) {
          const { form } = plan.glance!;
          if (this.glancedPlan !== plan || this.form !== form) {
            this.sendRun(buffer, runStart, at, runCount);
            runStart = at;
            runCount = 0;
            this.glancedPlan = plan;
            this.form = form;
          }
          this.note(mark, runCount);
          this.session.lastCommand = plan.command!.name;
          this.session.commandsTotal += 1;
          const rewritten = rewrites(plan, form);
          if (rewritten) this.appendRewritten(plan, form, buffer, at, at + length);
          at += length;
          scanner.reset();
          onFastPath = runCount > 0 && !rewritten;
          runCount += 1;
          if (this.session.inFlight + runCount >= limits.pipelineDepthMax) {
            this.sendRun(buffer, runStart, at, runCount);
            this.session.hold(Hold.depth);
            return at;
          }
          continue;
        }
        if (this.glancedPlan !== undefined) {
          this.sendRun(buffer, runStart, at, runCount);
          runStart = at;
          runCount = 0;
          onFastPath = false;
        }
        if (plan.prefixedKeys !== undefined && mark !== EXCHANGE && this.onFastPath()) {
          onFastPath = false;
          // Part of the run: only its bytes are on their way before the others'.
          if (at > runStart) this.session.lane!.out.append(buffer, runStart, at);
          this.session.lastCommand = plan.command!.name;
          this.session.commandsTotal += 1;
          this.appendRewritten(plan, undefined, buffer, at, at + length);
          at += length;
          runStart = at;
          scanner.reset();
          runCount += 1;
          if (this.session.inFlight + runCount >= limits.pipelineDepthMax) {
            this.sendRun(buffer, runStart, at, runCount);
            this.session.hold(Hold.depth);
            return at;
          }
          continue;
        }
        if ((plan.simple || (plan.glance !== undefined && mark === PLAIN)) && (onFastPath || this.onFastPath())) {
          this.session.lastCommand = command === undefined ? 'unknown' : command.name;
          this.session.commandsTotal += 1;
          at += length;
          scanner.reset();
          onFastPath = runCount > 0;
          runCount += 1;
          if (this.session.inFlight + runCount >= limits.pipelineDepthMax) {
            this.sendRun(buffer, runStart, at, runCount);
            this.session.hold(Hold.depth);
            return at;
          }
          continue;
        }
      }
      this.sendRun(buffer, runStart, at, runCount);
      runCount = 0;
      onFastPath = false;
      const request = scanner.argc > 0 ? this.readRequest(plan, buffer, at, length) : undefined;
      at += length;
      runStart = at;
      scanner.reset();
      if (request !== undefined) this.takeRequest(request);
      else this.skipUsed = true;
      if (this.session.closed || this.session.holds !== 0) return at;
      // The request may have changed the session's scope.
      plans = this.session.plans;
    }
    this.sendRun(buffer, runStart, at, runCount);
    return at;
  }

  /** Whether a plain request may go on as it is, without a closer look at the session's state. */
  private onFastPath(): boolean {
    const { lane } = this.session;
    return (
      lane !== undefined &&
      lane.state === 'ready' &&
      !lane.congested &&
      this.session.transaction === undefined &&
      !this.session.debugs &&
      this.session.replyMode === 'on' &&
      (this.session.dedicated ||
        (this.session.pins === 0 &&
          !(lane.stalled && this.session.inFlight === 0) &&
          (lane.occupant === undefined || lane.occupant === this.session) &&
          this.session.context.upstream.paused === undefined))
    );
  }

  private sendRun(buffer: Buffer, start: number, end: number, count: number): void {
    if (count === 0) return;
    this.session.context.counters.requests += count;
    this.session.inFlight += count;
    const plan = this.glancedPlan;
    if (plan === undefined) {
      this.session.lane!.sendPlain(this.session, buffer, start, end, count);
      return;
    }
    const { form } = this;
    this.glancedPlan = undefined;
    this.form = undefined;
    const marks = this.marks ?? this.mark;
    const prefix = plan.prefixedKeys === undefined ? undefined : this.session.identity!.keyPrefix;
    const run = new GlancedRun(this.session, plan, form, prefix, buffer, start, end, marks, count);
    this.marks = undefined;
    // What is rewritten was appended request by request.
    this.session.lane!.sendGlanced(this.session, run, buffer, start, rewrites(plan, form) ? start : end, count);
    if (plan.endless) occupyLane(this.session);
  }

  /** The mark of the next request of a run that has `count` already. */
  private note(mark: number, count: number): void {
    if (count === 0) this.mark = mark;
    else if (this.marks !== undefined) this.marks.push(mark);
    else if (mark !== this.mark) {
      this.marks = new Array<number>(count).fill(this.mark);
      this.marks.push(mark);
    }
  }

  /** What a glance makes of the request that the scanner has just found. */
  private glanceAt(plan: CommandPlan, buffer: Buffer, start: number, onFastPath: boolean): number {
    if (this.session.pinned || !(onFastPath || this.onFastPath())) return EXCHANGE;
    const { bounds, argc } = this.scanner;
    return plan.glance!.look(buffer, start, bounds, argc, this.session.identity?.keyPrefix, this.session);
  }

  /** Appends the request that the scanner has just found as its glance, or the identity's prefix, makes it. */
  private appendRewritten(
    plan: CommandPlan,
    form: SentForm | undefined,
    buffer: Buffer,
    start: number,
    end: number,
  ): void {
    const { out } = this.session.lane!;
    const prefix = this.session.identity?.keyPrefix;
    const keys = form?.keys ?? plan.prefixedKeys;
    if (form !== undefined) appendInForm(out, buffer, start, end, this.scanner, form, keys, prefix);
    else appendPrefixed(out, buffer, start, start, end, this.scanner, keys!, prefix!);
  }

  private readRequest(found: CommandPlan | undefined, buffer: Buffer, start: number, length: number): Request {
    const { scanner } = this;
    const { plans } = this.session;
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
      return new Request(plan, prefixKeys(args, plan.prefixedKeys, this.session.identity!.keyPrefix!), undefined);
    return new Request(plan, args, scanner.inlineArguments === undefined && scanner.canonical ? frame : undefined);
  }

  private takeRequest(request: Request): void {
    this.session.context.counters.requests += 1;
    this.session.lastCommand = request.command?.name ?? 'unknown';
    this.session.commandsTotal += 1;
    this.endSkip();
    this.skipUsed = this.session.replyMode === 'skip';
    dispatch(this.session, request);
    this.beginSkip();
    if (this.session.inFlight >= this.session.context.limits.pipelineDepthMax) this.session.hold(Hold.depth);
  }

  /** A request was dispatched; where it was CLIENT REPLY SKIP, the reply of the next one is dropped. */
  beginSkip(): void {
    if (!this.skipRequested) return;
    this.skipRequested = false;
    this.skipUsed = false;
    this.session.replyMode = 'skip';
  }

  /**
   * The request whose reply CLIENT REPLY SKIP meant, an empty one too, is over when the next one is taken: it may have
   * had to wait.
   */
  endSkip(): void {
    if (this.skipUsed && this.session.replyMode === 'skip') this.session.replyMode = 'on';
    this.skipUsed = false;
  }

  /**
   * A large request is passed on while it arrives, on a lane of its own, unless somebody must look at it. What must be
   * looked at is collected whole, up to `queryBufferBytesMax`.
   */
  private considerStreaming(): void {
    const { scanner } = this;
    if (this.session.holds !== 0 || this.session.pins & (Pin.streaming | Pin.raw)) return;
    if (scanner.needed <= this.session.context.limits.streamingBytesMin || scanner.argc <= 0) return;
    if (
      this.session.transaction !== undefined ||
      this.session.replyMode !== 'on' ||
      scanner.found === 0 ||
      !scanner.canonical
    )
      return;
    const { plans } = this.session;
    const command = plans.table.lookupBytes(this.partial, scanner.bounds[0]!, scanner.bounds[1]!);
    const plan = command === undefined ? plans.unknown : plans.plans[command.index]!;
    if (!plan.simple) return;
    this.session.onLane(
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
        this.session.write(reply);
        this.session.hold(Hold.ending);
        this.session.output.finish();
      },
    );
  }

  /**
   * Passes on what has come of a large request. Gives the offset behind the request's end, or, while it is incomplete,
   * `-1 - offset` of the first byte that is still needed.
   */
  private stream(buffer: Buffer, start: number, end: number): number {
    const { scanner } = this;
    const lane = this.session.lane!;
    const base = start - this.streamedBytes;
    const length = scanner.scan(buffer, base, end);
    if (length < 0) {
      this.session.close(`it sent a malformed request: ${scanner.error}`);
      return -1 - end;
    }
    const reached = length > 0 ? base + length : base + scanner.settledBytes(end - base);
    lane.out.append(buffer, start, reached);
    if (length > 0) {
      this.streamedBytes = 0;
      scanner.reset();
      this.session.pins &= ~Pin.streaming;
      this.session.context.counters.requests += 1;
      this.session.inFlight += 1;
      lane.sendPlain(this.session, EMPTY, 0, 0, 1);
      return reached;
    }
    this.streamedBytes += reached - start;
    lane.out.flush();
    if (lane.congested) holdForCongestion(this.session, lane);
    return -1 - reached;
  }
}

export function planFor({ table, plans, unknown }: CommandPlans, args: readonly Buffer[]): CommandPlan {
  const command = table.lookupBytes(args[0]!, 0, args[0]!.length);
  if (command === undefined) return unknown;
  const sub = args[1] === undefined ? undefined : table.subcommand(command, args[1], 0, args[1].length);
  return plans[(sub ?? command).index]!;
}

/** Whether marked requests are not sent as they came. */
function rewrites(plan: CommandPlan, form: SentForm | undefined): boolean {
  return plan.prefixedKeys !== undefined || form !== undefined;
}

/** Whether the bytes are one RESET, the only request that a monitoring client sends. */
function isReset(buffer: Buffer, start: number, end: number): boolean {
  return end - start <= 15 && RESETS.includes(buffer.toString('latin1', start, end).toLowerCase());
}
