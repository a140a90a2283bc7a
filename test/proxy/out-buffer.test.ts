import { expect, test } from 'vitest';
import { OutBuffer } from '../../src/proxy/io/send-buffer.ts';
import { seededRandom } from '../chaos/seeded-random.ts';
import { seed } from '../support/seed.ts';

const ROUNDS = 30;
const OPERATIONS = 4000;

test('what is appended, in whatever pieces, is written in order and unchanged', async () => {
  const random = seededRandom(`out buffer ${seed}`);
  const bytes = (length: number): Buffer => Buffer.from(Array.from({ length }, () => random.integer(0, 255)));
  // A few buffers that come again and again, at every alignment, as read buffers and prefixes do; and one that is large.
  const sources = [bytes(700), bytes(1023), bytes(4096).subarray(1), Buffer.alloc(300_000, bytes(251))];
  const fixed = [bytes(0), bytes(5), bytes(28).subarray(3), bytes(63), bytes(130)];
  for (let round = 0; round < ROUNDS; round += 1) {
    const written: Buffer[] = [];
    const out = new OutBuffer((chunk) => {
      const finished = random.next() < 0.5;
      // What is not finished still needs its bytes; what is, does not.
      written.push(finished ? Buffer.from(chunk) : chunk);
      return finished;
    });
    const expected: Buffer[] = [];
    const one = <T>(of: readonly T[]): T => of[random.integer(0, of.length - 1)]!;
    for (let i = 0; i < OPERATIONS; i += 1) {
      const source = one(sources);
      const start = random.integer(0, source.length - 1);
      const most = random.next() < 0.002 ? source.length : 90;
      const end = Math.min(source.length, start + random.integer(0, most));
      const slice = source.subarray(start, end);
      const [head, tail] = [one(fixed), one(fixed)];
      const length = random.integer(0, 10 ** random.integer(1, 9));
      switch (random.integer(0, 4)) {
        case 0:
          out.append(source, start, end);
          expected.push(slice);
          break;
        case 1:
          out.appendFixed(head);
          expected.push(head);
          break;
        case 2:
          out.appendFramed(head, source, start, end, tail);
          expected.push(head, slice, tail);
          break;
        case 3:
          out.appendPrefix(source, start, end, length, head);
          expected.push(slice, Buffer.from(`$${length}\r\n`), head);
          break;
        default:
          if (random.next() < 0.1) await new Promise((resolve) => setImmediate(resolve));
      }
    }
    out.flush();
    expect(Buffer.concat(written).equals(Buffer.concat(expected))).toBe(true);
  }
});
