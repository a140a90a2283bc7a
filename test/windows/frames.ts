/** Where a message ends, in the bytes of a RESP or Postgres connection. Fed with chunks, gives whole messages. */
import { readReply } from '../../src/resp/reply.ts';

export interface Message {
  readonly bytes: Buffer;
  /** RESP: the arguments of a request. Postgres: the SQL text, where the message has one. */
  readonly words: readonly string[];
  /** It answers the oldest request that is not answered. */
  readonly answers: boolean;
  /** It wants an answer. */
  readonly asks: boolean;
}

/** Gives the message that begins at `at`, or nothing where it is not whole yet. */
export type FrameReader = (bytes: Buffer, at: number) => Message | undefined;

export class FrameSplitter {
  #rest: Buffer = Buffer.alloc(0);
  readonly #read: FrameReader;

  constructor(read: FrameReader) {
    this.#read = read;
  }

  push(chunk: Buffer): Message[] {
    const bytes = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    const messages: Message[] = [];
    let at = 0;
    while (at < bytes.length) {
      const message = this.#read(bytes, at);
      if (message === undefined) break;
      messages.push(message);
      at += message.bytes.length;
    }
    this.#rest = bytes.subarray(at);
    return messages;
  }
}

export const readRespRequest: FrameReader = (bytes, at) => {
  const reply = readWhole(bytes, at);
  if (reply === undefined) return undefined;
  const words = reply.items?.map((item) => item.bytes.toString('latin1')) ?? [];
  return { bytes: reply.raw, words, answers: false, asks: true };
};

export const readRespReply: FrameReader = (bytes, at) => {
  const reply = readWhole(bytes, at);
  if (reply === undefined) return undefined;
  return { bytes: reply.raw, words: [], answers: reply.type !== '>', asks: false };
};

function readWhole(bytes: Buffer, at: number) {
  try {
    return readReply(bytes, at);
  } catch {
    return undefined;
  }
}

const TYPE_BYTES = 1;
const LENGTH_BYTES = 4;

/** A Postgres client: a startup message without a type first; then statements, each up to its Sync, or a simple Query. */
export function postgresRequests(): FrameReader {
  let started = false;
  return (bytes, at) => {
    if (!started) {
      if (bytes.length < at + LENGTH_BYTES) return undefined;
      const end = at + bytes.readInt32BE(at);
      if (bytes.length < end) return undefined;
      started = true;
      return { bytes: bytes.subarray(at, end), words: [], answers: false, asks: false };
    }
    let text: string | undefined;
    for (let next = at; bytes.length >= next + TYPE_BYTES + LENGTH_BYTES; ) {
      const type = String.fromCharCode(bytes[next]!);
      const body = next + TYPE_BYTES + LENGTH_BYTES;
      const end = next + TYPE_BYTES + bytes.readInt32BE(next + TYPE_BYTES);
      if (bytes.length < end) return undefined;
      if (type === 'Q') text = bytes.toString('utf8', body, end - 1);
      if (type === 'P') {
        const nameEnd = bytes.indexOf(0, body);
        text = bytes.toString('utf8', nameEnd + 1, bytes.indexOf(0, nameEnd + 1));
      }
      // Without a text: a statement that is prepared already, by its name.
      if (type === 'B' && text === undefined) {
        const portalEnd = bytes.indexOf(0, body);
        text = `prepared ${bytes.toString('utf8', portalEnd + 1, bytes.indexOf(0, portalEnd + 1))}`;
      }
      if (type === 'Q' || type === 'S') {
        return { bytes: bytes.subarray(at, end), words: text === undefined ? [] : [text], answers: false, asks: true };
      }
      if (type === 'p' || type === 'X') {
        return { bytes: bytes.subarray(at, end), words: [], answers: false, asks: false };
      }
      next = end;
    }
    return undefined;
  };
}

/** A Postgres server: ReadyForQuery ends an answer, except the one that ends the login. */
export function postgresReplies(): FrameReader {
  let ready = false;
  return (bytes, at) => {
    if (bytes.length < at + TYPE_BYTES + LENGTH_BYTES) return undefined;
    const end = at + TYPE_BYTES + bytes.readInt32BE(at + TYPE_BYTES);
    if (bytes.length < end) return undefined;
    const isReady = bytes[at] === 0x5a;
    const answers = isReady && ready;
    ready ||= isReady;
    return { bytes: bytes.subarray(at, end), words: [], answers, asks: false };
  };
}
