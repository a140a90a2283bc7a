/**
 * Commands that the session answers itself, because they speak of Holdfast's clients (CLIENT …) or decide which lanes
 * the session uses (HELLO, AUTH, SELECT, RESET). Replies and errors are the servers' own, word for word.
 */
import { messageOf } from '../errors.ts';
import * as encode from '../resp/encode.ts';
import { readReply } from '../resp/reply.ts';
import { answerClientKill, answerClientList, clientLine } from './client-list.ts';
import { forward, onLane, send, sendSticky } from './forward.ts';
import { isInteger } from './integer.ts';
import type { Request } from './request.ts';
import type { Session } from './session.ts';
import { Hold, LOST_TEXT, Pin } from './session-state.ts';
import type { Credentials } from './upstream.ts';

const MINUS = 45;
const NOAUTH_HELLO = encode.error(
  'NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time',
);
const BAD_NAME = 'ERR Client names cannot contain spaces, newlines or special characters.';
const LOST = encode.error(`KVDOWN ${LOST_TEXT}`);
const WRONG_PASSWORD = encode.error('WRONGPASS invalid username-password pair or user is disabled.');
const SYNTAX = encode.error('ERR syntax error');

type Handler = (session: Session, request: Request) => void;

const HANDLERS: Readonly<Record<string, Handler>> = {
  hello,
  auth,
  select,
  'client|id': (session) => session.answer(encode.integer(session.id)),
  'client|getname': (session) => session.answer(nameReply(session)),
  'client|setname': setName,
  'client|setinfo': setInfo,
  'client|info': (session) => session.answer(encode.text(session.protocol, clientLine(session))),
  'client|list': answerClientList,
  'client|kill': answerClientKill,
  'client|reply': setReplyMode,
  'client|unblock': unblock,
  'client|tracking': tracking,
  'client|getredir': (session, request) => redirection(session, request, (reply) => virtualRedirection(session, reply)),
  'client|trackinginfo': (session, request) => send(session, request, 0),
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
  if (handler === undefined || !known || !arityFits(request)) onLane(session, 0, () => forward(session, request));
  else handler(session, request);
}

