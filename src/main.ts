#!/usr/bin/env node
/**
 * Subcommand → composition. With `config/` the only reader of arguments and environment; decides exit codes: 0 done,
 * 1 done and found wanting (each subcommand says what), 2 could not be done as asked.
 */
import { HoldfastError } from './errors.ts';
import type { Subcommand } from './subcommand.ts';
import { readVersion } from './version.ts';
import type { BuiltInContext } from './worker/worker-command.ts';

interface Registration {
  readonly name: string;
  readonly summary: string;
  load(): Promise<Subcommand>;
}

const SUBCOMMANDS: readonly Registration[] = [
  {
    name: 'serve',
    summary: 'the sidecar: durable streams in front of a Redis or Valkey',
    load: async () => (await import('./serve.ts')).serve,
  },
  {
    name: 'demo',
    summary: 'kills its own KV store in the middle of a stream of events and shows that nothing is lost',
    load: async () => (await import('./demo.ts')).demo,
  },
  {
    name: 'status',
    summary: 'one look at a running sidecar',
    load: async () => (await import('./operations/status-command.ts')).status,
  },
  {
    name: 'verify',
    summary: 'compares ledger, streams and groups of a running sidecar, entry by entry',
    load: async () => (await import('./operations/verify-command.ts')).verify,
  },
  {
    name: 'replay',
    summary: 'adds history of a stream to it again',
    load: async () => (await import('./operations/replay-command.ts')).replay,
  },
  {
    name: 'worker',
    summary: 'handles the entries of streams in a pool of threads',
    load: async () => {
      const { workerCommand } = await import('./worker/worker-command.ts');
      const flightControl = async (context: BuiltInContext) =>
        (await import('./flight-control/app.ts')).loadFlightControl(context);
      return workerCommand(new Map([['flight-control', flightControl]]));
    },
  },
  {
    name: 'dead',
    summary: 'lists, shows, retries and purges permanent failures',
    load: async () => (await import('./worker/dead-command.ts')).dead,
  },
  {
    name: 'apply',
    summary: 'Flight Control: creates and changes resources as manifests say',
    load: async () => (await import('./flight-control/commands/apply-command.ts')).apply,
  },
  {
    name: 'get',
    summary: 'Flight Control: shows resources',
    load: async () => (await import('./flight-control/commands/get-command.ts')).get,
  },
  {
    name: 'describe',
    summary: 'Flight Control: one resource with its conditions and events',
    load: async () => (await import('./flight-control/commands/describe-command.ts')).describe,
  },
  {
    name: 'delete',
    summary: 'Flight Control: deletes a resource',
    load: async () => (await import('./flight-control/commands/delete-command.ts')).remove,
  },
  {
    name: 'events',
    summary: 'Flight Control: what happened to resources',
    load: async () => (await import('./flight-control/commands/events-command.ts')).events,
  },
  {
    name: 'report',
    summary: 'Flight Control: reports for a device, in place of its agent',
    load: async () => (await import('./flight-control/commands/report-command.ts')).report,
  },
];

/** npm passes on the Ctrl-C that the terminal sent already: two signals within this time are one wish. */
const ECHO_MS = 500;
const EXIT_INTERRUPTED = 130;

function help(): string {
  const width = Math.max(...SUBCOMMANDS.map(({ name }) => name.length));
  const lines = SUBCOMMANDS.map(({ name, summary }) => `  ${name.padEnd(width)}  ${summary}`);
  return `Usage: holdfast COMMAND [FLAGS]\n\n${lines.join('\n')}\n\nholdfast COMMAND --help tells more, holdfast --version the version.\n`;
}

function stopSignal(): Promise<void> {
  return new Promise((resolve) => {
    let firstAt: number | undefined;
    const receive = () => {
      firstAt ??= Date.now();
      if (Date.now() - firstAt > ECHO_MS) process.exit(EXIT_INTERRUPTED);
      resolve();
    };
    process.on('SIGINT', receive);
    process.on('SIGTERM', receive);
  });
}

/** Writes the last words and ends once they are out: a pipe may not have taken them yet. */
function complain(text: string): void {
  process.stderr.write(
    `${text
      .split('\n')
      .map((line) => `holdfast: ${line}`)
      .join('\n')}\n`,
  );
}

async function run(argv: readonly string[]): Promise<number> {
  const [name, ...args] = argv;
  if (name === undefined || name === '--help' || name === '-h' || name === 'help') {
    process.stdout.write(help());
    return name === undefined ? 2 : 0;
  }
  if (name === '--version' || name === '-v') {
    process.stdout.write(`${readVersion()}\n`);
    return 0;
  }
  const registration = SUBCOMMANDS.find((candidate) => candidate.name === name);
  if (registration === undefined) {
    complain(`${name}: there is no such command, see holdfast --help`);
    return 2;
  }
  const subcommand = await registration.load();
  if (args.includes('--help') || args.includes('-h')) {
    process.stdout.write(subcommand.help());
    return 0;
  }
  return subcommand.run({
    args,
    env: process.env,
    workingDirectory: process.cwd(),
    terminal: process.stdout.isTTY === true,
    write: (text) => void process.stdout.write(text),
    stopRequested: stopSignal(),
  });
}

try {
  process.exitCode = await run(process.argv.slice(2));
} catch (error) {
  // What a HoldfastError says is for the operator; anything else is a fault of the program and shows where it is.
  complain(error instanceof HoldfastError ? error.message : error instanceof Error ? `${error.stack}` : String(error));
  process.exitCode = 2;
}
