/**
 * The KV store as the proxy sees it: how to connect, when to try again, and the lane sets of each upstream identity.
 * It tells its listener of every connection made and lost, since recovery lives on such signals.
 */
import net from 'node:net';
import tls from 'node:tls';
import type { Logger } from 'pino';
import { HoldfastError, messageOf } from '../../errors.ts';
import { EMPTY_ARRAY, type Protocol, request } from '../../resp/encode.ts';
import { type Reply, readReply } from '../../resp/reply.ts';
import { onread, ReadBuffer, readByEvents } from '../io/socket-reader.ts';
import type { ProxyLimits } from '../limits.ts';
import { type HelloReply, readHelloReply } from './hello-reply.ts';
import { KnownUsers } from './known-users.ts';
import { Lane } from './lane.ts';
import { LaneSet } from './lane-pool.ts';
import { LoginJudge } from './login-judge.ts';
import type { OwedReply } from './reply-queue.ts';

export interface UpstreamAddress {
  readonly host?: string;
  readonly port?: number;
  /** A unix socket, instead of host and port. */
  readonly path?: string;
  readonly tls?: tls.ConnectionOptions;
}

/** Who a lane is at the KV store. `undefined` credentials: whatever the server makes of a client without AUTH. */
export interface LaneIdentity {
  readonly credentials: Credentials | undefined;
  readonly database: number;
  readonly protocol: Protocol;
}

export interface Credentials {
  /** `undefined`: the one-argument form of AUTH. */
  readonly username: string | undefined;
  readonly password: Buffer;
  /**
   * Of a user that Holdfast itself makes at the KV store: makes it where it is not there. `refused` says that the server
   * has just not known it. Rejects where it cannot be made.
   */
  prepare?(refused: boolean): Promise<void>;
}

/** What a server says of itself at the handshake. */
export interface ServerFacts {
  readonly server: string;
  readonly version: string;
  readonly mode: string;
  readonly role: string;
  /** HELLO's list of modules, as the frame it came in. */
  readonly modules: Buffer;
  /** `INFO server`'s run_id; empty where the user may not ask. */
  readonly runId: string;
}

/** Told of connections: what notices loss needs to know of every one, before requests go out on it. */
export interface UpstreamListener {
  connected(facts: ServerFacts): void;
  lost(cause: HoldfastError): void;
}

const NOBODY: LaneIdentity = { credentials: undefined, database: 0, protocol: 2 };
const MINUS = 45;
const BACKOFF_MS_MIN = 20;
const BACKOFF_MS_MAX = 1_000;
const STALL_CHECK_MS = 50;
/** Between two times that a client is closed because the KV store is away. */
const RETURN_MS = 1_000;

export interface UpstreamOptions {
  readonly address: UpstreamAddress;
  readonly limits: ProxyLimits;
  readonly listener: UpstreamListener;
  readonly log: Logger;
}

export class Upstream {
  readonly limits: ProxyLimits;
  readonly known = new KnownUsers();
  readonly logins = new LoginJudge(
    () =>
      new Promise((ready, failed) => {
        this.connect(NOBODY, false, { ready, failed, closed: () => undefined });
      }),
  );
  facts: ServerFacts = {
    server: 'redis',
    version: '',
    mode: 'standalone',
    role: 'master',
    modules: EMPTY_ARRAY,
    runId: '',
  };
  connectsTotal = 0;
  lossesTotal = 0;
  /** Lanes that were closed at `limits.sharedLanesMax`. */
  retiredTotal = 0;
  /** False from a failed attempt or a lost connection until the next connection that succeeds. */
  reachable = true;

  /** What the server keeps waiting since a CLIENT PAUSE. */
  paused: 'all' | 'writes' | undefined;

  private readonly address: UpstreamAddress;
  private readonly listener: UpstreamListener;
  private readonly log: Logger;
  private readonly sets = new Map<string, LaneSet>();
  private readonly lanes = new Set<Lane>();
  private readonly sharedReadBuffer = new ReadBuffer();
  private readonly stallTimer: NodeJS.Timeout;
  private failures = 0;
  private downSince: number | undefined;
  private probeTimer: NodeJS.Timeout | undefined;
  private pauseTimer: NodeJS.Timeout | undefined;
  private pausedUntil = 0;
  private nextAttemptAt = 0;
  private stopped = false;

