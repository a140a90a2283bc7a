/**
 * A stampede: clients of all sidecars miss one key at once. Beside it, as a yardstick for the clients themselves and for the machine:
 * the same clients, subscribed to a channel at the KV store, get one message.
 */
import { spawn } from 'node:child_process';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { request } from '../src/resp/encode.ts';
import { cpuMicros } from './load.ts';
import type { RunningProcess } from './processes.ts';

const CLIENTS_EACH = 333;
const FETCH_MS = 300;
/** Sidecars and clients that have just started run code that is not compiled yet: shown, and apart. */
const COLD_ROUNDS = 8;
const CLIENTS_FILE = join(fileURLToPath(new URL('.', import.meta.url)), 'stampede-clients.ts');

/** What one process of clients saw. */
export interface ClientsReport {
  readonly fetches: number;
  readonly errors: number;
  /** From the moment at which the value was sent, ms. */
  readonly behindMs: readonly number[];
  /** From each client's own request to the value, less the time of the fetch, ms. */
  readonly overMs: readonly number[];
}

interface Outcome extends ClientsReport {
  /** CPU time of all sidecars from the value to the end, microseconds. */
  readonly wakeMicros: number;
}

function quantile(values: readonly number[], share: number): string {
  const sorted = [...values].sort((a, b) => a - b);
  return (sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN).toFixed(0);
}

interface ClientsProcess {
  /** The next line that it says. */
  line(): Promise<string>;
  order(text: string): void;
  stop(): void;
}

async function startClients(port: number): Promise<ClientsProcess> {
  const args = ['--import', import.meta.resolve('tsx'), CLIENTS_FILE, String(port), String(CLIENTS_EACH)];
  const child = spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'inherit'] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const clients: ClientsProcess = {
    async line() {
      const { value, done } = await lines.next();
      if (done === true) throw new Error('the clients of a stampede have ended');
      return value;
    },
    order: (text) => void child.stdin.write(`${text}\n`),
    stop: () => void child.kill(),
  };
  await clients.line();
  return clients;
}

function summed(reports: readonly ClientsReport[]): ClientsReport {
  return {
    fetches: reports.reduce((sum, { fetches }) => sum + fetches, 0),
    errors: reports.reduce((sum, { errors }) => sum + errors, 0),
    behindMs: reports.flatMap(({ behindMs }) => behindMs),
    overMs: reports.flatMap(({ overMs }) => overMs),
  };
}

/** Each process's report; `announced` is called once, as soon as any says something else first. */
function reports(processes: readonly ClientsProcess[], announced: () => void): Promise<ClientsReport[]> {
  return Promise.all(
    processes.map(async (clients) => {
      for (;;) {
        const line = await clients.line();
        if (line.startsWith('{')) return JSON.parse(line) as ClientsReport;
        announced();
      }
    }),
  );
}

async function stampede(
  processes: readonly ClientsProcess[],
  sidecars: readonly RunningProcess[],
  key: string,
): Promise<Outcome> {
  const spent = (): number => sidecars.reduce((sum, { pid }) => sum + cpuMicros(pid), 0);
  let before = 0;
  for (const clients of processes) clients.order(`get ${key} ${FETCH_MS}`);
  const all = await reports(processes, () => {
    before = spent();
  });
  return { ...summed(all), wakeMicros: spent() - before };
}

/** Clients at the KV store itself get one message. */
async function broadcast(
  publisher: Socket,
  processes: readonly ClientsProcess[],
  channel: string,
): Promise<ClientsReport> {
  let subscribed = 0;
  for (const clients of processes) clients.order(`subscribe ${channel}`);
  const all = await reports(processes, () => {
    subscribed += 1;
    if (subscribed === processes.length) publisher.write(request(['PUBLISH', channel, `${Date.now()} 0`]));
  });
  return summed(all);
}

/** Says a line of a table for each round and each of both, `rounds` warm ones after the cold ones. */
export async function compareStampedes(
  kvPort: number,
  sidecars: readonly RunningProcess[],
  rounds: number,
  say: (line: string) => void,
): Promise<void> {
  const started: ClientsProcess[] = [];
  const publisher = connect(kvPort, '127.0.0.1');
  publisher.resume();
  const start = async (port: number): Promise<ClientsProcess> => {
    const clients = await startClients(port);
    started.push(clients);
    return clients;
  };
  try {
    const waiting: ClientsProcess[] = [];
    const subscribed: ClientsProcess[] = [];
    for (const { port } of sidecars) waiting.push(await start(port));
    for (const _ of sidecars) subscribed.push(await start(kvPort));
    const worst = { cold: 0, warm: 0 };
    for (let round = 1; round <= COLD_ROUNDS + rounds; round += 1) {
      const kind = round <= COLD_ROUNDS ? 'cold' : 'warm';
      const { fetches, errors, behindMs, overMs, wakeMicros } = await stampede(
        waiting,
        sidecars,
        `v1/org/fleet/v1/git-data/stampede/${round}`,
      );
      const cpu = (wakeMicros / behindMs.length).toFixed(0);
      const behind = [0.5, 0.99, 1].map((share) => quantile(behindMs, share)).join(' | ');
      worst[kind] = Math.max(worst[kind], ...behindMs);
      say(`| ${round} (${kind}) | ${fetches} | ${errors} | ${behind} | ${quantile(overMs, 1)} | ${cpu} |`);
      const message = await broadcast(publisher, subscribed, `stampede-${round}`);
      const late = [0.5, 0.99, 1].map((share) => quantile(message.behindMs, share)).join(' | ');
      say(`| ${round}, one message of the KV store to the same clients | | ${message.errors} | ${late} | | |`);
    }
    say(`\nThe last client of all rounds: ${worst.cold} ms behind the value cold, ${worst.warm} ms warm.`);
  } finally {
    publisher.destroy();
    for (const clients of started) clients.stop();
  }
}
