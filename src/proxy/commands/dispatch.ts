/**
 * Decides what a session does with one request that is not plain: which lane it needs, which interceptors see it, what
 * the session must remember of it. Nothing here waits: what has to wait goes on through `Session.onLane` and holds.
 */
import { HoldfastError } from '../../errors.ts';
import * as encode from '../../resp/encode.ts';
import { type PendingExchange, type ReplyMode, viewIn } from '../request/pending-exchange.ts';
import { Request } from '../request/request.ts';
import { resendOn } from '../session/lane-link.ts';
import type { Session } from '../session/session.ts';
import {
  discardTransaction,
  Hold,
  LOST_TEXT,
  Pin,
  type QueuedSubscription,
  releaseTransaction,
  type Transaction,
} from '../session/session-state.ts';
import type { Credentials } from '../upstream/upstream.ts';
import { exclusively, LOST } from './ask.ts';
import { blockOptionAt, sendBlocking } from './blocked-request.ts';
import {
  answerSessionCommand,
  killsNobody,
  queuedSessionCommand,
  redirected,
  unknownSubcommand,
} from './client-commands.ts';
import {
  forward,
  forwardEnd,
  forwardMulti,
  forwardPushed,
  intercept,
  isRefusedEnd,
  newExchange,
  onLane,
  send,
  sendControl,
  sendExchange,
  sendSticky,
} from './forward.ts';
import { credentialsOf, readHello, resetSession } from './login.ts';
import { sendSubscription } from './subscribe.ts';
import { TransactionReply } from './transaction-reply.ts';

const MINUS = 45;
const PING = [Buffer.from('PING')];
const DATABASE_INDEX = /^(?:0|[1-9]\d{0,8})$/;
const ABORTED = encode.error('EXECABORT Transaction discarded because of previous errors.');
const CONNECTION_LOST = 'the connection to the KV store was lost';
/** What a server and Holdfast need to hold a queued command, besides its bytes. */
const QUEUED_BYTES = 512;
/** Where interceptors look at it, more. */
const EXCHANGE_BYTES = 2048;

export function dispatch(session: Session, asked: Request): void {
  if (isUndecided(session, asked)) {
    decideLater(session, asked);
    return;
  }
  const request = confined(session, asked);
  if (request === undefined) return;
  const { carriage } = request.plan;
  const name = request.command?.name;
  if (name === 'quit') {
    session.endWith(session.replyMode === 'on' ? encode.OK : undefined);
    return;
  }
  if (name === 'reset' && request.args.length === 1) {
    resetSession(session);
    return;
  }
  if (session.transaction !== undefined) {
    dispatchInTransaction(session, request, session.transaction);
    return;
  }
  if (session.protocol === 2 && session.subscriptions.size > 0) {
    // The server judges what may be sent now.
    if (carriage === 'subscribe' || carriage === 'unsubscribe') sendSubscription(session, request);
    else onLane(session, Pin.subscribed, () => forward(session, request));
    return;
  }
  if (session.debugs && (name === 'eval' || name === 'eval_ro')) {
    enterRawMode(session, request);
    return;
  }
  switch (carriage) {
    case 'session':
      answerSessionCommand(session, request);
      return;
    case 'shared':
      if (session.admittedOffline && answersOffline(session, request)) return;
      if (name === 'debug' && request.is(1, 'protocol') && request.is(2, 'push')) {
        forwardPushed(session, request);
        return;
      }
      send(session, request, isKeptWaiting(session, request) ? Pin.blocking : 0);
      return;
    case 'blocking-option': {
      if (blockOptionAt(request.args, name === 'xreadgroup') >= 0) sendBlocking(session, request);
      else send(session, request, isKeptWaiting(session, request) ? Pin.blocking : 0);
      return;
    }
    case 'blocking':
      sendBlocking(session, request);
      return;
    case 'wait':
      onLane(session, Pin.blocking, () => {
        // WAIT counts from its own connection's last command; a new lane has none.
        session.sendIgnored(['PING']);
        forward(session, request);
      });
      return;
    case 'multi':
      beginTransaction(session, request);
      return;
    case 'watch':
      if ((session.pins & Pin.watch) === 0) session.watched.clear();
      for (const key of request.args.slice(1)) session.watched.add(key.toString('latin1'));
      send(session, request, Pin.watch);
      return;
    case 'exec':
    case 'discard':
      // Without MULTI the server refuses it, and what is watched stays so.
      send(session, request, 0);
      return;
    case 'unwatch':
      if (request.args.length > 1) {
        send(session, request, 0);
        return;
      }
      session.watchLost = false;
      onLane(session, 0, () => {
        session.pins &= ~Pin.watch;
        forwardEnd(session, request);
      });
      return;
    case 'subscribe':
    case 'unsubscribe':
      sendSubscription(session, request);
      return;
    case 'sticky':
      sendSticky(session, request, request.command!.name);
      return;
    case 'raw':
      sendRaw(session, request, enterRawMode);
      return;
    case 'replication':
      sendRaw(session, request, sendReplicaSetting);
      return;
    case 'debugging':
      sendRaw(session, request, setDebugging);
      return;
    case 'control':
      sendControl(session, request);
      return;
  }
}

