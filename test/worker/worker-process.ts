/** A worker in a process of its own, for tests that kill it. Argument: JSON of WorkerProcessOptions. */
import pino from 'pino';
import { loadApp } from '../../src/worker/load-app.ts';
import { startWorker } from '../../src/worker/worker.ts';

export interface WorkerProcessOptions {
  readonly app: string;
  readonly kv: string;
  readonly database?: string | undefined;
  readonly log?: string;
}

const options = JSON.parse(process.argv[2] ?? '{}') as WorkerProcessOptions;
const { app, module } = await loadApp(options.app);
const worker = await startWorker(app, {
  kv: options.kv,
  database: options.database,
  module,
  log: pino({ level: options.log ?? 'warn' }, pino.destination(2)),
});
process.on('SIGTERM', () => {
  void worker.stop().then(() => process.exit(0));
});
process.stdout.write('ready\n');
