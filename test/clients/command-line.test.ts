/** redis-cli's and valkey-cli's own modes behave through Holdfast as when connected directly. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { isInstalled } from '../../bench/processes.ts';
import { request } from '../../src/resp/encode.ts';
import { startTwins, type Twins } from '../fuzz/twins.ts';
import { connectRaw } from '../support/raw-client.ts';
import { type ProgramOptions, type ProgramResult, runProgram } from './run-program.ts';

const pairs = (
  [
    ['redis-cli', 'redis-server'],
    ['valkey-cli', 'valkey-server'],
  ] as const
).filter((names) => names.every(isInstalled));
const PIPED_COMMANDS = 1_000_000;

const DATA: readonly (readonly string[])[] = [
  ['SET', 'string', 'x'.repeat(200)],
  ['SET', 'number', '17'],
  ['RPUSH', 'list', 'a', 'b', 'c'],
  ['HSET', 'hash', 'field', 'value'],
  ['SADD', 'set', '1', '2'],
  ['ZADD', 'sorted', '1.5', 'one', '2', 'two'],
  ['XADD', 'stream', '1-1', 'field', 'value'],
];

describe.each(pairs)('%s', (program, server) => {
  let twins: Twins;
  let directory: string;

  async function both(args: readonly string[], options: ProgramOptions = {}): Promise<[ProgramResult, ProgramResult]> {
    const run = (port: number) => runProgram(program, ['-p', String(port), ...args], { cwd: directory, ...options });
    return [await run(twins.directPort), await run(twins.throughPort)];
  }

  async function send(port: number, requests: readonly (readonly string[])[]): Promise<void> {
    const client = await connectRaw(port);
    for (const args of requests) await client.send(...args);
    await client.close();
  }

  beforeAll(async () => {
    directory = mkdtempSync(join(tmpdir(), 'holdfast-cli-'));
    twins = await startTwins({ server, front: 'holdfast', pooling: 'transaction' });
    // A snapshot for a replica would wait five seconds for further replicas.
    const soon = ['CONFIG', 'SET', 'repl-diskless-sync-delay', '0'];
    await Promise.all([send(twins.directPort, [soon, ...DATA]), send(twins.throughPort, [soon, ...DATA])]);
  });

  afterAll(async () => {
    await twins.stop();
    rmSync(directory, { recursive: true, force: true });
  });

  test.each([
    [['GET', 'string']],
    [['--no-raw', 'XRANGE', 'stream', '-', '+']],
    [['-3', '--no-raw', 'HGETALL', 'hash']],
    [['-3', '--no-raw', 'ZRANGE', 'sorted', '0', '-1', 'WITHSCORES']],
    [['-3', '--json', 'HGETALL', 'hash']],
    [['--csv', 'LRANGE', 'list', '0', '-1']],
    [['-n', '3', 'SET', 'there', 'x']],
    [['-n', '3', 'DBSIZE']],
    [['-r', '5', 'INCR', 'counter']],
    [['-e', 'NOSUCH', 'command']],
    [['-a', 'wrong', '--no-auth-warning', 'PING']],
    [['--user', 'nobody', '--pass', 'wrong', '--no-auth-warning', 'PING']],
    [['--no-raw', 'COMMAND', 'GETKEYS', 'SET', 'a', 'b']],
    [['DBSIZE']],
  ])('%j prints the same', async (args) => {
    const [direct, through] = await both(args);
    expect(through).toEqual(direct);
  });

  test('commands from its input, HELLO 3 and SELECT among them, print the same', async () => {
    const input = [
      'HELLO 3 SETNAME me',
      'HGETALL hash',
      'CLIENT GETNAME',
      'SELECT 2',
      'SET in-two 1',
      'MULTI',
      'INCR in-two',
      'EXEC',
      'HELLO 2',
      'HGETALL hash',
      'RESET',
      'GET string',
      '',
    ].join('\n');
    const [direct, through] = await both(['--no-raw'], { input });
    const withoutId = (text: string) => text.replace(/("id" => |"id"\n.*)\(integer\) \d+/g, '$1(integer) N');
    expect(withoutId(through.stdout)).toBe(withoutId(direct.stdout));
  });

  test('-x sends what it reads', async () => {
    const [direct, through] = await both(['-x', 'SET', 'read'], { input: 'piped value' });
    expect(through).toEqual(direct);
    expect((await both(['GET', 'read']))[1].stdout).toBe('piped value\n');
  });

  test('--eval runs a script file, and --ldb debugs it', async () => {
    const script = join(directory, 'script.lua');
    writeFileSync(script, 'local v = redis.call("get", KEYS[1])\nreturn {v, ARGV[1]}\n');
    const [direct, through] = await both(['--eval', script, 'number', ',', 'argument']);
    expect(through).toEqual(direct);
    const debugged = await both(['--ldb', '--eval', script, 'number', ',', 'argument'], { input: 'step\ncontinue\n' });
    expect(debugged[1].stdout).toBe(debugged[0].stdout);
    expect(debugged[1].stdout).toContain('17');
  });

  test('--scan lists the same keys', async () => {
    const [direct, through] = await both(['--scan']);
    const sorted = (text: string) => text.split('\n').sort();
    expect(sorted(through.stdout)).toEqual(sorted(direct.stdout));
    const [some, someThrough] = await both(['--scan', '--pattern', 's*']);
    expect(sorted(someThrough.stdout)).toEqual(sorted(some.stdout));
  });

  test.each(['--bigkeys', '--memkeys'])('%s gives the same summary', async (mode) => {
    const [direct, through] = await both([mode]);
    const summary = (text: string) =>
      text
        .slice(text.indexOf('summary'))
        .split('\n')
        .filter((line) => line !== '')
        .sort();
    expect(summary(through.stdout)).toEqual(summary(direct.stdout));
    expect(through.exitCode).toBe(0);
  });

  test('--stat shows a line after the other', async () => {
    // Into a pipe the C library would keep the lines until there are 4 KB of them.
    const watch = (port: number) =>
      runProgram('stdbuf', ['-oL', program, '-p', String(port), '--stat', '-i', '0.1'], { stopAfterMs: 900 });
    const [direct, through] = await Promise.all([watch(twins.directPort), watch(twins.throughPort)]);
    const head = (text: string) => text.split('\n')[0];
    expect(head(through.stdout)).toBe(head(direct.stdout));
    expect(through.stdout.split('\n').length).toBeGreaterThan(4);
    expect(through.stdout.split('\n')[2]).toMatch(/^\d+\s/);
  });

  test('--latency measures', async () => {
    const [direct, through] = await both(['--latency', '--raw', '-i', '0.5']);
    expect(direct.stdout).toMatch(/^\d+ \d+ [\d.]+ \d+\s/);
    expect(through.stdout).toMatch(/^\d+ \d+ [\d.]+ \d+\s/);
    expect(through.exitCode).toBe(direct.exitCode);
  });

  test('--rdb fetches a snapshot', async () => {
    for (const port of [twins.directPort, twins.throughPort]) {
      const file = join(directory, `${port}.rdb`);
      const result = await runProgram(program, ['-p', String(port), '--rdb', file]);
      expect(result.exitCode, result.stderr).toBe(0);
      const bytes = readFileSync(file);
      expect(bytes.toString('latin1', 0, 5)).toBe('REDIS');
      expect(bytes.includes('sorted')).toBe(true);
      if (isInstalled('redis-check-rdb') && program === 'redis-cli') {
        expect((await runProgram('redis-check-rdb', [file])).exitCode).toBe(0);
      }
    }
  });

  test('MONITOR shows the commands of others', async () => {
    const seen = async (port: number) => {
      const result = await runProgram(program, ['-p', String(port), 'MONITOR'], {
        stopAfterMs: 900,
        meanwhile: async () => {
          await new Promise((resolve) => setTimeout(resolve, 400));
          await send(port, [
            ['SET', 'monitored', 'one two'],
            ['GET', 'monitored'],
          ]);
        },
      });
      return result.stdout.split('\n').map((line) => line.replace(/^[\d.]+ \[(\d+) \S+\]/, '[$1]'));
    };
    const [direct, through] = await Promise.all([seen(twins.directPort), seen(twins.throughPort)]);
    expect(direct).toContain('[0] "SET" "monitored" "one two"');
    expect(through.filter((line) => line.includes('monitored'))).toEqual(
      direct.filter((line) => line.includes('monitored')),
    );
  });

  test.each([
    ['SUBSCRIBE', 'news'],
    ['PSUBSCRIBE', 'n*'],
    ['SSUBSCRIBE', 'news'],
  ])('%s %s shows messages in both protocols', async (command, argument) => {
    const publish = command === 'SSUBSCRIBE' ? 'SPUBLISH' : 'PUBLISH';
    const seen = async (port: number, protocol: readonly string[]) => {
      const result = await runProgram(program, ['-p', String(port), ...protocol, '--no-raw', command, argument], {
        stopAfterMs: 1000,
        meanwhile: async () => {
          await new Promise((resolve) => setTimeout(resolve, 500));
          await send(port, [[publish, 'news', 'hello']]);
        },
      });
      return result.stdout;
    };
    for (const protocol of [[], ['-3']]) {
      const [direct, through] = await Promise.all([
        seen(twins.directPort, protocol),
        seen(twins.throughPort, protocol),
      ]);
      expect(direct).toContain('hello');
      expect(through).toBe(direct);
    }
  });

  test(`--pipe takes ${PIPED_COMMANDS} commands`, async () => {
    const parts: Buffer[] = [];
    for (let index = 0; index < PIPED_COMMANDS; index += 1) parts.push(request(['SET', `piped:${index % 5000}`, 'v']));
    const input = Buffer.concat(parts);
    const result = await runProgram(program, ['-p', String(twins.throughPort), '--pipe'], { input });
    expect(result.stdout).toContain(`errors: 0, replies: ${PIPED_COMMANDS}`);
    expect(result.exitCode).toBe(0);
  });
});
