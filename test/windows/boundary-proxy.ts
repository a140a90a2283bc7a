/**
 * A proxy that stops at the boundaries of a protocol: between a request and its delivery, between its execution and the reply, and
 * behind the reply. A gate waits for one such moment, does what it is to do (kill a server, cut a connection), and says how it goes on.
 *
 *   sidecar ── request ──▶ before ──▶ server ── reply ──▶ ran ──▶ sidecar ──▶ replied
 *
 * Messages of a direction pass one by one, in order; a gate that waits holds the rest of its connection, and no other.
 */
import { connect, createServer, type Socket } from 'node:net';
import { type FrameReader, FrameSplitter, type Message } from './frames.ts';

export type Moment = 'before' | 'ran' | 'replied';

export interface Gate {
  readonly moment: Moment;
  /** Asked for each request, in order. */
  matches(request: Message): boolean;
  /** `pass`: as if nothing were. `drop`: the message goes nowhere, for its connection is cut. */
  act(link: Link): Promise<'pass' | 'drop'>;
}

export interface Link {
  /** Resets both ends. */
  cut(): void;
  /** Resets the sidecar's end; gives these bytes to the server, if it is still there, and ends its connection. */
  deliverLate(bytes: Buffer, afterMs: number): void;
  /** Gives these bytes to the server. */
  write(bytes: Buffer): void;
  readonly request: Message;
}

interface Waiting {
  readonly request: Message;
  readonly gates: readonly Gate[];
}

export interface Protocol {
  requests(): FrameReader;
  replies(): FrameReader;
}

export class BoundaryProxy {
  readonly #links = new Set<{ readonly client: Socket; readonly server: Socket }>();
  readonly #gates = new Set<Gate>();
  readonly #watchers = new Set<(request: Message) => void>();
  readonly #protocol: Protocol;
  readonly #upstreamPort: number;
  readonly #listener = createServer({ noDelay: true }, (client) => this.#accept(client));
  #refusing = false;

  private constructor(protocol: Protocol, upstreamPort: number) {
    this.#protocol = protocol;
    this.#upstreamPort = upstreamPort;
  }

  static async start(protocol: Protocol, upstreamPort: number): Promise<BoundaryProxy> {
    const proxy = new BoundaryProxy(protocol, upstreamPort);
    await new Promise<void>((resolve, reject) => {
      proxy.#listener.once('error', reject);
      proxy.#listener.listen(0, '127.0.0.1', resolve);
    });
    return proxy;
  }

  get port(): number {
    const address = this.#listener.address();
    if (typeof address !== 'object' || address === null) throw new Error('the proxy is closed');
    return address.port;
  }

  /** Gives what takes it away again. A gate acts once. */
  place(gate: Gate): () => void {
    this.#gates.add(gate);
    return () => void this.#gates.delete(gate);
  }

  /** Tells of each request. Gives what ends it. */
  watch(watcher: (request: Message) => void): () => void {
    this.#watchers.add(watcher);
    return () => void this.#watchers.delete(watcher);
  }

  /** Resets what is connected; new connections are served. */
  reset(): void {
    for (const { client, server } of this.#links) {
      client.resetAndDestroy();
      server.resetAndDestroy();
    }
    this.#links.clear();
  }

  /** Resets what is connected, and whatever comes. */
  cut(): void {
    this.#refusing = true;
    this.reset();
  }

  close(): void {
    this.cut();
    this.#listener.close();
  }

  #accept(client: Socket): void {
    client.on('error', () => client.destroy());
    if (this.#refusing) {
      client.resetAndDestroy();
      return;
    }
    const server = connect({ port: this.#upstreamPort, host: '127.0.0.1', noDelay: true });
    server.on('error', () => server.destroy());
    const link = { client, server };
    this.#links.add(link);
    const waiting: Waiting[] = [];
    let toServer: Promise<void> = Promise.resolve();
    let toClient: Promise<void> = Promise.resolve();
    let idleUp = true;
    let idleDown = true;
    const forget = () => void this.#links.delete(link);

    const linkOf = (request: Message): Link => ({
      request,
      cut() {
        forget();
        client.resetAndDestroy();
        server.resetAndDestroy();
      },
      deliverLate(bytes, afterMs) {
        forget();
        client.resetAndDestroy();
        setTimeout(() => server.end(bytes), afterMs);
      },
      write: (bytes) => void server.write(bytes),
    });
    const send = (to: Socket, bytes: Buffer): void => {
      if (!to.destroyed && to.writable) to.write(bytes);
    };
    const passRequest = async (request: Message): Promise<void> => {
      for (const watcher of this.#watchers) watcher(request);
      const gates = request.asks ? [...this.#gates].filter((gate) => gate.matches(request)) : [];
      for (const gate of gates) this.#gates.delete(gate);
      if (request.asks) waiting.push({ request, gates });
      for (const gate of gates) {
        if (gate.moment === 'before' && (await gate.act(linkOf(request))) === 'drop') return;
      }
      send(server, request.bytes);
    };
    const passReply = async (reply: Message): Promise<void> => {
      const of = reply.answers ? waiting.shift() : undefined;
      for (const gate of of?.gates ?? []) {
        if (gate.moment === 'ran' && (await gate.act(linkOf(of!.request))) === 'drop') return;
      }
      send(client, reply.bytes);
      for (const gate of of?.gates ?? []) if (gate.moment === 'replied') await gate.act(linkOf(of!.request));
    };
    const requests = new FrameSplitter(this.#protocol.requests());
    const replies = new FrameSplitter(this.#protocol.replies());
    client.on('data', (chunk) => {
      const messages = requests.push(chunk);
      idleUp = false;
      toServer = toServer.then(async () => {
        for (const message of messages) await passRequest(message);
        idleUp = true;
      });
    });
    server.on('data', (chunk) => {
      const messages = replies.push(chunk);
      idleDown = false;
      toClient = toClient.then(async () => {
        for (const message of messages) await passReply(message);
        idleDown = true;
      });
    });
    // The end of one side is the end of the other, behind what was on its way.
    client.on('close', () => {
      forget();
      if (idleUp) server.end();
      else void toServer.then(() => server.end());
    });
    server.on('close', () => {
      forget();
      if (idleDown) client.destroy();
      else void toClient.then(() => client.destroy());
    });
  }
}
