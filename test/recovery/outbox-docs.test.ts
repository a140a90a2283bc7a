import { execFile } from 'node:child_process';
import { readFile, rm, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';
import { kvKinds, startKv, startTestPostgres } from '../support/servers.ts';
import { eventually, startSidecar } from '../support/sidecar.ts';

const run = promisify(execFile);
const ROOT = fileURLToPath(new URL('../../', import.meta.url));

async function example(language: string): Promise<string> {
  const text = await readFile(`${ROOT}docs/outbox.md`, 'utf8');
  return new RegExp(`\`\`\`${language}\n([\\s\\S]*?)\`\`\``).exec(text)![1]!;
}

test('the examples of docs/outbox.md run as they stand', async () => {
  const kv = await startKv(kvKinds[0]!);
  const { url } = await startTestPostgres();
  const sidecar = await startSidecar({ kvPort: kv.port, databaseUrl: url, lookIntervalMs: 100 });
  const env = { ...process.env, LEDGER: url };
  await run('sh', ['-c', await example('sh')], { env });
  // Beside the packages that it imports.
  const module = `${ROOT}node_modules/.outbox-example-${process.pid}.mjs`;
  try {
    await writeFile(module, await example('js'));
    await run(process.execPath, [module], { env });
  } finally {
    await rm(module, { force: true });
  }
  if (process.env.HOLDFAST_TEST_PYTHON !== undefined) {
    await run(process.env.HOLDFAST_TEST_PYTHON, ['-c', await example('python')], { env });
  }
  const client = sidecar.client();
  const expected = process.env.HOLDFAST_TEST_PYTHON === undefined ? 2 : 3;
  await eventually('all are there', async () => (await client.xlen('greetings')) === expected);
  const values = (await client.xrange('greetings', '-', '+')).map(([, fields]) => fields[1]);
  expect(values).toEqual(['hello from psql', 'hello from Node', 'hello from Python'].slice(0, expected));
});
