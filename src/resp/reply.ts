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
/** Servers stop a script's reply near 8,000 levels. */
const NESTING_MAX = 10_000;

function lineEnd(buffer: Buffer, from: number): number {
  const at = buffer.indexOf(CR, from);
  if (at < 0 || at + 1 >= buffer.length) throw new HoldfastError('ERR', 'incomplete reply frame');
  return at;
}

/** An aggregate whose members are being read. */
interface OpenAggregate {
  readonly type: ReplyType;
  readonly start: number;
  readonly items: Reply[];
  /** Members still to come. */
  left: number;
  /** Came before it. */
  readonly attribute: Reply | undefined;
}

/** A scalar, a null or an empty aggregate that starts at `start`; else the number of members that follow the header. */
function readOne(buffer: Buffer, start: number): Reply | number {
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
      if (count > 0) return type === '%' || type === '|' ? count * 2 : count;
      const items = count < 0 ? undefined : [];
      return { type, bytes: EMPTY, items, isNull: count < 0, raw: buffer.subarray(start, next) };
    }
    default:
      throw new HoldfastError('ERR', `unknown reply type byte ${buffer[start]}`);
  }
}

/**
 * Reads the one frame that starts at `start`. Throws `ERR` when it is incomplete, malformed or nested deeper than
 * `NESTING_MAX`. A stack of its own: how deep a peer nests must not decide how deep this process calls.
 */
export function readReply(buffer: Buffer, start = 0): Reply {
  const open: OpenAggregate[] = [];
  let attribute: Reply | undefined;
  let at = start;
  for (;;) {
    const one = readOne(buffer, at);
    if (typeof one === 'number') {
      if (open.length >= NESTING_MAX) {
        throw new HoldfastError('ERR', `the reply is nested deeper than ${NESTING_MAX} levels; ask for less at once`);
      }
      const type = String.fromCharCode(buffer[at]!) as ReplyType;
      open.push({ type, start: at, items: [], left: one, attribute });
      attribute = undefined;
      at = lineEnd(buffer, at + 1) + 2;
      continue;
    }
    at += one.raw.length;
    let reply: Reply = one;
    for (;;) {
      if (reply.type === '|') {
        attribute ??= reply;
        break;
      }
      if (attribute !== undefined) {
        reply = { ...reply, attribute, raw: buffer.subarray(attribute.raw.byteOffset - buffer.byteOffset, at) };
        attribute = undefined;
      }
      const parent = open.at(-1);
      if (parent === undefined) return reply;
      parent.items.push(reply);
      parent.left -= 1;
      if (parent.left > 0) break;
      open.pop();
      const raw = buffer.subarray(parent.start, at);
      reply = { type: parent.type, bytes: EMPTY, items: parent.items, isNull: false, raw };
      attribute = parent.attribute;
    }
  }
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
  const roots: ReplyValue[] = [];
  const left: { readonly reply: Reply; readonly into: ReplyValue[] }[] = [{ reply, into: roots }];
  for (let next = left.pop(); next !== undefined; next = left.pop()) {
    const { bytes, isNull, items, type } = next.reply;
    if (isNull) next.into.push(null);
    else if (items !== undefined) {
      const into: ReplyValue[] = [];
      next.into.push(into);
      for (let i = items.length - 1; i >= 0; i -= 1) left.push({ reply: items[i]!, into });
    } else next.into.push(type === ':' ? Number(bytes.toString('latin1')) : bytes.toString());
  }
  return roots[0]!;
}

/** A copy of an aggregate with other members: `items` are whole frames, as many as the aggregate had or fewer/more. */
export function aggregate(type: '*' | '~' | '>' | '%', items: readonly Buffer[]): Buffer {
  const count = type === '%' ? items.length / 2 : items.length;
  return Buffer.concat([Buffer.from(`${type}${count}\r\n`, 'latin1'), ...items]);
}
