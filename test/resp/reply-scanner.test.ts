import RedisParser from 'redis-parser';
import { describe, expect, it } from 'vitest';
import { readReply } from '../../src/resp/reply.ts';
import { ReplyScanner } from '../../src/resp/reply-scanner.ts';

const RESP2 = [
  '+OK\r\n',
  '-ERR bad thing\r\n',
  ':-42\r\n',
  '$5\r\nhello\r\n',
  '$0\r\n\r\n',
  '$-1\r\n',
  '*-1\r\n',
  '*0\r\n',
  '*3\r\n:1\r\n$3\r\na\r\n\r\n*2\r\n+x\r\n*0\r\n',
  `$300\r\n${'y'.repeat(300)}\r\n`,
];
const RESP3 = [
  '_\r\n',
  '#t\r\n',
  ',3.25\r\n',
  '(12345678901234567890\r\n',
  '!5\r\nERR x\r\n',
  '=7\r\ntxt:abc\r\n',
  '%2\r\n+a\r\n:1\r\n+b\r\n*1\r\n_\r\n',
  '~2\r\n+a\r\n%0\r\n',
  '>2\r\n+push\r\n*0\r\n',
  '|1\r\n+ttl\r\n:3600\r\n*1\r\n+v\r\n',
];

/** Lengths of the top-level frames in `bytes`, which come in pieces that end at `cuts`. */
function frameLengths(bytes: Buffer, cuts: readonly number[]): number[] {
  const scanner = new ReplyScanner();
  const lengths: number[] = [];
  let frameStart = 0;
  let at = 0;
  for (const end of [...cuts, bytes.length]) {
    while (at < end) {
      at = scanner.scan(bytes, at, end);
      expect(scanner.malformed).toBe(false);
      if (!scanner.complete) continue;
      lengths.push(at - frameStart);
      frameStart = at;
      expect(scanner.atBoundary).toBe(true);
    }
  }
  return lengths;
}

describe('reply scanner', () => {
  const frames = [...RESP2, ...RESP3];
  const bytes = Buffer.from(frames.join(''));
  const expected = frames.map((frame) => frame.length);

  it('finds the end of every kind of frame', () => {
    expect(frameLengths(bytes, [])).toEqual(expected);
  });

  it('finds the same ends however the bytes are split in two', () => {
    for (let cut = 0; cut <= bytes.length; cut += 1) expect(frameLengths(bytes, [cut])).toEqual(expected);
  });

  it('finds the same ends when every byte comes alone', () => {
    expect(frameLengths(bytes, [...bytes.keys()])).toEqual(expected);
  });

  it('agrees with redis-parser on how many replies there are', () => {
    let replies = 0;
    const count = (): void => {
      replies += 1;
    };
    const parser = new RedisParser({ returnReply: count, returnError: count });
    parser.execute(Buffer.from(RESP2.join('')));
    expect(frameLengths(Buffer.from(RESP2.join('')), [])).toHaveLength(replies);
  });

  it('reads each frame as a tree that spans exactly its bytes', () => {
    let at = 0;
    for (const frame of frames) {
      const reply = readReply(bytes, at);
      expect(reply.raw.toString()).toBe(frame);
      at += reply.raw.length;
    }
  });

  it.each(['hello\r\n', '$a\r\n', '$5x\r\n', '*1\rX'])('calls %j malformed', (text) => {
    const scanner = new ReplyScanner();
    scanner.scan(Buffer.from(text), 0, text.length);
    expect(scanner.malformed).toBe(true);
  });
});
