/**
 * The same bytes to two servers on two connections; what comes back must be the same bytes. A payload ends with a
 * half-close, as `nc` does it: everything that was asked before it is still owed.
 */
import { connect } from 'node:net';
import type { KvBinary } from '../../bench/processes.ts';
import { generatePayload, type Payload, splitPayload } from './frame-generator.ts';
import { seededRandom } from './random.ts';

export interface Answer {
  readonly bytes: Buffer;
  /**
   * `closed`: the server ended the connection. `reset`: it did so while more was being sent, so that the end of what
   * it had answered may be lost on the way. `silent`: it neither answered nor closed in time.
   */
  readonly end: 'closed' | 'reset' | 'silent';
}

export interface Mismatch {
  readonly seed: number;
  readonly sent: Buffer;
  readonly chunks: readonly number[];
  readonly direct: Answer;
  readonly through: Answer;
}

export interface FuzzReport {
  readonly payloads: number;
  readonly frames: number;
  readonly mismatches: readonly Mismatch[];
}

export interface FuzzOptions {
  readonly seed: number;
  readonly frames: number;
  readonly server: KvBinary;
  /** Ports of a server, and of Holdfast in front of its twin. */
  readonly directPort: number;
  readonly throughPort: number;
  readonly concurrency: number;
  readonly mismatchesMax: number;
  /** Empties both servers, between batches and after a mismatch. */
  readonly reset: () => Promise<void>;
  readonly onProgress?: (frames: number) => void;
}

const ANSWER_TIMEOUT_MS = 5000;
const PAYLOADS_PER_BATCH = 400;
const PREFIXES_PER_SLOT = 50;
const LINE_BYTES_MAX = 64 * 1024;
const BLANK_LINE = /[ \t]\r?\n/;
/** A server writes so much to a client at a time; what it still owes to one that half-closes, it drops. */
const UNSENT_AT_CLOSE_BYTES = 64 * 1024;

/** Writes the chunks one by one, half-closes, and gathers all that comes until the server closes too. */
export function exchange(port: number, chunks: readonly Buffer[]): Promise<Answer> {
  return new Promise((resolve) => {
    const received: Buffer[] = [];
    const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true });
    socket.setNoDelay(true);
    const finish = (end: Answer['end']) => {
      clearTimeout(timer);
      socket.destroy();
      resolve({ bytes: Buffer.concat(received), end });
    };
    const timer = setTimeout(() => finish('silent'), ANSWER_TIMEOUT_MS);
    socket.on('data', (data) => received.push(data));
    socket.on('end', () => finish('closed'));
    socket.on('error', () => finish('reset'));
    const write = (index: number) => {
      if (socket.destroyed) return;
      const chunk = chunks[index];
      if (chunk === undefined) socket.end();
      else socket.write(chunk, () => setImmediate(write, index + 1));
    };
    socket.once('connect', () => write(0));
  });
}

/**
 * HELLO tells the client's own ID, which no two servers give alike, and COMMAND lists in an order of the server's own, of which so
 * much is lost at the end that nothing behind it can be compared.
 */
function comparable(bytes: Buffer): Buffer {
  if (!bytes.includes('$2\r\nid\r\n:') && !bytes.includes('*10\r\n$')) return bytes;
  const text = bytes.toString('latin1').replace(/\$2\r\nid\r\n:\d+\r\n/g, '$2\r\nid\r\n:0\r\n');
  const listed = /\*[23]\d\d\r\n\*10\r\n\$/.exec(text);
  return Buffer.from(listed === null ? text : text.slice(0, listed.index), 'latin1');
}

function sameAnswer(a: Answer, b: Answer): boolean {
  const [first, second] = [comparable(a.bytes), comparable(b.bytes)];
  const lossy = first.length > UNSENT_AT_CLOSE_BYTES && second.length > UNSENT_AT_CLOSE_BYTES;
  if (a.end !== 'reset' && b.end !== 'reset' && !lossy) return a.end === b.end && first.equals(second);
  if (a.end === 'silent' || b.end === 'silent') return false;
  const length = Math.min(first.length, second.length);
  return first.subarray(0, length).equals(second.subarray(0, length));
}