/** What handshakes ask without need of the server, while it cannot be asked. */
function answersOffline(session: Session, { command, args }: Request): boolean {
  if (command?.name === 'ping' && args.length <= 2) {
    // It asks whether this connection serves, and it does: XADD goes on.
    session.answer(args[1] === undefined ? encode.simple('PONG') : encode.bulk(args[1]));
  } else if (command?.name === 'client' && args.length > 1) session.answer(unknownSubcommand(args));
  else return false;
  return true;
}

/** Whether a RESP2 client's request will be a subscriber's, which only PING and its kin are, depends on the server's answer. */
function isUndecided(session: Session, { plan: { carriage } }: Request): boolean {
  return (
    session.protocol === 2 &&
    session.subscriptions.waiting.length > 0 &&
    carriage !== 'subscribe' &&
    carriage !== 'unsubscribe'
  );
}

/** A hold of its own: the request may need `Hold.request` for longer than this decision takes. */
function decideLater(session: Session, asked: Request): void {
  session.hold(Hold.undecided);
  const wait = (): void => session.onLane(Pin.subscribed, () => session.whenQuiet(decide), refused);
  const decide = (): void => {
    if (session.closed) return;
    // The connection broke before it was confirmed: it is asked for again on the next one.
    if (isUndecided(session, asked) && session.lane?.state !== 'ready') {
      wait();
      return;
    }
    dispatch(session, asked);
    session.dispatchedLate();
    session.lift(Hold.undecided);
  };
  const refused = (reply: Buffer): void => {
    session.answer(reply);
    session.lift(Hold.undecided);
  };
  wait();
}

/** The request as the session's scope lets it pass; `undefined` where it was refused. */
function confined(session: Session, request: Request): Request | undefined {
  const { identity, transaction } = session;
  if (identity?.confine === undefined) return request;
  const situation =
    transaction !== undefined
      ? 'transaction'
      : session.protocol === 2 && session.subscriptions.size > 0
        ? 'subscribed'
        : 'plain';
  const verdict = identity.confine(request.command, request.args, situation);
  if (verdict === undefined) return request;
  if ('refused' in verdict) {
    if (transaction !== undefined) transaction.broken ??= 'refused';
    session.answer(verdict.refused);
    return undefined;
  }
  const { args, scope } = verdict;
  return new Request(scope === undefined ? request.plan : session.planOf(args), args, undefined, scope);
}

// ------------------------------------------------------------------ transactions

/**
 * Without a connection MULTI is answered all the same, for a transaction that can only fail: a client that sent all of it
 * at once must not see what it queues executed one by one, when the KV store comes back behind a refused MULTI.
 */
