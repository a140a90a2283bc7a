/**
 * Commands that the session answers itself, because they speak of Holdfast's clients (CLIENT …) or decide which lanes
 * the session uses (HELLO, AUTH, SELECT, RESET). Replies and errors are the servers' own, word for word.
 */
import { messageOf } from '../errors.ts';
import * as encode from '../resp/encode.ts';
import { aggregate, readReply } from '../resp/reply.ts';
import { answerClientKill, answerClientList, clientLine } from './client-list.ts';
import { forward, onLane, sendSticky } from './forward.ts';
import { isInteger } from './integer.ts';
import type { Request } from './request.ts';
import type { Session } from './session.ts';
import { attachDedicated, leaveDedicated } from './session-lanes.ts';
import { Hold, LOST_TEXT, Pin } from './session-state.ts';
import { failWaiting, noteSubscribed } from './subscription-request.ts';
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
  'client|id': (session, request) => withConsent(session, request.args, () => encode.integer(session.id)),
  'client|getname': (session, request) => withConsent(session, request.args, () => nameReply(session)),
  'client|setname': setName,
  'client|setinfo': setInfo,
  'client|info': (session, request) =>
    withConsent(session, request.args, () => encode.text(session.protocol, clientLine(session, request))),
  'client|list': (session, request) => judgedFirst(session, request, request.args, answerClientList),
  'client|kill': (session, request) => {
    // No client of the server's has that ID: it judges the filters and kills nobody.
    const judged = request.args.length === 3 ? undefined : [...request.args, 'ID', '9223372036854775807'];
    judgedFirst(session, request, judged, answerClientKill);
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
  if (handler === undefined || !known || !arityFits(request)) onLane(session, 0, () => forward(session, request));
  else handler(session, request);
}

/**
 * Has the server judge a request (arguments, permissions; it counts it too), and answers it in the server's place when
 * nothing was wrong with it. Holdfast's own users are not the server's to judge.
 */
function withConsent(session: Session, args: readonly (Buffer | string)[], reply: () => Buffer): void {
  if (session.identity !== undefined || session.admittedOffline) {
    session.answer(reply());
    return;
  }
  const silent = session.replyMode !== 'on';
  onLane(session, 0, () => {
    session.sendIgnored(args, (judged) => {
      if (!silent) session.output.write(judged === undefined ? LOST : judged[0] === MINUS ? judged : reply());
    });
  });
}

/** The same for what speaks of other clients, while requests behind it wait; without `args` nothing is judged. */
function judgedFirst(
  session: Session,
  request: Request,
  args: readonly (Buffer | string)[] | undefined,
  answer: (session: Session, request: Request) => Promise<void>,
): void {
  exclusively(session, async () => {
    const judged =
      args === undefined || session.identity !== undefined || session.admittedOffline
        ? undefined
        : await ask(session, 0, args, false);
    if (judged?.[0] === MINUS) session.answer(judged);
    else await answer(session, request);
  });
}

/** While the server is paused, what it keeps waiting must not stand in others' way on a shared lane. */
function pause(session: Session, request: Request): void {
  const silent = session.replyMode !== 'on';
  onLane(session, 0, () => {
    session.sendIgnored(request.args, (reply) => {
      if (reply !== undefined) notePause(session, request, reply);
      if (!silent) session.output.write(reply ?? LOST);
    });
  });
}

function notePause(session: Session, request: Request, reply: Buffer): void {
  if (reply[0] === MINUS) return;
  session.context.upstream.pause(Number(request.args[2]), request.args.length < 4 || !request.is(3, 'write'));
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
      return (reply) => (reply[0] === MINUS ? reply : encode.text(session.protocol, clientLine(session, request)));
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
  exclusively(session, async () =>
    session.answer((await authenticate(session, request.args, request.args)) ?? encode.OK),
  );
}

