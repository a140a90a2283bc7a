/**
 * `npm run test:scope-suite`: the official tests of Redis 7.0.15 inside scopes. Two tenants run each unit at the same time
 * on one server; what passes directly must pass for both, but for what scopes change on purpose, and afterwards every key
 * on the server must lie under one of the two prefixes.
 *
 *   unit ─▶ server ─▶ Holdfast ─▶ a listener for each scope ─▶ runtest, twice at once
 *
 * A unit in which something differs without a reason is run again by that tenant alone: the configuration, the memory
 * limit for one, is the server's, and the other tenant's tests change it meanwhile.
 *
 * What the suite does as the operator of its server (CONFIG, some of DEBUG, SCRIPT KILL) goes to the server itself.
 * Exit code 0: nothing else differs. 1: something does. 2: the suite could not be run.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { startLedgerDatabases } from '../../bench/ledger-databases.ts';
import {
  type KvBinary,
  type RunningProcess,
  startHoldfast,
  startKv,
  temporaryDirectory,
} from '../../bench/processes.ts';
import { freePort } from '../../src/embedded/free-port.ts';
import { type ReplyValue, replyValue } from '../../src/resp/reply.ts';
import { connectRaw, type RawClient } from '../support/raw-client.ts';
import { type Difference, differences } from './compare.ts';
import { KNOWN_DIFFERENCES } from './known-differences.ts';
import { obtainRedisSources, prepareRunDirectory, type RedisSources } from './redis-sources.ts';
import { type RunSettings, runSuiteUnit, runUnits, SERVER_ARGS, type UnitResult } from './suite-run.ts';

const USAGE = `usage: npm run test:scope-suite -- [options]
  --short             three units, one server
  --server LIST       redis-server,valkey-server (default: both)
  --units LIST        units such as unit/multi (default: those that make sense for a tenant)
  --unit-timeout S    a unit that takes longer is stopped (default: 300)
  --details           what the suite says of each difference that has a reason, too
`;

/** Data types, keyspace, transactions, scripts and messages; not what operates, replicates or persists a server. */
const TENANT_UNITS = [
  'unit/keyspace',
  'unit/scan',
  'unit/expire',
  'unit/type/incr',
  'unit/type/string',
  'unit/type/hash',
  'unit/type/list',
  'unit/type/set',
  'unit/type/zset',
  'unit/type/stream',
  'unit/type/stream-cgroups',
  'unit/sort',
  'unit/multi',
  'unit/scripting',
  'unit/functions',
  'unit/pubsub',
  'unit/pubsubshard',
  'unit/bitops',
  'unit/bitfield',
  'unit/geo',
  'unit/hyperloglog',
  'unit/dump',
  'unit/tracking',
  'unit/protocol',
];
const SHORT_UNITS = ['unit/type/incr', 'unit/sort', 'unit/hyperloglog'];
const KILLS_MAX = 5;
const PREFIXES = ['tenant-one:', 'tenant-two:'];