function beginTransaction(session: Session, request: Request): void {
  if (request.args.length > 1) {
    send(session, request, 0);
    return;
  }
  const begin = (broken: Transaction['broken'], lostBecause = CONNECTION_LOST): void => {
    session.transaction = {
      database: session.database,
      slots: 0,
      members: [],
      subscriptions: new Map(),
      broken,
      tenant: session.tenant,
      queuedBytes: 0,
      full: undefined,
      lostBecause,
    };
    session.watchLost = false;
  };
  session.onLane(
    Pin.transaction,
    () => {
      begin(session.watchLost ? 'watch' : undefined);
      forwardMulti(session, request);
    },
    (reply) => {
      const why = reply.toString('utf8', 1, reply.length - 2);
      if (session.closesOnLoss && !why.startsWith('LIMIT ')) {
        session.answer(reply);
        return;
      }
      begin('lost', why);
      session.answer(encode.OK);
    },
  );
}

function dispatchInTransaction(session: Session, request: Request, transaction: Transaction): void {
  const { carriage } = request.plan;
  if (isLost(transaction)) {
    answerInLostTransaction(session, request, transaction);
    return;
  }
  session.onLane(
    Pin.transaction,
    () => {
      if (isLost(transaction)) {
        // While it waited for the lane, which is another one now.
        answerInLostTransaction(session, request, transaction);
        return;
      }
      if (request.args.length > 1 && (carriage === 'exec' || carriage === 'discard')) {
        // The server refuses it and stays in the transaction.
        forward(session, request);
        return;
      }
      switch (carriage) {
        case 'exec':
          endTransaction(session, transaction);
          if (transaction.broken !== undefined) abandon(session, transaction);
          else execute(session, request, transaction);
          return;
        case 'discard':
          endTransaction(session, transaction);
          discardTransaction(transaction);
          forwardEnd(session, request);
          return;
        case 'multi':
        case 'watch':
          // Not queued, but refused by the server: in a scope with physical names, as everything.
          send(session, request, Pin.transaction);
          return;
        case 'subscribe':
        case 'unsubscribe':
          if (session.scope === undefined) enqueueSubscription(session, request, transaction);
          else refuseQueueing(session, request, transaction);
          return;
        case 'replication':
        case 'debugging':
          refuseQueueing(session, request, transaction);
          return;
        default:
          if (isFull(transaction, request)) session.answer(transaction.full!);
          // MONITOR is queued, and refused when it is executed.
          else if (carriage === 'raw' && request.command?.name !== 'monitor')
            refuseQueueing(session, request, transaction);
          else if (request.command?.name === 'select') enqueueSelect(session, request, transaction);
          else {
            const login = loginOf(session, request);
            if (login !== undefined) enqueueLogin(session, request, transaction, login);
            else if (request.command?.name === 'client|tracking') enqueueTracking(session, request, transaction);
            else enqueue(session, request, transaction);
          }
      }
    },
    (reply) => {
      transaction.broken = 'lost';
      transaction.lostBecause = reply.toString('utf8', 1, reply.length - 2);
      answerInLostTransaction(session, request, transaction);
    },
  );
}

function isLost(transaction: Transaction): boolean {
  return transaction.broken === 'lost';
}

/** Whether the command is too much for the transaction, which is then refused; nothing of it is held any more. */
function isFull(transaction: Transaction, request: Request): boolean {
  if (transaction.full !== undefined) return true;
  let bytes = request.plan.interceptors.length > 0 ? QUEUED_BYTES + EXCHANGE_BYTES : QUEUED_BYTES;
  for (const arg of request.args) bytes += arg.length;
  try {
    transaction.tenant.takeTransactionBytes(transaction.queuedBytes, bytes);
    transaction.queuedBytes += bytes;
    return false;
  } catch (thrown) {
    if (!(thrown instanceof HoldfastError)) throw thrown;
    transaction.full = encode.error(thrown.toReplyText());
    transaction.broken ??= 'refused';
    discardTransaction(transaction);
    return true;
  }
}

function transactionLost({ lostBecause }: Transaction): Buffer {
  return encode.error(`EXECABORT Transaction discarded: ${lostBecause}`);
}

function endTransaction(session: Session, transaction: Transaction): void {
  releaseTransaction(transaction);
  session.transaction = undefined;
  session.pins &= ~(Pin.watch | Pin.transaction);
}

