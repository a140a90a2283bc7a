/**
 * Commands that the session answers itself, because they speak of Holdfast's clients (CLIENT …) or decide which lanes
 * the session uses (login.ts). Replies and errors are the servers' own, word for word.
 */
import { messageOf } from '../../errors.ts';
import * as encode from '../../resp/encode.ts';
import { aggregate, readReply } from '../../resp/reply.ts';
import { isInteger } from '../io/integer.ts';
import type { Request } from '../request/request.ts';
import type { Session } from '../session/session.ts';
import { Hold, Pin, type Transaction } from '../session/session-state.ts';
import { readHelloReply } from '../upstream/hello-reply.ts';
import { ask, exclusively, LOST } from './ask.ts';
import { clientKill, clientLine, clientList, type Executing } from './client-list.ts';
import { BAD_NAME, isClientName, laneName, rename } from './client-name.ts';
import { forward, onLane, sendSticky } from './forward.ts';
import { auth, credentialsOf, greeting, hello, readHello, select } from './login.ts';

const MINUS = 45;
const SYNTAX = encode.error('ERR syntax error');

type Handler = (session: Session, request: Request) => void;

const HANDLERS: Readonly<Record<string, Handler>> = {
  hello,
  auth,
  select,
  'client|id': (session, request) => withConsent(session, request.args, () => encode.integer(session.id)),
  'client|getname': (session, request) => withConsent(session, request.args, () => nameReply(session)),
  'client|setname': setName,
  'client|setinfo': setInfo,
  'client|info': (session, request) =>
    withConsent(session, request.args, () => encode.text(session.protocol, clientLine(session, request))),
  'client|list': (session, request) => judgedFirst(session, request, request.args, clientList),
  'client|kill': (session, request) => {
    judgedFirst(session, request, request.args.length === 3 ? undefined : killsNobody(request.args), clientKill);
  },
  'client|pause': pause,
  'client|reply': setReplyMode,
  'client|unblock': unblock,
  'client|tracking': tracking,
  'client|getredir': (session, request) => redirection(session, request, (reply) => virtualRedirection(session, reply)),
  'client|trackinginfo': (session, request) => redirection(session, request, (reply) => virtualInfo(session, reply)),
};

/** Which of these the session answers only when the number of arguments is right; otherwise the server complains. */
function arityFits(request: Request): boolean {
  const arity = request.command?.arity ?? 0;
  return arity >= 0 ? request.args.length === arity : request.args.length >= -arity;
}

export function answerSessionCommand(session: Session, request: Request): void {
  const { command } = request;
  const handler = command === undefined ? undefined : HANDLERS[command.name];
  const known =
    command === undefined ||
    command.servers.includes(session.context.upstream.facts.server === 'valkey' ? 'valkey' : 'redis');
  if (!known && session.admittedOffline) session.answer(unknownSubcommand(request.args));
  else if (handler === undefined || !known || !arityFits(request)) onLane(session, 0, () => forward(session, request));
  else handler(session, request);
}

/** What the server says of a CLIENT subcommand that it does not have: libraries try some, and go on without. */
export function unknownSubcommand(args: readonly Buffer[]): Buffer {
  return encode.errorOfBytes(`ERR unknown subcommand '${args[1]!.toString('latin1', 0, 128)}'. Try CLIENT HELP.`);
}

/**
 * Has the server judge a request (arguments, permissions; it counts it too), and answers it in the server's place when
 * nothing was wrong with it. A session in a scope is Holdfast's to judge.
 */
function withConsent(session: Session, args: readonly (Buffer | string)[], reply: () => Buffer): void {
  if (session.scope !== undefined || session.admittedOffline) {
    const unheard = session.replyMode !== 'on';
    session.inTurn(() => {
      const answer = reply();
      if (!unheard) session.write(answer);
    });
    return;
  }
  const silent = session.replyMode !== 'on';
  onLane(session, 0, () => {
    session.sendIgnored(args, (judged) => {
      const answer = judged === undefined ? LOST : judged[0] === MINUS ? judged : reply();
      if (!silent) session.write(answer);
    });
  });
}

/** The same for what speaks of other clients, while requests behind it wait; without `args` nothing is judged. */
function judgedFirst(
  session: Session,
  request: Request,
  args: readonly (Buffer | string)[] | undefined,
  answer: (session: Session, request: Request) => Buffer | Promise<Buffer>,
): void {
  exclusively(session, async () => {
    const judged =
      args === undefined || session.scope !== undefined || session.admittedOffline
        ? undefined
        : await ask(session, 0, args, false);
    session.answer(judged?.[0] === MINUS ? judged : await answer(session, request));
  });
}

/** While the server is paused, what it keeps waiting must not stand in others' way on a shared lane. */
function pause(session: Session, request: Request): void {
  const silent = session.replyMode !== 'on';
  onLane(session, 0, () => {
    session.sendIgnored(request.args, (reply) => {
      if (reply !== undefined) notePause(session, request, reply);
      if (!silent) session.write(reply ?? LOST);
    });
  });
}

