/**
 * What a scope costs: `npm run bench -- scope`. The same load through one Holdfast without a scope and in one, in pairs that
 * take turns in going first, so that what the machine does meanwhile strikes both. Figures are medians of the pairs' ratios.
 * With two cores the load generator and the KV server share the first one and Holdfast has the second.
 */
import { createHash } from 'node:crypto';
import { availableParallelism, loadavg } from 'node:os';
import { parseArgs } from 'node:util';
import { connectRaw } from '../test/support/raw-client.ts';
import { median } from './bench.ts';
import { startLedgerDatabases } from './ledger-databases.ts';
import { cpuMicros, type Load, type Measurement, measure, pinProcess } from './load.ts';
import { isInstalled, type KvBinary, startHoldfast, startKv } from './processes.ts';

/** One call, as in a lock, which needs no wrapper; one with a key that it makes itself; and a script as queues have them. */
const ONE_CALL = "return redis.call('GET',KEYS[1])";
const OWN_KEY = "return redis.call('GET','lock:'..KEYS[1])";
const MANY_CALLS = [
  "local job=KEYS[1]..':'..ARGV[1]",
  "redis.call('HSET',job,'name',ARGV[2],'attempts',1)",
  "redis.call('LPUSH',KEYS[1],ARGV[1])",
  "redis.call('LTRIM',KEYS[1],0,9)",
  "redis.call('SET',job..':lock',ARGV[2],'PX',30000)",
  "return {redis.call('HGETALL',job),redis.call('LLEN',KEYS[1]),redis.call('GET',job..':lock')}",
].join('\n');

const LOGIN = { user: 'tenant', password: 'tenant' };
const CLIENTS = 50;
const CALIBRATION_REQUESTS = 3000;
const TIMEOUT_MS = 60_000;

interface Run extends Measurement {
  readonly kvMicrosPerRequest: number;
}

interface ScopeCase {
  readonly name: string;
  /** The ratio that is promised. */
  readonly least: number;
  readonly pipeline: number;
  readonly command: readonly string[];
}

function cases(shas: ReadonlyMap<string, string>): ScopeCase[] {
  const at = (pipeline: number): ScopeCase[] => [
    { name: `SET P${pipeline}`, least: 0.8, pipeline, command: ['SET', 'key:__rand_int__', '__data__'] },
    { name: `GET P${pipeline}`, least: 0.8, pipeline, command: ['GET', 'key:__rand_int__'] },
    ...(
      [
        ['EVALSHA, key passed on', ['EVALSHA', shas.get(ONE_CALL)!, '1', 'key:__rand_int__']],
        ['EVAL, key passed on', ['EVAL', ONE_CALL, '1', 'key:__rand_int__']],
        ['EVALSHA, own key', ['EVALSHA', shas.get(OWN_KEY)!, '1', 'key:__rand_int__']],
        ['EVAL, own key', ['EVAL', OWN_KEY, '1', 'key:__rand_int__']],
        [
          'EVALSHA, seven calls',
          ['EVALSHA', shas.get(MANY_CALLS)!, '1', 'queue:__rand_int__', '__rand_int__', '__data__'],
        ],
      ] as const
    ).map(([name, command]) => ({ name: `${name} P${pipeline}`, least: 0.7, pipeline, command })),
  ];
  return [...at(1), ...at(16)];
}

export async function runScopeBench(argv: readonly string[]): Promise<void> {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      rounds: { type: 'string', default: '9' },
      seconds: { type: 'string', default: '0.6' },
      server: { type: 'string', default: 'redis-server' },
      case: { type: 'string' },
    },
  });
  const running: { stop(): Promise<void> }[] = [];
  try {
    const ledger = await startLedgerDatabases();
    running.push(ledger);
    const kv = await startKv(values.server as KvBinary);
    running.push(kv);
    const password = `sha256:${createHash('sha256').update(LOGIN.password).digest('hex')}`;
    const holdfast = await startHoldfast({
      kvUrl: `redis://127.0.0.1:${kv.port}`,
      databaseUrl: await ledger.create(),
      settings: { users: { [LOGIN.user]: { password, scope: 'v1/organisation/fleet/7/' } } },
    });
    running.push(holdfast);
    const pinned = availableParallelism() > 1 && isInstalled('taskset');
    if (pinned) {
      pinProcess(kv.pid, '0');
      pinProcess(holdfast.pid, '1');
    }
    process.stdout.write(`load ${loadavg()[0]!.toFixed(1)}, ${pinned ? 'pinned' : 'one core'}\n`);
    const shas = new Map<string, string>();
    for (const login of [undefined, LOGIN]) {
      const client = await connectRaw(holdfast.port);
      if (login !== undefined) await client.send('AUTH', login.user, login.password);
      for (const script of [ONE_CALL, OWN_KEY, MANY_CALLS]) {
        shas.set(script, (await client.send('SCRIPT', 'LOAD', script)).bytes.toString());
      }
      await client.close();
    }
    const rounds = Number(values.rounds);
    for (const each of cases(shas).filter(({ name }) => values.case === undefined || name.startsWith(values.case))) {
      const load: Load = { clients: CLIENTS, dataBytes: 3, ...each };
      const run = async (scoped: boolean, requests: number): Promise<Run> => {
        const kvBefore = cpuMicros(kv.pid);
        const measured = await measure(holdfast.port, scoped ? { ...load, login: LOGIN } : load, requests, {
          measuredPid: holdfast.pid,
          cores: pinned ? '0' : undefined,
          timeoutMs: TIMEOUT_MS,
        });
        return { ...measured, kvMicrosPerRequest: (cpuMicros(kv.pid) - kvBefore) / requests };
      };
      await run(true, CALIBRATION_REQUESTS);
      const first = await run(false, CALIBRATION_REQUESTS);
      const requests = Math.max(CALIBRATION_REQUESTS, Math.round(first.requestsPerSecond * Number(values.seconds)));
      const pairs: { bare: Run; scoped: Run }[] = [];
      for (let round = 0; round < rounds; round += 1) {
        if (round % 2 === 0) {
          const bare = await run(false, requests);
          pairs.push({ bare, scoped: await run(true, requests) });
        } else {
          const scoped = await run(true, requests);
          pairs.push({ bare: await run(false, requests), scoped });
        }
      }
      const ratio = median(pairs.map(({ bare, scoped }) => scoped.requestsPerSecond / bare.requestsPerSecond));
      const rate = (pick: 'bare' | 'scoped') => Math.round(median(pairs.map((pair) => pair[pick].requestsPerSecond)));
      const cpu = (pick: 'bare' | 'scoped') => median(pairs.map((pair) => pair[pick].cpuMicrosPerRequest!)).toFixed(1);
      const kvCpu = (pick: 'bare' | 'scoped') => median(pairs.map((pair) => pair[pick].kvMicrosPerRequest)).toFixed(1);
      process.stdout.write(
        `${each.name.padEnd(24)} ${ratio.toFixed(2)} (promised ${each.least})  ${rate('bare')}/s bare, ${rate('scoped')}/s scoped, ` +
          `CPU a request: Holdfast ${cpu('bare')} and ${cpu('scoped')} µs, KV server ${kvCpu('bare')} and ${kvCpu('scoped')} µs\n`,
      );
    }
  } finally {
    for (const each of running.reverse()) await each.stop();
  }
}