function answerInLostTransaction(session: Session, request: Request, transaction: Transaction): void {
  const { carriage } = request.plan;
  if (carriage === 'exec' || carriage === 'discard') {
    endTransaction(session, transaction);
    discardTransaction(transaction);
  }
  session.answer(carriage === 'discard' ? encode.OK : transactionLost(transaction));
}

/** Who the session wants to become, where that may be a user of Holdfast's own. */
function loginOf(session: Session, request: Request): Credentials | undefined {
  if (session.context.identities === undefined) return undefined;
  const { args } = request;
  if (request.command?.name === 'auth') return args.length === 2 || args.length === 3 ? credentialsOf(args) : undefined;
  if (request.command?.name !== 'hello') return undefined;
  const options = readHello(request);
  return Buffer.isBuffer(options) || options.auth === undefined ? undefined : credentialsOf(options.auth);
}

/** The client that it redirects to may have to get a connection of its own first. */
function enqueueTracking(session: Session, request: Request, transaction: Transaction): void {
  const translated = redirected(session, request);
  if (translated === undefined) {
    enqueue(session, request, transaction);
    return;
  }
  session.hold(Hold.undecided);
  translated
    .then((sent) => {
      if (session.closed) return;
      if (isLost(transaction)) session.answer(transactionLost(transaction));
      else enqueue(session, sent, transaction);
    })
    .catch((thrown) => session.fault(thrown))
    .finally(() => session.lift(Hold.undecided));
}

/**
 * A change of identity is queued where the KV store may judge it: users of Holdfast's own it does not know, and who is one
 * already, or may only be one, does not become one of its users on the way.
 */
function enqueueLogin(session: Session, request: Request, transaction: Transaction, login: Credentials): void {
  const identities = session.context.identities!;
  session.hold(Hold.undecided);
  const { listener } = session;
  const stays = session.identity !== undefined || identities.confines(listener) || identities.requiresAuth(listener);
  (stays ? Promise.resolve('refused') : identities.authenticate(login.username, login.password))
    .then((verdict) => {
      if (session.closed) return;
      if (isLost(transaction)) session.answer(transactionLost(transaction));
      else if (verdict === 'unknown') enqueue(session, request, transaction);
      else refuseQueueing(session, request, transaction);
    })
    .catch((thrown) => session.fault(thrown))
    .finally(() => session.lift(Hold.undecided));
}

/** The transaction is refused with it. */
function refuseQueueing(session: Session, request: Request, transaction: Transaction): void {
  transaction.broken ??= 'refused';
  const name = request.command?.name.replace('|', ' ').toUpperCase();
  session.answer(encode.error(`ERR ${name} inside MULTI is not possible through Holdfast: send it before or after`));
}

/** Its confirmations come in EXEC's reply. */
function enqueueSubscription(session: Session, request: Request, transaction: Transaction): void {
  const names = request.args.slice(1);
  if (request.plan.carriage === 'unsubscribe' || names.length > 0) {
    transaction.subscriptions.set(transaction.slots, { command: request.command!.name, names });
  }
  transaction.slots += 1;
  session.laneDirty = true;
  forward(session, request);
}

/**
 * What is queued behind it has its database, unless there is none of that number: EXEC then goes on in the one before. A number that
 * nobody asked for yet is the server's to judge, on another connection, for this one only queues.
 */
function enqueueSelect(session: Session, request: Request, transaction: Transaction): void {
  const index = request.args[1]?.toString('latin1') ?? '';
  const database = Number(index);
  if (request.args.length !== 2 || database === transaction.database || !DATABASE_INDEX.test(index)) {
    enqueue(session, request, transaction);
    return;
  }
  const { credentials, protocol, context } = session;
  const set = context.upstream.laneSet({ credentials, database, protocol });
  const select = (exists: boolean): void => {
    if (exists) transaction.database = database;
    enqueue(session, request, transaction);
  };
  if (context.upstream.known.knows(credentials, database) || set.sharedLane() !== undefined) {
    select(true);
    return;
  }
  session.hold(Hold.database);
  resendOn(session, set, PING)
    .then(
      () => select(true),
      (thrown: unknown) => {
        if (!isUnreachable(thrown)) {
          select(false);
          return;
        }
        transaction.broken ??= 'refused';
        session.answer(encode.error(thrown.toReplyText()));
      },
    )
    .finally(() => session.lift(Hold.database));
}

