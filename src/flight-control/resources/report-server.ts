/**
 * Takes reports over HTTP, in batches: `POST /reports` with a JSON list of
 * `{"name", "renderedVersion", "state"?, "message"?, "summary"?}`, at most 1,000. Answers `{"reported", "unknown": [names]}`.
 */
import { timingSafeEqual } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Logger } from 'pino';
import { messageOf } from '../../errors.ts';
import { field, isList, isObject, type JsonValue } from '../manifest/json-value.ts';
import { badReport, type DeviceReport, reportDevices } from './report-device.ts';
import type { Database } from './store.ts';

const BATCH_MAX = 1000;
const BODY_BYTES_MAX = 4 * 1024 * 1024;
const REQUEST_MS = 10_000;

export interface ReportServerOptions {
  readonly database: Database;
  readonly org: string;
  readonly host: string;
  readonly port: number;
  /** Asked for as `Authorization: Bearer …`. */
  readonly token: string | undefined;
  readonly log: Logger;
}

class Refusal extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

export interface ReportServer {
  readonly port: number;
  stop(): Promise<void>;
}

export async function serveReports(options: ReportServerOptions): Promise<ReportServer> {
  const server = createServer({ requestTimeout: REQUEST_MS, headersTimeout: REQUEST_MS }, (request, response) => {
    answer(options, request).then(
      (body) => reply(response, 200, body),
      (error: unknown) => {
        if (error instanceof Refusal) return reply(response, error.status, { error: error.message });
        options.log.error({ error: messageOf(error) }, 'reports could not be taken');
        return reply(response, 503, { error: 'the reports could not be stored; send them again' });
      },
    );
  });
  await listen(server, options.host, options.port);
  return {
    port: (server.address() as AddressInfo).port,
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

function listen(server: Server, host: string, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, host, () => {
      server.off('error', reject);
      resolve();
    });
  });
}

function reply(response: ServerResponse, status: number, body: JsonValue): void {
  // What is left of a refused body is not read.
  response.writeHead(status, {
    'content-type': 'application/json',
    connection: status === 200 ? 'keep-alive' : 'close',
  });
  response.end(`${JSON.stringify(body)}\n`);
}

async function answer({ database, org, token }: ReportServerOptions, request: IncomingMessage): Promise<JsonValue> {
  if (token !== undefined && !carries(request, token)) throw new Refusal(401, 'the token is missing or wrong');
  if (request.url !== '/reports') throw new Refusal(404, 'reports are taken at /reports');
  if (request.method !== 'POST') throw new Refusal(405, 'reports are sent by POST');
  const reports = parseReports(await readBody(request));
  const unknown = await reportDevices(database, org, reports);
  return { reported: new Set(reports.map(({ name }) => name)).size - unknown.length, unknown };
}

function carries(request: IncomingMessage, token: string): boolean {
  const given = Buffer.from(request.headers.authorization ?? '');
  const wanted = Buffer.from(`Bearer ${token}`);
  return given.length === wanted.length && timingSafeEqual(given, wanted);
}

async function readBody(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > BODY_BYTES_MAX) throw new Refusal(413, `the body has more than ${BODY_BYTES_MAX} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString();
}

function parseReports(body: string): DeviceReport[] {
  let list: unknown;
  try {
    list = JSON.parse(body);
  } catch {
    throw new Refusal(400, 'the body is no JSON');
  }
  if (!isList(list)) throw new Refusal(400, 'the body is no list of reports');
  if (list.length > BATCH_MAX)
    throw new Refusal(413, `the body has ${list.length} reports, at most ${BATCH_MAX} are taken`);
  return list.map((item, index) => {
    const bad = isObject(item) ? badReport(item) : 'it is no map';
    if (bad !== undefined) throw new Refusal(400, `report ${index}: ${bad}`);
    return {
      name: String(field(item, 'name')),
      renderedVersion: String(field(item, 'renderedVersion')),
      state: field(item, 'state') as DeviceReport['state'],
      message: field(item, 'message') as string | undefined,
      summary: field(item, 'summary') as DeviceReport['summary'],
    };
  });
}
