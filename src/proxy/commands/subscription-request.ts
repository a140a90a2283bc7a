/**
 * SUBSCRIBE and its kin, from the client's request to the last confirmation, over as many connections as it takes.
 *
 *   request ──▶ waiting, sent ──▶ confirmed, one by one ──▶ done
 *                 ▲      │ connection lost: what is not confirmed stays waiting
 *                 └──────┘ a new lane: what was confirmed first (nobody sees the confirmations), then what waits
 *
 * While something waits, what a RESP2 client may do is not known; `dispatch` keeps other requests back until it is.
 */
import type { HoldfastError } from '../../errors.ts';
import * as encode from '../../resp/encode.ts';
import { readReply } from '../../resp/reply.ts';
import type { PendingExchange } from '../request/pending-exchange.ts';
import type { Session } from '../session/session.ts';
import { Pin } from '../session/session-state.ts';
import type { OwedConfirmations } from '../upstream/reply-queue.ts';

const MINUS = 45;

/** Puts a new dedicated lane where the one before was: subscribed to what was confirmed, and asked what was not. */
export function subscribeAgain(session: Session): void {
  const { subscriptions } = session;
  const before = subscriptions.waiting;
  subscriptions.waiting = subscriptions.takeConfirmed().map(({ command, names }) => {
    const restored = new SubscriptionRequest(session, command, names, Buffer.from(command));
    restored.restores = true;
    return restored;
  });
  subscriptions.waiting.push(...before);
  for (const waiting of [...subscriptions.waiting]) waiting.send();
}

/** There will be no connection for now: the client hears of what it asked, and what it has is tried again later. */
export function failWaiting(session: Session, reply: Buffer): void {
  const { subscriptions } = session;
  const failed = subscriptions.waiting.filter((waiting) => !waiting.restores);
  subscriptions.waiting = subscriptions.waiting.filter((waiting) => waiting.restores);
  for (const waiting of failed) waiting.fail(reply);
  noteSubscribed(session);
}

/** Whether the session needs its lane for what it hears there. */
export function noteSubscribed(session: Session): void {
  const { subscriptions, lane } = session;
  if (subscriptions.expected) session.pins |= Pin.subscribed;
  else session.pins &= ~Pin.subscribed;
  // Not before the server says so: until then arrays are replies, whatever they begin with.
  if (session.dedicated && lane !== undefined) lane.subscribedResp2 = session.protocol === 2 && subscriptions.size > 0;
}

export class SubscriptionRequest implements OwedConfirmations {
  readonly word: Buffer;
  exchange: PendingExchange | undefined;
  /** CLIENT REPLY OFF or SKIP. */
  silent = false;
  /** What a former connection was subscribed to: confirmations are nobody's. */
  restores = false;
  private readonly session: Session;
  private readonly command: string;
  /** As the client wrote it. */
  private readonly asked: Buffer;
  /** Not confirmed yet; empty for all of them (UNSUBSCRIBE without names). */
  private names: readonly Buffer[];
  /** So many of `names` are confirmed. */
  private confirmedNames = 0;
  /** Confirmations still to come; `undefined` before the first. */
  private left: number | undefined;

  constructor(session: Session, command: string, names: readonly Buffer[], asked: Buffer) {
    this.session = session;
    this.command = command;
    this.word = Buffer.from(command);
    this.names = names;
    this.asked = asked;
  }

  /** Asks what is not confirmed yet. */
  send(): void {
    const { session } = this;
    session.laneDirty = true;
    session.inFlight += 1;
    this.left = undefined;
    this.names = this.names.slice(this.confirmedNames);
    this.confirmedNames = 0;
    session.lane!.sendConfirmed(this, encode.request([this.asked, ...this.names]));
  }

  confirmed(frame: Buffer): boolean {
    const { session, exchange } = this;
    const failed = frame[0] === MINUS;
    if (failed) this.left = 0;
    else {
      const { subscriptions } = session;
      this.left = (this.left ?? subscriptions.due(this.command, this.names)) - 1;
      if (this.confirmedNames < this.names.length) this.confirmedNames += 1;
      subscriptions.confirm(readReply(frame));
    }
    if (this.restores) {
      if (failed) {
        const reason = frame.toString('latin1', 1, frame.length - 2);
        session.log.warn({ client: session.id, reason }, 'a subscription was refused on a new connection');
      }
    } else {
      const seen = exchange?.confirmation(frame);
      // Confirmations are pushes to the server too: CLIENT REPLY silences only the error.
      if (!failed || !this.silent) {
        if (seen === undefined) session.push(frame);
        else if (seen.length > 0) session.output.write(seen);
      }
    }
    if (this.left === 0) this.forget();
    noteSubscribed(session);
    return this.left === 0;
  }

  done(): void {
    this.session.replyDone();
  }

  lost(cause: HoldfastError): void {
    const { session } = this;
    // A client that leaves is owed nothing more.
    if (session.closed || session.leaving) this.forget();
    session.log.debug({ client: session.id, cause: cause.message }, 'a subscription is asked for again');
    session.replyDone();
  }

  fault(thrown: unknown): void {
    this.session.fault(thrown);
  }

  /** Answers the client with an error in place of what is not confirmed. */
  fail(reply: Buffer): void {
    const seen = this.exchange?.confirmation(reply) ?? reply;
    if (!this.silent) this.session.write(seen);
  }

  private forget(): void {
    const { waiting } = this.session.subscriptions;
    const at = waiting.indexOf(this);
    if (at >= 0) waiting.splice(at, 1);
  }
}
