/** The program with several processes behind one port, as an operator runs it. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { CacheSnapshot } from '../../src/cache/cache.ts';
import { freePort } from '../../src/embedded/free-port.ts';
import { request } from '../../src/resp/encode.ts';
import { replyValue } from '../../src/resp/reply.ts';
import { until } from '../proxy/through-proxy.ts';
import { connectRaw, type RawClient } from '../support/raw-client.ts';
import { kvKinds, startKv, startTestPostgres, temporaryDirectory } from '../support/servers.ts';

const MAIN = join(fileURLToPath(new URL('.', import.meta.url)), '..', '..', 'src', 'main.ts');

interface Status {
  readonly processes: number;
  readonly clients: { readonly connected: number };
  readonly cache: CacheSnapshot;
}

describe('three processes behind one port', () => {
  let program: ChildProcess;
  let port = 0;
  let httpPort = 0;
  let output = '';
  const clients: RawClient[] = [];

  beforeAll(async () => {
    const kv = await startKv(kvKinds[0]!);
    const { url: database } = await startTestPostgres();
    port = await freePort();
    httpPort = await freePort();
    const dataDir = await temporaryDirectory();
    const config = join(dataDir, 'holdfast.yaml');
    await writeFile(config, JSON.stringify({ leases: [{ pattern: 'v1/*', waitMs: 60_000, leaseMs: 60_000 }] }));
    const flags = {
      config,
      listen: `127.0.0.1:${port}`,
      http: `127.0.0.1:${httpPort}`,
      kv: `redis://127.0.0.1:${kv.port}`,
      database,
      processes: '3',
      'data-dir': dataDir,
    };
    const args = Object.entries(flags).map(([name, value]) => `--${name}=${value}`);
    program = spawn(process.execPath, ['--import', 'tsx', MAIN, 'serve', ...args]);
    program.stdout!.on('data', (chunk) => {
      output += chunk;
    });
    program.stderr!.on('data', (chunk) => {
      output += chunk;
    });
    await until(() => output.includes('ready:') || program.exitCode !== null, 90_000);
    if (program.exitCode !== null) throw new Error(output);
  }, 120_000);

  afterAll(async () => {
    for (const client of clients) client.socket.destroy();
    if (program.exitCode !== null) return;
    const exited = new Promise((resolve) => program.once('exit', resolve));
    program.kill('SIGTERM');
    await exited;
  }, 30_000);

  async function connectAll(count: number): Promise<RawClient[]> {
    const made = await Promise.all(Array.from({ length: count }, () => connectRaw(port)));
    clients.push(...made);
    return made;
  }

  it('gives every client an ID of its own, and lists and kills those of all processes', async () => {
    const made = await connectAll(9);
    const ids = await Promise.all(made.map(async (client) => Number(replyValue(await client.send('CLIENT', 'ID')))));
    expect(new Set(ids).size).toBe(9);
    expect(new Set(ids.map((id) => id % 3)).size).toBeGreaterThan(1);
    const list = String(replyValue(await made[0]!.send('CLIENT', 'LIST')));
    const listed = [...list.matchAll(/^id=(\d+)/gm)].map((match) => Number(match[1]));
    expect(listed).toEqual([...ids].sort((a, b) => a - b));
    for (let i = 1; i < 9; i += 1) {
      expect(replyValue(await made[0]!.send('CLIENT', 'KILL', 'ID', String(ids[i])))).toBe(1);
    }
    await until(() => made.slice(1).every((client) => client.socket.closed));
    expect(replyValue(await made[0]!.send('CLIENT', 'KILL', 'ID', String(ids[1])))).toBe(0);
  });

  it('unblocks and redirects invalidations across processes', async () => {
    const made = await connectAll(6);
    for (const [at, client] of made.entries()) {
      const id = String(replyValue(await client.send('CLIENT', 'ID')));
      const other = made[(at + 1) % made.length]!;
      const blocked = client.send('BLPOP', 'never', '0');
      await until(async () => replyValue(await other.send('CLIENT', 'UNBLOCK', id)) === 1);
      expect((await blocked).isNull).toBe(true);
    }
    const [listener, caching, writer] = made as [RawClient, RawClient, RawClient];
    const id = String(replyValue(await listener.send('CLIENT', 'ID')));
    await listener.send('SUBSCRIBE', '__redis__:invalidate');
    expect(replyValue(await caching.send('CLIENT', 'TRACKING', 'ON', 'REDIRECT', id))).toBe('OK');
    await caching.send('GET', 'tracked');
    await writer.send('SET', 'tracked', '1');
    expect(replyValue(await listener.next())).toEqual(['message', '__redis__:invalidate', ['tracked']]);
  });

  it('commits streams from all of them, and shows one status and one set of metrics', async () => {
    const made = await connectAll(6);
    for (const client of made) client.socket.write(request(['XADD', 'shared', '*', 'f', 'v']));
    const added = await Promise.all(made.map(async (client) => String(replyValue(await client.next()))));
    expect(new Set(added).size).toBe(6);
    const status = (await (await fetch(`http://127.0.0.1:${httpPort}/status`)).json()) as Status;
    expect(status.processes).toBe(3);
    expect(status.clients.connected).toBeGreaterThanOrEqual(6);
    const metrics = await (await fetch(`http://127.0.0.1:${httpPort}/metrics`)).text();
    expect(metrics).toMatch(/^holdfast_clients \d+$/m);
    expect((await fetch(`http://127.0.0.1:${httpPort}/readyz`)).status).toBe(200);
  });

  it('has one fetch for clients of all processes that miss one key, and sums their figures', async () => {
    const key = 'v1/org/fleet/v1/git-data/x';
    const cache = async (): Promise<CacheSnapshot> =>
      ((await (await fetch(`http://127.0.0.1:${httpPort}/status`)).json()) as Status).cache;
    const fetchers: RawClient[] = [];
    const values = (await connectAll(9)).map(async (client) => {
      const value = replyValue(await client.send('GET', key));
      if (value === null) fetchers.push(client);
      return value;
    });
    await until(async () => fetchers.length === 1 && (await cache()).leases?.waiting === 8, 20_000);
    await fetchers[0]!.send('SET', key, 'v');
    expect((await Promise.all(values)).filter((value) => value === 'v')).toHaveLength(8);
    expect((await cache()).total).toMatchObject({ leases: 1, waits: 8, saved: 8 });
    const metrics = await (await fetch(`http://127.0.0.1:${httpPort}/metrics`)).text();
    expect(metrics).toContain('holdfast_cache_saved_total{scope="v1/org/fleet/v1",family="git-data"} 8');
  });

  it('starts a process again that died, while the others serve', async () => {
    const [client] = (await connectAll(1)) as [RawClient];
    const children = execFileSync('pgrep', ['-P', String(program.pid)])
      .toString()
      .trim()
      .split('\n')
      .map(Number);
    const members = children.filter((pid) =>
      execFileSync('ps', ['-o', 'args=', '-p', String(pid)])
        .toString()
        .includes('main.ts'),
    );
    expect(members).toHaveLength(3);
    process.kill(members[0]!, 'SIGKILL');
    await until(() => output.includes('died and is started again'));
    await until(async () => {
      const answer = await fetch(`http://127.0.0.1:${httpPort}/readyz`);
      return answer.status === 200;
    }, 20_000);
    const fresh = await connectAll(6);
    for (const each of fresh) expect(replyValue(await each.send('PING'))).toBe('PONG');
    if (!client.socket.closed) expect(replyValue(await client.send('PING'))).toBe('PONG');
  }, 40_000);
});