/** Runs `work` when everything before was answered; requests behind it wait until it is done. */
function exclusively(session: Session, work: () => Promise<void>): void {
  session.hold(Hold.request);
  session.whenQuiet(() => {
    work()
      .catch((thrown) => session.answer(encode.error(`KVDOWN ${messageOf(thrown)}`)))
      .finally(() => session.lift(Hold.request));
  });
}

/**
 * Sends a request of the session's own and gives its reply, or the error that there is none. `changes`: what it does to
 * its connection nobody else may find there.
 */
function ask(session: Session, pin: number, args: readonly (Buffer | string)[], changes: boolean): Promise<Buffer> {
  return new Promise((resolve) => {
    const send = (): void => {
      if (changes) session.laneDirty = true;
      session.sendIgnored(args, (reply) => resolve(reply ?? LOST));
    };
    session.onLane(pin, send, resolve);
  });
}

/** Who a whole AUTH names. */
function credentialsOf(args: readonly Buffer[]): Credentials {
  const named = args.length === 3;
  return { username: named ? args[1]!.toString() : undefined, password: args[named ? 2 : 1]! };
}

/**
 * Holdfast's own users first, then the KV store's. `args` is a whole AUTH, `asked` what the client sent (AUTH or HELLO).
 * Gives the error to answer with, or nothing where the session now is that user. A session on a lane of its own stays
 * there, as its subscriptions and tracked keys would at the server.
 */
async function authenticate(
  session: Session,
  args: readonly Buffer[],
  asked: readonly Buffer[],
): Promise<Buffer | undefined> {
  const credentials = credentialsOf(args);
  const { identities } = session.context;
  if (identities?.confines(session.listener) === true) return confinedAuth(session, credentials, asked);
  const own = (await identities?.authenticate(credentials.username, credentials.password)) ?? 'unknown';
  if (own === 'refused') return WRONG_PASSWORD;
  if (own !== 'unknown') {
    changeLanes(session, () => session.become(own, undefined));
    return undefined;
  }
  const stays = session.dedicated && session.identity === undefined;
  const reply = stays ? await ask(session, 0, args, true) : await judge(session, credentials, asked);
  if (reply[0] === MINUS) return reply;
  if (stays) session.become(undefined, credentials);
  else changeLanes(session, () => session.become(undefined, credentials));
  return undefined;
}

/** The KV store's verdict on an AUTH; while it cannot be reached, the one that it gave before, if it was a yes. */
async function judge(session: Session, credentials: Credentials, asked: readonly Buffer[]): Promise<Buffer> {
  const { upstream } = session.context;
  if (!upstream.reachable && upstream.known.knows(credentials)) return encode.OK;
  try {
    const reply = await upstream.authenticate(asked);
    if (reply[0] === MINUS) upstream.known.refused(credentials);
    else upstream.known.admitted(credentials, 0);
    return reply;
  } catch (thrown) {
    if (upstream.known.knows(credentials)) return encode.OK;
    throw thrown;
  }
}

/** On a listener with a scope nobody leaves it: the KV store judges the password, and the session stays who it is. */
async function confinedAuth(
  session: Session,
  { username, password }: Credentials,
  asked: readonly Buffer[],
): Promise<Buffer | undefined> {
  const { identities } = session.context;
  if ((await identities!.authenticate(username, password)) !== 'unknown') return WRONG_PASSWORD;
  const reply = await judge(session, { username, password }, asked);
  return reply[0] === MINUS ? reply : undefined;
}

/** Changes what decides the session's lanes, and leaves the lane it is on. A pinned one is set up again elsewhere. */
function changeLanes(session: Session, change: () => void): void {
  if (session.dedicated) leaveDedicated(session);
  session.lane = undefined;
  change();
  if (session.pins & (Pin.subscribed | Pin.sticky | Pin.redirectTarget)) attachDedicated(session);
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
    } else return encode.errorOfBytes(`ERR Syntax error in HELLO option '${args[i]!.toString('latin1')}'`);
  }
  return { protocol, auth, name };
}

