import { once } from 'node:events';
import { Agent, get } from 'node:http';
import { connect, type Socket } from 'node:net';
import { pino } from 'pino';
import { afterEach, describe, expect, it } from 'vitest';
import { formatAddress } from '../../src/config/address.ts';
import { type HttpServer, startHttpServer } from '../../src/operations/http-server.ts';
import { addFigures, createMetrics } from '../../src/operations/metrics.ts';

let running: HttpServer | undefined;
afterEach(async () => {
  await running?.stop();
  running = undefined;
});

async function start(overrides: Partial<Parameters<typeof startHttpServer>[0]> = {}): Promise<string> {
  running = await startHttpServer({
    address: { host: '127.0.0.1', port: 0 },
    metrics: createMetrics(),
    log: pino({ level: 'silent' }),
    readiness: async () => ({ ready: true, checks: {} }),
    status: async () => ({}),
    ...overrides,
  });
  return `http://${formatAddress(running.address)}`;
}

describe('the HTTP server', () => {
  it('is healthy while it turns, and ready when everything that clients need is there', async () => {
    let ledger = true;
    const url = await start({ readiness: async () => ({ ready: ledger, checks: { kv: true, ledger } }) });
    expect((await fetch(`${url}/healthz`)).status).toBe(200);
    expect((await fetch(`${url}/readyz`)).status).toBe(200);
    ledger = false;
    const response = await fetch(`${url}/readyz`);
    expect(response.status).toBe(503);
    expect(await response.json()).toEqual({ ready: false, checks: { kv: true, ledger: false } });
    expect((await fetch(`${url}/healthz`)).status).toBe(200);
  });

  it('shows totals as counters and the present as gauges, read when asked', async () => {
    const metrics = createMetrics();
    let value = 3;
    addFigures(metrics, [
      { name: 'holdfast_things_total', help: 'Things', kind: 'total', read: () => value },
      { name: 'holdfast_depth', help: 'Depth', kind: 'current', read: () => value },
    ]);
    const url = await start({ metrics });
    value = 5;
    for (let asked = 0; asked < 2; asked += 1) {
      const response = await fetch(`${url}/metrics`);
      const text = await response.text();
      expect(response.headers.get('content-type')).toContain('text/plain');
      expect(text).toContain('# TYPE holdfast_things_total counter\nholdfast_things_total 5\n');
      expect(text).toContain('# TYPE holdfast_depth gauge\nholdfast_depth 5\n');
      expect(text).toContain('holdfast_nodejs_eventloop_lag_seconds');
    }
  });

  it.each([
    ['that begin a request', 'GET /status HTTP/1.1\r\nHost: x\r\n'],
    ['that say nothing', ''],
    ['whose request takes long', 'GET /status HTTP/1.1\r\nHost: x\r\n\r\n'],
  ])('answers for its health past 250 connections of another peer %s, and of the same', async (_, sent) => {
    let finish = (): void => undefined;
    const slow = new Promise<void>((resolve) => {
      finish = resolve;
    });
    const url = await start({ status: () => slow });
    const port = Number(new URL(url).port);
    const sockets: Socket[] = [];
    const open = async (localAddress: string): Promise<void> => {
      const socket = connect({ port, host: '127.0.0.1', localAddress });
      socket.on('error', () => undefined);
      sockets.push(socket);
      await once(socket, 'connect');
      socket.write(sent);
    };
    const client = new Agent({ keepAlive: true, maxSockets: 1 });
    const health = (): Promise<number | undefined> =>
      new Promise((resolve, reject) => {
        const asked = get(`${url}/healthz`, { agent: client }, (response) => {
          response.resume();
          response.once('end', () => resolve(response.statusCode));
        });
        asked.on('error', reject);
      });
    expect(await health()).toBe(200);
    for (let opened = 0; opened < 250; opened += 1) await open('127.0.0.2');
    // On the connection that it had: another peer's many did not push it out.
    expect(await health()).toBe(200);
    for (let opened = 0; opened < 250; opened += 1) await open('127.0.0.1');
    expect((await fetch(`${url}/healthz`)).status).toBe(200);
    finish();
    client.destroy();
    for (const socket of sockets) socket.destroy();
  });

  it('closes a connection whose request does not end', async () => {
    const url = await start();
    const socket = connect({ port: Number(new URL(url).port), host: '127.0.0.1' });
    socket.write('GET /healthz HTTP/1.1\r\nHost: x\r\n');
    const closed = once(socket, 'close');
    let answer = '';
    socket.on('data', (bytes) => {
      answer += bytes.toString();
    });
    await closed;
    expect(answer).toMatch(/^HTTP\/1.1 408 /);
  }, 20_000);

  it('answers a failure, an unknown path and a writing method with their codes, and goes on', async () => {
    const url = await start({ status: () => Promise.reject(new Error('broken')) });
    expect((await fetch(`${url}/status`)).status).toBe(500);
    expect((await fetch(`${url}/nothing`)).status).toBe(404);
    expect((await fetch(`${url}/metrics`, { method: 'POST' })).status).toBe(405);
    expect((await fetch(`${url}/healthz`)).status).toBe(200);
  });

  it('stops although a client keeps its connection open and says nothing', async () => {
    await start();
    const address = running!.address;
    const idle = connect('port' in address ? address.port : 0, '127.0.0.1');
    await new Promise((resolve) => idle.once('connect', resolve));
    const closed = new Promise((resolve) => idle.once('close', resolve));
    idle.on('error', () => {});
    await running!.stop();
    await closed;
    running = undefined;
  });

  it('names the setting when its address is taken', async () => {
    await start();
    const second = startHttpServer({
      address: running!.address,
      metrics: createMetrics(),
      log: pino({ level: 'silent' }),
      readiness: async () => ({ ready: true, checks: {} }),
      status: async () => ({}),
    });
    await expect(second).rejects.toThrow(/^http: 127\.0\.0\.1:\d+: .*EADDRINUSE/);
  });
});
