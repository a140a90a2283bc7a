/**
 * Many commands to the KV store as fast as it takes them: frames out, replies counted, nothing decoded but errors. A
 * connection of its own, for one purpose, closed at its end.
 */
import net from 'node:net';
import tls from 'node:tls';
import RedisParser from 'redis-parser';
import type { KvAddress } from '../../control-redis.ts';
import { HoldfastError, messageOf } from '../../errors.ts';
import { request } from '../../resp/encode.ts';

/** Unanswered commands and unsent bytes beyond which `write` makes the caller wait. */
const UNANSWERED_MAX = 20_000;
const UNSENT_BYTES_MAX = 4 * 1024 * 1024;
/** Without a byte out or in for so long, while replies are due: a link that holds everything back never resets. */
const SILENCE_MS = 10_000;

export class BulkWriter {
  readonly #socket: net.Socket;
  #sent = 0;
  #answered = 0;
  #failure: HoldfastError | undefined;
  #refused: { readonly position: number; readonly text: string }[] = [];
  #wake: (() => void) | undefined;

  private constructor(socket: net.Socket, silenceMs: number) {
    this.#socket = socket;
    const parser = new RedisParser({
      returnReply: () => this.#took(undefined),
      returnError: (error: Error) => this.#took(error.message),
      returnFatalError: (error: Error) => this.#fail(error),
      returnBuffers: true,
    });
    socket.on('data', (chunk) => parser.execute(chunk));
    socket.on('error', (thrown) => this.#fail(thrown));
    socket.on('close', () => this.#fail(new Error('the KV store closed the connection')));
    socket.on('drain', () => this.#wake?.());
    // While the ledger is read nothing is due, and nothing is wrong. Whatever is written begins the time anew.
    socket.setTimeout(silenceMs, () => {
      if (this.#answered < this.#sent) this.#fail(new Error(`the KV store was silent for ${silenceMs / 1000} s`));
    });
  }

  /**
   * Connects, logs in and selects the database. Rejects with KVDOWN, or the server's error. `silenceMs`: after so long
   * without progress the connection counts as broken.
   */
  static async open(address: KvAddress, database: number, silenceMs = SILENCE_MS): Promise<BulkWriter> {
    const target =
      address.path === undefined
        ? { host: address.host ?? '127.0.0.1', port: address.port ?? 6379 }
        : { path: address.path };
    const socket = address.tls === undefined ? net.connect(target) : tls.connect({ ...target, ...address.tls });
    socket.setNoDelay(true);
    const writer = new BulkWriter(socket, silenceMs);
    const { username, password } = address;
    if (password !== undefined) {
      writer.write(request(username === undefined ? ['AUTH', password] : ['AUTH', username, password]), 1);
    }
    writer.write(request(['SELECT', String(database)]), 1);
    try {
      await writer.drain();
      const refused = writer.takeRefused()[0];
      if (refused !== undefined) throw new HoldfastError('KVDOWN', `the KV store refused: ${refused.text}`);
    } catch (thrown) {
      writer.close();
      throw thrown;
    }
    return writer;
  }

  /** Sends whole frames holding `commands` commands. Afterwards wait on `ready`. */
  write(frames: Buffer, commands: number): void {
    this.#sent += commands;
    this.#socket.write(frames);
  }

  /** Resolves when more may be written. Rejects with KVDOWN when the connection broke or fell silent. */
  async ready(): Promise<void> {
    while (
      this.#failure === undefined &&
      (this.#sent - this.#answered > UNANSWERED_MAX || this.#socket.writableLength > UNSENT_BYTES_MAX)
    ) {
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    if (this.#failure !== undefined) throw this.#failure;
  }

  /** Resolves when all is answered. Rejects with KVDOWN when the connection broke or fell silent. */
  async drain(): Promise<void> {
    while (this.#failure === undefined && this.#answered < this.#sent) {
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    if (this.#failure !== undefined) throw this.#failure;
  }

  /** Error replies since the last call, with the position (from 0, since opening) of their command. */
  takeRefused(): readonly { readonly position: number; readonly text: string }[] {
    const refused = this.#refused;
    this.#refused = [];
    return refused;
  }

  close(): void {
    this.#socket.destroy();
  }

  #took(error: string | undefined): void {
    if (error !== undefined) this.#refused.push({ position: this.#answered, text: error });
    this.#answered += 1;
    this.#wake?.();
  }

  #fail(thrown: unknown): void {
    this.#failure ??= new HoldfastError('KVDOWN', `restoring: ${messageOf(thrown)}`, { cause: thrown });
    this.#wake?.();
  }
}
