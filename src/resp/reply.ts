/**
 * One reply as a tree, for the places that look into replies (interceptors, scope, lanes at handshake).
 * Views only: `bytes` and `raw` are subarrays of the buffer that was read, valid as long as that buffer is.
 *
 * Invariant: `encodeReply(readReply(b))` equals `b` for every frame that a server sends.
 */
import { HoldfastError } from '../errors.ts';

/** The first byte of a frame, as a character: `+ - : $ * _ # , ( ! = % ~ > |`. */
export type ReplyType = '+' | '-' | ':' | '$' | '*' | '_' | '#' | ',' | '(' | '!' | '=' | '%' | '~' | '>' | '|';

export interface Reply {
  readonly type: ReplyType;
  /** The payload of a scalar (text after the type byte, or the body of a bulk); empty for aggregates. */
  readonly bytes: Buffer;
  /** Members of an aggregate, a map's keys and values alternating; `undefined` for scalars and nulls. */
  readonly items: readonly Reply[] | undefined;
  /** `$-1`, `*-1` and `_`. */
  readonly isNull: boolean;
  /** An attribute (`|`) that came before this reply, if any. */
  readonly attribute?: Reply;
  /** The whole frame as it stood in the buffer. */
  readonly raw: Buffer;
}

const CR = 13;
const EMPTY = Buffer.alloc(0);

function lineEnd(buffer: Buffer, from: number): number {
  const at = buffer.indexOf(CR, from);
  if (at < 0 || at + 1 >= buffer.length) throw new HoldfastError('ERR', 'incomplete reply frame');
  return at;
}

function readAt(buffer: Buffer, start: number): Reply {
  const type = String.fromCharCode(buffer[start]!) as ReplyType;
  const end = lineEnd(buffer, start + 1);
  const next = end + 2;
  switch (type) {
    case '+':
    case '-':
    case ':':
    case '#':
    case ',':
    case '(':
    case '_':
      return {
        type,
        bytes: buffer.subarray(start + 1, end),
        items: undefined,
        isNull: type === '_',
        raw: buffer.subarray(start, next),
      };
    case '$':
    case '!':
    case '=': {
      const length = Number(buffer.toString('latin1', start + 1, end));
      if (length < 0) return { type, bytes: EMPTY, items: undefined, isNull: true, raw: buffer.subarray(start, next) };
      if (next + length + 2 > buffer.length) throw new HoldfastError('ERR', 'incomplete reply frame');
      return {
        type,
        bytes: buffer.subarray(next, next + length),
        items: undefined,
        isNull: false,
        raw: buffer.subarray(start, next + length + 2),
      };
    }
    case '*':
    case '~':
    case '>':
    case '%':
    case '|': {
      const count = Number(buffer.toString('latin1', start + 1, end));
      if (count < 0) return { type, bytes: EMPTY, items: undefined, isNull: true, raw: buffer.subarray(start, next) };
      const length = type === '%' || type === '|' ? count * 2 : count;
      const items: Reply[] = [];
      let at = next;
      for (let i = 0; i < length; i += 1) {
        const item = readAt(buffer, at);
        items.push(item);
        at += item.raw.length;
      }
      if (type === '|') {
        const attribute: Reply = { type, bytes: EMPTY, items, isNull: false, raw: buffer.subarray(start, at) };
        const reply = readAt(buffer, at);
        return { ...reply, attribute, raw: buffer.subarray(start, at + reply.raw.length) };
      }
      return { type, bytes: EMPTY, items, isNull: false, raw: buffer.subarray(start, at) };
    }
    default:
      throw new HoldfastError('ERR', `unknown reply type byte ${buffer[start]}`);
  }
}

/** Reads the one frame that starts at `start`. Throws `ERR` when it is incomplete or malformed. */
export function readReply(buffer: Buffer, start = 0): Reply {
  return readAt(buffer, start);
}

/** Whether a frame is `$-1` or `_`. */
export function isNullFrame(frame: Buffer): boolean {
  return frame[0] === 95 || (frame[0] === 36 && frame[1] === 45);
}

/** The text of an error reply (`CODE message`), or `undefined` where the reply is not an error. */
export function errorText(reply: Reply): string | undefined {
  return reply.type === '-' || reply.type === '!' ? reply.bytes.toString() : undefined;
}

export type ReplyValue = string | number | null | ReplyValue[];

/** A reply as plain JavaScript values (bulk and simple strings as UTF-8 text, maps flat): for handshakes and tests. */
export function replyValue(reply: Reply): ReplyValue {
  if (reply.isNull) return null;
  if (reply.items !== undefined) return reply.items.map(replyValue);
  if (reply.type === ':') return Number(reply.bytes.toString('latin1'));
  return reply.bytes.toString();
}

/** A copy of an aggregate with other members: `items` are whole frames, as many as the aggregate had or fewer/more. */
export function aggregate(type: '*' | '~' | '>' | '%', items: readonly Buffer[]): Buffer {
  const count = type === '%' ? items.length / 2 : items.length;
  return Buffer.concat([Buffer.from(`${type}${count}\r\n`, 'latin1'), ...items]);
}
