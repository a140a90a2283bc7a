import { expect, it } from 'vitest';
import { loadConfig } from '../src/config/load-config.ts';
import { demonstrate } from '../src/demo.ts';
import { createLogger } from '../src/operations/logger.ts';
import { startHoldfast } from '../src/serve.ts';
import { launch } from './support/program.ts';
import { temporaryDirectory } from './support/servers.ts';

it('shows that nothing is lost although the KV store is killed three times', async () => {
  // Where the environment points is none of the demo's business: it kills what it finds there.
  const elsewhere = { HOLDFAST_KV_URL: 'redis://127.0.0.1:1', HOLDFAST_DATABASE_URL: 'postgres://127.0.0.1:1/x' };
  const { output, exited } = launch(['demo', '--events', '3000'], elsewhere);
  expect(await exited, output.stderr).toBe(0);
  expect(output.stdout).toMatch(/produced +3000\n/);
  expect(output.stdout).toMatch(/lost +0\n/);
  // A request whose reply was lost with the connection is told so; anything else is no client's business.
  expect(output.stdout).toMatch(/errors that clients saw +(0|\d+ × KVDOWN [^;\n]+)\n/);
  expect(output.stdout).toMatch(/KV store killed +3 times/);
  expect(output.stdout).toMatch(/seconds to recover +\d+\.\d\d, \d+\.\d\d, \d+\.\d\d\n/);
}, 120_000);

it('finds the loss, and says so by its exit code, where the stream is not made durable', async () => {
  const dataDir = await temporaryDirectory();
  const addresses = ['--listen', '127.0.0.1:0', '--http', 'off', '--data-dir', dataDir];
  const { config } = loadConfig({ args: [...addresses, '--streams', '!*'], env: {}, workingDirectory: dataDir });
  const holdfast = await startHoldfast(config, createLogger({ level: 'silent', pretty: false }));
  let text = '';
  const invocation = {
    args: [],
    env: {},
    workingDirectory: dataDir,
    terminal: false,
    write: (written: string) => {
      text += written;
    },
    stopRequested: new Promise<void>(() => {}),
  };
  try {
    expect(await demonstrate(holdfast, { events: 3000, kills: 3, patienceMs: 2000 }, invocation)).toBe(1);
  } finally {
    await holdfast.stop();
  }
  expect(text).toMatch(/lost +[1-9]/);
  expect(text).toMatch(/errors that clients saw +.*NOGROUP/);
});

it.each([
  ['--kills', '2', 'holdfast: --kills: expected a whole number of at least 3\n'],
  ['--events', '10', 'holdfast: --events: expected a whole number of at least 1500\n'],
])('refuses %s %s', async (flag, value, message) => {
  const { output, exited } = launch(['demo', flag, value]);
  expect(await exited).toBe(2);
  expect(output.stderr).toBe(message);
});