  constructor(options: UpstreamOptions) {
    this.address = options.address;
    this.limits = options.limits;
    this.listener = options.listener;
    this.log = options.log;
    this.stallTimer = setInterval(() => {
      for (const set of this.sets.values()) {
        try {
          set.tick();
        } catch (thrown) {
          this.log.error({ err: thrown }, 'a fault in watching the lanes of a user');
        }
      }
    }, STALL_CHECK_MS);
    this.stallTimer.unref();
  }

  get laneCount(): number {
    return this.lanes.size;
  }

  laneSet(identity: LaneIdentity): LaneSet {
    const { credentials } = identity;
    const user =
      credentials === undefined ? '' : `${credentials.username ?? ''}\0${credentials.password.toString('latin1')}`;
    const key = `${identity.protocol}\0${identity.database}\0${user}`;
    let set = this.sets.get(key);
    if (set === undefined) {
      set = new LaneSet(this, identity, () => this.sets.delete(key));
      this.sets.set(key, set);
    }
    return set;
  }

  /** Whether one more lane may be there that no client has to itself. */
  get hasRoom(): boolean {
    let unowned = 0;
    for (const set of this.sets.values()) unowned += set.unownedLanes;
    return unowned < this.limits.sharedLanesMax;
  }

  /** Closes the least recently used lane where there is no room for one more; false where all of them are in use. */
  makeRoom(): boolean {
    if (this.hasRoom) return true;
    let oldest: ReturnType<LaneSet['leastRecentlyUsed']>;
    for (const set of this.sets.values()) {
      const candidate = set.leastRecentlyUsed();
      if (candidate !== undefined && (oldest === undefined || candidate.ticks > oldest.ticks)) oldest = candidate;
    }
    if (oldest === undefined) return false;
    this.retiredTotal += 1;
    oldest.lane.close(new HoldfastError('RETIRED', 'the least recently used of too many'));
    return true;
  }

  /**
   * Until when somebody who begins to wait for a lane now may wait. Everybody waits from the same moment on; but a client
   * that is closed comes back at once, and does so without a pause where it is let in.
   */
  waitDeadline(): number {
    const now = Date.now();
    const until = (this.downSince ?? now) + this.limits.holdMs;
    return this.limits.onLost === 'close' ? Math.max(until, now + Math.min(RETURN_MS, this.limits.holdMs)) : until;
  }

  /** Milliseconds since it could be reached last; `undefined` while it can. */
  get awayMs(): number | undefined {
    return this.reachable ? undefined : Date.now() - (this.downSince ?? Date.now());
  }

  /** Milliseconds until the next attempt may be made. */
  backoffMs(): number {
    return Math.max(0, this.nextAttemptAt - Date.now());
  }

  /**
   * Opens a connection and does its handshake. `ready` is called once it may be used; `failed` when it never will be,
   * with the server's own error where it refused (`refused`), or what kept it from being reached.
   * `closed` is called once for a lane that was ready.
   */
  connect(
    identity: LaneIdentity,
    ownReadBuffer: boolean,
    events: {
      ready(lane: Lane): void;
      failed(cause: HoldfastError, refused: boolean): void;
      closed(lane: Lane, cause: HoldfastError): void;
    },
  ): void {
    const readBuffer = ownReadBuffer ? new ReadBuffer() : undefined;
    let lane: Lane | undefined;
    let settled = false;
    let cause: HoldfastError | undefined;
    const reader = (buffer: Buffer, length: number): void => {
      try {
        lane?.read(buffer, length);
      } catch (thrown) {
        this.log.error({ err: thrown }, 'a connection to the KV store is closed: a fault in reading it');
        end(new HoldfastError('KVDOWN', `Holdfast failed internally: ${messageOf(thrown)}`));
      }
    };
    const socket = this.open(readBuffer ?? this.sharedReadBuffer, reader);
    socket.setNoDelay(true);
    socket.setKeepAlive(true, 60_000);
    const timer = setTimeout(() => {
      end(new HoldfastError('KVDOWN', `the KV store did not answer within ${this.limits.connectTimeoutMs} ms`));
    }, this.limits.connectTimeoutMs);

    const end = (why: HoldfastError): void => {
      cause ??= why;
      lane?.close(cause);
    };
    const current = new Lane(socket, readBuffer, this.limits.laneBytesMax, (closed, why) => {
      clearTimeout(timer);
      this.lanes.delete(closed);
      if (settled) {
        if (!this.stopped) this.noteLost(why);
        events.closed(closed, why);
        return;
      }
      settled = true;
      const refused = why.code === 'REFUSED';
      if (!refused) this.noteFailed(why);
      events.failed(why, refused);
    });
    lane = current;
    this.lanes.add(current);
    socket.on('error', (thrown) =>
      end(new HoldfastError('KVDOWN', `connection to the KV store: ${messageOf(thrown)}`)),
    );
    const ended = (): void => {
      const expected = lane?.finishing === true;
      end(new HoldfastError(expected ? 'RETIRED' : 'KVDOWN', 'the KV store closed the connection'));
    };
    socket.on('close', ended);
    socket.on('end', ended);
    socket.once(this.address.tls === undefined ? 'connect' : 'secureConnect', () => {
      this.handshake(current, identity, (facts) => {
        if (settled) return;
        settled = true;
        clearTimeout(timer);
        current.state = 'ready';
        current.runId = facts.runId;
        current.pushesFollow = isSince72(facts.version);
        this.noteConnected(facts);
        events.ready(current);
      });
    });
  }

