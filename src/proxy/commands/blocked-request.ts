/**
 * A request that blocks until there is something for it (BLPOP and its kin, XREAD with BLOCK), over as many connections
 * as it takes: a worker that waits for work sees a pause, and never the loss of the KV store.
 *
 *   sent ──▶ reply ──▶ the client
 *    ▲ │ connection lost, nothing of a reply has come
 *    │ ▼
 *   waits for a lane, with what is left of its timeout ──▶ none in time: what the server answers at a timeout
 *
 * It stays in flight meanwhile, so that nothing behind it is executed before it. What the server may have taken out for it
 * just before the connection broke is gone, as it is for a client that is connected directly: it is asked for the next
 * element, and never given one twice.
 */
import type { HoldfastError } from '../../errors.ts';
import * as encode from '../../resp/encode.ts';
import type { Hold as OutputHold } from '../io/reply-buffer.ts';
import type { PendingExchange } from '../request/pending-exchange.ts';
import type { Request } from '../request/request.ts';
import { enterDedicated } from '../session/lane-link.ts';
import type { Session } from '../session/session.ts';
import { Hold, Pin } from '../session/session-state.ts';
import type { Lane } from '../upstream/lane.ts';
import type { LaneSet } from '../upstream/lane-pool.ts';
import type { OwedReply } from '../upstream/reply-queue.ts';
import { intercept, newExchange, send, sendExchange } from './forward.ts';

interface Timeout {
  /** Its position among the arguments. */
  readonly at: number;
  readonly milliseconds: boolean;
}

/** Seconds, as the last argument (-1) or at a position. */
const TIMEOUTS: ReadonlyMap<string, number> = new Map([
  ['blpop', -1],
  ['brpop', -1],
  ['brpoplpush', -1],
  ['blmove', -1],
  ['bzpopmin', -1],
  ['bzpopmax', -1],
  ['blmpop', 1],
  ['bzmpop', 1],
]);

/** Until a server that loads its data is asked again. */
const LOADING_MS = 50;

/** Sends a request that may block, to be asked again where its connection is lost. */
export function sendBlocking(session: Session, request: Request): void {
  const timeout = timeoutOf(request.command?.name, request.args);
  const waitMs = timeout === undefined ? Number.NaN : readTimeout(request.args, timeout);
  if (timeout === undefined || Number.isNaN(waitMs)) {
    send(session, request, Pin.blocking);
    return;
  }
  const until = waitMs === 0 ? Number.POSITIVE_INFINITY : Date.now() + waitMs;
  if (request.plan.interceptors.length === 0) {
    new BlockedRequest(session, request.args, timeout, until).begin(request.bytes);
    return;
  }
  const exchange = newExchange(session, request, false, []);
  intercept(session, exchange, request, () => {
    // An interceptor that asks again by itself knows more.
    if (exchange.answer !== undefined || exchange.recovers) sendExchange(session, exchange, request, Pin.blocking);
    else new BlockedRequest(session, exchange.args, timeout, until, exchange).begin(encode.request(exchange.args));
  });
}

function timeoutOf(name: string | undefined, args: readonly Buffer[]): Timeout | undefined {
  if (name === 'xread' || name === 'xreadgroup') {
    const at = blockOptionAt(args, name === 'xreadgroup');
    return at < 0 ? undefined : { at: at + 1, milliseconds: true };
  }
  const at = name === undefined ? undefined : TIMEOUTS.get(name);
  if (at === undefined) return undefined;
  return { at: at < 0 ? args.length + at : at, milliseconds: false };
}

/** Where BLOCK stands among the options of XREAD or XREADGROUP; -1 without one. A group may be called so as well. */
export function blockOptionAt(args: readonly Buffer[], group: boolean): number {
  for (let i = group ? 4 : 1; i < args.length; i += 1) {
    const word = args[i]!.length > 7 ? '' : args[i]!.toString('latin1').toLowerCase();
    if (word === 'block') return i;
    if (word === 'streams') return -1;
    if (word === 'count') i += 1;
  }
  return -1;
}

/** Milliseconds, 0 for ever; NaN for what the server refuses. */
function readTimeout(args: readonly Buffer[], { at, milliseconds }: Timeout): number {
  const text = args[at]?.toString('latin1') ?? '';
  if (!/^\+?\d*\.?\d+(?:e[+-]?\d+)?$/i.test(text)) return Number.NaN;
  const value = Number(text);
  if (value === 0) return 0;
  return Math.max(1, milliseconds ? value : value * 1000);
}

export class BlockedRequest implements OwedReply {
  private readonly session: Session;
  private readonly args: readonly Buffer[];
  private readonly timeout: Timeout;
  private readonly until: number;
  private readonly exchange: PendingExchange | undefined;
  private readonly silent: boolean;
  /** Gives the client the reply in its place, once the first connection is lost. */
  private answerLate: ((frame: Buffer) => void) | undefined;
  private loadingTimer: NodeJS.Timeout | undefined;

