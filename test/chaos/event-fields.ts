/**
 * The fields of a chaos event as a pure function of (seed, writer, number), so that a consumer recognises an event
 * that was changed on its way without asking its producer.
 *
 * The first field, `e`, holds `writer-number`. Then come up to four more, binary, sometimes empty, rarely large.
 */
import { seededRandom } from './seeded-random.ts';

export interface EventIdentity {
  /** One for each producer process that was ever started in the run. */
  readonly writer: number;
  /** Counts up within its writer. */
  readonly number: number;
}

const IDENTITY_FIELD = Buffer.from('e');
const LARGE_BYTES = 32 * 1024;

function noise(random: () => number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  // A 64-byte pattern repeated: every byte value comes up, line ends and zeros too, at a cost that is all copying.
  const pattern = Math.min(length, 64);
  for (let i = 0; i < pattern; i += 1) bytes[i] = random() * 256;
  for (let at = pattern; at < length; at += pattern) bytes.copy(bytes, at, 0, Math.min(pattern, length - at));
  return bytes;
}

/** Names and values alternating, as XADD takes them. */
export function eventFields(seed: string, event: EventIdentity): Buffer[] {
  const random = seededRandom(`${seed}/${event.writer}/${event.number}`).next;
  const fields: Buffer[] = [IDENTITY_FIELD, Buffer.from(`${event.writer}-${event.number}`)];
  const more = Math.floor(random() * 5);
  for (let i = 0; i < more; i += 1) {
    const kind = random();
    const length = kind < 0.05 ? 0 : kind < 0.9985 ? Math.floor(random() * 120) : LARGE_BYTES;
    fields.push(noise(random, Math.floor(random() * 6)), noise(random, length));
  }
  return fields;
}

/** `undefined` where the fields name no event of a chaos run. */
export function eventOf(fields: readonly Buffer[]): EventIdentity | undefined {
  if (fields[0]?.equals(IDENTITY_FIELD) !== true || fields[1] === undefined) return undefined;
  const match = /^(\d{1,5})-(\d{1,9})$/.exec(fields[1].toString('latin1'));
  return match === null ? undefined : { writer: Number(match[1]), number: Number(match[2]) };
}

export function fieldsEqual(left: readonly Buffer[], right: readonly Buffer[]): boolean {
  return left.length === right.length && left.every((field, i) => field.equals(right[i]!));
}