  /** Connects once as nobody: what the server is, and what a client without AUTH may do, is known before it is needed. */
  learn(): void {
    this.connect(NOBODY, false, {
      ready: (lane) => lane.close(new HoldfastError('RETIRED', 'only a probe')),
      failed: () => undefined,
      closed: () => undefined,
    });
  }

  /** CLIENT PAUSE went through: for so long the server keeps `all` commands waiting, or those that write. */
  pause(milliseconds: number, all: boolean): void {
    clearTimeout(this.pauseTimer);
    // A shorter pause does not end a longer one, as at the server.
    const until = Date.now() + milliseconds;
    this.pausedUntil = this.paused === undefined ? until : Math.max(until, this.pausedUntil);
    this.paused = all ? 'all' : this.paused === 'all' ? 'all' : 'writes';
    this.pauseTimer = setTimeout(() => this.unpause(), Math.min(this.pausedUntil - Date.now(), 2 ** 31 - 1));
    this.pauseTimer.unref();
  }

  unpause(): void {
    clearTimeout(this.pauseTimer);
    this.paused = undefined;
  }

  /** Closes the connections to any other server than that of `runId`, or all; new ones are made as they are needed. */
  closeLanes(runId: string | undefined, cause: HoldfastError): void {
    for (const lane of [...this.lanes]) {
      if (runId === undefined || (lane.runId !== '' && lane.runId !== runId)) lane.close(cause);
    }
  }

  /** Closes every connection; nothing connects any more. */
  stop(): void {
    this.stopped = true;
    clearInterval(this.stallTimer);
    clearTimeout(this.probeTimer);
    clearTimeout(this.pauseTimer);
    this.logins.close(new HoldfastError('RETIRED', 'Holdfast is shutting down'));
    const cause = new HoldfastError('KVDOWN', 'Holdfast is shutting down');
    for (const lane of [...this.lanes]) lane.close(cause);
  }

  private open(readBuffer: ReadBuffer, reader: (buffer: Buffer, length: number) => void): net.Socket {
    const { host, port, path } = this.address;
    const target = path === undefined ? { host: host ?? '127.0.0.1', port: port ?? 6379 } : { path };
    if (this.address.tls !== undefined) {
      const socket = tls.connect({ ...target, ...this.address.tls });
      readByEvents(socket, reader);
      return socket;
    }
    return net.connect({ ...target, onread: onread(readBuffer, reader) } as net.NetConnectOpts);
  }

  private handshake(lane: Lane, identity: LaneIdentity, done: (facts: ServerFacts) => void): void {
    const refuse = (text: string): void => lane.close(new HoldfastError('REFUSED', text));
    const ask = (args: readonly (Buffer | string)[], reply: (frame: Buffer) => void): void => {
      const task: OwedReply = {
        reply,
        lost: () => undefined,
        fault: (thrown) => lane.close(new HoldfastError('KVDOWN', messageOf(thrown))),
      };
      lane.sendWhole(task, request(args));
    };
    const { credentials } = identity;
    if (credentials === undefined) {
      this.introduce(lane, identity, ask, refuse, refuse, done);
      return;
    }
    const logIn = (selected: boolean): void => {
      const { username, password } = credentials;
      ask(username === undefined ? ['AUTH', password] : ['AUTH', username, password], (frame) => {
        if (frame[0] !== MINUS) return;
        if (!isTooManyClients(readReply(frame))) this.known.refused(credentials);
        refuse(readReply(frame).bytes.toString());
      });
      this.introduce(lane, identity, ask, refuse, selected ? () => undefined : refuse, done);
    };
    // A user who may not SELECT is in the database where the connection was when it became that user. AUTH waits for the
    // reply: one that is refused behind another reply gets none from servers since 7.2.
    if (identity.database === 0) logIn(false);
    else ask(['SELECT', String(identity.database)], (frame) => logIn(frame[0] !== MINUS));
  }

