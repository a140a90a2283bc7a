/** Ways to send a request on: as it is, through its interceptors, or on a lane of its own. */
import { HoldfastError, messageOf } from '../../errors.ts';
import type { Interceptor, SessionView } from '../../interceptor.ts';
import * as encode from '../../resp/encode.ts';
import { PendingExchange, viewIn } from '../request/pending-exchange.ts';
import type { Request } from '../request/request.ts';
import { occupyLane, resendOn } from '../session/lane-link.ts';
import type { Session } from '../session/session.ts';
import { Hold, LOST_TEXT, Pin } from '../session/session-state.ts';

const MINUS = 45;
/** What the KV store says of itself, to Holdfast's own connections as to every client. */
const SERVER_STATES: ReadonlySet<string> = new Set(['BUSY', 'LOADING', 'MASTERDOWN', 'MISCONF', 'OOM', 'READONLY']);

/** Runs `action` on a fitting lane; where there is none, its request is answered with the reason. */
export function onLane(session: Session, pin: number, action: () => void): void {
  session.onLane(pin, action, (reply) => session.answer(reply));
}

/** Sends a request as it is; its reply goes to the client as it comes. The lane is there. */
export function forward(session: Session, request: Request): void {
  session.inFlight += 1;
  const receiver = session.replyMode === 'on' ? session : session.sink;
  session.lane!.sendPlain(receiver, request.bytes, 0, request.bytes.length, 1);
  if (request.plan.endless) occupyLane(session);
}

/** DEBUG PROTOCOL push: a push, which nobody takes on a shared lane, and a reply. In RESP2 both look like replies. */
export function forwardPushed(session: Session, request: Request): void {
  onLane(session, Pin.passing, () => {
    const replies = session.protocol === 3 ? 1 : 2;
    const receiver = session.replyMode === 'on' ? session : session.sink;
    session.inFlight += replies;
    session.lane!.sendPlain(receiver, request.bytes, 0, request.bytes.length, replies);
  });
}

/** Sends MULTI. Where the connection breaks before the reply, the session is in a transaction that can only fail. */
export function forwardMulti(session: Session, request: Request): void {
  session.inFlight += 1;
  const receiver = session.replyMode === 'on' ? session : session.sink;
  session.lane!.sendPlain(
    {
      deliver: (buffer, start, end, readBuffer) => receiver.deliver(buffer, start, end, readBuffer),
      repliesDone: (count) => receiver.repliesDone(count),
      repliesLost(count, partial, cause) {
        if (partial || session.leaving || session.transaction === undefined || session.closesOnLoss) {
          receiver.repliesLost(count, partial, cause);
          return;
        }
        if (receiver === session) session.output.write(encode.OK);
        session.repliesDone(count);
      },
      fault: (thrown) => session.fault(thrown),
    },
    request.bytes,
    0,
    request.bytes.length,
    1,
  );
}

/**
 * Sends the end of a transaction or a watch. A lane on which the server did not take it (wrong arguments, an ACL) is in
 * that state still, and is not used by another session.
 */
export function forwardEnd(session: Session, request: Request): void {
  session.inFlight += 1;
  const receiver = session.replyMode === 'on' ? session : session.sink;
  let first = true;
  session.lane!.sendPlain(
    {
      deliver: (buffer, start, end, readBuffer) => {
        if (first && isRefusedEnd(buffer, start)) session.laneDirty = true;
        first = false;
        receiver.deliver(buffer, start, end, readBuffer);
      },
      repliesDone: (count) => receiver.repliesDone(count),
      repliesLost: (count, partial, cause) => receiver.repliesLost(count, partial, cause),
      fault: (thrown) => session.fault(thrown),
    },
    request.bytes,
    0,
    request.bytes.length,
    1,
  );
}

/** Whether a reply to EXEC, DISCARD or UNWATCH says that the state they end is still there. */
export function isRefusedEnd(buffer: Buffer, start: number): boolean {
  return buffer[start] === MINUS && buffer.toString('latin1', start + 1, start + 10) !== 'EXECABORT';
}

/** Sends a request through its interceptors, if it has any. */
export function send(session: Session, request: Request, pin: number): void {
  if (request.plan.interceptors.length === 0) {
    onLane(session, pin, () => forward(session, request));
    return;
  }
  const exchange = newExchange(session, request, false, []);
  intercept(session, exchange, request, () => sendExchange(session, exchange, request, pin));
}

/** A command that sets something on its connection, to be set again on a new one. */
export function sendSticky(session: Session, request: Request, what: string): void {
  onLane(session, Pin.sticky, () => {
    session.laneDirty = true;
    session.setup.set(what, request.args);
    forwardSeen(session, request);
  });
}

/** Sends a request as it is; a scoped client sees its reply without physical names. */
export function forwardSeen(session: Session, request: Request): void {
  const { identity } = session;
  if (identity?.rewriteReply === undefined) {
    forward(session, request);
    return;
  }
  const silent = session.replyMode !== 'on';
  session.sendIgnored(request.args, (reply) => {
    if (reply === undefined) session.answer(encode.error(`KVDOWN ${LOST_TEXT}`));
    else if (!silent) session.output.write(identity.rewriteReply!(request.command, reply));
  });
}

