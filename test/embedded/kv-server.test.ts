import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { startKvServer } from '../../src/embedded/kv-server.ts';
import { commandLineOf } from '../../src/embedded/process-facts.ts';
import { connectRaw } from '../support/raw-client.ts';
import { kvKinds, startKv, temporaryDirectory } from '../support/servers.ts';

describe.each(kvKinds)('an embedded %s', (kind) => {
  it('serves on 127.0.0.1 and keeps nothing across a kill -9 and a restart', async () => {
    const server = await startKv(kind);
    expect(server.url).toBe(`redis://127.0.0.1:${server.port}`);
    const before = await connectRaw(server.port);
    expect((await before.send('SET', 'a', 'b')).bytes.toString()).toBe('OK');
    const firstPid = server.pid;
    await server.kill9();
    expect(server.pid).toBeUndefined();
    await server.restart();
    expect(server.pid).not.toBe(firstPid);
    const after = await connectRaw(server.port);
    expect((await after.send('GET', 'a')).isNull).toBe(true);
    await after.close();
  });

  it('tells an unexpected end from one that was asked for', async () => {
    const server = await startKv(kind);
    const exits: boolean[] = [];
    server.onExit((exit) => exits.push(exit.expected));
    const gone = new Promise<void>((resolve) => server.onExit(() => resolve()));
    process.kill(server.pid!, 'SIGKILL');
    await gone;
    await server.restart();
    await server.kill9();
    expect(exits).toEqual([false, true]);
  });

  it('passes on memory limits and further arguments', async () => {
    const server = await startKv(kind, {
      maxmemory: '64mb',
      maxmemoryPolicy: 'allkeys-lru',
      extraArgs: ['--appendonly', 'yes'],
    });
    const client = await connectRaw(server.port);
    const settings = await client.send('CONFIG', 'GET', 'maxmemory*', 'appendonly');
    const words = settings.items!.map((item) => item.bytes.toString());
    expect(words).toContain(String(64 * 1024 * 1024));
    expect(words).toContain('allkeys-lru');
    expect(words[words.indexOf('appendonly') + 1]).toBe('yes');
    await client.close();
  });

  it('listens on a Unix socket alone when told so', async () => {
    const directory = await temporaryDirectory();
    const unixSocket = join(directory, 'kv.sock');
    const server = await startKv(kind, { port: 0, unixSocket });
    expect(server.url).toBe(`unix:${unixSocket}`);
    const client = await connectRaw(unixSocket);
    expect((await client.send('PING')).bytes.toString()).toBe('PONG');
    await client.close();
  });
});

describe('a KV server directory', () => {
  it('is refused while another server runs in it, and free after stop', async () => {
    const dataDir = await temporaryDirectory();
    const first = await startKvServer({ dataDir });
    await expect(startKvServer({ dataDir })).rejects.toThrow(`in use by process ${process.pid}`);
    await first.stop();
    await first.stop();
    const second = await startKvServer({ dataDir });
    await second.stop();
  });

  it('says what the server said when it cannot start', async () => {
    const dataDir = await temporaryDirectory();
    const start = startKvServer({ dataDir, extraArgs: ['--maxmemory', 'plenty'] });
    await expect(start).rejects.toThrow(/maxmemory/);
    const next = await startKvServer({ dataDir });
    await next.stop();
  });

  it('leaves a stranger alone whose process ID stands in a stale pid file', async () => {
    const dataDir = await temporaryDirectory();
    await mkdir(dataDir, { recursive: true });
    await writeFile(join(dataDir, 'server.pid'), `${process.pid}\n`);
    const server = await startKvServer({ dataDir });
    expect(await readFile(join(dataDir, 'server.pid'), 'utf8')).toBe(`${server.pid}\n`);
    expect(await commandLineOf(server.pid!)).toContain(dataDir);
    await server.stop();
  });

  it('takes over from a holder that no longer lives', async () => {
    const dataDir = await temporaryDirectory();
    await writeFile(join(dataDir, 'holder'), `${process.pid} 1 1\n`);
    const server = await startKvServer({ dataDir });
    await server.stop();
  });
});