/** In a transaction the server queues these; what the session must do with their part of EXEC's reply. */
export function queuedSessionCommand(session: Session, request: Request): ((reply: Buffer) => Buffer) | undefined {
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
      return (reply) => (reply[0] === MINUS ? reply : encode.text(session.protocol, clientLine(session)));
    case 'hello':
      return (reply) => {
        if (reply[0] === MINUS) return reply;
        const options = readHello(request);
        if (!Buffer.isBuffer(options)) {
          if (options.auth !== undefined) session.become(undefined, credentialsOf(options.auth));
          if (options.name !== undefined) session.name = options.name.toString('latin1');
          session.protocol = options.protocol ?? session.protocol;
        }
        return greeting(session);
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

// ------------------------------------------------------------------ who the session is

function auth(session: Session, request: Request): void {
  if (request.args.length > 3) {
    session.answer(SYNTAX);
    return;
  }
  authenticate(session, request.args, (refused) => session.answer(refused ?? encode.OK));
}

/**
 * Lets the KV store judge credentials; `args` is a whole AUTH. `done` gets the error to answer with, or nothing where the
 * session now is that user. Requests behind it wait.
 */
function authenticate(session: Session, args: readonly Buffer[], done: (refused: Buffer | undefined) => void): void {
  session.hold(Hold.request);
  session.whenQuiet(() => {
    void judge(session, args)
      .catch((thrown) => encode.error(`KVDOWN ${messageOf(thrown)}`))
      .then(done)
      .finally(() => session.lift(Hold.request));
  });
}

/** Who a whole AUTH names. */
function credentialsOf(args: readonly Buffer[]): Credentials {
  const named = args.length === 3;
  return { username: named ? args[1]!.toString() : undefined, password: args[named ? 2 : 1]! };
}

/** Holdfast's own users first, then the KV store's. Gives the error to answer with, or nothing. */
async function judge(session: Session, args: readonly Buffer[]): Promise<Buffer | undefined> {
  const credentials = credentialsOf(args);
  const { identities, upstream } = session.context;
  const own = (await identities?.authenticate(credentials.username, credentials.password)) ?? 'unknown';
  if (own === 'refused') return WRONG_PASSWORD;
  if (own !== 'unknown') {
    changeLanes(session, () => session.become(own, undefined));
    return undefined;
  }
  const reply = await upstream.authenticate(args);
  if (reply[0] === MINUS) return reply;
  changeLanes(session, () => session.become(undefined, credentials));
  return undefined;
}

/** Changes what decides the session's lanes, and leaves the lane it is on. A pinned one is set up again elsewhere. */
function changeLanes(session: Session, change: () => void): void {
  if (session.dedicated) session.leaveDedicated();
  session.lane = undefined;
  change();
  if (session.pins & (Pin.subscribed | Pin.sticky | Pin.redirectTarget)) session.attachDedicated(0);
}

interface HelloOptions {
  readonly protocol: encode.Protocol | undefined;
  readonly auth: readonly Buffer[] | undefined;
  readonly name: Buffer | undefined;
}

/** Reads HELLO's arguments in the order in which a server judges them; a buffer is the error it gives. */
function readHello(request: Request): HelloOptions | Buffer {
  const { args } = request;
  let protocol: encode.Protocol | undefined;
  if (args.length > 1) {
    const version = args[1]!.toString('latin1');
    if (!isInteger(version)) return encode.error('ERR Protocol version is not an integer or out of range');
    if (version !== '2' && version !== '3') return encode.error('NOPROTO unsupported protocol version');
    protocol = version === '3' ? 3 : 2;
  }
  let auth: readonly Buffer[] | undefined;
  let name: Buffer | undefined;
  for (let i = 2; i < args.length; i += 1) {
    if (request.is(i, 'auth') && i + 2 < args.length) {
      auth = [Buffer.from('AUTH'), args[i + 1]!, args[i + 2]!];
      i += 2;
    } else if (request.is(i, 'setname') && i + 1 < args.length) {
      name = args[i + 1]!;
      if (!isClientName(name)) return encode.error(BAD_NAME);
      i += 1;
    } else return encode.error(`ERR Syntax error in HELLO option '${args[i]!.toString('latin1')}'`);
  }
  return { protocol, auth, name };
}

function hello(session: Session, request: Request): void {
  const options = readHello(request);
  if (Buffer.isBuffer(options)) {
    session.answer(options);
    return;
  }
  const greet = (): void => {
    if (options.name !== undefined) session.name = options.name.toString('latin1');
    if (options.protocol !== undefined && options.protocol !== session.protocol) {
      const { protocol } = options;
      changeLanes(session, () => {
        session.protocol = protocol;
      });
    }
    session.answer(greeting(session));
  };
  if (options.auth !== undefined) {
    authenticate(session, options.auth, (refused) => {
      if (refused !== undefined) session.answer(refused);
      else greet();
    });
    return;
  }
  // Whether this session may say HELLO without AUTH, the server tells by what it lets the session's lanes do.
  alone(session, 0, ['CLIENT', 'GETNAME'], (reply) => {
    if (reply[0] === MINUS && reply.toString('latin1').startsWith('-NOAUTH')) session.answer(NOAUTH_HELLO);
    else greet();
  });
}

/**
 * Sends a request of the session's own while nothing else is in flight; `then` gets its reply, when nothing is in flight
 * again. Requests behind it wait until `then` has returned.
 */
function alone(session: Session, pin: number, args: readonly (Buffer | string)[], then: (reply: Buffer) => void): void {
  session.hold(Hold.request);
  const finish = (reply: Buffer): void => {
    then(reply);
    session.lift(Hold.request);
  };
  session.whenQuiet(() =>
    session.onLane(
      pin,
      () => {
        if (pin !== 0) session.laneDirty = true;
        session.sendIgnored(args, (reply) => session.whenQuiet(() => finish(reply ?? LOST)));
      },
      finish,
    ),
  );
}

function greeting(session: Session): Buffer {
  const { facts } = session.context.upstream;
  return encode.map(session.protocol, [
    encode.bulk('server'),
    encode.bulk(facts.server),
    encode.bulk('version'),
    encode.bulk(facts.version),
    encode.bulk('proto'),
    encode.integer(session.protocol),
    encode.bulk('id'),
    encode.integer(session.id),
    encode.bulk('mode'),
    encode.bulk(facts.mode),
    encode.bulk('role'),
    encode.bulk(facts.role),
    encode.bulk('modules'),
    facts.modules,
  ]);
}

function select(session: Session, request: Request): void {
  const index = request.args[1]!.toString('latin1');
  const database = Number(index);
  if (database === session.database || !/^(?:0|[1-9]\d{0,8})$/.test(index)) {
    // Nothing changes, but the server is asked all the same: it may refuse (no such number, NOAUTH, cluster mode).
    onLane(session, 0, () => forward(session, request));
    return;
  }
  const { credentials, protocol } = session;
  if (
    !session.dedicated &&
    session.context.upstream.laneSet({ credentials, database, protocol }).sharedLane() !== undefined
  ) {
    // This user was let into that database before: a lane is there.
    session.hold(Hold.request);
    session.whenQuiet(() => {
      changeLanes(session, () => {
        session.database = database;
      });
      session.answer(encode.OK);
      session.lift(Hold.request);
    });
    return;
  }
  alone(session, Pin.blocking, request.args, (reply) => {
    session.answer(reply);
    if (reply[0] === MINUS) return;
    if (session.dedicated) {
      session.database = database;
    } else {
      changeLanes(session, () => {
        session.database = database;
      });
    }
  });
}

/** Back to what a new connection is. */
export function resetSession(session: Session): void {
  const silent = session.replyMode === 'skip';
  session.hold(Hold.request);
  session.whenQuiet(() => {
    if (session.transaction !== undefined) for (const member of session.transaction.members) member.discard();
    session.transaction = undefined;
    session.watchLost = false;
    session.subscriptions.clear();
    session.setup.clear();
    session.laneDirty = session.laneDirty || (session.pins & ~Pin.pooling) !== 0;
    session.pins &= Pin.pooling;
    session.replyMode = 'on';
    session.name = '';
    changeLanes(session, () => {
      session.become(session.context.identities?.ofListener(session.listener), undefined);
      session.database = 0;
      session.protocol = 2;
    });
    if (!silent) session.answer(encode.simple('RESET'));
    session.lift(Hold.request);
  });
}

// ------------------------------------------------------------------ CLIENT

function nameReply(session: Session): Buffer {
  return session.name === '' ? encode.nullBulk(session.protocol) : encode.bulk(Buffer.from(session.name, 'latin1'));
}

function isClientName(name: Buffer): boolean {
  return name.every((byte) => byte >= 33 && byte <= 126);
}

function setName(session: Session, request: Request): void {
  const name = request.args[2]!;
  if (!isClientName(name)) {
    session.answer(encode.error(BAD_NAME));
    return;
  }
  session.name = name.toString('latin1');
  session.answer(encode.OK);
}

function setInfo(session: Session, request: Request): void {
  const attribute = request.args[2]!.toString('latin1');
  const value = request.args[3]!;
  const kind = attribute.toLowerCase();
  if (kind !== 'lib-name' && kind !== 'lib-ver') {
    session.answer(encode.error(`ERR Unrecognized option '${attribute}'`));
    return;
  }
  if (!isClientName(value)) {
    session.answer(encode.error(`ERR ${kind} cannot contain spaces, newlines or special characters.`));
    return;
  }
  if (kind === 'lib-name') session.libraryName = value.toString('latin1');
  else session.libraryVersion = value.toString('latin1');
  session.answer(encode.OK);
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
  const own = registry.get(clientId);
  if (own !== undefined) return registry.laneOf(clientId, pin);
  return peers === undefined ? 0 : peers.laneOf(clientId, pin);
}

/** REDIRECT names a client of Holdfast's; the server must be told of that client's lane. */
function tracking(session: Session, request: Request): void {
  if (request.is(2, 'off')) {
    session.setup.delete('client|tracking');
    session.setup.delete('client|caching');
  }
  const at = request.args.findIndex((_, i) => i > 2 && request.is(i, 'redirect'));
  if (at < 0 || at + 1 >= request.args.length) {
    if (request.is(2, 'on')) sendSticky(session, request, 'client|tracking');
    else
      onLane(session, Pin.sticky, () => {
        session.laneDirty = true;
        forward(session, request);
        if (session.setup.size === 0) session.pins &= ~Pin.sticky;
      });
    return;
  }
  const id = Number(request.args[at + 1]!.toString('latin1'));
  session.hold(Hold.request);
  void (id === session.id ? Promise.resolve(0) : laneOf(session, id, true))
    .catch(() => 0)
    .then((laneId) => {
      if (session.closed) return;
      session.redirectsTo = laneId > 0 ? id : 0;
      // Itself is 0 to the server too; a client that is not there is one that no server has.
      const target = laneId > 0 || id === session.id ? laneId : Number.MAX_SAFE_INTEGER;
      sendSticky(session, request.withArgument(at + 1, String(target)), 'client|tracking');
      session.lift(Hold.request);
    });
}

function redirection(session: Session, request: Request, rewrite: (reply: Buffer) => Buffer): void {
  if (!session.dedicated) {
    onLane(session, 0, () => forward(session, request));
    return;
  }
  onLane(session, Pin.sticky, () => {
    session.sendIgnored(request.args, (reply) => {
      if (reply !== undefined && session.replyMode === 'on') session.output.write(rewrite(reply));
    });
  });
}

function virtualRedirection(session: Session, reply: Buffer): Buffer {
  const value = readReply(reply);
  if (value.type !== ':' || Number(value.bytes.toString()) <= 0) return reply;
  return encode.integer(session.redirectsTo);
}
