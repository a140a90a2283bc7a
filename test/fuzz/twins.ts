/**
 * Twin KV servers: one reached directly, the other through Holdfast as a process of its own (`data-plane`: without
 * ledger and interceptors); or directly as well (`none`), which shows what a test finds where nothing is wrong.
 */
import { startLedgerDatabases } from '../../bench/ledger-databases.ts';
import { type KvBinary, type RunningProcess, startDataPlane, startHoldfast, startKv } from '../../bench/processes.ts';
import { connectRaw } from '../support/raw-client.ts';

export interface TwinOptions {
  readonly server: KvBinary;
  readonly front: 'holdfast' | 'data-plane' | 'none';
  readonly pooling: 'transaction' | 'session';
  readonly settings?: Readonly<Record<string, unknown>>;
}

export interface Twins {
  readonly directPort: number;
  readonly throughPort: number;
  readonly front: RunningProcess;
  readonly server: KvBinary;
  /** The KV server behind the front. */
  readonly behind: RunningProcess;
  /** FLUSHALL on both, each on its own way. */
  reset(): Promise<void>;
  stop(): Promise<void>;
}

const SERVER_ARGS = ['--maxclients', '15000', '--enable-debug-command', 'yes'];

export async function startTwins(options: TwinOptions): Promise<Twins> {
  const running: { stop(): Promise<void> }[] = [];
  const stop = async () => {
    for (const each of running.splice(0).reverse()) await each.stop();
  };
  try {
    const direct = await startKv(options.server, SERVER_ARGS);
    running.push(direct);
    const behind = await startKv(options.server, SERVER_ARGS);
    running.push(behind);
    let front = behind;
    if (options.front === 'holdfast') {
      const ledger = await startLedgerDatabases();
      running.push(ledger);
      front = await startHoldfast({
        kvUrl: `redis://127.0.0.1:${behind.port}`,
        databaseUrl: await ledger.create(),
        pooling: options.pooling,
        ...(options.settings === undefined ? {} : { settings: options.settings }),
      });
      running.push(front);
    } else if (options.front === 'data-plane') {
      front = await startDataPlane({ kvPort: behind.port, pooling: options.pooling });
      running.push(front);
    }
    const flush = async (port: number) => {
      const client = await connectRaw(port);
      await client.send('FLUSHALL');
      await client.close();
    };
    return {
      server: options.server,
      directPort: direct.port,
      throughPort: front.port,
      front,
      behind,
      reset: async () => {
        await Promise.all([flush(direct.port), flush(front.port)]);
      },
      stop,
    };
  } catch (error) {
    await stop();
    throw error;
  }
}
