/**
 * A client that hides nothing: whole frames as they came, in RESP2 or RESP3, pushes apart from replies. For tests that
 * are about the bytes.
 */
import { connect, type Socket } from 'node:net';
import { request } from '../../src/resp/encode.ts';
import { type Reply, readReply } from '../../src/resp/reply.ts';

export interface RawClient {
  readonly socket: Socket;
  /** RESP3 pushes, in order of arrival. */
  readonly pushes: Reply[];
  /** Sends one request and gives the next reply. Rejects when the connection ends. */
  send(...args: (string | Buffer)[]): Promise<Reply>;
  /** The next reply (or RESP2 push) without a request. Rejects after `timeoutMs`. */
  next(timeoutMs?: number): Promise<Reply>;
  close(): Promise<void>;
}

interface Waiter {
  resolve(reply: Reply): void;
  reject(error: Error): void;
}

/** `target` is a port on 127.0.0.1 or the path of a Unix socket. */
export async function connectRaw(target: number | string): Promise<RawClient> {
  const socket = typeof target === 'number' ? connect(target, '127.0.0.1') : connect(target);
  await new Promise<void>((resolve, reject) => {
    socket.once('connect', resolve);
    socket.once('error', reject);
  });
  socket.setNoDelay(true);
  const pushes: Reply[] = [];
  const waiters: Waiter[] = [];
  const unclaimed: Reply[] = [];
  let chunks: Buffer[] = [];
  let failure: Error | undefined;

  function deliver(reply: Reply): void {
    if (reply.type === '>') pushes.push(reply);
    else {
      const waiter = waiters.shift();
      if (waiter === undefined) unclaimed.push(reply);
      else waiter.resolve(reply);
    }
  }
  socket.on('data', (chunk) => {
    chunks.push(chunk);
    const received = chunks.length === 1 ? chunk : Buffer.concat(chunks);
    let at = 0;
    while (at < received.length) {
      let reply: Reply;
      try {
        reply = readReply(received, at);
      } catch {
        break;
      }
      at += reply.raw.length;
      deliver(reply);
    }
    chunks = at < received.length ? [received.subarray(at)] : [];
  });
  function fail(error: Error): void {
    failure ??= error;
    for (const waiter of waiters.splice(0)) waiter.reject(error);
  }
  socket.on('error', fail);
  socket.on('close', () => fail(new Error('connection closed')));

  function next(timeoutMs = 15_000): Promise<Reply> {
    const ready = unclaimed.shift();
    if (ready !== undefined) return Promise.resolve(ready);
    if (failure !== undefined) return Promise.reject(failure);
    return new Promise<Reply>((resolve, reject) => {
      const waiter: Waiter = {
        resolve: (reply) => {
          clearTimeout(timer);
          resolve(reply);
        },
        reject: (error) => {
          clearTimeout(timer);
          reject(error);
        },
      };
      const timer = setTimeout(() => {
        waiters.splice(waiters.indexOf(waiter), 1);
        reject(new Error(`no reply within ${timeoutMs} ms`));
      }, timeoutMs);
      waiters.push(waiter);
    });
  }
  return {
    socket,
    pushes,
    send(...args) {
      const reply = next();
      socket.write(request(args));
      return reply;
    },
    next,
    close() {
      return new Promise((resolve) => {
        if (socket.closed) resolve();
        else socket.once('close', () => resolve());
        socket.end();
      });
    },
  };
}
