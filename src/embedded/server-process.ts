/**
 * The life of one child server, the same for the KV store and Postgres:
 *
 *            launch             probe answers             exit, kill9
 *   claimed ───────▶ starting ───────────────▶ ready ──────────────────▶ down
 *      ▲                 │ exit: start() rejects ▲                         │
 *      │                 ▼                       └────────restart──────────┘
 *    create            stopped ◀──────────── stop() from any state
 *
 * Invariants: the pid file names the child as long as it may live; a pid file found at creation belongs to a run that
 * was killed, and its process is stopped first, but only when its command line proves it to be of this directory.
 * Where setpriv exists the kernel signals the child when this process dies; the pid file serves everywhere else.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { HoldfastError } from '../errors.ts';
import { claimDirectory, type DirectoryClaim } from './directory-claim.ts';
import { commandLineOf, sendSignal } from './process-facts.ts';

export interface ServerExit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  /** True after `stop()`, `kill9()` or `restart()` asked for it. */
  readonly expected: boolean;
  /** The last lines that the server wrote. */
  readonly output: string;
}

/** A child server as its users see it. */
export interface EmbeddedServer {
  readonly url: string;
  /** On 127.0.0.1; 0 when it listens on a Unix socket only. */
  readonly port: number;
  /** Of the running process; `undefined` while it is down. */
  readonly pid: number | undefined;
  /** Ends the server and gives up the directory. Doing it twice changes nothing. */
  stop(): Promise<void>;
  /** SIGKILL, as a crash would be; resolves when the process is gone. The server can be restarted. */
  kill9(): Promise<void>;
  /** Starts it again at the same address in the same directory, after killing it if it runs. Resolves when it is ready. */
  restart(): Promise<void>;
  /** Calls `listener` at every exit. Gives the function that removes it. */
  onExit(listener: (exit: ServerExit) => void): () => void;
}

export interface Launch {
  readonly command: string;
  readonly args: readonly string[];
  /** Sent by the kernel to the child when this process dies, where that can be arranged. */
  readonly parentDeathSignal: NodeJS.Signals;
  /** Options of setpriv, for a child that runs with other privileges; needs `setprivWorks`. */
  readonly privileges?: readonly string[];
  readonly uid?: number;
  readonly gid?: number;
}

export interface ServerProcessOptions {
  /** For messages, such as `valkey-server`. */
  readonly name: string;
  readonly directory: string;
  /** A part of the command line that no process of another directory has. */
  readonly proof: string;
  /** Asked at every (re)start. */
  launch(): Promise<Launch>;
  /** True when the process `pid` serves, false when it does not yet. */
  probe(pid: number): Promise<boolean>;
  readonly readyTimeoutMs: number;
  /** Last words of a server that ended while starting, after which it is worth trying again at once. */
  readonly transientFailure?: RegExp;
  /** Tried one after the other, each given its time, SIGKILL at the end. */
  readonly stopSteps: readonly { readonly signal: NodeJS.Signals; readonly graceMs: number }[];
  onOutput?(line: string): void;
}

const PROBE_INTERVAL_MS = 15;
const OUTPUT_LINES_MAX = 40;
const KILL_WAIT_MS = 10_000;

let setpriv: Promise<boolean> | undefined;

/** Whether util-linux's setpriv is here and can arrange a parent death signal. */
export function setprivWorks(): Promise<boolean> {
  setpriv ??= new Promise((resolve) => {
    if (process.platform !== 'linux') resolve(false);
    else execFile('setpriv', ['--pdeathsig', 'TERM', 'true'], (error) => resolve(error === null));
  });
  return setpriv;
}

async function stopOrphan(pidFile: string, proof: string, steps: ServerProcessOptions['stopSteps']): Promise<void> {
  const text = await readFile(pidFile, 'utf8').catch(() => '');
  const pid = Number.parseInt(text, 10);
  const isOurs = async () => pid > 1 && (await commandLineOf(pid))?.includes(proof) === true;
  for (const { signal, graceMs } of [...steps, { signal: 'SIGKILL', graceMs: KILL_WAIT_MS } as const]) {
    if (!(await isOurs())) break;
    sendSignal(pid, signal);
    const deadline = Date.now() + graceMs;
    while (Date.now() < deadline && (await isOurs())) await delay(PROBE_INTERVAL_MS);
  }
  if (await isOurs()) throw new HoldfastError('INUSE', `process ${pid} of an earlier run cannot be stopped`);
  await rm(pidFile, { force: true });
}

export class ServerProcess {
  readonly #options: ServerProcessOptions;
  readonly #claim: DirectoryClaim;
  readonly #pidFile: string;
  readonly #listeners = new Set<(exit: ServerExit) => void>();
  #child: ChildProcess | undefined;
  #exited: Promise<void> = Promise.resolve();
  #exitExpected = false;
  #stopped: Promise<void> | undefined;
  #output: string[] = [];

