/**
 * What operators and their machines read: `/metrics` (Prometheus), `/healthz` (the process lives and its event loop
 * turns), `/readyz` (clients are served), `/status` (JSON, what `holdfast status` prints). Reading only, no state.
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Logger } from 'pino';
import { type Address, formatAddress } from '../config/address.ts';
import { HoldfastError, messageOf } from '../errors.ts';
import { keepRoom } from './connection-room.ts';

export interface Readiness {
  readonly ready: boolean;
  /** Each thing that clients need, and whether it is there. */
  readonly checks: Readonly<Record<string, boolean>>;
}

export interface HttpServerOptions {
  readonly address: Address;
  readonly metrics: { readonly contentType: string; metrics(): Promise<string> };
  readonly log: Logger;
  readiness(): Promise<Readiness>;
  /** JSON. */
  status(): Promise<unknown>;
}

export interface HttpServer {
  /** With the port that was taken. */
  readonly address: Address;
  stop(): Promise<void>;
}

const HEADERS_TIMEOUT_MS = 5_000;
const REQUEST_TIMEOUT_MS = 10_000;
/** Between two looks at these. */
const TIMEOUT_CHECK_MS = 1_000;
/** Of a client that does not read its answer. */
const SILENCE_MAX_MS = 30_000;
const CONNECTIONS_MAX = 200;

function answer(response: ServerResponse, status: number, contentType: string, body: string): void {
  response.writeHead(status, { 'content-type': contentType, 'cache-control': 'no-store' });
  response.end(body);
}

function json(response: ServerResponse, status: number, value: unknown): void {
  answer(response, status, 'application/json; charset=utf-8', `${JSON.stringify(value)}\n`);
}

/** Resolves when it listens. Throws `CONFIG` when the address cannot be listened on. */
export async function startHttpServer(options: HttpServerOptions): Promise<HttpServer> {
  const { log, metrics } = options;

  async function route(request: IncomingMessage, response: ServerResponse): Promise<void> {
    if (request.method !== 'GET' && request.method !== 'HEAD') return json(response, 405, { error: 'GET only' });
    switch (request.url?.split('?', 1)[0]) {
      case '/metrics':
        return answer(response, 200, metrics.contentType, await metrics.metrics());
      case '/healthz':
        return json(response, 200, { healthy: true });
      case '/readyz': {
        const readiness = await options.readiness();
        return json(response, readiness.ready ? 200 : 503, readiness);
      }
      case '/status':
        return json(response, 200, await options.status());
      default:
        return json(response, 404, { error: 'there are /metrics, /healthz, /readyz and /status' });
    }
  }

  const timeouts = {
    headersTimeout: HEADERS_TIMEOUT_MS,
    requestTimeout: REQUEST_TIMEOUT_MS,
    connectionsCheckingInterval: TIMEOUT_CHECK_MS,
  };
  const server = createServer(timeouts, (request, response) => {
    route(request, response).catch((error: unknown) => {
      log.error({ err: error, url: request.url }, 'an HTTP request failed');
      if (response.headersSent) response.destroy();
      else json(response, 500, { error: messageOf(error) });
    });
  });
  server.setTimeout(SILENCE_MAX_MS);
  keepRoom(server, CONNECTIONS_MAX);
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error) =>
      reject(new HoldfastError('CONFIG', `http: ${formatAddress(options.address)}: ${messageOf(error)}`)),
    );
    server.listen({ ...options.address }, resolve);
  });
  server.on('error', (error) => log.error({ err: error }, 'the HTTP server failed'));
  const bound = server.address() as AddressInfo | string;
  return {
    address: typeof bound === 'string' ? options.address : { ...options.address, port: bound.port },
    stop() {
      return new Promise((resolve) => {
        server.close(() => resolve());
        server.closeIdleConnections();
        setTimeout(() => server.closeAllConnections(), 500).unref();
      });
    },
  };
}
