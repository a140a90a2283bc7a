/**
 * The run's own Postgres, that may be killed with all its backends, stopped and started again.
 */
import { startPostgres } from '../../src/embedded/postgres.ts';
import { descendantsOf, sendTo, until } from './process-control.ts';

export interface LedgerNode {
  readonly port: number;
  readonly running: boolean;
  /** The database's URL by way of another port on 127.0.0.1, such as a proxy's. */
  urlVia(port: number): string;
  kill(): Promise<void>;
  /** Resolves when it answers queries again. */
  start(): Promise<void>;
  pause(): void;
  resume(): void;
  stop(): Promise<void>;
}

const BACKENDS_END_MS_MAX = 10_000;

export async function startLedgerNode(dataDir: string): Promise<LedgerNode> {
  const server = await startPostgres({ dataDir, settings: { shared_buffers: '64MB', max_wal_size: '256MB' } });
  function signal(name: NodeJS.Signals): number[] {
    if (server.pid === undefined) return [];
    const pids = [server.pid, ...descendantsOf(server.pid)];
    sendTo(pids, name);
    return pids;
  }
  return {
    port: server.port,
    get running() {
      return server.pid !== undefined;
    },
    urlVia(port) {
      const url = new URL(server.url);
      url.port = String(port);
      return url.href;
    },
    async kill() {
      const pids = signal('SIGKILL');
      await server.kill9();
      // The next start is refused while a backend still holds the shared memory.
      await until('end of Postgres backends', BACKENDS_END_MS_MAX, () => sendTo(pids, 0) === 0);
    },
    start: () => server.restart(),
    pause: () => void signal('SIGSTOP'),
    resume: () => void signal('SIGCONT'),
    async stop() {
      signal('SIGCONT');
      await server.stop();
    },
  };
}