function notePause(session: Session, request: Request, reply: Buffer): void {
  if (reply[0] === MINUS) return;
  session.context.upstream.pause(Number(request.args[2]), request.args.length < 4 || !request.is(3, 'write'));
}

/** The same KILL for the server to judge: no client of its has that ID, and connections of Holdfast's are not to be killed. */
export function killsNobody(args: readonly Buffer[]): readonly Buffer[] {
  const nobody = [Buffer.from('ID'), Buffer.from('9223372036854775807')];
  return args.length === 3 ? [...args.slice(0, 2), ...nobody] : [...args, ...nobody];
}

/** In a transaction the server queues these; what the session must do with their part of EXEC's reply. */
export function queuedSessionCommand(
  session: Session,
  request: Request,
  transaction: Transaction,
): ((reply: Buffer) => Buffer | Promise<Buffer>) | undefined {
  const executing: Executing = { transaction, slot: transaction.slots };
  switch (request.command?.name) {
    case 'client|id':
      return (reply) => (reply[0] === MINUS ? reply : encode.integer(session.id));
    case 'select':
      return (reply) => {
        if (reply[0] !== MINUS) {
          session.database = Number(request.args[1]?.toString());
          session.laneDirty = true;
        }
        return reply;
      };
    case 'client|setname':
      return (reply) => {
        if (reply[0] !== MINUS) session.name = request.args[2]!.toString('latin1');
        return reply;
      };
    case 'client|getname':
      return (reply) => (reply[0] === MINUS ? reply : nameReply(session));
    case 'client|info':
      return (reply) =>
        reply[0] === MINUS ? reply : encode.text(session.protocol, clientLine(session, request, executing));
    case 'client|list':
      return (reply) => (reply[0] === MINUS ? reply : clientList(session, request, executing));
    case 'client|kill':
      return (reply) => (reply[0] === MINUS ? reply : clientKill(session, request));
    case 'client|setinfo':
      return (reply) => {
        if (reply[0] !== MINUS) noteInfo(session, request);
        return reply;
      };
    case 'client|tracking':
      return (reply) => {
        if (reply[0] !== MINUS) noteTracking(session, request);
        return reply;
      };
    case 'client|pause':
      return (reply) => {
        notePause(session, request, reply);
        return reply;
      };
    case 'hello':
      return (reply) => {
        if (reply[0] === MINUS) return reply;
        const options = readHello(request);
        if (!Buffer.isBuffer(options)) {
          if (options.auth !== undefined) session.become(undefined, credentialsOf(options.auth));
          if (options.name !== undefined) session.name = options.name.toString('latin1');
          session.protocol = options.protocol ?? session.protocol;
        }
        return greeting(session, readHelloReply(reply) ?? session.context.upstream.facts);
      };
    case 'auth':
      return (reply) => {
        if (reply[0] !== MINUS) session.become(undefined, credentialsOf(request.args));
        return reply;
      };
    default:
      return undefined;
  }
}

function nameReply(session: Session): Buffer {
  return session.name === '' ? encode.nullBulk(session.protocol) : encode.bulk(Buffer.from(session.name, 'latin1'));
}

function setName(session: Session, request: Request): void {
  const name = request.args[2]!;
  if (!isClientName(name)) {
    session.answer(encode.error(BAD_NAME));
    return;
  }
  // In its turn: a CLIENT GETNAME before it is still to be answered with the name before.
  withConsent(session, ['CLIENT', 'SETNAME', laneName(session)], () => {
    rename(session, name);
    return encode.OK;
  });
}

function setInfo(session: Session, request: Request): void {
  const attribute = request.args[2]!.toString('latin1');
  const value = request.args[3]!;
  const kind = attribute.toLowerCase();
  if (kind !== 'lib-name' && kind !== 'lib-ver') {
    session.answer(encode.errorOfBytes(`ERR Unrecognized option '${attribute}'`));
    return;
  }
  if (!isClientName(value)) {
    session.answer(encode.error(`ERR ${kind} cannot contain spaces, newlines or special characters.`));
    return;
  }
  withConsent(session, ['CLIENT', 'SETINFO', kind, ''], () => {
    noteInfo(session, request);
    return encode.OK;
  });
}

function noteInfo(session: Session, request: Request): void {
  const value = request.args[3]!.toString('latin1');
  if (request.is(2, 'lib-name')) session.libraryName = value;
  else session.libraryVersion = value;
}

function setReplyMode(session: Session, request: Request): void {
  if (request.args.length !== 3) {
    session.answer(SYNTAX);
    return;
  }
  if (request.is(2, 'on')) {
    session.replyMode = 'on';
    session.answer(encode.OK);
  } else if (request.is(2, 'off')) {
    session.replyMode = 'off';
  } else if (request.is(2, 'skip')) {
    if (session.replyMode !== 'off') session.skipNextReply();
  } else session.answer(SYNTAX);
}

