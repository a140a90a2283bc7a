/**
 * A connection to the KV store that is told which keys change: RESP3 with client tracking, so that every key read on it
 * is reported once when anybody writes, deletes, evicts or flushes it. Replies and reports come in the order in which the
 * server made them, so that a report cannot be missed between a read and what follows it.
 *
 *   closed ──▶ connecting ──▶ open ──▶ lost ──▶ (backoff) ──▶ connecting …
 *                   └─ refused (NOAUTH, NOPERM, no RESP3): tried again at leisure
 */
import { connect, type Socket } from 'node:net';
import tls from 'node:tls';
import type { KvAddress } from '../control-redis.ts';
import { HoldfastError, messageOf } from '../errors.ts';
import { request } from '../resp/encode.ts';
import { errorText, type Reply, readReply } from '../resp/reply.ts';
import { ReplyScanner } from '../resp/reply-scanner.ts';

export interface TrackedConnectionEvents {
  opened(): void;
  lost(cause: HoldfastError): void;
  /** Somebody changed this key, in whichever database; `undefined`: any key may have changed. */
  changed(key: Buffer | undefined): void;
}

type Argument = string | Buffer | number;

interface Pending {
  resolve(reply: Reply): void;
  reject(cause: HoldfastError): void;
}

const BACKOFF_MIN_MS = 20;
const BACKOFF_MAX_MS = 500;
const REFUSED_BACKOFF_MS = 5000;
const CONNECT_TIMEOUT_MS = 2000;
/** A server that owes a reply for so long without a byte is given up. */
const SILENCE_MS = 5000;

export class TrackedConnection {
  /** The server took the handshake; commands may be sent. */
  open = false;
  /** What the server refused the handshake with, until it takes one. */
  refusal: string | undefined;

  private readonly address: KvAddress;
  private readonly events: TrackedConnectionEvents;
  private socket: Socket | undefined;
  private scanner = new ReplyScanner();
  private parts: Buffer[] = [];
  private pending: Pending[] = [];
  private database = 0;
  private backoffMs = BACKOFF_MIN_MS;
  private timer: NodeJS.Timeout | undefined;
  private stopped = false;
  private corked = false;

  constructor(address: KvAddress, events: TrackedConnectionEvents) {
    this.address = address;
    this.events = events;
    this.connect();
  }

  stop(): void {
    this.stopped = true;
    clearTimeout(this.timer);
    this.lose(new HoldfastError('KVDOWN', 'Holdfast is shutting down'));
  }

  /** Runs a command in a database. Rejects with KVDOWN where the connection is not open or breaks. Errors are replies. */
  command(database: number, args: readonly Argument[]): Promise<Reply> {
    if (!this.open) return Promise.reject(new HoldfastError('KVDOWN', 'the KV store is not connected'));
    if (database !== this.database) {
      this.database = database;
      this.send(['SELECT', database]).catch(() => undefined);
    }
    return this.send(args);
  }

  private send(args: readonly Argument[]): Promise<Reply> {
    const { socket } = this;
    if (socket === undefined) return Promise.reject(new HoldfastError('KVDOWN', 'the KV store is not connected'));
    if (!this.corked) {
      this.corked = true;
      socket.cork();
      setImmediate(() => {
        this.corked = false;
        socket.uncork();
      });
    }
    socket.write(request(args.map((arg) => (typeof arg === 'number' ? String(arg) : arg))));
    return new Promise((resolve, reject) => this.pending.push({ resolve, reject }));
  }

  private connect(): void {
    const { host = '127.0.0.1', port = 6379, path, tls: tlsOptions } = this.address;
    const where = path === undefined ? { host, port } : { path };
    const socket = tlsOptions === undefined ? connect(where) : tls.connect({ ...where, ...tlsOptions });
    this.socket = socket;
    this.scanner = new ReplyScanner();
    this.parts = [];
    this.database = 0;
    socket.setNoDelay(true);
    socket.setTimeout(CONNECT_TIMEOUT_MS);
    socket.on('timeout', () => {
      if (!this.open || this.pending.length > 0) socket.destroy(new Error('no answer in time'));
    });
    socket.on('data', (bytes: Buffer) => this.read(bytes));
    socket.on('error', (thrown) => this.lose(new HoldfastError('KVDOWN', messageOf(thrown)), socket));
    socket.on('close', () => this.lose(new HoldfastError('KVDOWN', 'the KV store closed the connection'), socket));
    socket.once(tlsOptions === undefined ? 'connect' : 'secureConnect', () => {
      this.handshake().then(
        () => {
          socket.setTimeout(SILENCE_MS);
          this.backoffMs = BACKOFF_MIN_MS;
          this.refusal = undefined;
          this.open = true;
          this.events.opened();
        },
        (thrown) => this.lose(new HoldfastError('KVDOWN', messageOf(thrown)), socket),
      );
    });
  }

  private async handshake(): Promise<void> {
    const { username, password } = this.address;
    const auth = password === undefined ? [] : ['AUTH', username ?? 'default', password];
    const replies = await Promise.all([
      this.send(['HELLO', 3, ...auth, 'SETNAME', 'holdfast:leases']),
      this.send(['CLIENT', 'TRACKING', 'ON', 'NOLOOP']),
    ]);
    for (const reply of replies) {
      const refusal = errorText(reply);
      if (refusal === undefined) continue;
      // A server that is loading its data takes clients again soon.
      if (!refusal.startsWith('LOADING')) this.refusal = refusal;
      throw new Error(refusal);
    }
  }

  private read(bytes: Buffer): void {
    let at = 0;
    while (at < bytes.length) {
      const end = this.scanner.scan(bytes, at, bytes.length);
      this.parts.push(bytes.subarray(at, end));
      at = end;
      // It subscribes to nothing, and servers send its invalidations between replies.
      if (this.scanner.malformed || this.scanner.pushAhead) {
        this.socket?.destroy(new Error('the KV store sent bytes that are not RESP'));
        return;
      }
      if (!this.scanner.complete) return;
      const frame = this.parts.length === 1 ? this.parts[0]! : Buffer.concat(this.parts);
      this.parts = [];
      const reply = readReply(frame);
      if (reply.type === '>') this.readPush(reply);
      else this.pending.shift()?.resolve(reply);
    }
  }

  private readPush(push: Reply): void {
    if (push.items?.[0]?.bytes.toString() !== 'invalidate') return;
    const keys = push.items[1]?.items;
    if (keys === undefined) this.events.changed(undefined);
    else for (const key of keys) this.events.changed(key.bytes);
  }

  private lose(cause: HoldfastError, socket = this.socket): void {
    if (socket === undefined || socket !== this.socket) return;
    this.socket = undefined;
    const wasOpen = this.open;
    this.open = false;
    socket.destroy();
    for (const pending of this.pending.splice(0)) pending.reject(cause);
    if (wasOpen) this.events.lost(cause);
    if (this.stopped) return;
    const delayMs = this.refusal === undefined ? this.backoffMs : REFUSED_BACKOFF_MS;
    this.backoffMs = Math.min(this.backoffMs * 2, BACKOFF_MAX_MS);
    this.timer = setTimeout(() => this.connect(), delayMs);
    this.timer.unref();
  }
}
