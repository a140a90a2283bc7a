/** Flight Control as an operator runs it: the sidecar, a worker, and commands, each a process of its own. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { launch, serve } from '../support/program.ts';
import { kvKinds, startKv, startTestPostgres, temporaryDirectory } from '../support/servers.ts';

test('what is applied is handled, and seen in events', { timeout: 120_000 }, async () => {
  const kv = await startKv(kvKinds[0]!);
  const { url } = await startTestPostgres();
  const dataDir = await temporaryDirectory();
  const sidecar = await serve(['--kv', `redis://127.0.0.1:${kv.port}`, '--database', url, '--data-dir', dataDir]);
  const connect = `redis://127.0.0.1:${sidecar.port}`;
  const worker = launch(
    ['worker', '--app', 'flight-control', '--connect', connect, '--database', url, '--worker-http', 'off'],
    { HOLDFAST_LOG_LEVEL: 'info' },
  );
  const run = async (...args: string[]) => {
    const { output, exited } = launch([...args, '--database', url]);
    return { code: await exited, ...output };
  };
  const file = join(dataDir, 'cfg.yaml');
  await writeFile(
    file,
    `apiVersion: flightctl.io/v1beta1
kind: Device
metadata: {name: d1}
spec:
  config:
  - name: c
    gitRef: {repository: cfg, targetRevision: main, path: /}
---
apiVersion: flightctl.io/v1beta1
kind: Repository
metadata: {name: cfg}
spec: {type: git, url: https://git.example/cfg.git}
`,
  );
  expect(await run('apply', '-f', file)).toMatchObject({
    code: 0,
    stdout: 'Device/d1 created\nRepository/cfg created\n',
  });
  await expect
    .poll(async () => (await run('events', '--for', 'device/d1')).stdout, { timeout: 60_000, interval: 500 })
    .toContain('ReferencedRepositoryUpdated');
  expect((await run('get', 'devices')).stdout).toMatch(/^NAME[\s\S]*\nd1 /);
  const refused = await run('apply', '-f', 'none.yaml');
  expect(refused).toMatchObject({
    code: 2,
    stderr: expect.stringMatching(/^holdfast: -f: there is no file .*none\.yaml\n$/),
  });
  worker.child.kill('SIGTERM');
  expect(await worker.exited).toBe(0);
});
