import { connect } from 'node:net';
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