  private constructor(options: ServerProcessOptions, claim: DirectoryClaim, pidFile: string) {
    this.#options = options;
    this.#claim = claim;
    this.#pidFile = pidFile;
  }

  /** Claims the directory and stops what an earlier run left there. Throws `INUSE`. */
  static async create(options: ServerProcessOptions): Promise<ServerProcess> {
    const claim = await claimDirectory(options.directory);
    const pidFile = join(options.directory, 'server.pid');
    try {
      await stopOrphan(pidFile, options.proof, options.stopSteps);
    } catch (error) {
      await claim.release();
      throw error;
    }
    return new ServerProcess(options, claim, pidFile);
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** Resolves when the probe answers. Throws `STARTUP` with the server's last lines when it ends or takes too long. */
  async start(): Promise<void> {
    const { name, readyTimeoutMs, transientFailure } = this.#options;
    const deadline = Date.now() + readyTimeoutMs;
    do {
      if (this.#stopped !== undefined) throw new HoldfastError('STARTUP', `${name} was stopped`);
      const child = await this.#spawn(await this.#options.launch());
      while (this.#child === child) {
        if (child.pid !== undefined && (await this.#options.probe(child.pid))) return;
        if (Date.now() > deadline) {
          await this.kill9();
          throw this.#startupError(`did not become ready within ${readyTimeoutMs} ms`);
        }
        await delay(PROBE_INTERVAL_MS);
      }
    } while (transientFailure?.test(this.#output.join('\n')) === true && Date.now() < deadline);
    throw this.#startupError('ended while starting');
  }

  async kill9(): Promise<void> {
    this.#exitExpected = true;
    this.#child?.kill('SIGKILL');
    await this.#exited;
  }

  async restart(): Promise<void> {
    await this.kill9();
    await this.start();
  }

  stop(): Promise<void> {
    this.#stopped ??= this.#end();
    return this.#stopped;
  }

  onExit(listener: (exit: ServerExit) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  async #end(): Promise<void> {
    this.#exitExpected = true;
    for (const { signal, graceMs } of this.#options.stopSteps) {
      if (this.#child === undefined) break;
      this.#child.kill(signal);
      const grace = new AbortController();
      await Promise.race([this.#exited, delay(graceMs, undefined, { signal: grace.signal }).catch(() => {})]);
      grace.abort();
    }
    this.#child?.kill('SIGKILL');
    await this.#exited;
    await rm(this.#pidFile, { force: true });
    await this.#claim.release();
  }

  async #spawn(launch: Launch): Promise<ChildProcess> {
    this.#output = [];
    this.#exitExpected = false;
    let command = launch.command;
    let args = launch.args;
    if (await setprivWorks()) {
      const deathSignal = launch.parentDeathSignal.replace('SIG', '');
      args = [...(launch.privileges ?? []), '--pdeathsig', deathSignal, '--', command, ...args];
      command = 'setpriv';
    }
    const child = spawn(command, args, {
      // A session of its own: Ctrl-C in the terminal must reach Holdfast alone, which drains before it stops its children.
      detached: true,
      cwd: this.#options.directory,
      stdio: ['ignore', 'pipe', 'pipe'],
      ...(launch.uid === undefined ? {} : { uid: launch.uid }),
      ...(launch.gid === undefined ? {} : { gid: launch.gid }),
    });
    this.#child = child;
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8');
      stream.on('data', (text: string) => this.#take(text));
    }
    this.#exited = new Promise((resolve) => {
      child.once('exit', (code, signal) => {
        this.#ended(code, signal);
        resolve();
      });
    });
    await new Promise<void>((resolve, reject) => {
      child.once('spawn', resolve);
      child.once('error', (error) => {
        // 'exit' never comes for a process that was never there.
        this.#child = undefined;
        this.#exited = Promise.resolve();
        reject(new HoldfastError('STARTUP', `cannot start ${this.#options.name}: ${error.message}`, { cause: error }));
      });
    });
    await writeFile(this.#pidFile, `${child.pid}\n`);
    return child;
  }

  #take(text: string): void {
    for (const line of text.split('\n')) {
      if (line.trim() === '') continue;
      this.#output.push(line);
      this.#options.onOutput?.(line);
    }
    this.#output.splice(0, this.#output.length - OUTPUT_LINES_MAX);
  }

  #ended(code: number | null, signal: NodeJS.Signals | null): void {
    this.#child = undefined;
    const exit: ServerExit = { code, signal, expected: this.#exitExpected, output: this.#output.join('\n') };
    for (const listener of this.#listeners) listener(exit);
  }

  #startupError(what: string): HoldfastError {
    const lines = this.#output.length === 0 ? 'it wrote nothing' : this.#output.slice(-5).join(' | ');
    return new HoldfastError('STARTUP', `${this.#options.name} ${what}: ${lines}`);
  }
}