function isUnreachable(thrown: unknown): thrown is HoldfastError {
  return thrown instanceof HoldfastError && thrown.code === 'KVDOWN';
}

const REPLY_MODES: readonly ReplyMode[] = ['on', 'off', 'skip'];

function enqueue(session: Session, request: Request, transaction: Transaction): void {
  const { carriage } = request.plan;
  // What these change is the connection's own: nobody else may find it there.
  if (carriage === 'session' || carriage === 'sticky') session.laneDirty = true;
  const own =
    carriage === 'sticky' ? keepSticky(session, request) : queuedSessionCommand(session, request, transaction);
  if (request.plan.interceptors.length === 0 && own === undefined && request.command?.name !== 'client|reply') {
    transaction.slots += 1;
    forward(session, request);
    return;
  }
  const exchange = newExchange(session, request, true, [], viewIn(session, transaction.database));
  if (request.command?.name === 'client|reply' && request.args.length === 3) {
    // The session leaves replies out; the server's own would be missing where they are counted.
    exchange.replyMode = REPLY_MODES.find((_, mode) => request.is(2, REPLY_MODES[mode]!));
    if (exchange.replyMode !== undefined) exchange.respond(encode.OK);
  }
  if (own !== undefined) exchange.finally(own);
  if (request.command?.name === 'client|kill') exchange.args = killsNobody(request.args);
  intercept(session, exchange, request, () => {
    const { answer } = exchange;
    if (isLost(transaction)) {
      exchange.discard();
      session.answer(transactionLost(transaction));
      return;
    }
    if (answer?.[0] === MINUS) {
      transaction.broken ??= 'refused';
      exchange.discard();
      session.answer(answer);
      return;
    }
    exchange.slot = transaction.slots;
    transaction.slots += 1;
    transaction.members.push(exchange);
    if (answer !== undefined) session.answer(encode.QUEUED);
    else sendExchange(session, exchange, request, Pin.transaction);
  });
}

/** A sticky command in a transaction: once EXEC has executed it, the session stays where it was. */
function keepSticky(session: Session, request: Request): (reply: Buffer) => Buffer {
  return (reply) => {
    if (reply[0] !== MINUS) {
      session.pins |= Pin.sticky;
      session.setup.set(request.command!.name, request.args);
    }
    return reply;
  };
}

function execute(session: Session, request: Request, transaction: Transaction): void {
  if (
    transaction.members.length === 0 &&
    transaction.subscriptions.size === 0 &&
    request.plan.interceptors.length === 0
  ) {
    forwardEnd(session, request);
    return;
  }
  const exchange = newExchange(session, request, false, transaction.members);
  exchange.finally((reply) => {
    if (isRefusedEnd(reply, 0)) session.laneDirty = true;
    return reply;
  });
  // Until it is sent the connection's transaction is open.
  session.pins |= Pin.transaction;
  intercept(session, exchange, request, () => {
    session.pins &= ~Pin.transaction;
    if (exchange.answer !== undefined) {
      if (session.lane?.state === 'ready') session.sendIgnored(['DISCARD']);
      for (const member of transaction.members) member.discard();
      session.inTurn(() => exchange.settleAnswer());
      return;
    }
    if (session.lane?.state !== 'ready') {
      session.inFlight += 1;
      exchange.lost(new HoldfastError('KVDOWN', LOST_TEXT));
      return;
    }
    if (transaction.subscriptions.size > 0 || transaction.members.some((member) => member.replyMode !== undefined)) {
      // How what follows is answered is known when it has been executed.
      session.hold(Hold.lane);
      sendTransaction(session, exchange, request, transaction);
      session.whenQuiet(() => session.lift(Hold.lane));
    } else sendExchange(session, exchange, request, 0);
  });
}

