import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { launch, pidIn } from './support/program.ts';
import { startRedis, temporaryDirectory } from './support/servers.ts';

describe('what cannot be done is one line and exit code 2', () => {
  it.each([
    [
      ['serve', '--kv', 'redis://127.0.0.1:1', '--database', 'postgres://nobody@127.0.0.1:1/x'],
      /^holdfast: ledger.database: .*ECONNREFUSED.*\n$/,
    ],
    [['serve', '--nonsense'], 'holdfast: --nonsense: there is no such flag\n'],
    [
      ['status', '--http', '127.0.0.1:1'],
      /^holdfast: http: no running Holdfast answers at http:\/\/127.0.0.1:1\/status: .*\n$/,
    ],
    [['dance'], 'holdfast: dance: there is no such command, see holdfast --help\n'],
  ])('%j', async (args, message) => {
    const { output, exited } = launch(args);
    expect(await exited).toBe(2);
    if (typeof message === 'string') expect(output.stderr).toBe(message);
    else expect(output.stderr).toMatch(message);
  });

  it('also for an address that is taken, with the servers that were started ended', async () => {
    const redis = await startRedis();
    const dataDir = await temporaryDirectory();
    const { output, exited } = launch(['serve', '--listen', `127.0.0.1:${redis.port}`, '--data-dir', dataDir]);
    expect(await exited).toBe(2);
    expect(output.stderr).toMatch(/^holdfast: listen: .*EADDRINUSE.*\n$/);
    await expect(pidIn(join(dataDir, 'kv'))).rejects.toThrow('ENOENT');
    await expect(pidIn(join(dataDir, 'postgres'))).rejects.toThrow('ENOENT');
  });

  it('and help and version are no mistakes', async () => {
    const help = launch(['serve', '--help']);
    expect(await help.exited).toBe(0);
    expect(help.output.stdout).toContain('--data-dir DIR');
    expect(help.output.stdout).toContain('HOLDFAST_DATABASE_URL');
    const version = launch(['--version']);
    expect(await version.exited).toBe(0);
    expect(version.output.stdout).toMatch(/^\d+\.\d+\.\d+\n$/);
  });
});
