/**
 * Who a session is and where: AUTH, HELLO, SELECT and RESET. They decide which lanes fit, so each waits until everything
 * before it was answered, and what comes behind waits for it.
 */
import * as encode from '../../resp/encode.ts';
import { isInteger } from '../io/integer.ts';
import type { Request } from '../request/request.ts';
import { attachDedicated, leaveDedicated } from '../session/lane-link.ts';
import type { Session } from '../session/session.ts';
import { discardTransaction, Hold, Pin } from '../session/session-state.ts';
import { type HelloReply, readHelloReply } from '../upstream/hello-reply.ts';
import type { Credentials } from '../upstream/upstream.ts';
import { ask, exclusively, LOST } from './ask.ts';
import { BAD_NAME, isClientName, rename } from './client-name.ts';
import { forward, onLane } from './forward.ts';
import { failWaiting, noteSubscribed } from './subscription-request.ts';

const MINUS = 45;
const NOAUTH_HELLO = encode.error(
  'NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time',
);
const WRONG_PASSWORD = encode.error('WRONGPASS invalid username-password pair or user is disabled.');
const SYNTAX = encode.error('ERR syntax error');

export function auth(session: Session, request: Request): void {
  if (request.args.length > 3) {
    session.answer(SYNTAX);
    return;
  }
  exclusively(session, async () =>
    session.answer((await authenticate(session, request.args, request.args)) ?? encode.OK),
  );
}

/** Who a whole AUTH names. */
export function credentialsOf(args: readonly Buffer[]): Credentials {
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
  if (identities?.requiresAuth(session.listener) === true) return WRONG_PASSWORD;
  const verdict = await judge(session, credentials, asked);
  if (verdict[0] === MINUS) return verdict;
  if (session.dedicated && session.identity === undefined) {
    // Only now: among its pushes the server would not answer an AUTH that it refuses.
    const reply = await ask(session, 0, args, true);
    if (reply[0] === MINUS) return reply;
    session.become(undefined, credentials);
  } else changeLanes(session, () => session.become(undefined, credentials));
  return undefined;
}

/** The KV store's verdict on an AUTH; while it cannot be reached, the one that it gave before, if it was a yes. */
async function judge(session: Session, credentials: Credentials, asked: readonly Buffer[]): Promise<Buffer> {
  const { upstream } = session.context;
  if (!upstream.reachable && upstream.known.knows(credentials)) return encode.OK;
  try {
    const reply = await upstream.logins.judge(asked);
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
  // The connection that watches for it goes: the next EXEC must fail as if a key had changed.
  if (session.pins & Pin.watch) session.watchLost = true;
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
export function readHello(request: Request): HelloOptions | Buffer {
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

export function hello(session: Session, request: Request): void {
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
    } else if (session.identity?.authenticated === false) {
      session.answer(NOAUTH_HELLO);
      return;
    }
    const facts = await introduction(session);
    if (Buffer.isBuffer(facts)) {
      session.answer(facts);
      return;
    }
    if (options.name !== undefined) rename(session, options.name);
    const refused = await changeProtocol(session, options.protocol ?? session.protocol);
    session.answer(refused ?? greeting(session, facts));
  });
}

/** What the server says of itself to this session now, or the error it gives: that it wants AUTH, before all. */
async function introduction(session: Session): Promise<Greeting | Buffer> {
  if (session.admittedOffline) return session.context.upstream.facts;
  const reply = await ask(session, 0, ['HELLO'], false);
  return readHelloReply(reply) ?? reply;
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

type Greeting = Pick<HelloReply, 'server' | 'version' | 'mode' | 'role' | 'modules'>;

/** The server's reply to HELLO, with the client's own number and protocol. */
export function greeting(session: Session, facts: Greeting): Buffer {
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

export function select(session: Session, request: Request): void {
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
    const reply = await ask(session, Pin.passing, request.args, true);
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
    const reset = (): void => {
      forgetAll(session);
      if (!silent) session.answer(encode.simple('RESET'));
      session.lift(Hold.request);
    };
    // Its lane is closed: the server would still count its subscriptions for those who ask at once.
    if (session.pins & Pin.subscribed && session.dedicated)
      session.sendIgnored(['RESET'], () => session.whenQuiet(reset));
    else reset();
  });
}

function forgetAll(session: Session): void {
  if (session.transaction !== undefined) discardTransaction(session.transaction);
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
}
