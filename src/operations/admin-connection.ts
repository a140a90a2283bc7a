/** How a subcommand asks the running sidecar: as any RESP client does, by its HOLDFAST command. */
import { Redis } from 'ioredis';
import { HoldfastError, messageOf } from '../errors.ts';
import { ioredisTarget, withoutPassword } from '../redis-url.ts';

const CONNECT_MS = 5000;

/**
 * `url`: `redis://`, `rediss://` or `unix:/path`. Gives the reply of `HOLDFAST args…`; a map is a flat array. Throws `CONFIG` where
 * no sidecar answers there, and where it refuses.
 */
export async function askSidecar(url: string, args: readonly string[]): Promise<unknown> {
  const options = {
    lazyConnect: true,
    protocol: 2 as const,
    connectionName: 'holdfast-admin',
    maxRetriesPerRequest: 0,
    retryStrategy: () => null,
    connectTimeout: CONNECT_MS,
  };
  const redis = new Redis(ioredisTarget(url), options);
  redis.on('error', () => undefined);
  try {
    await redis.connect();
    return await redis.call('HOLDFAST', ...args);
  } catch (thrown) {
    throw new HoldfastError('CONFIG', `${withoutPassword(url)}: ${messageOf(thrown)}`, {
      cause: thrown,
    });
  } finally {
    redis.disconnect();
  }
}