/** The one documented difference: a line of more than 64 KB, which a server refuses unless it has all of it in one read. */
function isLongLine(sent: Buffer, direct: Answer, through: Answer): boolean {
  const refusal = /-ERR Protocol error: too big (?:inline request|m?bulk count string)\r\n$/.exec(
    through.bytes.toString('latin1'),
  );
  if (refusal === null) return false;
  const before = refusal.index;
  const prefix = comparable(through.bytes.subarray(0, before));
  return prefix.equals(comparable(direct.bytes).subarray(0, prefix.length)) && longestLine(sent) > LINE_BYTES_MAX;
}

/** What Valkey 8.0 does with the rest of a read behind a line of blanks: it takes requests for lines. */
function isBehindBlanks(server: KvBinary, sent: Buffer, direct: Answer, through: Answer): boolean {
  if (server !== 'valkey-server' || !BLANK_LINE.test(sent.toString('latin1'))) return false;
  const [taken, asRedis] = [comparable(direct.bytes), comparable(through.bytes)];
  let at = 0;
  while (at < taken.length && taken[at] === asRedis[at]) at += 1;
  const reply = taken.toString('latin1', taken.lastIndexOf('\n', at) + 1);
  return /^-ERR unknown command '[*$]\d/.test(reply);
}

function longestLine(bytes: Buffer): number {
  let longest = 0;
  let start = 0;
  for (let end = bytes.indexOf(10); end >= 0; end = bytes.indexOf(10, start)) {
    longest = Math.max(longest, end - start);
    start = end + 1;
  }
  return Math.max(longest, bytes.length - start);
}

/** One payload from its own seed, for replaying a mismatch. */
export function payloadOf(seed: number, prefix: string, server: KvBinary): { payload: Payload; chunks: Buffer[] } {
  const random = seededRandom(seed);
  const payload = generatePayload(random, prefix, server);
  return { payload, chunks: splitPayload(random, payload.bytes) };
}

/** Stops at `frames` sent or at `mismatchesMax`. */
export async function fuzzFrames(options: FuzzOptions): Promise<FuzzReport> {
  const mismatches: Mismatch[] = [];
  let payloads = 0;
  let frames = 0;
  while (frames < options.frames && mismatches.length < options.mismatchesMax) {
    await options.reset();
    const last = payloads + PAYLOADS_PER_BATCH;
    const lane = async (slot: number) => {
      while (payloads < last && frames < options.frames && mismatches.length < options.mismatchesMax) {
        const seed = options.seed + payloads;
        payloads += 1;
        // A prefix of its own for each slot: what runs at the same time cannot meet, whatever the order. And not the one of
        // the payload before: a subscription may end a moment after its client.
        const { payload, chunks } = payloadOf(seed, `fuzz${slot}-${payloads % PREFIXES_PER_SLOT}`, options.server);
        frames += payload.frames;
        const [direct, through] = await Promise.all([
          exchange(options.directPort, chunks),
          exchange(options.throughPort, chunks),
        ]);
        if (sameAnswer(direct, through) || isLongLine(payload.bytes, direct, through)) continue;
        if (isBehindBlanks(options.server, payload.bytes, direct, through)) continue;
        mismatches.push({ seed, sent: payload.bytes, chunks: chunks.map((chunk) => chunk.length), direct, through });
        return;
      }
    };
    await Promise.all(Array.from({ length: options.concurrency }, (_, slot) => lane(slot)));
    options.onProgress?.(frames);
  }
  return { payloads, frames, mismatches };
}

/** A mismatch from the first byte that differs. */
export function describeMismatch(mismatch: Mismatch): string {
  const { sent } = mismatch;
  const direct = { ...mismatch.direct, bytes: comparable(mismatch.direct.bytes) };
  const through = { ...mismatch.through, bytes: comparable(mismatch.through.bytes) };
  let at = 0;
  while (at < direct.bytes.length && direct.bytes[at] === through.bytes[at]) at += 1;
  const around = (bytes: Buffer) => JSON.stringify(bytes.toString('latin1', Math.max(0, at - 60), at + 120));
  return [
    `seed ${mismatch.seed}, ${sent.length} bytes in writes of ${mismatch.chunks.slice(0, 20).join(', ')}`,
    `  sent    ${JSON.stringify(
      sent
        .toString('latin1')
        .replace(/([xya1*])\1{50,}/g, '$1…$1')
        .slice(0, 1000),
    )}`,
    `  direct  ${direct.end}, ${direct.bytes.length} bytes, around byte ${at}: ${around(direct.bytes)}`,
    `  through ${through.end}, ${through.bytes.length} bytes, around byte ${at}: ${around(through.bytes)}`,
  ].join('\n');
}