function hello(session: Session, request: Request): void {
  const options = readHello(request);
  if (Buffer.isBuffer(options)) {
    session.answer(options);
    return;
  }
  exclusively(session, async () => {
    if (options.auth !== undefined) {
      const asked = request.args.slice(0, 2).concat([Buffer.from('AUTH'), options.auth[1]!, options.auth[2]!]);
      const refused = await authenticate(session, options.auth, asked);
      if (refused !== undefined) {
        session.answer(refused);
        return;
      }
    } else if (!session.admittedOffline) {
      // Whether this session may say HELLO without AUTH, the server tells by what it lets the session's lanes do.
      const reply = await ask(session, 0, ['CLIENT', 'GETNAME'], false);
      if (reply[0] === MINUS && reply.toString('latin1').startsWith('-NOAUTH')) {
        session.answer(NOAUTH_HELLO);
        return;
      }
      if (!session.context.upstream.reachable && reply[0] === MINUS) {
        session.answer(reply);
        return;
      }
    }
    if (options.name !== undefined) rename(session, options.name);
    const refused = await changeProtocol(session, options.protocol ?? session.protocol);
    session.answer(refused ?? greeting(session));
  });
}

/** On a lane of its own the session stays there: what it tracks and watches is known to that connection only. */
async function changeProtocol(session: Session, protocol: encode.Protocol): Promise<Buffer | undefined> {
  if (protocol === session.protocol) return undefined;
  if (!session.dedicated) {
    changeLanes(session, () => {
      session.protocol = protocol;
    });
    return undefined;
  }
  const reply = await ask(session, 0, ['HELLO', String(protocol)], true);
  if (reply[0] === MINUS) return reply;
  session.protocol = protocol;
  noteSubscribed(session);
  return undefined;
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
  const offline = session.admittedOffline && session.context.upstream.known.knows(session.credentials, database);
  if (offline && database === session.database) {
    session.answer(encode.OK);
    return;
  }
  if (database === session.database || !/^(?:0|[1-9]\d{0,8})$/.test(index)) {
    // Nothing changes, but the server is asked all the same: it may refuse (no such number, NOAUTH, cluster mode).
    onLane(session, 0, () => forward(session, request));
    return;
  }
  const { credentials, protocol } = session;
  if (
    offline ||
    (!session.dedicated &&
      session.context.upstream.laneSet({ credentials, database, protocol }).sharedLane() !== undefined)
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
  exclusively(session, async () => {
    const reply = await ask(session, Pin.blocking, request.args, true);
    if (reply[0] === MINUS) {
      session.answer(reply);
      return;
    }
    if (session.dedicated) session.database = database;
    else {
      // The lane is in the other database now and is not used again for this one.
      changeLanes(session, () => {
        session.database = database;
      });
    }
    session.answer(reply);
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
    failWaiting(session, LOST);
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
  const silent = session.replyMode !== 'on';
  // In its turn: a CLIENT GETNAME before it is still to be answered with the name before.
  session.inTurn(() => {
    rename(session, name);
    if (!silent) session.output.write(encode.OK);
  });
}

/** With a connection for each client the server may know the name as well (SLOWLOG shows it). */
function rename(session: Session, name: Buffer): void {
  session.name = name.toString('latin1');
  if (!session.dedicated || (session.pins & Pin.pooling) === 0) return;
  session.laneDirty = true;
  session.sendIgnored(['CLIENT', 'SETNAME', name]);
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
  const scope = session.identity?.scopeName;
  if (registry.get(clientId) !== undefined) return registry.laneOf(clientId, pin, scope);
  return peers === undefined ? 0 : peers.laneOf(clientId, pin, scope);
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
  const text = request.args[at + 1]!.toString('latin1');
  if (!isInteger(text)) {
    onLane(session, 0, () => forward(session, request));
    return;
  }
  const id = Number(text);
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
