/** The KV server of a lane: it keeps nothing, and is up again within some tens of milliseconds of its death. */
import type { ChildProcess } from 'node:child_process';
import { mkdir, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import type { KvKind } from '../chaos/kv-node.ts';
import { exitOf, isRunning, spawnBound, until } from '../chaos/process-control.ts';

/** Of the default user, and of all others. */
export const PASSWORD = 'matrix';
/** May log in, queue and run scripts, and do nothing to a key. */
export const LIMITED_USER = 'limited';

const START_MS_MAX = 20_000;

export class KvStore {
  readonly port: number;
  readonly #kind: KvKind;
  readonly #directory: string;
  #child: ChildProcess | undefined;
  #turn: Promise<void> = Promise.resolve();

  constructor(kind: KvKind, port: number, directory: string) {
    this.#kind = kind;
    this.port = port;
    this.#directory = directory;
  }

  /** Starts and ends come one after the other. */
  start(): Promise<void> {
    return this.#then(() => this.#start());
  }

  /** It forgets everything. */
  kill(): Promise<void> {
    return this.#then(() => this.#kill());
  }

  #then(step: () => Promise<void>): Promise<void> {
    const turn = this.#turn.then(step);
    this.#turn = turn.catch(() => undefined);
    return turn;
  }

  async #start(): Promise<void> {
    if (this.#child !== undefined && isRunning(this.#child)) return;
    await mkdir(this.#directory, { recursive: true });
    const configFile = join(this.#directory, 'kv.conf');
    const lines = [
      ...['bind 127.0.0.1', `port ${this.port}`, `dir "${this.#directory}"`, 'save ""', 'appendonly no'],
      `logfile "${join(this.#directory, 'kv.log')}"`,
      `user default on >${PASSWORD} ~* &* +@all`,
      `user ${LIMITED_USER} on >${PASSWORD} ~* &* -@all +@connection +@transaction +eval +evalsha +fcall`,
    ];
    await writeFile(configFile, `${lines.join('\n')}\n`);
    const child = await spawnBound(`${this.#kind}-server`, [configFile], { stdio: 'ignore' });
    this.#child = child;
    await until(
      `KV server on port ${this.port}`,
      START_MS_MAX,
      () => {
        if (!isRunning(child)) throw new Error(`the KV server on port ${this.port} ended at its start`);
        return this.#answers();
      },
      5,
    );
  }

  async #kill(): Promise<void> {
    if (this.#child === undefined) return;
    this.#child.kill('SIGKILL');
    await exitOf(this.#child);
  }

  #answers(): Promise<boolean> {
    return new Promise((resolve) => {
      const socket = connect(this.port, '127.0.0.1');
      let serves = false;
      socket.setTimeout(1000, () => socket.destroy());
      socket.once('connect', () => socket.write('PING\r\n'));
      socket.on('data', (bytes) => {
        serves = bytes.toString('latin1').startsWith('-NOAUTH');
        socket.destroy();
      });
      socket.on('error', () => socket.destroy());
      socket.once('close', () => resolve(serves));
    });
  }
}