/** The client that an ID of Holdfast's names is unblocked by its connection's ID at the server. */
function unblock(session: Session, request: Request): void {
  const id = request.args[2]!.toString('latin1');
  if (!/^[1-9]\d{0,14}$/.test(id)) {
    onLane(session, 0, () => forward(session, request));
    return;
  }
  session.hold(Hold.request);
  session.whenQuiet(() => {
    laneOf(session, Number(id), false)
      .then((laneId) =>
        session.resend(request.withArgument(2, String(laneId > 0 ? laneId : Number.MAX_SAFE_INTEGER)).args),
      )
      .then(
        (reply) => session.answer(reply),
        (thrown) => session.answer(encode.error(`KVDOWN ${messageOf(thrown)}`)),
      )
      .finally(() => session.lift(Hold.request));
  });
}

/**
 * The KV store's ID of the connection that a client of Holdfast's is on, in whichever process it is; 0 where there is none.
 * `pin`: it is moved to one of its own, to stay there.
 */
async function laneOf(session: Session, clientId: number, pin: boolean): Promise<number> {
  const { registry, peers } = session.context;
  const scope = session.identity?.scopeName;
  if (registry.get(clientId) !== undefined) return registry.laneOf(clientId, pin, scope);
  return peers === undefined ? 0 : peers.laneOf(clientId, pin, scope);
}

/** CLIENT TRACKING was executed in a transaction: the session stays on its lane, or need not any more. */
function noteTracking(session: Session, request: Request): void {
  if (request.is(2, 'on')) {
    session.pins |= Pin.sticky;
    session.setup.set('client|tracking', request.args);
    return;
  }
  session.setup.delete('client|tracking');
  session.setup.delete('client|caching');
  if (session.setup.size === 0) session.pins &= ~Pin.sticky;
}

function tracking(session: Session, request: Request): void {
  if (request.is(2, 'off')) {
    session.setup.delete('client|tracking');
    session.setup.delete('client|caching');
  }
  const translated = redirected(session, request);
  if (translated === undefined) {
    if (request.is(2, 'on')) sendSticky(session, request, 'client|tracking');
    else
      onLane(session, Pin.sticky, () => {
        session.laneDirty = true;
        forward(session, request);
        if (session.setup.size === 0) session.pins &= ~Pin.sticky;
      });
    return;
  }
  session.hold(Hold.request);
  void translated.then((sent) => {
    if (session.closed) return;
    sendSticky(session, sent, 'client|tracking');
    session.lift(Hold.request);
  });
}

/** REDIRECT names a client of Holdfast's; the server must be told of that client's lane. `undefined`: nobody is named. */
export function redirected(session: Session, request: Request): Promise<Request> | undefined {
  const at = request.args.findIndex((_, i) => i > 2 && request.is(i, 'redirect')) + 1;
  const text = at > 0 ? (request.args[at]?.toString('latin1') ?? '') : '';
  if (!isInteger(text)) return undefined;
  const id = Number(text);
  return laneOf(session, id, true)
    .catch(() => 0)
    .then((laneId) => {
      session.redirectsTo = laneId > 0 ? id : 0;
      // A client that is not there is one that no server has.
      return request.withArgument(at, String(laneId > 0 ? laneId : Number.MAX_SAFE_INTEGER));
    });
}

function redirection(session: Session, request: Request, rewrite: (reply: Buffer) => Buffer): void {
  if (!session.dedicated) {
    onLane(session, 0, () => forward(session, request));
    return;
  }
  onLane(session, Pin.sticky, () => {
    session.sendIgnored(request.args, (reply) => {
      if (reply === undefined || session.replyMode !== 'on') return;
      const seen = rewrite(reply);
      session.output.write(session.identity?.rewriteReply?.(request.command, seen) ?? seen);
    });
  });
}

function virtualRedirection(session: Session, reply: Buffer): Buffer {
  const value = readReply(reply);
  if (value.type !== ':' || Number(value.bytes.toString()) <= 0) return reply;
  return encode.integer(session.redirectsTo);
}

/** CLIENT TRACKINGINFO, with the client that the invalidations go to instead of its lane. */
function virtualInfo(session: Session, reply: Buffer): Buffer {
  const info = readReply(reply);
  const at = info.items?.findIndex((item) => item.bytes.toString() === 'redirect') ?? -1;
  const redirect = info.items?.[at + 1];
  if (info.items === undefined || at < 0 || Number(redirect?.bytes.toString()) <= 0) return reply;
  const items = info.items.map((item, index) => (index === at + 1 ? encode.integer(session.redirectsTo) : item.raw));
  return aggregate(info.type === '%' ? '%' : '*', items);
}
