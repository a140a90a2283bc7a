import { describe, expect, it } from 'vitest';
import { request } from '../../src/resp/encode.ts';
import { splitInline } from '../../src/resp/inline.ts';
import { RequestScanner } from '../../src/resp/request-scanner.ts';

const LIMITS = { bulkBytesMax: 512 * 1024 * 1024 };

function argumentsOf(scanner: RequestScanner, buffer: Buffer, start: number): string[] {
  if (scanner.inlineArguments !== undefined) return scanner.inlineArguments.map((arg) => arg.toString('latin1'));
  const args: string[] = [];
  for (let i = 0; i < scanner.argc; i += 1) {
    args.push(buffer.toString('latin1', start + scanner.bounds[i * 2]!, start + scanner.bounds[i * 2 + 1]!));
  }
  return args;
}

/** Scans `bytes` as if they came in pieces that end at each of `cuts`. */
function scanInPieces(bytes: Buffer, cuts: readonly number[]): string[][] {
  const scanner = new RequestScanner(LIMITS);
  const frames: string[][] = [];
  let start = 0;
  for (const end of [...cuts, bytes.length]) {
    for (;;) {
      const length = start < end ? scanner.scan(bytes, start, end) : 0;
      if (length < 0) throw new Error(scanner.error);
      if (length === 0) break;
      frames.push(argumentsOf(scanner, bytes, start));
      start += length;
      scanner.reset();
    }
  }
  expect(start).toBe(bytes.length);
  return frames;
}

function errorOf(text: string): string {
  const scanner = new RequestScanner(LIMITS);
  const bytes = Buffer.from(text, 'latin1');
  expect(scanner.scan(bytes, 0, bytes.length)).toBe(-1);
  return scanner.error;
}

describe('request scanner', () => {
  const stream = Buffer.concat([
    request(['SET', 'key', 'value\r\nwith lines']),
    Buffer.from('PING\r\n'),
    Buffer.from('*0\r\n'),
    request(['GET', '']),
    Buffer.from('set "a b" \'c\' \n'),
    request(['MSET', 'a', '1', 'b', Buffer.alloc(300, 120)]),
  ]);
  const whole = scanInPieces(stream, []);

  it('finds every frame of a pipeline', () => {
    expect(whole).toEqual([
      ['SET', 'key', 'value\r\nwith lines'],
      ['PING'],
      [],
      ['GET', ''],
      ['set', 'a b', 'c'],
      ['MSET', 'a', '1', 'b', 'x'.repeat(300)],
    ]);
  });

  it('finds the same frames however the bytes are split in two', () => {
    for (let cut = 0; cut <= stream.length; cut += 1) expect(scanInPieces(stream, [cut])).toEqual(whole);
  });

  it('finds the same frames when every byte comes alone', () => {
    expect(scanInPieces(stream, [...stream.keys()])).toEqual(whole);
  });

  it('tells how many bytes an argument still needs', () => {
    const scanner = new RequestScanner(LIMITS);
    const head = Buffer.from('*2\r\n$3\r\nGET\r\n$1000\r\nabc');
    expect(scanner.scan(head, 0, head.length)).toBe(0);
    expect(scanner.needed).toBe('*2\r\n$3\r\nGET\r\n$1000\r\n'.length + 1002);
  });

  it('lets settled bytes be dropped while a frame is incomplete', () => {
    const frame = request(['SET', 'key', Buffer.alloc(5000, 97), 'tail', Buffer.alloc(100, 98)]);
    for (const piece of [1, 7, 64, 1000]) {
      const scanner = new RequestScanner(LIMITS);
      let pending = Buffer.alloc(0);
      let dropped = 0;
      let length = 0;
      for (let at = 0; at < frame.length && length === 0; at += piece) {
        pending = Buffer.concat([pending, frame.subarray(at, at + piece)]);
        length = scanner.scan(pending, -dropped, pending.length);
        if (length > 0) break;
        const settled = scanner.settledBytes(pending.length + dropped) - dropped;
        pending = pending.subarray(settled);
        dropped += settled;
      }
      expect(length).toBe(frame.length);
      expect(dropped).toBeGreaterThan(0);
    }
  });

  it.each([
    ['*abc\r\n', 'Protocol error: invalid multibulk length'],
    ['*9999999999\r\n', 'Protocol error: invalid multibulk length'],
    ['*01\r\n$4\r\nPING\r\n', 'Protocol error: invalid multibulk length'],
    ['*1\r\n:4\r\n', "Protocol error: expected '$', got ':'"],
    ['*1\r\n$9999999999\r\n', 'Protocol error: invalid bulk length'],
    ['*1\r\n$-1\r\n', 'Protocol error: invalid bulk length'],
    ['*1\r\n$+4\r\nPING\r\n', 'Protocol error: invalid bulk length'],
    ['set "a\r\n', 'Protocol error: unbalanced quotes in request'],
    [`${'a'.repeat(65537)}`, 'Protocol error: too big inline request'],
    [`*${'1'.repeat(65537)}`, 'Protocol error: too big mbulk count string'],
    [`*1\r\n$${'1'.repeat(65537)}`, 'Protocol error: too big bulk count string'],
  ])("refuses %j in the server's words", (text, error) => {
    expect(errorOf(text)).toBe(error);
  });

  it('takes negative and zero counts as empty requests', () => {
    for (const text of ['*-5\r\n', '*0\r\n', '*-1\r\n']) {
      const scanner = new RequestScanner(LIMITS);
      expect(scanner.scan(Buffer.from(text), 0, text.length)).toBe(text.length);
      expect(scanner.argc).toBe(0);
    }
  });

  it('marks frames whose lines do not end in CR LF', () => {
    const scanner = new RequestScanner(LIMITS);
    const frame = Buffer.from('*1\rX$4\r\nPINGzz');
    expect(scanner.scan(frame, 0, frame.length)).toBe(frame.length);
    expect(scanner.canonical).toBe(false);
  });
});

describe('inline requests', () => {
  it.each([
    ['a b  c', ['a', 'b', 'c']],
    ["\"a\\x41\\n\" 'b\\'c'", ['aA\n', "b'c"]],
    ['"\\q\\t"', ['q\t']],
    ['"" x', ['', 'x']],
    ['   ', []],
  ])('splits %j as the server does', (line, args) => {
    expect(splitInline(Buffer.from(line))?.map((arg) => arg.toString())).toEqual(args);
  });

  it.each(['"a', "'a", '"a"b', "'a'b"])('refuses the unbalanced %j', (line) => {
    expect(splitInline(Buffer.from(line))).toBeUndefined();
  });
});
