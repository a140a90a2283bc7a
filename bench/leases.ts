/**
 * `npm run bench -- leases`: get-or-set against the Lua script that does the same, what leases cost a hit, and how far
 * behind the fetched value the clients of a stampede get it. Contenders take turns within each round; ratios are medians
 * of the rounds' ratios. CPU time is what a busy machine disturbs least.
 */
import { execFileSync, spawn } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { startPostgres } from '../src/embedded/postgres.ts';
import { cpuMicros, type Load, measure } from './load.ts';
import { type RunningProcess, startHoldfast, startKv, temporaryDirectory } from './processes.ts';

/** The reference client's, byte for byte: Holdfast knows its SHA1. */
const RECOGNISED =
  "\n\t\tlocal value = redis.call('get', KEYS[1])\n\t\tif not value then\n\t\t\tredis.call('set', KEYS[1], ARGV[1], 'NX')\n\t\t\tvalue = ARGV[1]\n\t\tend\n\t\treturn value\n\t";
/** The same one in a form that is not recognised, and runs as it is. */
const AS_IT_IS = RECOGNISED.replace('not value', '(not value)');
/** The keys of a load generator's `__rand_int__`. */
const FILL =
  "for i=0,99999 do redis.call('SET',string.format('v1/org/fleet/v1/git-data/repository/main/%012d',i),'v') end";
const KEY = 'v1/org/fleet/v1/git-data/repository/main/__rand_int__';
const REQUESTS = 20_000;
const PIPELINED_REQUESTS = 200_000;
const TIMEOUT_MS = 120_000;
const CLIENTS_EACH = 333;
const FETCH_MS = 300;
const LEASES = [{ pattern: 'v1/*', waitMs: 10_000, leaseMs: 30_000 }];
const CLIENTS_FILE = join(fileURLToPath(new URL('.', import.meta.url)), 'lease-clients.ts');

interface Contender {
  readonly port: number;
  readonly load: Load;
}

type Pair = readonly [name: string, one: Contender, other: Contender];

interface Stampede {
  readonly fetches: number;
  readonly errors: number;
  readonly behindMs: readonly number[];
}

function redisCli(port: number, ...args: string[]): string {
  return execFileSync('redis-cli', ['-p', String(port), ...args], { encoding: 'utf8' }).trim();
}

function quantile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))]!;
}

/** Requests per second, and the CPU time of all servers per request, in microseconds. */
async function run({ port, load }: Contender, servers: readonly number[]): Promise<{ rate: number; cpu: number }> {
  const spent = (): number => servers.reduce((sum, pid) => sum + cpuMicros(pid), 0);
  const requests = load.pipeline === 1 ? REQUESTS : PIPELINED_REQUESTS;
  const before = spent();
  const { requestsPerSecond } = await measure(port, load, requests, { timeoutMs: TIMEOUT_MS });
  return { rate: requestsPerSecond, cpu: (spent() - before) / requests };
}

/** One process of clients for each port; all start at once. */
async function stampede(ports: readonly number[], key: string): Promise<Stampede> {
  const processes = ports.map((port) => {
    const args = [
      '--import',
      import.meta.resolve('tsx'),
      CLIENTS_FILE,
      ...[port, CLIENTS_EACH, key, FETCH_MS].map(String),
    ];
    const child = spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'inherit'], timeout: TIMEOUT_MS });
    return { child, lines: createInterface({ input: child.stdout })[Symbol.asyncIterator]() };
  });
  for (const { lines } of processes) await lines.next();
  for (const { child } of processes) child.stdin.write('go\n');
  const results = await Promise.all(
    processes.map(async ({ lines }) => JSON.parse(String((await lines.next()).value)) as Stampede),
  );
  return {
    fetches: results.reduce((sum, { fetches }) => sum + fetches, 0),
    errors: results.reduce((sum, { errors }) => sum + errors, 0),
    behindMs: results.flatMap(({ behindMs }) => behindMs),
  };
}

