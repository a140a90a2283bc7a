/**
 * One KV server whose disk the run may tamper with. It keeps an append-only file, so that a plain `kill -9` loses
 * (almost) nothing and every loss is one that a nemesis chose.
 *
 *   stopped ──start──▶ running ──kill──▶ stopped      between kill and start the data directory may be changed
 */
import type { ChildProcess } from 'node:child_process';
import { copyFile, mkdir, readdir, rm, stat, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import { messageOf } from '../../src/errors.ts';
import { isRunning, killTree, signalTree, spawnBound, until } from './process-control.ts';

export type KvKind = 'redis' | 'valkey';

const STARTUP_MS_MAX = 30_000;
const RDB_FILE = 'dump.rdb';
const RDB_COPY = 'older.rdb';

export class KvNode {
  readonly port: number;
  readonly #kind: KvKind;
  readonly #directory: string;
  #child: ChildProcess | undefined;
  #client: Redis | undefined;

  constructor(kind: KvKind, port: number, directory: string) {
    this.port = port;
    this.#kind = kind;
    this.#directory = directory;
  }

  get running(): boolean {
    return this.#child !== undefined && isRunning(this.#child);
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** The run's own connection, past every proxy. Commands wait for the server while it is down. */
  get client(): Redis {
    if (this.#client === undefined) {
      this.#client = new Redis({
        port: this.port,
        maxRetriesPerRequest: null,
        retryStrategy: () => 50,
      });
      this.#client.on('error', () => {});
    }
    return this.#client;
  }

  /**
   * Resolves when the server answers without LOADING. `from: 'rdb'` reads the RDB file and starts the append-only
   * file afresh after it (with the append-only file on, a server would not look at the RDB file).
   */
  async start(from: 'append-only file' | 'rdb' = 'append-only file'): Promise<void> {
    await mkdir(this.#directory, { recursive: true });
    const child = await spawnBound(
      `${this.#kind}-server`,
      [
        ...['--port', String(this.port), '--bind', '127.0.0.1', '--dir', this.#directory, '--save', ''],
        ...['--appendonly', from === 'rdb' ? 'no' : 'yes', '--appendfsync', 'everysec'],
        ...['--aof-load-truncated', 'yes', '--repl-diskless-sync-delay', '0', '--repl-timeout', '10'],
        ...['--loglevel', 'warning', '--logfile', join(this.#directory, 'kv.log')],
      ],
      { stdio: 'ignore' },
    );
    this.#child = child;
    await until(`KV server on port ${this.port}`, STARTUP_MS_MAX, async () => {
      if (!isRunning(child)) throw new Error(`the KV server on port ${this.port} ended at its start`);
      return this.answers();
    });
    if (from === 'rdb') await this.client.config('SET', 'appendonly', 'yes');
  }

  /** Does a new connection get an answer to PING, and not an error such as LOADING? */
  async answers(): Promise<boolean> {
    const probe = new Redis({ port: this.port, lazyConnect: true, retryStrategy: () => null, connectTimeout: 500 });
    probe.on('error', () => {});
    try {
      await probe.connect();
      return (await probe.ping()) === 'PONG';
    } catch {
      return false;
    } finally {
      probe.disconnect();
    }
  }

  async kill(): Promise<void> {
    if (this.#child !== undefined) await killTree(this.#child);
  }

  pause(): void {
    if (this.#child !== undefined) signalTree(this.#child, 'SIGSTOP');
  }

  resume(): void {
    if (this.#child !== undefined) signalTree(this.#child, 'SIGCONT');
  }

  /** Empties the data directory of a stopped server. */
  async wipe(): Promise<void> {
    await rm(join(this.#directory, 'appendonlydir'), { recursive: true, force: true });
    await rm(join(this.#directory, RDB_FILE), { force: true });
  }

  /** Keeps a copy of the data set as it is now, for `restoreSnapshot`. */
  async snapshot(): Promise<void> {
    const before = await this.client.lastsave();
    for (;;) {
      try {
        await this.client.bgsave();
        break;
      } catch (error) {
        // An append-only file is being rewritten, or another save is under way: both end.
        if (!/in progress|append only/i.test(messageOf(error))) throw error;
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    }
    await until('BGSAVE', STARTUP_MS_MAX, async () => {
      const info = await this.client.info('persistence');
      return info.includes('rdb_bgsave_in_progress:0') && (await this.client.lastsave()) >= before;
    });
    await copyFile(join(this.#directory, RDB_FILE), join(this.#directory, RDB_COPY));
  }

  /** Puts the kept copy in place of everything that a stopped server has. Start it `from: 'rdb'`. */
  async restoreSnapshot(): Promise<void> {
    await this.wipe();
    await copyFile(join(this.#directory, RDB_COPY), join(this.#directory, RDB_FILE));
  }

  /**
   * Cuts the newest append-only file of a stopped server at a random byte.
   * @param fraction in [0, 1): how much of the file stays
   * @returns bytes cut off
   */
  async truncateAppendOnlyFile(fraction: number): Promise<number> {
    const directory = join(this.#directory, 'appendonlydir');
    const increments = (await readdir(directory)).filter((file) => file.endsWith('.incr.aof'));
    const sequence = (file: string): number => Number(/\.(\d+)\.incr\.aof$/.exec(file)?.[1] ?? 0);
    const newest = increments.sort((a, b) => sequence(a) - sequence(b)).at(-1);
    if (newest === undefined) return 0;
    const path = join(directory, newest);
    const { size } = await stat(path);
    const keep = Math.floor(size * fraction);
    await truncate(path, keep);
    return size - keep;
  }

  async stop(): Promise<void> {
    this.#client?.disconnect();
    this.resume();
    await this.kill();
  }
}
