/** The parts of `XADD key [NOMKSTREAM] [MAXLEN|MINID [=|~] threshold [LIMIT count]] <*|id> field value …`. */
import { parseEntryId } from '../../ledger/encoding/entry-id.ts';

export interface XaddRequest {
  readonly noMkStream: boolean;
  /** An exact MAXLEN. */
  readonly maxlen: number | undefined;
  /** Position of the ID argument. */
  readonly idAt: number;
  /** As the client asked: `undefined` for `*`, 8 bytes for `ms-*`, 16 for a whole ID. */
  readonly requested: Buffer | undefined;
}

const NOMKSTREAM = 'nomkstream';

/** `undefined` where the KV store would refuse it: let it say so. */
export function parseXadd(args: readonly Buffer[]): XaddRequest | undefined {
  let at = 2;
  let noMkStream = false;
  let maxlen: number | undefined;
  for (; at < args.length; at += 1) {
    const arg = args[at]!;
    // The usual case first: `*`.
    if (arg.length === 1 && arg[0] === 0x2a) break;
    const first = arg[0]! | 0x20;
    if (first !== 0x6e && first !== 0x6d && first !== 0x6c) break;
    const word = arg.toString('latin1').toLowerCase();
    if (word === NOMKSTREAM) {
      noMkStream = true;
    } else if (word === 'maxlen' || word === 'minid') {
      let approximate = false;
      const sign = args[at + 1];
      if (sign?.length === 1 && (sign[0] === 0x7e || sign[0] === 0x3d)) {
        approximate = sign[0] === 0x7e;
        at += 1;
      }
      at += 1;
      if (word === 'maxlen' && !approximate) maxlen = Number(args[at]?.toString('latin1'));
    } else if (word === 'limit') at += 1;
    else return undefined;
  }
  const idArgument = args[at];
  const fields = args.length - at - 1;
  if (idArgument === undefined || fields < 2 || fields % 2 !== 0) return undefined;
  if (maxlen !== undefined && !(Number.isSafeInteger(maxlen) && maxlen >= 0)) return undefined;
  if (idArgument.length === 1 && idArgument[0] === 0x2a) return { noMkStream, maxlen, idAt: at, requested: undefined };
  const text = idArgument.toString('latin1');
  const requested = text.endsWith('-*')
    ? parseEntryId(`${text.slice(0, -2)}-0`)?.subarray(0, 8)
    : parseEntryId(text, 'min');
  return requested === undefined ? undefined : { noMkStream, maxlen, idAt: at, requested };
}
