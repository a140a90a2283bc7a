/** Disks that are full and servers that are down: clear errors, and nothing that was acknowledged is lost. */
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { chownSync, mkdirSync, rmdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Redis } from 'ioredis';
import { afterAll, describe, expect, test } from 'vitest';
import { kvKinds, startKv, startOwnPostgres, startTestPostgres, temporaryDirectory } from '../support/servers.ts';
import { clientOf, eventually, type Sidecar, startSidecar } from '../support/sidecar.ts';

const mounted: string[] = [];

/** A small file system of its own; `undefined` where this user may not mount one. */
async function smallDisk(size: string): Promise<string | undefined> {
  const directory = await temporaryDirectory();
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'tmpfs', directory], { stdio: 'ignore' });
  } catch {
    return undefined;
  }
  mounted.push(directory);
  return directory;
}

afterAll(() => {
  for (const directory of mounted.splice(0)) execFileSync('umount', ['-l', directory]);
});

async function add(client: Redis, n: number, value: string | Buffer = 'x'): Promise<string> {
  return (await client.xadd('s', '*', 'n', String(n), 'value', value as string))!;
}

/** All that was acknowledged is in the ledger and, after it was lost, in the KV store again. */
async function keepsAll(sidecar: Sidecar, direct: Redis, ids: readonly string[]): Promise<void> {
  const losses = sidecar.recovery.status().lossesTotal;
  await direct.flushall();
  await eventually('noticed', () => sidecar.recovery.status().lossesTotal > losses, 30_000);
  await eventually('all is well', () => sidecar.recovery.status().troubled.length === 0, 30_000);
  const there = new Set((await direct.xrange('s', '-', '+')).map(([id]) => id));
  expect(ids.filter((id) => !there.has(id))).toEqual([]);
}

describe.each(kvKinds)('with %s,', (kind) => {
  test('a full disk under Postgres is named in the error, and XADD goes on when there is room', async (context) => {
    const disk = await smallDisk('16m');
    if (disk === undefined) return context.skip('only root may mount a small disk');
    const kv = await startKv(kind);
    const postgres = await startOwnPostgres();
    const sidecar = await startSidecar({
      kvPort: kv.port,
      databaseUrl: postgres.url,
      lookIntervalMs: 50,
      limits: { commitTimeoutMs: 2000 },
    });
    const { pool } = sidecar.ledger;
    const { rows } = await pool.query<{ directory: string }>(`SELECT current_setting('data_directory') AS directory`);
    const space = join(disk, 'space');
    mkdirSync(space);
    const { uid, gid } = statSync(rows[0]!.directory);
    chownSync(space, uid, gid);
    execFileSync('chmod', ['755', disk]);
    await pool.query(`CREATE TABLESPACE small LOCATION '${space}'`);
    await pool.query('ALTER TABLE holdfast.entry_1 SET TABLESPACE small');
    const ballast = join(disk, 'ballast');
    writeFileSync(ballast, Buffer.alloc(8 * 1024 * 1024));

    const client = sidecar.client();
    const ids: string[] = [];
    let refusal: unknown;
    for (let n = 0; refusal === undefined && n < 200; n += 1) {
      await add(client, n, randomBytes(200_000).toString('base64')).then(
        (id) => ids.push(id),
        (thrown: unknown) => (refusal = thrown),
      );
    }
    expect(String(refusal)).toMatch(/LEDGERDOWN .*No space left on device.*outcome is unknown/);
    expect(ids.length).toBeGreaterThan(3);
    // What needs no disk goes on.
    expect(await client.set('k', 'v')).toBe('OK');
    expect((await client.xrange('s', '-', '+', 'COUNT', 1))[0]![0]).toBe(ids[0]);
    await expect(add(client, 1000, randomBytes(200_000).toString('base64'))).rejects.toThrow(/LEDGERDOWN/);

    rmSync(ballast);
    await eventually('it is found out', () => sidecar.ledger.writer.accepting);
    ids.push(await add(client, 1001));
    await keepsAll(sidecar, clientOf(kv.port), ids);
    await sidecar.stop();
    await postgres.stop();
  }, 120_000);

  test('MISCONF of a KV store that cannot save is the client’s to see, and nothing is taken that was refused', async () => {
    const kv = await startKv(kind);
    const database = await startTestPostgres();
    const sidecar = await startSidecar({ kvPort: kv.port, databaseUrl: database.url, lookIntervalMs: 50 });
    const client = sidecar.client();
    const direct = clientOf(kv.port);
    const ids = [await add(client, 0)];
    const directory = ((await direct.config('GET', 'dir')) as string[])[1]!;
    const file = join(directory, ((await direct.config('GET', 'dbfilename')) as string[])[1]!);
    const status = async () => /rdb_last_bgsave_status:(\w+)/.exec(await direct.info('persistence'))![1];
    rmSync(file, { force: true });
    // A directory in the place of the file that it would write.
    mkdirSync(join(file, 'occupied'), { recursive: true });
    await direct.config('SET', 'save', '3600 1000000');
    await direct.bgsave();
    await eventually('saving failed', async () => (await status()) === 'err');

    await expect(add(client, 1)).rejects.toThrow(/^MISCONF /);
    await expect(client.set('k', 'v')).rejects.toThrow(/^MISCONF /);
    expect(await client.xlen('s')).toBe(1);
    expect(sidecar.recovery.gate.state).toBe('open');

    rmdirSync(join(file, 'occupied'));
    rmdirSync(file);
    await direct.bgsave();
    await eventually('saving works', async () => (await status()) === 'ok');
    ids.push(await add(client, 2));
    expect((await client.xrange('s', '-', '+')).map(([, fields]) => fields[1])).toEqual(['0', '2']);
    await keepsAll(sidecar, direct, ids);
    await sidecar.stop();
  });

  test('both servers down: LEDGERDOWN in bounded time, and all that was acknowledged is there when they are back', async () => {
    const kv = await startKv(kind);
    const postgres = await startOwnPostgres();
    const sidecar = await startSidecar({
      kvPort: kv.port,
      databaseUrl: postgres.url,
      lookIntervalMs: 50,
      holdMs: 1000,
      onLost: 'error',
      limits: { commitTimeoutMs: 2000 },
    });
    const client = sidecar.client();
    const ids: string[] = [];
    for (let n = 0; n < 20; n += 1) ids.push(await add(client, n));
    await kv.kill9();
    ids.push(await add(client, 20));
    await postgres.kill9();
    await expect(add(client, 21)).rejects.toThrow(/^(LEDGERDOWN|RECOVERING|KVDOWN) /);
    await expect(client.set('k', 'v')).rejects.toThrow(/^KVDOWN /);

    await postgres.restart();
    await kv.restart();
    await eventually(
      'it takes entries again',
      () =>
        add(client, 22).then(
          (id) => ids.push(id),
          () => undefined,
        ),
      30_000,
    );
    await eventually('all is well', () => sidecar.recovery.status().troubled.length === 0, 30_000);
    const there = (await clientOf(kv.port).xrange('s', '-', '+')).map(([id]) => id);
    expect(ids.filter((id) => !there.includes(id))).toEqual([]);
    await sidecar.stop();
    await postgres.stop();
  }, 120_000);
});
