/**
 * The request scanner alone, in this process: payloads of frames with some bytes changed, dropped, doubled or exchanged
 * for bytes that mean something. Nothing of it goes over a socket, so that millions take minutes. Held of each mutant:
 *
 *   - in pieces, cut anywhere, it gives the frames, arguments and the error that it gives as a whole;
 *   - redis-parser reads from each canonical multibulk frame the arguments that the scanner found;
 *   - no frame is empty or longer than the bytes that came.
 */
import RedisParser from 'redis-parser';
import { RequestScanner } from '../../src/resp/request-scanner.ts';
import { generatePayload } from './frame-generator.ts';
import { type Random, seededRandom } from './random.ts';

export interface ScannerReport {
  /** Frames found in mutants, a malformed or unfinished one at the end included; each counts once, however it was cut. */
  readonly frames: number;
  readonly mutants: number;
  readonly malformed: number;
  readonly failures: readonly string[];
}

export interface ScannerFuzzOptions {
  readonly seed: number;
  readonly frames: number;
  readonly failuresMax: number;
  readonly createScanner?: () => RequestScanner;
  readonly onProgress?: (frames: number) => void;
}

const MUTANTS_PER_PAYLOAD = 40;
const PAYLOAD_BYTES_MAX = 4096;
const TELLING_BYTES = Buffer.from('\r\n*$-+0129:" \'\0\xff', 'latin1');
const LIMITS = { bulkBytesMax: 512 * 1024 * 1024 };

interface Scan {
  /** Start and length of each complete frame. */
  readonly places: readonly (readonly [start: number, length: number])[];
  /** `undefined` where a frame did not end in CR LF, or is an inline one. */
  readonly multibulks: readonly (readonly Buffer[] | undefined)[];
  /** All that two scans of the same bytes must agree on. */
  readonly summary: string;
  readonly error: string;
}

function mutate(random: Random, bytes: Buffer): Buffer {
  let mutant = Buffer.from(bytes);
  for (let edit = 1 + random.below(3); edit > 0 && mutant.length > 1; edit -= 1) {
    const at = random.below(mutant.length);
    const kind = random.below(5);
    if (kind === 0) mutant[at] = random.below(256);
    else if (kind === 1) mutant[at] = TELLING_BYTES[random.below(TELLING_BYTES.length)]!;
    else if (kind === 2) mutant = Buffer.concat([mutant.subarray(0, at), mutant.subarray(at + 1)]);
    else if (kind === 3) mutant = Buffer.concat([mutant.subarray(0, at + 1), mutant.subarray(at)]);
    else mutant = mutant.subarray(0, at + 1);
  }
  return mutant;
}

function scanAll(scanner: RequestScanner, bytes: Buffer, ends: readonly number[]): Scan {
  const places: [number, number][] = [];
  const multibulks: (Buffer[] | undefined)[] = [];
  const parts: string[] = [];
  let start = 0;
  let error = '';
  scan: for (const end of ends) {
    while (start < end) {
      const length = scanner.scan(bytes, start, end);
      if (length === 0) break;
      if (length < 0) {
        error = scanner.error;
        break scan;
      }
      if (start + length > end) throw new Error(`a frame of ${length} bytes where ${end - start} are`);
      const inline = scanner.inlineArguments;
      const args = inline ?? [];
      if (inline === undefined) {
        for (let i = 0; i < scanner.argc; i += 1) {
          args.push(bytes.subarray(start + scanner.bounds[i * 2]!, start + scanner.bounds[i * 2 + 1]!));
        }
      }
      multibulks.push(inline === undefined && scanner.canonical && args.length > 0 ? args : undefined);
      places.push([start, length]);
      parts.push(
        `${start}+${length}${scanner.canonical ? '' : '!'}:${args.map((arg) => arg.toString('latin1')).join('\0')}`,
      );
      start += length;
      scanner.reset();
    }
  }
  return { places, multibulks, error, summary: `${parts.join('\n')}\n${error}` };
}

function cutsOf(random: Random, length: number): number[] {
  if (length <= 400 && random.chance(0.2)) return Array.from({ length }, (_, at) => at + 1);
  const cuts = Array.from({ length: 1 + random.below(4) }, () => 1 + random.below(length)).sort((a, b) => a - b);
  return [...cuts, length];
}

/** What the oracle says against a scan; `undefined` where it agrees. */
function disagreement(bytes: Buffer, scan: Scan): string | undefined {
  let parsed: unknown;
  const parser = new RedisParser({
    returnBuffers: true,
    returnReply: (reply: unknown) => {
      parsed = reply;
    },
    returnError: (error: Error) => {
      parsed = error;
    },
  });
  for (const [index, args] of scan.multibulks.entries()) {
    if (args === undefined) continue;
    const [start, length] = scan.places[index]!;
    parsed = undefined;
    parser.execute(bytes.subarray(start, start + length));
    const same =
      Array.isArray(parsed) &&
      parsed.length === args.length &&
      parsed.every((each: unknown, i) => Buffer.isBuffer(each) && each.equals(args[i]!));
    if (!same) return `redis-parser reads frame ${index} otherwise`;
  }
  return undefined;
}

/** Stops at `frames` found or at `failuresMax`. Each payload and all its mutants come from `seed` plus its number. */
export function fuzzScanner(options: ScannerFuzzOptions): ScannerReport {
  const createScanner = options.createScanner ?? (() => new RequestScanner(LIMITS));
  const failures: string[] = [];
  let frames = 0;
  let mutants = 0;
  let malformed = 0;
  for (let number = 0; frames < options.frames && failures.length < options.failuresMax; number += 1) {
    const random = seededRandom(options.seed + number);
    const payload = generatePayload(random, 'k', 'redis-server').bytes.subarray(0, PAYLOAD_BYTES_MAX);
    for (let round = 0; round < MUTANTS_PER_PAYLOAD; round += 1) {
      const bytes = mutate(random, payload);
      let wrong: string | undefined;
      try {
        const whole = scanAll(createScanner(), bytes, [bytes.length]);
        const pieces = scanAll(createScanner(), bytes, cutsOf(random, bytes.length));
        const last = whole.places.at(-1);
        const rest = last === undefined ? bytes.length : bytes.length - last[0] - last[1];
        frames += whole.places.length + (rest > 0 ? 1 : 0);
        if (whole.error !== '') malformed += 1;
        wrong = whole.summary === pieces.summary ? disagreement(bytes, whole) : 'in pieces it is read otherwise';
      } catch (error) {
        wrong = String(error);
      }
      mutants += 1;
      if (wrong !== undefined) {
        const text = JSON.stringify(bytes.toString('latin1').slice(0, 500));
        failures.push(`seed ${options.seed + number}, mutant ${round}: ${wrong}: ${text}`);
      }
    }
    options.onProgress?.(frames);
  }
  return { frames, mutants, malformed, failures };
}
