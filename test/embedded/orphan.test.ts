/** A process that starts servers and dies by kill -9 must not block the next start, with and without the kernel's help. */
import { spawn } from 'node:child_process';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { startKvServer } from '../../src/embedded/kv-server.ts';
import { startPostgres } from '../../src/embedded/postgres.ts';
import { commandLineOf } from '../../src/embedded/process-facts.ts';
import { temporaryDirectory } from '../support/servers.ts';

const EMBEDDED = new URL('../../src/embedded/', import.meta.url).href;

/** Starts both servers in a process of its own, kills that with SIGKILL, and gives the servers' process IDs. */
async function abandonServers(directory: string, env: NodeJS.ProcessEnv): Promise<number[]> {
  const script = join(directory, 'abandon.mts');
  await writeFile(
    script,
    `import { startKvServer } from '${EMBEDDED}kv-server.ts';
     import { startPostgres } from '${EMBEDDED}postgres.ts';
     const [directory] = process.argv.slice(2);
     const kv = await startKvServer({ dataDir: directory + '/kv' });
     const postgres = await startPostgres({ dataDir: directory + '/postgres' });
     console.log(kv.pid, postgres.pid);`,
  );
  const child = spawn(process.execPath, ['--import', 'tsx', script, directory], {
    stdio: ['ignore', 'pipe', 'inherit'],
    env,
  });
  const line = await new Promise<string>((resolve, reject) => {
    child.stdout.once('data', (chunk: Buffer) => resolve(chunk.toString()));
    child.once('exit', () => reject(new Error('ended before its servers were up')));
  });
  const gone = new Promise((resolve) => child.once('exit', resolve));
  child.kill('SIGKILL');
  await gone;
  return line.trim().split(' ').map(Number);
}

async function startAndStopBoth(directory: string): Promise<void> {
  const kv = await startKvServer({ dataDir: join(directory, 'kv') });
  const postgres = await startPostgres({ dataDir: join(directory, 'postgres') });
  await kv.stop();
  await postgres.stop();
}

it.runIf(process.platform === 'linux')('the kernel ends the servers of a process that was killed', async () => {
  const directory = await temporaryDirectory();
  const pids = await abandonServers(directory, process.env);
  await expect.poll(() => Promise.all(pids.map(commandLineOf)), { timeout: 10_000 }).toEqual([undefined, undefined]);
  await startAndStopBoth(directory);
});

it('the next start stops the servers of a process that was killed', async () => {
  const directory = await temporaryDirectory();
  const shadow = join(directory, 'bin');
  await mkdir(shadow);
  // A setpriv that does nothing but run the command: the children outlive their parent.
  await writeFile(join(shadow, 'setpriv'), SETPRIV_WITHOUT_DEATH_SIGNAL, { mode: 0o755 });
  const pids = await abandonServers(directory, { ...process.env, PATH: `${shadow}:${process.env.PATH}` });
  expect((await Promise.all(pids.map(commandLineOf))).every((line) => line !== undefined)).toBe(true);
  await startAndStopBoth(directory);
  expect(await Promise.all(pids.map(commandLineOf))).toEqual([undefined, undefined]);
});

const SETPRIV_WITHOUT_DEATH_SIGNAL = `#!/bin/bash
args=()
while [ $# -gt 0 ]; do
  if [ "$1" = --pdeathsig ]; then shift 2; else args+=("$1"); shift; fi
done
PATH="\${PATH#*:}" exec setpriv "\${args[@]}"
`;
