/** redis-benchmark and valkey-benchmark run all their standard tests, unmodified. */
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { isInstalled } from '../../bench/processes.ts';
import { startTwins, type Twins } from '../fuzz/twins.ts';
import { runProgram } from './run-program.ts';

const pairs = (
  [
    ['redis-benchmark', 'redis-server'],
    ['valkey-benchmark', 'valkey-server'],
  ] as const
).filter((names) => names.every(isInstalled));

describe.each(pairs)('%s', (program, server) => {
  let twins: Twins;

  beforeAll(async () => {
    twins = await startTwins({ server, front: 'holdfast', pooling: 'transaction' });
  });

  afterAll(async () => {
    await twins.stop();
  });

  /** The names of the tests that gave figures. */
  async function testsRun(port: number, args: readonly string[]): Promise<string[]> {
    const result = await runProgram(program, ['-p', String(port), '--csv', ...args]);
    expect(result.exitCode, result.stderr).toBe(0);
    expect(result.stderr.replace(/^WARNING.*$/gm, '').trim()).toBe('');
    return result.stdout
      .split('\n')
      .filter((line) => /^"[^"]+","\d/.test(line))
      .map((line) => line.split('"')[1] ?? '');
  }

  test.each([
    [['-n', '2000', '-c', '20']],
    [['-n', '4000', '-c', '50', '-P', '16', '-r', '1000']],
    [['-n', '2000', '-c', '20', '-3']],
    [['-n', '2000', '-c', '20', '--threads', '2', '-d', '5000', '-t', 'set,get,lpush']],
    [['-n', '500', '-c', '10', '-k', '0', '-t', 'set,get']],
    [['-n', '500', '-c', '10', '--dbnum', '3', '-t', 'set,get']],
  ])('%j runs every test that runs directly', async (args) => {
    const direct = await testsRun(twins.directPort, args);
    expect(direct.length).toBeGreaterThan(args.includes('-t') ? 1 : 15);
    expect(await testsRun(twins.throughPort, args)).toEqual(direct);
  });
});