/** Sends on a lane with nothing else on it, which gets through while the server is busy. */
export function sendControl(session: Session, request: Request): void {
  session.hold(Hold.request);
  session.whenQuiet(() => {
    session
      .resendAnywhere(request.args)
      .then(
        (reply) => {
          if (request.command?.name === 'client|unpause' && reply[0] !== MINUS) session.context.upstream.unpause();
          session.answer(reply);
        },
        (thrown) => {
          if (request.command?.name === 'shutdown') session.close('it shut the KV store down');
          else session.answer(refusal(session, thrown));
        },
      )
      .finally(() => session.lift(Hold.request));
  });
}

export function newExchange(
  session: Session,
  request: Request,
  queued: boolean,
  members: readonly PendingExchange[],
  view: SessionView = session,
): PendingExchange {
  const exchange = new PendingExchange(session, request.command, request.args, queued, members, request.scope, view);
  exchange.silent = session.replyMode !== 'on';
  session.context.counters.exchanges += 1;
  return exchange;
}

export function sendExchange(session: Session, exchange: PendingExchange, request: Request, pin: number): void {
  if (exchange.answer !== undefined) {
    session.inTurn(() => exchange.settleAnswer());
    return;
  }
  session.onLane(
    pin,
    () => {
      const { probe } = exchange;
      if (probe !== undefined) session.sendIgnored(probe.args, probe.before);
      session.inFlight += 1;
      session.lane!.sendWhole(exchange, exchange.args === request.args ? request.bytes : encode.request(exchange.args));
      if (request.plan.endless) occupyLane(session);
      if (probe !== undefined) session.sendIgnored(probe.args, probe.after);
    },
    (reply) => {
      session.inFlight += 1;
      exchange.lost(new HoldfastError('KVDOWN', reply.toString('utf8', 1, reply.length - 2).replace(/^KVDOWN /, '')));
    },
  );
}

/** Calls the interceptors in order, then `done`. An asynchronous one holds the session. */
export function intercept(session: Session, exchange: PendingExchange, request: Request, done: () => void): void {
  const { interceptors } = request.plan;
  const step = (from: number): void => {
    for (let i = from; i < interceptors.length && exchange.answer === undefined; i += 1) {
      exchange.nextInterceptor(interceptors[i]!);
      let pending: undefined | Promise<void>;
      try {
        pending = interceptors[i]!.request(exchange) as undefined | Promise<void>;
      } catch (thrown) {
        exchange.respond(refusal(session, thrown));
      }
      if (pending === undefined) continue;
      session.hold(Hold.request);
      pending
        .catch((thrown) => exchange.respond(refusal(session, thrown)))
        .then(() => {
          if (session.closed) exchange.discard();
          else step(i + 1);
        })
        .catch((thrown) => session.fault(thrown));
      return;
    }
    done();
    session.lift(Hold.request);
  };
  step(0);
}

/**
 * Runs a command for an interceptor, through those behind it, and gives its reply. What comes from the session's client
 * waits meanwhile. Nothing is sent once the client is gone.
 */
export async function runBehind(
  session: Session,
  behind: Interceptor,
  args: readonly Buffer[],
  database: number,
): Promise<Buffer> {
  const order = session.context.interceptors;
  const { command, interceptors } = session.planOf(args);
  const elsewhere = database !== session.database;
  const exchange = new PendingExchange(session, command, args, false, [], undefined, viewIn(session, database));
  const collected = new Promise<Buffer>((resolve) => {
    exchange.collect = resolve;
  });
  for (const interceptor of interceptors) {
    if (order.indexOf(interceptor) <= order.indexOf(behind)) continue;
    exchange.nextInterceptor(interceptor);
    try {
      await interceptor.request(exchange);
    } catch (thrown) {
      exchange.respond(refusal(session, thrown));
    }
    if (exchange.answer !== undefined) break;
  }
  if (session.closed) {
    exchange.discard();
    throw new HoldfastError('KVDOWN', 'the client is gone');
  }
  if (exchange.answer !== undefined) exchange.settleAnswer();
  else if (elsewhere) sendElsewhere(session, exchange, database);
  else {
    session.onLane(
      0,
      () => {
        session.inFlight += 1;
        session.lane!.sendWhole(exchange, encode.request(exchange.args));
      },
      (reply) => exchange.collect!(reply),
    );
  }
  return collected;
}

function sendElsewhere(session: Session, exchange: PendingExchange, database: number): void {
  const { credentials, protocol } = session;
  const lanes = session.context.upstream.laneSet({ credentials, database, protocol });
  session.inFlight += 1;
  resendOn(session, lanes, exchange.args)
    .then(
      (reply) => exchange.reply(reply),
      (thrown) =>
        exchange.lost(thrown instanceof HoldfastError ? thrown : new HoldfastError('KVDOWN', messageOf(thrown))),
    )
    .catch((thrown) => session.fault(thrown));
}

function refusal(session: Session, thrown: unknown): Buffer {
  if (thrown instanceof HoldfastError) {
    return encode.error(thrown.code === 'REFUSED' ? thrown.message : thrown.toReplyText());
  }
  const text = messageOf(thrown);
  if (SERVER_STATES.has(text.split(' ', 1)[0]!)) return encode.errorOfBytes(text);
  session.log.error({ err: thrown }, 'an interceptor failed');
  return encode.error(`ERR Holdfast failed internally: ${messageOf(thrown)}`);
}
