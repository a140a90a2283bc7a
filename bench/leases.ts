/**
 * `npm run bench -- leases`: get-or-set against the Lua script that does the same, what leases cost a hit, and how far
 * behind the fetched value the clients of a stampede get it.
 *
 * Contenders take turns within each round; ratios are medians of the rounds' ratios. With two cores the load generator
 * and the KV store have the first, Holdfast the second. CPU time is what a busy machine disturbs least, and that of the KV store tells
 * how many requests one KV store can serve behind any number of sidecars.
 */
import { execFileSync } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { startPostgres } from '../src/embedded/postgres.ts';
import { median } from './bench.ts';
import { cpuMicros, type Load, measure, pinProcess } from './load.ts';
import { isInstalled, type RunningProcess, startHoldfast, startKv, temporaryDirectory } from './processes.ts';
import { compareStampedes } from './stampede.ts';
import { measureWaiters } from './waiters.ts';

/** The reference client's, byte for byte: Holdfast knows its SHA1. */
const RECOGNISED =
  "\n\t\tlocal value = redis.call('get', KEYS[1])\n\t\tif not value then\n\t\t\tredis.call('set', KEYS[1], ARGV[1], 'NX')\n\t\t\tvalue = ARGV[1]\n\t\tend\n\t\treturn value\n\t";
/** The same one in a form that is not recognised, and runs as it is. */
const AS_IT_IS = RECOGNISED.replace('not value', '(not value)');
/** The keys of a load generator's `__rand_int__`. */
const FILL =
  "for i=0,99999 do redis.call('SET',string.format('v1/org/fleet/v1/git-data/repository/main/%012d',i),'v') end";
const KEYS = 'v1/org/fleet/v1/git-data/repository/main/__rand_int__';
/** Filling in a key costs the generator more than the KV store's work for it. */
const KEY = 'v1/org/fleet/v1/git-data/repository/main/000000000001';
const REQUESTS = 40_000;
const PIPELINED_REQUESTS = 800_000;
const TIMEOUT_MS = 120_000;
const LEASES = [{ pattern: 'v1/*', waitMs: 10_000, leaseMs: 30_000 }];

interface Contender {
  readonly port: number;
  readonly command: readonly string[];
}

interface Pair {
  readonly name: string;
  readonly one: Contender;
  readonly other: Contender;
}

/** Requests per second, and CPU time per request in microseconds. */
interface Result {
  readonly rate: number;
  readonly holdfast: number;
  readonly kv: number;
}

interface Servers {
  readonly kv: RunningProcess;
  readonly sidecars: readonly RunningProcess[];
  /** Of the load generator. */
  readonly cores: string | undefined;
}

function redisCli(port: number, ...args: string[]): string {
  return execFileSync('redis-cli', ['-p', String(port), ...args], { encoding: 'utf8' }).trim();
}

async function run({ port, command }: Contender, pipeline: number, { kv, sidecars, cores }: Servers): Promise<Result> {
  const spent = (): readonly [number, number] => [
    cpuMicros(kv.pid),
    sidecars.reduce((sum, { pid }) => sum + cpuMicros(pid), 0),
  ];
  const requests = pipeline === 1 ? REQUESTS : PIPELINED_REQUESTS;
  const load: Load = { command, clients: 50, pipeline, dataBytes: 3 };
  const before = spent();
  const { requestsPerSecond } = await measure(port, load, requests, { cores, timeoutMs: TIMEOUT_MS });
  const after = spent();
  return {
    rate: requestsPerSecond,
    kv: (after[0] - before[0]) / requests,
    holdfast: (after[1] - before[1]) / requests,
  };
}

/** A line of the table. */
async function compare(
  { name, one, other }: Pair,
  pipeline: number,
  rounds: number,
  servers: Servers,
): Promise<string> {
  // Code that has just been compiled is slow.
  for (const each of [one, other]) await run(each, pipeline, servers);
  const results: (readonly [Result, Result])[] = [];
  for (let round = 0; round < rounds; round += 1) {
    const [first, second] = round % 2 === 0 ? [one, other] : [other, one];
    const pair = [await run(first, pipeline, servers), await run(second, pipeline, servers)] as const;
    results.push(round % 2 === 0 ? pair : [pair[1], pair[0]]);
  }
  const ratios = results.map(([{ rate }, { rate: otherRate }]) => rate / otherRate);
  const both = (figure: keyof Result, digits: number): string =>
    [0, 1].map((side) => median(results.map((pair) => pair[side]![figure])).toFixed(digits)).join(' : ');
  const spread = `${Math.min(...ratios).toFixed(2)}–${Math.max(...ratios).toFixed(2)}`;
  const rates = both('rate', 0);
  return `| P${pipeline} ${name} | ${median(ratios).toFixed(2)} | ${spread} | ${rates} | ${both('holdfast', 2)} | ${both('kv', 2)} |`;
}

export async function runLeasesBench(args: string[]): Promise<void> {
  const { values } = parseArgs({ args, options: { rounds: { type: 'string', default: '5' } } });
  const rounds = Number(values.rounds);
  const undo: (() => Promise<unknown>)[] = [];
  const say = (line: string): void => void process.stdout.write(`${line}\n`);
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
    say(
      '| stampede of 999 clients on 3 sidecars | fetches | errors | behind the value: p50 ms | p99 | last | last in all | CPU µs/client |',
    );
    say('|---|---|---|---|---|---|---|---|');
    await compareStampedes(kv.port, sidecars, rounds, say);
    await measureWaiters(sidecars[0]!, say);

    const pinned = availableParallelism() > 1 && isInstalled('taskset');
    if (pinned) {
      pinProcess(kv.pid, '0');
      for (const { pid } of [off, ...sidecars]) pinProcess(pid, '1');
    }
    const servers: Servers = { kv, sidecars: [off, ...sidecars], cores: pinned ? '0' : undefined };
    const sha = (script: string): string => redisCli(kv.port, 'SCRIPT', 'LOAD', script);
    // Every key is there: reads hit.
    redisCli(kv.port, 'EVAL', FILL, '0');
    const through = (...command: string[]): Contender => ({ port: off.port, command });
    const native = through('GETORSET', KEY, 'v');
    const known = through('EVALSHA', sha(RECOGNISED), '1', KEY, 'v');
    const script = through('EVALSHA', sha(AS_IT_IS), '1', KEY, 'v');
    const directScript = { port: kv.port, command: script.command };
    const get = through('GET', KEY);
    const spread = ({ port, command }: Contender): Contender => ({
      port,
      command: command.map((word) => (word === KEY ? KEYS : word)),
    });
    const pairs: readonly Pair[] = [
      { name: 'GETORSET : script, both through Holdfast', one: native, other: script },
      { name: 'script recognised : not, both through Holdfast', one: known, other: script },
      { name: 'GETORSET through Holdfast : script directly', one: native, other: directScript },
      { name: 'GET : script, both through Holdfast', one: get, other: script },
      { name: 'GET that hits, leases on : off', one: { ...get, port: sidecars[0]!.port }, other: get },
      {
        name: 'GETORSET : script, both through Holdfast, 100,000 keys',
        one: spread(native),
        other: spread(script),
      },
    ];
    say('\n| | ratio of rates | rounds | requests/s | Holdfast, CPU µs/request | KV store, CPU µs/request |');
    say('|---|---|---|---|---|---|');
    for (const pipeline of [1, 16]) {
      for (const pair of pairs) say(await compare(pair, pipeline, rounds, servers));
    }
  } finally {
    for (const step of undo.reverse()) await step().catch(() => undefined);
  }
}
