/**
 * The data plane alone, without ledger and interceptors, as a process to measure and test:
 * `data-plane.ts LISTEN_PORT KV_PORT POOLING [LIMITS as JSON]`.
 */
import pino from 'pino';
import { startProxy } from '../src/proxy/proxy.ts';

const [listenPort, kvPort, pooling, limits] = process.argv.slice(2);
const proxy = await startProxy({
  listen: [{ host: '127.0.0.1', port: Number(listenPort) }],
  upstream: { host: '127.0.0.1', port: Number(kvPort) },
  pooling: pooling === 'session' ? 'session' : 'transaction',
  limits: JSON.parse(limits ?? '{}'),
  log: pino({ level: 'warn' }, pino.destination(2)),
});
process.once('SIGTERM', () => {
  void proxy.stop(0).then(() => process.exit(0));
});
