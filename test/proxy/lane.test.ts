/** What a lane makes of the server's bytes, however they are split: pushes apart from replies, confirmations counted by the server. */
import type { Socket } from 'node:net';
import { PassThrough } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { HoldfastError } from '../../src/errors.ts';
import { Lane, type LaneOwner } from '../../src/proxy/upstream/lane.ts';
import type { ReplyReceiver } from '../../src/proxy/upstream/reply-queue.ts';
import { request } from '../../src/resp/encode.ts';

/** A dedicated lane and a record of what it told, in order. */
function recordingLane() {
  const told: string[] = [];
  const lane = new Lane(new PassThrough() as unknown as Socket, undefined, 1 << 20, () => undefined);
  lane.state = 'ready';
  const fault = (thrown: unknown) => void told.push(`fault ${thrown}`);
  const owner: LaneOwner = {
    push: (frame) => void told.push(`push ${frame}`),
    rawBytes: () => undefined,
    laneClosed: (cause) => void told.push(`closed: ${cause.message}`),
    laneDrained: () => undefined,
    readBegins: () => undefined,
    readEnds: () => undefined,
    fault,
  };
  lane.owner = owner;
  const receiver: ReplyReceiver = {
    deliver: (buffer, start, end) => void told.push(buffer.toString('latin1', start, end)),
    repliesDone: () => undefined,
    repliesLost: (count, partial) => void told.push(`${count} lost${partial ? ' within a reply' : ''}`),
    fault,
  };
  return {
    lane,
    told,
    plain: (count: number) => lane.sendPlain(receiver, request(['X']), 0, 0, count),
    whole: () =>
      lane.sendWhole(
        { reply: (frame) => void told.push(`whole ${frame}`), lost: () => void told.push('lost'), fault },
        request(['X']),
      ),
    /** `count` confirmations of `word`. */
    confirmed(word: string, count: number) {
      let left = count;
      lane.sendConfirmed(
        {
          word: Buffer.from(word),
          confirmed(frame) {
            told.push(`confirmed ${frame}`);
            left -= 1;
            return left === 0 || frame[0] === 45;
          },
          done: () => void told.push('all confirmed'),
          lost: () => void told.push('confirmations lost'),
          fault,
        },
        request(['X']),
      );
    },
  };
}

const MESSAGE = '>3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\nm1\r\n';
const INVALIDATION = '>2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n';

describe('pushes in the middle of replies', () => {
  const reply = (a: string, b: string) =>
    `*3\r\n${a}:1\r\n*2\r\n$3\r\n>3\r\r\n${b}%1\r\n+k\r\n${a}+v\r\n${b}$5\r\nhello\r\n`;
  const bare = reply('', '');
  const stream = Buffer.from(
    `:7\r\n${reply(MESSAGE, INVALIDATION)}${INVALIDATION}+OK\r\n${reply(INVALIDATION, '')}:8\r\n`,
    'latin1',
  );

  function play(owe: (record: ReturnType<typeof recordingLane>) => void, cuts: readonly number[]): string {
    const record = recordingLane();
    owe(record);
    let from = 0;
    for (const cut of [...cuts, stream.length]) {
      if (cut > from) record.lane.read(stream.subarray(from, cut), cut - from);
      from = cut;
    }
    expect(record.lane.state).toBe('ready');
    expect(record.lane.owed).toBe(0);
    return record.told.join('');
  }

  const pushed = (push: string) => `push ${push}`;
  const lifted = [pushed(MESSAGE), pushed(INVALIDATION), pushed(MESSAGE), pushed(INVALIDATION)];

  it.each([
    ['plain', (record: ReturnType<typeof recordingLane>) => record.plain(5), (text: string) => text],
    [
      'whole',
      (record: ReturnType<typeof recordingLane>) => {
        for (let i = 0; i < 5; i += 1) record.whole();
      },
      (text: string) => `whole ${text}`,
    ],
  ] as const)('follow %s replies, which are framed as if they were not there, at every split', (_kind, owe, told) => {
    const lines = [
      told(':7\r\n'),
      told(bare),
      ...lifted,
      pushed(INVALIDATION),
      told('+OK\r\n'),
      told(bare),
      pushed(INVALIDATION),
      pushed(INVALIDATION),
      told(':8\r\n'),
    ];
    const expected = lines.join('');
    for (let cut = 0; cut <= stream.length; cut += 1) expect(play(owe, [cut]), `split at ${cut}`).toBe(expected);
    expect(play(owe, [...stream.keys()]), 'byte by byte').toBe(expected);
  });

  it('leave a reply that breaks off within one incomplete', () => {
    const record = recordingLane();
    record.plain(1);
    const cut = Buffer.from('*2\r\n:1\r\n>2\r\n$10\r\ninval');
    record.lane.read(cut, cut.length);
    record.lane.close(new HoldfastError('KVDOWN', 'gone'));
    expect(record.told).toEqual(['*2\r\n:1\r\n', '1 lost within a reply', 'closed: gone']);
  });
});

describe('confirmations', () => {
  const frame = (type: string, word: string, name: string, count: number) =>
    `${type}3\r\n$${word.length}\r\n${word}\r\n$${name.length}\r\n${name}\r\n:${count}\r\n`;

  it.each(['>', '*'])('are told from replies and messages by their own word, as %s', (type) => {
    const record = recordingLane();
    const message = frame(type, 'message', 'c', 1).replace(':1', '+m');
    record.plain(1);
    record.confirmed('subscribe', 2);
    record.confirmed('unsubscribe', 1);
    record.whole();
    const early = '*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n+m\r\n';
    const parts = [
      early,
      frame(type, 'subscribe', 'c', 1),
      message,
      frame(type, 'subscribe', 'd', 2),
      frame(type, 'unsubscribe', 'c', 1),
      '-ERR no\r\n',
    ];
    const bytes = Buffer.from(parts.join(''));
    record.lane.read(bytes, bytes.length);
    expect(record.told).toEqual([
      early,
      `confirmed ${parts[1]}`,
      `push ${message}`,
      `confirmed ${parts[3]}`,
      'all confirmed',
      `confirmed ${parts[4]}`,
      'all confirmed',
      'whole -ERR no\r\n',
    ]);
  });

  it('end with an error, and the reply behind it is the next request’s', () => {
    const record = recordingLane();
    record.confirmed('unsubscribe', 3);
    record.whole();
    const bytes = Buffer.from("-NOSUB 'unsubscribe' command executed not in subscribed mode\r\n+OK\r\n");
    record.lane.read(bytes, bytes.length);
    expect(record.told.slice(1)).toEqual(['all confirmed', 'whole +OK\r\n']);
  });

  it('close the lane where something else comes in their place', () => {
    const record = recordingLane();
    record.confirmed('subscribe', 1);
    record.whole();
    record.lane.read(Buffer.from('$3\r\nfoo\r\n'), 9);
    expect(record.lane.state).toBe('closed');
    expect(record.told).toEqual([
      'confirmations lost',
      'lost',
      'closed: the KV store sent a reply where only a confirmation can be',
    ]);
  });
});
