/** Ways to send a request on: as it is, through its interceptors, or on a lane of its own. */
import { HoldfastError, messageOf } from '../errors.ts';
import * as encode from '../resp/encode.ts';
import { PendingExchange } from './pending-exchange.ts';
import type { Request } from './request.ts';
import type { Session } from './session.ts';
import { Hold, Pin } from './session-state.ts';

const MINUS = 45;

/** Runs `action` on a fitting lane; where there is none, its request is answered with the reason. */
export function onLane(session: Session, pin: number, action: () => void): void {
  session.onLane(pin, action, (reply) => session.answer(reply));
}

/** Sends a request as it is; its reply goes to the client as it comes. The lane is there. */
export function forward(session: Session, request: Request): void {
  session.inFlight += 1;
  const receiver = session.replyMode === 'on' ? session : session.sink;
  session.lane!.sendPlain(receiver, request.bytes, 0, request.bytes.length, 1);
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
        if (partial || session.leaving || session.transaction === undefined) {
          receiver.repliesLost(count, partial, cause);
          return;
        }
        if (receiver === session) session.output.write(encode.OK);
        session.repliesDone(count);
      },
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
    forward(session, request);
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
): PendingExchange {
  const exchange = new PendingExchange(session, request.command, request.args, queued, members);
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
      session.inFlight += 1;
      session.lane!.sendWhole(exchange, exchange.args === request.args ? request.bytes : encode.request(exchange.args));
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
      exchange.nextInterceptor();
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
        .catch((thrown) => {
          session.log.error({ err: thrown }, 'an interceptor failed');
          session.close(`an interceptor failed: ${messageOf(thrown)}`);
        });
      return;
    }
    done();
    session.lift(Hold.request);
  };
  step(0);
}

function refusal(session: Session, thrown: unknown): Buffer {
  if (thrown instanceof HoldfastError) {
    return encode.error(thrown.code === 'REFUSED' ? thrown.message : thrown.toReplyText());
  }
  session.log.error({ err: thrown }, 'an interceptor failed');
  return encode.error(`ERR Holdfast failed internally: ${messageOf(thrown)}`);
}
