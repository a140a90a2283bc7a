/** A client of the matrix: it writes what it is told in one piece, and says of each request what became of it. It never reconnects. */
import { connect, type Socket } from 'node:net';
import { request } from '../../src/resp/encode.ts';
import { errorText, type Reply, readReply } from '../../src/resp/reply.ts';
import { FrameSplitter, readRespReply } from './frames.ts';

export type Word = string | Buffer;

/** A reply as a plain value; an error as `Error`; nothing where the connection broke first. */
export type Answer = unknown;

/** A request that got neither an answer nor the end of its connection. */
export class Hang extends Error {
  constructor(words: readonly Word[], afterMs: number) {
    super(`HANG ${String(words[0])} has no answer after ${afterMs} ms`);
  }
}

export interface Talker {
  /** The answers, in order. */
  talk(requests: readonly (readonly Word[])[], limitMs?: number): Promise<Answer[]>;
  close(): void;
}

export const ANSWER_MS_MAX = 15_000;

function plainValue(reply: Reply): unknown {
  const text = errorText(reply);
  if (text !== undefined) return new Error(text);
  if (reply.isNull) return null;
  if (reply.items !== undefined) return reply.items.map(plainValue);
  if (reply.type === ':') return Number(reply.bytes.toString('latin1'));
  return reply.bytes.toString('latin1');
}

export async function connectTalker(port: number): Promise<Talker> {
  const socket: Socket = connect({ port, host: '127.0.0.1', noDelay: true });
  await new Promise<void>((resolve, reject) => {
    socket.once('connect', resolve);
    socket.once('error', reject);
  });
  const splitter = new FrameSplitter(readRespReply);
  const waiting: ((answer: Answer) => void)[] = [];
  socket.on('error', () => socket.destroy());
  socket.on('data', (chunk) => {
    for (const { bytes } of splitter.push(chunk)) waiting.shift()?.(plainValue(readReply(bytes)));
  });
  socket.on('close', () => {
    for (const answer of waiting.splice(0)) answer(undefined);
  });
  return {
    async talk(requests, limitMs = ANSWER_MS_MAX) {
      if (socket.destroyed) return requests.map(() => undefined);
      const answers = requests.map(
        (words) =>
          new Promise<Answer>((resolve) => {
            const timer = setTimeout(() => resolve(new Hang(words, limitMs)), limitMs);
            waiting.push((answer) => {
              clearTimeout(timer);
              resolve(answer);
            });
          }),
      );
      socket.write(Buffer.concat(requests.map((words) => request(words))));
      return Promise.all(answers);
    },
    close() {
      socket.destroy();
    },
  };
}

/** For what has to succeed: rejects where an answer is an error, or is none. */
export async function demand(talker: Talker, requests: readonly (readonly Word[])[]): Promise<unknown[]> {
  const answers = await talker.talk(requests);
  answers.forEach((answer, at) => {
    const what = requests[at]!.map((word) => word.toString('latin1').slice(0, 40)).join(' ');
    if (answer instanceof Error) throw new Error(`${what}: ${answer.message}`);
    if (answer === undefined) throw new Error(`${what}: the connection broke`);
  });
  return answers;
}
