/** Long lists are rewritten in pieces: others have their turn meanwhile. */
import { describe, expect, it } from 'vitest';
import { array, bulk } from '../../src/resp/encode.ts';
import { rewriteNameList } from '../../src/resp/name-list.ts';
import { readReply } from '../../src/resp/reply.ts';

describe('a list of 400,000 names', () => {
  const names = Array.from({ length: 400_000 }, (_, n) => bulk(n % 10 === 0 ? `own:${n}` : `scope:${n}\r\n$`));
  const frame = array(names);

  it('is rewritten while others have hundreds of turns', async () => {
    let turns = 0;
    let done = false;
    const others = (): void => {
      turns += 1;
      if (!done) setImmediate(others);
    };
    setImmediate(others);
    const seen = await rewriteNameList(frame, (name) => (name[0] === 115 ? name.subarray(6) : undefined));
    done = true;
    expect(turns).toBeGreaterThanOrEqual(399);
    const items = readReply(seen).items!;
    expect(items.length).toBe(360_000);
    expect(items.every((item, at) => item.bytes.toString() === `${at + 1 + Math.floor(at / 9)}\r\n$`)).toBe(true);
  });

  it('is refused where it is none', async () => {
    await expect(rewriteNameList(Buffer.from('*1\r\n:1\r\n'), (name) => name)).rejects.toThrow(/^the KV store sent/);
  });
});