/** What scopes change on purpose, by what the suite says of the failure. */
const REASONS: readonly (readonly [detail: RegExp, reason: string])[] = [
  [/NOPERM .*cannot be used in a scope/, 'a command for operators, refused in a scope'],
  [/NOPERM .*is not available to scripts in a scope/, 'a command for operators, refused to scripts in a scope'],
  [
    /\[r publish /,
    'PUBLISH counts all who listen by pattern under the identity, whichever pattern: Holdfast matches those itself',
  ],
  [/MULTI calls can not be nested/, 'a test before it ended at a refused command and left its transaction open'],
  [/assert_encoding/, 'encodings follow the configuration, which the other tenant changes meanwhile'],
  [
    /BUSY Redis is busy running a script/,
    'a test before it ended at a refused command, FUNCTION STATS or SCRIPT KILL, and left the server with an endless script',
  ],
  [
    /OOM command not allowed/,
    'the memory limit is the server’s: a test that ended early left it, or the other tenant set it',
  ],
  [/ERR Function f1 already exists/, 'tests before it ended at a refused FUNCTION DUMP and left their library'],
  [/NOPERM only DEBUG OBJECT/, 'DEBUG is for operators'],
  [/inside MULTI is not possible/, 'has no place inside MULTI through Holdfast or in a scope'],
  [
    /ERR no such key|can't read|\[s 0 tracking_total_keys\]|key "?(db\d|calls|expired|keyspace|tracking_total)|used_memory|total_error_replies|errorr?stat|rejected_calls|evicted_keys|lazyfree/,
    'INFO in a scope has no figures of the whole server',
  ],
  [
    /number_of_cached_scripts|used_memory_lua|calls=\d+,usec=/,
    'what INFO counts of scripts and commands it counts for the whole server, Holdfast included',
  ],
  [
    /attempt to call upvalue|bad argument #1 to 'setmetatable' \(table expected, got nil\)|attempt to index local 'g'/,
    'what leads out of a scope is hidden from functions by local variables, and that is what the error names',
  ],
];

const NOT_BEGUN = 'DEBUG is for operators, and the suite asks for it before the test';

/** The same by the names of tests. */
const REASONS_BY_TEST: readonly (readonly [test: RegExp, reason: string])[] = [
  [/^Non existing command$/, 'unknown commands are refused with NOPERM in a scope'],
  [
    /^WATCH is able to remember the DB a key belongs to$/,
    'a test before it ended at a refused SWAPDB and left a key watched',
  ],
  [
    /^NUMPATs returns the number of unique patterns$/,
    'tests before it ended at the count of PUBLISH and left clients subscribed',
  ],
  [
    / with 0\.001 timeout should not block indefinitely$/,
    'tests before it ended at a refused SYNC and left clients blocked',
  ],
  [
    /^(?:RESP3 attributes on RESP2|test (?:big number parsing|bool parsing|verbatim str parsing|large number of args|argument rewriting - issue N))$/,
    'a test before it ended at a refused DEBUG and left its client with replies that nobody read',
  ],
  [/redis\.log/, 'redis.log writes nothing in a scope: the log is the operator’s'],
  [/^MULTI with config error$/, 'the suite’s CONFIG goes past the scope, and so past its MULTI'],
  [/ protocol parsing$/, NOT_BEGUN],
  [/^Script (?:block the time during execution|delete the expired key)$/, NOT_BEGUN],
  [
    /^Try trick (?:global protection [34]|readonly table on redis table)$|^LIBRARIES - malicious access test$/,
    'a script in a scope has a redis and a _G of its own, and may change them',
  ],
];

function reasonOf(difference: Difference): string | undefined {
  const known = KNOWN_DIFFERENCES.find(({ unit, test }) => unit === difference.unit && test === difference.test);
  const byTest = REASONS_BY_TEST.find(([test]) => test.test(difference.test));
  const byDetail = REASONS.find(([detail]) => detail.test(difference.detail));
  return known?.reason ?? byTest?.[1] ?? byDetail?.[1];
}

/** Adds lines to one of the suite's files, behind each `anchor`. */
function addBehind(file: string, anchor: string, lines: string): void {
  const text = readFileSync(file, 'utf8');
  if (!text.includes(anchor)) throw new Error(`${file} is not the one that this change was written for`);
  writeFileSync(
    file,
    text.replaceAll(anchor, () => anchor + lines),
  );
}

/** Sends what the suite does as an operator past the scope. */
function letOperate(directory: string, port: number): void {
  const anchor = 'proc ::redis::__dispatch__ {id method args} {\n';
  const operator = `    set operates [expr {$method eq {config} || ($method eq {debug} && [lindex $args 0] in {set-active-expire SET-ACTIVE-EXPIRE quicklist-packed-threshold reload sleep}) || ($method in {script function} && [lindex $args 0] in {kill KILL})}]
    if {$operates && (![info exists ::redis::operatorid] || $id ne $::redis::operatorid)} {
        if {![info exists ::redis::operator]} {
            set ::redis::operator [redis 127.0.0.1 ${port}]
            regexp {[0-9]+$} $::redis::operator ::redis::operatorid
        }
        set reply [$::redis::operator $method {*}$args]
        # Who reads the reply later is told it by the tenant's own connection.
        if {$::redis::deferred($id)} {return [::redis::__dispatch__raw__ $id echo [list $reply]]}
        return $reply
    }
`;
  addBehind(join(directory, 'tests', 'support', 'redis.tcl'), anchor, operator);
}

/** A test that has failed may have left the server with an endless script, which is of the one kind or the other. */
async function allKeys(direct: RawClient): Promise<ReplyValue> {
  for (let attempt = 1; ; attempt += 1) {
    const keys = replyValue(await direct.send('KEYS', '*'));
    if (Array.isArray(keys) || attempt === KILLS_MAX) return keys;
    for (const kind of ['SCRIPT', 'FUNCTION']) await direct.send(kind, 'KILL');
  }
}

/** A test that ends early leaves its client in a transaction, reading raw, or the server with an endless script: not to the next one. */
function endCleanly(directory: string): void {
  const anchor = '            incr ::num_failed\n';
  const end = `            catch {[srv 0 client] readraw 0}
            foreach kind {function script} {catch {$::redis::operator $kind kill}}
            foreach left {discard unwatch} {catch {[srv 0 client] $left}}
`;
  addBehind(join(directory, 'tests', 'support', 'test.tcl'), anchor, end);
}

interface UnitReport {
  readonly tenants: readonly UnitResult[];
  readonly keysOutside: string[];
}

/** The tenants with these prefixes, at once. */
async function runScoped(
  sources: RedisSources,
  settings: RunSettings & { readonly server: KvBinary; readonly mayEnd: boolean },
  prefixes: readonly string[],
  createDatabase: () => Promise<string>,
): Promise<UnitReport> {
  const processes: RunningProcess[] = [];
  try {
    const kv = await startKv(settings.server, SERVER_ARGS);
    processes.push(kv);
    const listeners = [];
    for (const scope of prefixes) listeners.push({ port: await freePort(), scope });
    processes.unshift(
      await startHoldfast({
        kvUrl: `redis://127.0.0.1:${kv.port}`,
        databaseUrl: await createDatabase(),
        listeners: listeners.map(({ port, scope }) => ({ address: `127.0.0.1:${port}`, scope })),
      }),
    );
    const tenants = await Promise.all(
      listeners.map(({ port }, slot) => {
        const directory = temporaryDirectory('scope-suite');
        prepareRunDirectory(sources, directory, false);
        letOperate(directory, kv.port);
        endCleanly(directory);
        return runSuiteUnit(
          directory,
          { host: '127.0.0.1', port },
          11_000 + slot * 64 + (process.pid % 90) * 200,
          settings,
        );
      }),
    );
    const keysOutside: string[] = [];
    if (settings.mayEnd && !kv.running()) return { tenants, keysOutside };
    const direct = await connectRaw(kv.port);
    for (let database = 0; database < 16; database += 1) {
      await direct.send('SELECT', String(database));
      const keys = await allKeys(direct);
      if (!Array.isArray(keys)) throw new Error(`${settings.unit} left the server without an answer to KEYS: ${keys}`);
      const outside = keys
        .map(String)
        .filter((key) => !key.startsWith('holdfast:epoch') && !PREFIXES.some((prefix) => key.startsWith(prefix)));
      keysOutside.push(...outside.map((key) => `${database}: ${key}`));
    }
    await direct.close();
    return { tenants, keysOutside };
  } finally {
    for (const each of processes) await each.stop();
  }
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      short: { type: 'boolean', default: false },
      server: { type: 'string' },
      units: { type: 'string' },
      'unit-timeout': { type: 'string', default: '300' },
      details: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) {
    process.stdout.write(USAGE);
    return 0;
  }
  const say = (line: string): void => void process.stdout.write(`${line}\n`);
  const sources = obtainRedisSources();
  const servers = (values.server ?? (values.short ? 'redis-server' : 'redis-server,valkey-server')).split(',');
  const units = values.units?.split(',') ?? (values.short ? SHORT_UNITS : TENANT_UNITS);
  const ledger = await startLedgerDatabases();
  const total = { ok: 0, explained: 0, unexplained: 0, keysOutside: 0 };
  const reasons = new Map<string, number>();
  try {
    for (const server of servers as KvBinary[]) {
      for (const unit of units) {
        const settings = { server, unit, tags: '-slow', unitTimeoutSeconds: Number(values['unit-timeout']) };
        const direct = await runUnits(sources, {
          ...settings,
          variant: 'resp2',
          target: 'direct',
          units: [unit],
          jobs: 1,
        });
        // Valkey 8.0.1 does not survive what the scripting tests unpack, without a scope either.
        const mayEnd = direct.some(({ outcome }) => outcome !== 'done');
        const run = (...prefixes: string[]) =>
          runScoped(sources, { ...settings, mayEnd }, prefixes, () => ledger.create());
        const { tenants, keysOutside } = await run(...PREFIXES);
        for (const [at, result] of tenants.entries()) {
          const found = differences(direct, [result], []);
          let unexplained = found.filter((difference) => reasonOf(difference) === undefined);
          if (unexplained.length > 0) {
            const alone = await run(PREFIXES[at]!);
            keysOutside.push(...alone.keysOutside);
            const again = differences(direct, alone.tenants, []).filter((each) => reasonOf(each) === undefined);
            const held = again.filter(({ test }) => unexplained.some((each) => each.test === test));
            const byOther = 'passes while the other tenant does not change the configuration of the server';
            if (held.length < unexplained.length) {
              reasons.set(byOther, (reasons.get(byOther) ?? 0) + unexplained.length - held.length);
            }
            unexplained = held;
          }
          const ok = result.tests.filter((test) => test.status === 'ok').length;
          total.ok += ok;
          total.explained += found.length - unexplained.length;
          total.unexplained += unexplained.length;
          say(
            `${server} ${unit} ${PREFIXES[at]} ${result.outcome}, ${ok} ok, ${found.length} differ (${result.seconds} s)`,
          );
          for (const difference of found) {
            const reason = reasonOf(difference);
            if (reason !== undefined) reasons.set(reason, (reasons.get(reason) ?? 0) + 1);
            if (!values.details) continue;
            say(`  ${difference.kind}: ${difference.test}${reason === undefined ? '' : ` (${reason})`}`);
            say(difference.detail.slice(0, 400).replace(/^/gm, '      '));
          }
          for (const { kind, test, detail } of unexplained) {
            say(`  ${kind}: ${test}\n${detail.slice(0, 400).replace(/^/gm, '      ')}`);
          }
          if (result.tail !== undefined) say(result.tail.slice(-800).replace(/^/gm, '      '));
        }
        total.keysOutside += keysOutside.length;
        for (const key of keysOutside) say(`  a key outside the scopes in database ${key}`);
      }
    }
  } finally {
    await ledger.stop();
  }
  for (const [reason, count] of reasons) say(`${count} differ because: ${reason}`);
  say(
    `${total.ok} passed in two scopes at once, ${total.explained} differ for a reason, ${total.unexplained} without one, ` +
      `${total.keysOutside} keys outside the scopes`,
  );
  return total.unexplained + total.keysOutside === 0 ? 0 : 1;
}

main().then(
  (code) => process.exit(code),
  (error: unknown) => {
    process.stderr.write(`${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`);
    process.exit(2);
  },
);
