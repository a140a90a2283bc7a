import { HoldfastError } from '../errors.ts';
import { type Address, formatAddress } from './address.ts';
import type { Config } from './config.ts';

/** Where workers and their tools connect. Throws `CONFIG` where the first listener does not say how. */
export function workerUrl(config: Config): string {
  if (config.worker.connect !== undefined) return config.worker.connect.reveal();
  const listener = config.listen[0]!;
  if (listener.tls !== undefined) {
    throw new HoldfastError('CONFIG', 'worker.connect: the first listener speaks TLS, so say rediss://HOST:PORT here');
  }
  return 'path' in listener.address
    ? `unix:${listener.address.path}`
    : `redis://${formatAddress(reachable(listener.address))}`;
}

function reachable(address: Extract<Address, { port: number }>): Address {
  return { ...address, host: address.host === '0.0.0.0' || address.host === '::' ? '127.0.0.1' : address.host };
}
