/**
 * A TCP proxy that can misbehave like a network: cut, hold one direction or both, delay, and deliver bytes late.
 *
 *   client ──toServer queue──▶ server         a queue is empty and unused while the link is healthy
 *   client ◀──toClient queue── server
 *
 * Invariants: order within a direction is kept; bytes that a client wrote before it closed still reach the server
 * when the hold ends (a partition delays bytes, it does not unsend them); at most `QUEUE_BYTES_MAX` wait per
 * direction, then the sender is paused.
 */
import { connect, createServer, type Server, type Socket } from 'node:net';

export type Direction = 'toServer' | 'toClient';

const QUEUE_BYTES_MAX = 8 * 1024 * 1024;

interface Pipe {
  /** Takes what waits on, as far as hold, delay and the receiver allow. */
  pump(): void;
  /** Held apart from the proxy's own holds, until this time (`Date.now()` in ms). */
  holdUntil(atMs: number): void;
  readonly idle: boolean;
}

interface Link {
  readonly client: Socket;
  readonly server: Socket;
  readonly toServer: Pipe;
  readonly toClient: Pipe;
}

export interface TcpProxy {
  readonly port: number;
  readonly connections: number;
  /** How much servers have sent, of all connections since the start. */
  readonly bytesFromServers: number;
  /** Resets every connection, and each new one, until `heal`. */
  cut(): void;
  /** Resets the connections that are open; new ones are served. */
  reset(): void;
  /** Bytes of these directions stay where they are until `heal`. New connections are accepted and held as well. */
  hold(directions: readonly Direction[]): void;
  /** Every chunk is passed on this much later. 0 ends it. */
  delay(delayMs: number): void;
  /** Clients are reset now; what they had written reaches the server only `lateMs` later. New connections are served. */
  deliverLate(lateMs: number): void;
  /** The connections that are open fall silent for good, as behind a router that forgot them; new ones are served. */
  silence(): void;
  /** Ends every misbehaviour. What was held is passed on, unless its receiver is gone. */
  heal(): void;
  close(): Promise<void>;
}

/** Where new connections go; asked each time, so that a failover is a change of its answer and a `reset`. */
export type Upstream = () => number;

export async function startTcpProxy(upstream: Upstream, port = 0): Promise<TcpProxy> {
  const links = new Set<Link>();
  /** Every client that is still connected, also where its server has gone. */
  const clients = new Set<Socket>();
  const held = new Set<Direction>();
  let refusing = false;
  let bytesFromServers = 0;
  let delayMs = 0;

  function createPipe(from: Socket, to: Socket, direction: Direction): Pipe {
    const queue: { readonly chunk: Buffer; readonly readyAtMs: number }[] = [];
    let queuedBytes = 0;
    let ended = false;
    let blocked = false;
    let heldUntilMs = 0;
    let timer: NodeJS.Timeout | undefined;

    function waitUntil(atMs: number): void {
      clearTimeout(timer);
      timer = setTimeout(pump, Math.max(0, atMs - Date.now()));
    }
    function pump(): void {
      if (to.destroyed) {
        queue.length = 0;
        queuedBytes = 0;
        return;
      }
      if (blocked || held.has(direction)) return;
      const now = Date.now();
      if (heldUntilMs > now) {
        if (Number.isFinite(heldUntilMs)) waitUntil(heldUntilMs);
        return;
      }
      for (let head = queue[0]; head !== undefined; head = queue[0]) {
        if (head.readyAtMs > now) {
          waitUntil(head.readyAtMs);
          return;
        }
        queue.shift();
        queuedBytes -= head.chunk.length;
        if (!to.write(head.chunk)) {
          blocked = true;
          from.pause();
          break;
        }
      }
      if (!blocked && queuedBytes < QUEUE_BYTES_MAX) from.resume();
      if (ended && queue.length === 0) to.end();
    }
    from.on('data', (chunk) => {
      queue.push({ chunk, readyAtMs: delayMs === 0 ? 0 : Date.now() + delayMs });
      queuedBytes += chunk.length;
      if (queuedBytes >= QUEUE_BYTES_MAX) from.pause();
      pump();
    });
    to.on('drain', () => {
      blocked = false;
      pump();
    });
    // A reset of the sender ends its bytes as well: what it had written is on its way already.
    from.on('close', () => {
      ended = true;
      pump();
    });
    to.on('close', () => clearTimeout(timer));
    return {
      pump,
      holdUntil(atMs) {
        heldUntilMs = atMs;
      },
      get idle() {
        return queue.length === 0;
      },
    };
  }

  const listener: Server = createServer({ noDelay: true }, (client) => {
    client.on('error', () => client.destroy());
    clients.add(client);
    client.once('close', () => clients.delete(client));
    if (refusing) {
      client.resetAndDestroy();
      return;
    }
    const server = connect({ port: upstream(), host: '127.0.0.1', noDelay: true });
    server.on('data', (chunk: Buffer) => {
      bytesFromServers += chunk.length;
    });
    let failed = false;
    server.on('error', () => {
      failed = true;
      server.destroy();
    });
    const link: Link = {
      client,
      server,
      toServer: createPipe(client, server, 'toServer'),
      toClient: createPipe(server, client, 'toClient'),
    };
    links.add(link);
    client.once('close', () => {
      if (server.destroyed) links.delete(link);
    });
    server.once('close', () => {
      // Otherwise its pipe ends the client, after the server's last bytes: not before these are let go.
      if (!link.toClient.idle && !client.destroyed) return;
      links.delete(link);
      if (failed) client.resetAndDestroy();
    });
  });
  await new Promise<void>((resolve, reject) => {
    listener.once('error', reject);
    listener.listen(port, '127.0.0.1', resolve);
  });
  const address = listener.address();

  function reset(): void {
    for (const link of links) {
      link.server.resetAndDestroy();
      link.client.resetAndDestroy();
    }
    links.clear();
  }
  function pumpAll(): void {
    for (const link of links) {
      link.toServer.pump();
      link.toClient.pump();
      if (link.server.destroyed && link.toClient.idle) links.delete(link);
    }
  }
  return {
    port: typeof address === 'object' && address !== null ? address.port : port,
    get connections() {
      return links.size;
    },
    get bytesFromServers() {
      return bytesFromServers;
    },
    cut() {
      refusing = true;
      reset();
    },
    reset,
    hold(directions) {
      for (const direction of directions) held.add(direction);
    },
    delay(milliseconds) {
      delayMs = milliseconds;
    },
    deliverLate(lateMs) {
      const untilMs = Date.now() + lateMs;
      for (const link of links) {
        link.toServer.holdUntil(untilMs);
        // Long enough for requests to gather behind the hold, short against every timeout.
        setTimeout(() => link.client.resetAndDestroy(), 30);
        setTimeout(link.toServer.pump, lateMs);
      }
    },
    silence() {
      for (const link of links)
        for (const pipe of [link.toServer, link.toClient]) pipe.holdUntil(Number.POSITIVE_INFINITY);
    },
    heal() {
      refusing = false;
      held.clear();
      delayMs = 0;
      pumpAll();
    },
    async close() {
      held.clear();
      const closed = new Promise<void>((resolve) => listener.close(() => resolve()));
      reset();
      for (const client of clients) client.destroy();
      await closed;
    },
  };
}