  private introduce(
    lane: Lane,
    identity: LaneIdentity,
    ask: (args: readonly string[], reply: (frame: Buffer) => void) => void,
    refuse: (text: string) => void,
    refuseDatabase: (text: string) => void,
    done: (facts: ServerFacts) => void,
  ): void {
    const { credentials } = identity;
    let hello: HelloReply | undefined;
    ask(['HELLO', String(identity.protocol)], (frame) => {
      const reply = readReply(frame);
      if (isTooManyClients(reply)) refuse(reply.bytes.toString());
      // NOAUTH: the session that uses this lane is told by every reply.
      hello = readHelloReply(frame);
      lane.clientId = hello?.clientId ?? 0;
    });
    if (identity.database !== 0) {
      ask(['SELECT', String(identity.database)], (frame) => {
        if (frame[0] === MINUS) refuseDatabase(readReply(frame).bytes.toString());
      });
    }
    ask(['CLIENT', 'SETNAME', 'holdfast'], () => undefined);
    const wantsInfo = this.known.wantsInfo(credentials);
    ask(wantsInfo ? ['INFO'] : ['INFO', 'server'], (frame) => {
      if (lane.state === 'closed') return;
      const reply = readReply(frame);
      const info = reply.type === '-' ? '' : reply.bytes.toString('latin1', reply.type === '=' ? 4 : 0);
      const runId = /^run_id:(\w+)/m.exec(info)?.[1] ?? '';
      if (hello === undefined) this.known.refused(credentials);
      else this.known.admitted(credentials, identity.database);
      if (wantsInfo && info !== '') this.known.noteInfo(credentials, info);
      // With extended-redis-compatibility Valkey says in HELLO that it is Redis, and knows what Valkey does.
      const server = /^server_name:(\w+)/m.exec(info)?.[1];
      if (hello === undefined) done({ ...this.facts, runId });
      else done({ ...hello, server: server ?? hello.server, runId });
    });
  }

  private noteConnected(facts: ServerFacts): void {
    this.connectsTotal += 1;
    this.failures = 0;
    this.downSince = undefined;
    this.nextAttemptAt = 0;
    if (!this.reachable) this.log.info({ version: facts.version }, 'connected to the KV store again');
    this.reachable = true;
    this.facts = facts;
    this.listener.connected(facts);
  }

  private noteFailed(cause: HoldfastError): void {
    if (this.stopped) return;
    this.failures += 1;
    const backoffMs = Math.min(BACKOFF_MS_MAX, BACKOFF_MS_MIN * 2 ** Math.min(this.failures - 1, 10));
    this.nextAttemptAt = Date.now() + backoffMs * (0.5 + Math.random() / 2);
    if (this.reachable) this.log.warn({ cause: cause.message }, 'the KV store cannot be reached');
    this.reachable = false;
    this.downSince ??= Date.now();
    this.listener.lost(cause);
    this.probeLater();
  }

  /** Goes on trying although nobody waits, so that the first client after an outage finds a lane. */
  private probeLater(): void {
    if (this.probeTimer !== undefined || this.stopped) return;
    this.probeTimer = setTimeout(() => {
      this.probeTimer = undefined;
      if (!this.stopped) this.learn();
    }, this.backoffMs() + 1);
    this.probeTimer.unref();
  }

  private noteLost(cause: HoldfastError): void {
    if (cause.code === 'RETIRED') return;
    this.lossesTotal += 1;
    this.listener.lost(cause);
    // Whether it is more than this one connection is known before the next client asks.
    this.probeLater();
  }
}

function isSince72(version: string): boolean {
  const [major = 0, minor = 0] = version.split('.').map(Number);
  return major > 7 || (major === 7 && minor >= 2);
}

/** The server is there and serves, but not one more connection: no outage. */
function isTooManyClients({ type, bytes }: Reply): boolean {
  return type === '-' && bytes.includes('max number of clients reached');
}