export async function runLeasesBench(args: string[]): Promise<void> {
  const { values } = parseArgs({ args, options: { rounds: { type: 'string', default: '5' } } });
  const rounds = Number(values.rounds);
  const undo: (() => Promise<unknown>)[] = [];
  try {
    const kv = await startKv('redis-server');
    undo.push(() => kv.stop());
    const postgres = await startPostgres({ dataDir: join(temporaryDirectory('leases-bench'), 'postgres') });
    undo.push(() => postgres.stop());
    const common = { kvUrl: `redis://127.0.0.1:${kv.port}`, databaseUrl: postgres.url };
    const off = await startHoldfast(common);
    undo.push(() => off.stop());
    const sidecars: RunningProcess[] = [];
    for (let i = 0; i < 3; i += 1) {
      const sidecar = await startHoldfast({ ...common, settings: { leases: LEASES } });
      undo.push(() => sidecar.stop());
      sidecars.push(sidecar);
    }
    const load = (pipeline: number, ...command: string[]): Load => ({ command, clients: 50, pipeline, dataBytes: 3 });
    const sha = (script: string): string => redisCli(kv.port, 'SCRIPT', 'LOAD', script);
    const [recognised, asItIs] = [sha(RECOGNISED), sha(AS_IT_IS)];
    // Every key is there: reads hit.
    redisCli(kv.port, 'EVAL', FILL, '0');
    const through = off.port;
    const pairs: Pair[] = [1, 16].flatMap((pipeline) => {
      const native = load(pipeline, 'GETORSET', KEY, 'v');
      const known = load(pipeline, 'EVALSHA', recognised, '1', KEY, 'v');
      const script = load(pipeline, 'EVALSHA', asItIs, '1', KEY, 'v');
      const get = load(pipeline, 'GET', KEY);
      return [
        [
          `GETORSET : script, both through, P${pipeline}`,
          { port: through, load: native },
          { port: through, load: script },
        ],
        [
          `recognised : script, both through, P${pipeline}`,
          { port: through, load: known },
          { port: through, load: script },
        ],
        [
          `GETORSET through : script directly, P${pipeline}`,
          { port: through, load: native },
          { port: kv.port, load: script },
        ],
        [
          `GET that hits, leases on : off, P${pipeline}`,
          { port: sidecars[0]!.port, load: get },
          { port: through, load: get },
        ],
      ] satisfies Pair[];
    });
    const servers = [kv, off, ...sidecars].map(({ pid }) => pid);
    process.stdout.write(
      '| | requests/s, ratio | rounds | CPU of KV store and Holdfast per request, µs |\n|---|---|---|---|\n',
    );
    for (const [name, one, other] of pairs) {
      // Code that has just been compiled is slow.
      for (const each of [one, other]) await run(each, servers);
      const ratios: number[] = [];
      const cpu: [number[], number[]] = [[], []];
      for (let round = 0; round < rounds; round += 1) {
        const order = round % 2 === 0 ? [one, other] : [other, one];
        const results = [await run(order[0]!, servers), await run(order[1]!, servers)];
        if (round % 2 === 1) results.reverse();
        ratios.push(results[0]!.rate / results[1]!.rate);
        cpu[0].push(results[0]!.cpu);
        cpu[1].push(results[1]!.cpu);
      }
      const all = ratios.map((ratio) => ratio.toFixed(2)).join(' ');
      const spent = cpu.map((values) => quantile(values, 0.5).toFixed(2)).join(' : ');
      process.stdout.write(`| ${name} | ${quantile(ratios, 0.5).toFixed(2)} | ${all} | ${spent} |\n`);
    }
    process.stdout.write(
      '\n| stampede of 999 clients | fetches | errors | p50 ms | p99 ms | last ms |\n|---|---|---|---|---|---|\n',
    );
    for (let round = 0; round < rounds; round += 1) {
      const { fetches, errors, behindMs } = await stampede(
        sidecars.map(({ port }) => port),
        `v1/org/fleet/v1/git-data/stampede/${round}`,
      );
      const times = [0.5, 0.99, 1].map((share) => quantile(behindMs, share)).join(' | ');
      process.stdout.write(`| ${round + 1} | ${fetches} | ${errors} | ${times} |\n`);
    }
  } finally {
    for (const step of undo.reverse()) await step().catch(() => undefined);
  }
}
