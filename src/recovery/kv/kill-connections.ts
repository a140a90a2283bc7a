import { HoldfastError } from '../../errors.ts';
import type { KvConnection } from './connection.ts';
import { parseServerIdentity } from './snapshot.ts';

/** A connection to the KV store by its ID there, and the run of the server that gave it. */
interface BrokenConnection {
  readonly clientId: number;
  readonly runId: string;
}

/**
 * Bytes of a connection that broke at our end can still land: not once it is closed at the other end. Another run of the
 * server has closed it by itself, and has given its ID to somebody else. Rejects with KVDOWN.
 */
export async function closeConnections(connection: KvConnection, broken: readonly BrokenConnection[]): Promise<void> {
  if (broken.length === 0) return;
  const { runId } = parseServerIdentity(String(await connection.command(0, ['INFO', 'server'])));
  for (const clientId of new Set(broken.filter((one) => one.runId === runId).map((one) => one.clientId))) {
    await connection.command(0, ['CLIENT', 'KILL', 'ID', clientId]).catch((thrown: Error) => {
      // It is gone already.
      if (thrown instanceof HoldfastError) throw thrown;
    });
  }
}