  constructor(session: Session, args: readonly Buffer[], timeout: Timeout, until: number, exchange?: PendingExchange) {
    this.session = session;
    this.args = args;
    this.timeout = timeout;
    this.until = until;
    this.exchange = exchange;
    this.silent = session.replyMode !== 'on';
  }

  /** Asks for the first time. Where there is no connection for as long as it would block, nothing has come for it. */
  begin(bytes: Buffer): void {
    const { session, exchange } = this;
    const { upstream } = session.context;
    session.onLane(
      Pin.blocking,
      () => this.sendFirst(bytes),
      (refusal) => {
        session.inFlight += 1;
        const reply = this.timedOut && encode.isUnserved(refusal) ? this.nothing : refusal;
        if (exchange !== undefined) exchange.reply(reply);
        else {
          session.answer(reply);
          session.replyDone();
        }
      },
      // A connection may take longer than a short timeout, and the element be there.
      upstream.reachable ? Math.max(this.until, upstream.waitDeadline()) : this.until,
    );
  }

  /** The connection is gone, and what else was owed on it was told so. */
  askAgain(): void {
    const { session } = this;
    if (session.clientEnded) {
      session.close('it ended its side while it was blocked');
      return;
    }
    const set = session.laneSet;
    const lane = set.dedicatedLane();
    if (lane !== undefined) {
      this.askOn(set, lane);
      return;
    }
    const ready = (found: Lane): void => {
      session.endWait = undefined;
      if (session.closed) set.release(found, true);
      else this.askOn(set, found);
    };
    const failed = (cause: HoldfastError, byServer: boolean): void => {
      session.endWait = undefined;
      this.end(byServer ? encode.error(cause.message) : this.nothing);
    };
    session.endWait = set.wait(true, { ready, failed }, this.until);
  }

  reply(frame: Buffer): void {
    if (frame.toString('latin1', 0, 9) !== '-LOADING ') {
      this.end(frame);
      return;
    }
    // Until then it is as far away as before.
    this.loadingTimer = setTimeout(() => this.ask(), LOADING_MS);
  }

  lost(): void {
    clearTimeout(this.loadingTimer);
    const { session } = this;
    if (session.leaving) session.close('it ended its side while it was blocked');
    if (session.closed) session.replyDone();
    else session.blocked = this;
  }

  fault(thrown: unknown): void {
    this.session.fault(thrown);
  }

  /** The session is closed. */
  drop(): void {
    clearTimeout(this.loadingTimer);
  }

  private get timedOut(): boolean {
    return this.until <= Date.now();
  }

  /** What a server answers at the end of the timeout. */
  private get nothing(): Buffer {
    return encode.nullArray(this.session.protocol);
  }

  private sendFirst(bytes: Buffer): void {
    const { session, exchange } = this;
    const lane = session.lane!;
    session.inFlight += 1;
    if (exchange !== undefined) {
      lane.sendWhole(
        {
          reply: (frame) => exchange.reply(frame),
          fault: (thrown) => session.fault(thrown),
          lost: (cause, clientId) => {
            if (session.closed || session.leaving) exchange.lost(cause, clientId);
            else this.firstLost();
          },
        },
        bytes,
      );
      return;
    }
    const receiver = this.silent ? session.sink : session;
    lane.sendPlain(
      {
        deliver: (buffer, start, end, readBuffer) => receiver.deliver(buffer, start, end, readBuffer),
        repliesDone: (count) => receiver.repliesDone(count),
        fault: (thrown) => session.fault(thrown),
        repliesLost: (count, partial, cause) => {
          if (session.closed || session.leaving || partial) receiver.repliesLost(count, partial, cause);
          else this.firstLost();
        },
      },
      bytes,
      0,
      bytes.length,
      1,
    );
  }

  private firstLost(): void {
    const { session, exchange } = this;
    session.blocked = this;
    session.hold(Hold.blocked);
    if (exchange !== undefined) {
      exchange.replyLater(
        new Promise((resolve) => {
          this.answerLate = resolve;
        }),
      );
    } else if (!this.silent) {
      const hold: OutputHold = session.output.hold();
      this.answerLate = (frame) => hold.release(frame);
    }
  }

  private askOn(set: LaneSet, lane: Lane): void {
    enterDedicated(this.session, set, lane);
    this.ask();
  }

  private ask(): void {
    if (this.timedOut) {
      this.end(this.nothing);
      return;
    }
    this.session.lane!.sendWhole(this, encode.request(this.withTimeLeft()));
  }

  private withTimeLeft(): readonly Buffer[] {
    if (this.until === Number.POSITIVE_INFINITY) return this.args;
    const leftMs = Math.max(1, Math.round(this.until - Date.now()));
    const { at, milliseconds } = this.timeout;
    const args = [...this.args];
    args[at] = Buffer.from(String(milliseconds ? leftMs : leftMs / 1000));
    return args;
  }

  private end(frame: Buffer): void {
    const { session } = this;
    session.blocked = undefined;
    this.answerLate?.(frame);
    session.replyDone();
    session.lift(Hold.blocked);
  }
}
