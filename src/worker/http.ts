/** `/healthz` and `/metrics` of a worker. */
import { createServer, type Server } from 'node:http';
import type { Registry } from 'prom-client';
import { type Address, formatAddress, parseAddress } from '../config/address.ts';
import { HoldfastError, messageOf } from '../errors.ts';
import type { HealthReport } from './health.ts';

export interface HttpEndpoint {
  /** As bound. */
  readonly address: string;
  close(): Promise<void>;
}

/** `address`: `host:port` (port 0 for a free one) or `unix:/path`. Throws `CONFIG` when it cannot be bound. */
export async function serveHttp(
  address: string,
  health: () => HealthReport,
  registry: Registry,
): Promise<HttpEndpoint> {
  const at = parsed(address);
  const server = createServer((request, response) => {
    const path = request.url?.split('?')[0];
    if (path === '/healthz') {
      const report = health();
      response.writeHead(report.healthy ? 200 : 503, { 'content-type': 'application/json' });
      response.end(`${JSON.stringify(report)}\n`);
    } else if (path === '/metrics') {
      registry.metrics().then(
        (text) => response.writeHead(200, { 'content-type': registry.contentType }).end(text),
        (error: unknown) => response.writeHead(500).end(messageOf(error)),
      );
    } else {
      response.writeHead(404).end('not found: /healthz and /metrics are here\n');
    }
  });
  await listen(server, at, address);
  const bound = server.address();
  return {
    address: formatAddress(typeof bound === 'object' && bound !== null ? { ...at, port: bound.port } : at),
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

function parsed(address: string): Address {
  try {
    return parseAddress(address);
  } catch (error) {
    throw new HoldfastError('CONFIG', `http: ${messageOf(error)}`);
  }
}

function listen(server: Server, at: Address, address: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', (error) =>
      reject(new HoldfastError('CONFIG', `http: cannot listen on ${address}: ${error.message}`)),
    );
    server.listen(at, resolve);
  });
}