function sendTransaction(
  session: Session,
  exchange: PendingExchange,
  request: Request,
  { members, slots, subscriptions }: Transaction,
): void {
  if (subscriptions.size === 0) {
    sendExchange(session, exchange, request, 0);
    return;
  }
  // What Holdfast answered itself is not in the server's reply.
  const answered = new Set(members.filter(({ answer }) => answer !== undefined).map(({ slot }) => slot));
  const atServer = new Map<number, QueuedSubscription>();
  for (let slot = 0, place = 0; slot < slots; slot += 1) {
    const subscription = subscriptions.get(slot);
    if (subscription !== undefined) atServer.set(place, subscription);
    if (!answered.has(slot)) place += 1;
  }
  session.inFlight += 1;
  session.lane!.sendTransaction(new TransactionReply(session, exchange, atServer), request.bytes);
}

/** EXEC of a transaction that must fail although the KV store would execute it. */
function abandon(session: Session, transaction: Transaction): void {
  discardTransaction(transaction);
  const reply = transaction.broken === 'watch' ? encode.nullArray(session.protocol) : ABORTED;
  session.sendIgnored(['DISCARD'], () => {
    if (session.replyMode === 'on') session.output.write(reply);
  });
}

// ------------------------------------------------------------------ raw mode

function sendRaw(session: Session, request: Request, enter: (session: Session, request: Request) => void): void {
  if (request.plan.interceptors.length === 0) {
    enter(session, request);
    return;
  }
  const exchange = newExchange(session, request, false, []);
  intercept(session, exchange, request, () => {
    if (exchange.answer !== undefined) session.inTurn(() => exchange.settleAnswer());
    else enter(session, new Request(request.plan, exchange.args, undefined));
  });
}

/** From here on bytes pass both ways without framing; what is in flight is answered first. */
function enterRawMode(session: Session, request: Request): void {
  session.hold(Hold.request);
  // Again on the lane: what a new one is set up with is answered before (SYNC is refused while anything is pending).
  const begin = (): void => {
    session.laneDirty = true;
    session.lane!.raw = true;
    session.lane!.out.append(request.bytes, 0, request.bytes.length);
    session.lift(Hold.request);
  };
  const refused = (reply: Buffer): void => {
    session.answer(reply);
    session.lift(Hold.request);
  };
  session.whenQuiet(() => session.onLane(Pin.raw, () => session.whenQuiet(begin), refused));
}

/** SCRIPT DEBUG: the server decides, behind nothing that is still to be answered, and may be asked to end it again. */
function setDebugging(session: Session, request: Request): void {
  const silent = session.replyMode !== 'on';
  exclusively(session, async () => {
    const reply = await new Promise<Buffer>((resolve) => {
      // Again on the lane, for what a new one is set up with.
      const ask = (): void =>
        session.whenQuiet(() => session.sendIgnored(request.args, (said) => resolve(said ?? LOST)));
      session.onLane(Pin.sticky, ask, resolve);
    });
    session.laneDirty = true;
    if (reply[0] !== MINUS) session.debugs = !request.is(2, 'no');
    if (!session.debugs && session.setup.size === 0) session.pins &= ~Pin.sticky;
    if (!silent) session.output.write(reply);
  });
}

/** REPLCONF says something of the connection, on which SYNC or PSYNC may follow. */
function sendReplicaSetting(session: Session, request: Request): void {
  const { args } = request;
  const unanswered = args.some((_, at) => at % 2 === 1 && (request.is(at, 'ack') || request.is(at, 'getack')));
  if (args.length % 2 === 0 || !unanswered) {
    sendSticky(session, request, `replconf ${args[1]?.toString('latin1').toLowerCase()}`);
    return;
  }
  // Of no replica it means nothing and has no reply; whether this user may say it, one without options tells.
  const silent = session.replyMode !== 'on';
  onLane(session, 0, () => {
    session.sendIgnored(args.slice(0, 1), (reply) => {
      if (!silent && reply?.[0] === MINUS) session.output.write(reply);
    });
  });
}

/** CLIENT PAUSE makes this command wait, as if it blocked. */
function isKeptWaiting(session: Session, request: Request): boolean {
  const { paused } = session.context.upstream;
  return paused === 'all' || (paused === 'writes' && request.command?.flags.has('readonly') !== true);
}
