import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { commandLineOf } from '../src/embedded/process-facts.ts';
import { replyValue } from '../src/resp/reply.ts';
import { startTcpProxy } from './chaos/tcp-proxy.ts';
import { startLedgerLink } from './support/ledger-link.ts';
import { launch, pidIn, serve } from './support/program.ts';
import { connectRaw } from './support/raw-client.ts';
import { startRedis, startTestPostgres, temporaryDirectory } from './support/servers.ts';

describe('holdfast serve on embedded defaults', () => {
  it('serves, survives a kill -9 of its KV store, and ends without leaving anything', async () => {
    const dataDir = await temporaryDirectory();
    const program = await serve(['--data-dir', dataDir]);
    const client = await connectRaw(program.port);
    expect((await client.send('SET', 'a', '1')).bytes.toString()).toBe('OK');
    await client.send('XGROUP', 'CREATE', 'task-queue', 'workers', '0', 'MKSTREAM');
    const id = (await client.send('XADD', 'task-queue', '*', 'body', 'x')).bytes.toString();
    const kvPid = (await program.status()).kv.processId!;
    const postgresPid = await pidIn(join(dataDir, 'postgres'));
    process.kill(kvPid, 'SIGKILL');
    await expect.poll(async () => (await program.status()).kv.restarts, { timeout: 10_000 }).toBe(1);
    await expect.poll(async () => (await client.send('PING')).bytes.toString(), { timeout: 10_000 }).toBe('PONG');
    const pending = await client.send('XREADGROUP', 'GROUP', 'workers', 'w', 'STREAMS', 'task-queue', '>');
    expect(replyValue(pending)).toEqual([['task-queue', [[id, ['body', 'x']]]]]);
    const after = await program.status();
    expect(after.ledger).toMatchObject({ available: true, embedded: true, state: 'open', restoresTotal: 1 });
    expect(after.ledger.streams).toMatchObject([{ name: 'task-queue', entriesAdded: 1, lastId: id }]);
    expect(after.ledger.streams[0]?.groups).toMatchObject([{ name: 'workers', lagEntries: 1 }]);
    expect(after.ledger.recoveries).toMatchObject([{ stream: 'task-queue', entriesRestored: 1 }]);
    const info = await client.send('INFO', 'holdfast');
    expect(info.bytes.toString()).toContain('recovery_restores_total:1\r\n');
    const metrics = await (await fetch(`${program.http}/metrics`)).text();
    expect(metrics).toContain('\nholdfast_recovery_restores_total 1\n');
    expect(after.kv).toMatchObject({ reachable: true, embedded: true });
    expect(after.kv.processId).not.toBe(kvPid);
    program.child.kill('SIGTERM');
    expect(await program.exited).toBe(0);
    for (const pid of [after.kv.processId!, postgresPid]) expect(await commandLineOf(pid)).toBeUndefined();
  });

  it('starts again after it was killed with its children left behind', async () => {
    const dataDir = await temporaryDirectory();
    const first = await serve(['--data-dir', dataDir]);
    first.child.kill('SIGKILL');
    await first.exited;
    const second = await serve(['--data-dir', dataDir]);
    second.child.kill('SIGINT');
    expect(await second.exited).toBe(0);
  });
});

describe('holdfast serve with existing servers', () => {
  it('says which of KV store, status and readiness is what', async () => {
    const redis = await startRedis();
    const { url } = await startTestPostgres();
    const program = await serve(['--kv', redis.url], { HOLDFAST_DATABASE_URL: url });
    expect((await fetch(`${program.http}/readyz`)).status).toBe(200);
    const client = await connectRaw(program.port);
    const id = (await client.send('XADD', 's', '*', 'f', 'v')).bytes.toString();
    const report = await program.status();
    expect(report.ledger).toMatchObject({ available: true, streams: [{ name: 's', entriesAdded: 1, lastId: id }] });
    expect(report.kv).toMatchObject({
      reachable: true,
      embedded: false,
      server: 'redis',
      where: `127.0.0.1:${redis.port}`,
    });
    const told = launch(['status', '--http', program.http.replace('http://', '')]);
    expect(await told.exited).toBe(0);
    expect(told.output.stdout).toContain(`KV store`);
    await redis.kill9();
    await expect.poll(async () => (await fetch(`${program.http}/readyz`)).status, { timeout: 10_000 }).toBe(503);
    await redis.restart();
    await expect.poll(async () => (await fetch(`${program.http}/readyz`)).status, { timeout: 10_000 }).toBe(200);
    program.child.kill('SIGTERM');
    expect(await program.exited).toBe(0);
  });

  it('lets a request that is in flight finish before it ends', async () => {
    const redis = await startRedis({ extraArgs: ['--enable-debug-command', 'yes'] });
    const { url } = await startTestPostgres();
    const program = await serve(['--kv', redis.url, '--database', url]);
    const client = await connectRaw(program.port);
    await client.send('PING');
    const reply = client.send('DEBUG', 'SLEEP', '1');
    await new Promise((resolve) => setTimeout(resolve, 200));
    program.child.kill('SIGTERM');
    expect((await reply).bytes.toString()).toBe('OK');
    expect(await program.exited).toBe(0);
  });

  it('ends although the peers of its connections have fallen silent', { timeout: 60_000 }, async () => {
    const redis = await startRedis();
    const kvLink = await startTcpProxy(() => redis.port);
    const { link: ledgerLink, url } = await startLedgerLink((await startTestPostgres()).url);
    try {
      const program = await serve(['--kv', `redis://127.0.0.1:${kvLink.port}`, '--database', url]);
      const client = await connectRaw(program.port);
      await client.send('XADD', 's', '*', 'n', '1');
      for (const link of [kvLink, ledgerLink]) link.hold(['toServer', 'toClient']);
      program.child.kill('SIGTERM');
      expect(await program.exited).toBe(0);
    } finally {
      for (const link of [kvLink, ledgerLink]) await link.close();
    }
  });
});
