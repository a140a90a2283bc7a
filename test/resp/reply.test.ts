/** How deep a peer nests its replies decides neither how deep Holdfast calls nor whether it goes on. */
import { describe, expect, it } from 'vitest';
import { type ReplyValue, readReply, replyValue } from '../../src/resp/reply.ts';

function nested(levels: number): Buffer {
  return Buffer.from(`${'*1\r\n'.repeat(levels)}:7\r\n`);
}

describe('a reply nested deeper than calls go', () => {
  it('is read, up to the depth that servers give', () => {
    const reply = readReply(nested(9_000));
    let levels = 0;
    let inner = reply;
    for (; inner.items !== undefined; inner = inner.items[0]!) levels += 1;
    expect([levels, inner.bytes.toString(), reply.raw.length]).toEqual([9_000, '7', nested(9_000).length]);
    let value: ReplyValue = replyValue(reply);
    for (; Array.isArray(value); value = value[0]!) levels -= 1;
    expect([levels, value]).toEqual([0, 7]);
  });

  it('has a limit and says so', () => {
    expect(() => readReply(nested(1_000_000))).toThrow('nested deeper than 10000 levels');
  });

  it('keeps attributes with what they came before', () => {
    const bytes = Buffer.from('*2\r\n|1\r\n+ttl\r\n:1\r\n*1\r\n|1\r\n+a\r\n+b\r\n:5\r\n:6\r\n');
    const { raw, items } = readReply(bytes);
    const [list, number] = items!;
    expect(raw).toEqual(bytes);
    expect([list!.raw, number!.raw].map(String)).toEqual([
      '|1\r\n+ttl\r\n:1\r\n*1\r\n|1\r\n+a\r\n+b\r\n:5\r\n',
      ':6\r\n',
    ]);
    expect(replyValue(list!.attribute!)).toEqual(['ttl', 1]);
    expect(replyValue(list!.items![0]!.attribute!)).toEqual(['a', 'b']);
  });
});
