/** Sends SUBSCRIBE and its kin; what becomes of one is its SubscriptionRequest's job. */

import type { PendingExchange } from '../request/pending-exchange.ts';
import { Request } from '../request/request.ts';
import type { Session } from '../session/session.ts';
import { Pin } from '../session/session-state.ts';
import { forward, intercept, newExchange, onLane } from './forward.ts';
import { noteSubscribed, SubscriptionRequest } from './subscription-request.ts';

export function sendSubscription(session: Session, request: Request): void {
  if (request.plan.interceptors.length === 0) {
    subscribe(session, request);
    return;
  }
  const exchange = newExchange(session, request, false, []);
  intercept(session, exchange, request, () => {
    if (exchange.answer !== undefined) session.inTurn(() => exchange.settleAnswer());
    else subscribe(session, new Request(request.plan, exchange.args, undefined), exchange);
  });
}

function subscribe(session: Session, request: Request, exchange?: PendingExchange): void {
  onLane(session, Pin.subscribed, () => {
    if (request.plan.carriage === 'subscribe' && request.args.length < 2) {
      noteSubscribed(session);
      forward(session, request);
      return;
    }
    const command = request.command!.name;
    const waiting = new SubscriptionRequest(session, command, request.args.slice(1), request.args[0]!);
    waiting.exchange = exchange;
    waiting.silent = session.replyMode !== 'on';
    session.subscriptions.waiting.push(waiting);
    waiting.send();
  });
}
