/**
 * SCAN in a scope. The server's pages are of all keys, and most of them may be others': passed on, empty pages and the
 * number of pages would count these. So a page is filled from as many of the server's as it takes, in batches that hold up
 * nobody. How long that takes still tells how much the server holds.
 *
 * In a transaction, where nothing can be walked, all keys come at once, as a server gives the members of small sets.
 */
import * as encode from '../../resp/encode.ts';
import { aggregate, readReply } from '../../resp/reply.ts';
import { wordAt } from '../../scope/find-names.ts';
import { isError, rewriteReply } from '../../scope/rewrite-reply.ts';
import { scanCursors } from '../../scope/scan-cursor.ts';
import { logicalKey, physicalPattern, type Scope } from '../../scope/scope.ts';
import type { ScopedExchange } from './interceptors.ts';

const COUNT_DEFAULT = 10;
/** As many keys hold up nobody. */
const BATCH_MAX = 1000;
const OPTIONS_AT = 2;
const ANYTHING = Buffer.from('*');
/** The request is judged by a SCAN of the server, whose page nobody sees. */
const ALL_AT_ONCE = Buffer.from(
  "local r=redis.pcall(unpack(ARGV,3)) if r.err then return r end local k,o=redis.call('KEYS',ARGV[1]),{} " +
    "for i=1,#k do if ARGV[2]=='' or string.lower(redis.call('TYPE',k[i]).ok)==string.lower(ARGV[2]) then o[#o+1]=k[i] end end " +
    "return {'0',o}",
);

interface ScanOptions {
  readonly pattern: Buffer;
  readonly type: Buffer;
  readonly count: number;
  /** Everything else, as it came. */
  readonly others: readonly Buffer[];
}

/** Of several the last one counts. `undefined` where the server refuses them. */
function readOptions(args: readonly Buffer[]): ScanOptions | undefined {
  if (args.length % 2 !== 0) return undefined;
  let pattern: Buffer = ANYTHING;
  let type: Buffer = Buffer.alloc(0);
  let count = COUNT_DEFAULT;
  const others: Buffer[] = [];
  for (let at = OPTIONS_AT; at < args.length; at += 2) {
    const value = args[at + 1]!;
    const word = wordAt(args, at);
    if (word === 'match') pattern = value;
    else if (word === 'count') count = /^[1-9]\d{0,17}$/.test(value.toString('latin1')) ? Number(value.toString()) : 0;
    else others.push(args[at]!, value);
    if (word === 'type') type = value;
  }
  return count > 0 ? { pattern, type, count, others } : undefined;
}

export function scanScope(secret: Buffer): (scoped: ScopedExchange) => Promise<void> {
  return async ({ exchange, scope }) => {
    const { args } = exchange;
    const options = args.length < OPTIONS_AT ? undefined : readOptions(args);
    if (options === undefined) {
      exchange.onReply((frame) => ownPage(scope, frame));
      return;
    }
    if (exchange.queued) {
      const pattern = physicalPattern(scope, options.pattern);
      exchange.args = [Buffer.from('EVAL'), ALL_AT_ONCE, Buffer.from('0'), pattern, options.type, ...args];
      exchange.onReply((frame) => ownPage(scope, frame));
      return;
    }
    const cursors = scanCursors(secret, scope.id);
    let cursor = cursors.physical(args[1]!.toString('latin1'));
    const keys: Buffer[] = [];
    for (let batch = Math.min(options.count, BATCH_MAX); ; batch = Math.min(batch * 2, BATCH_MAX)) {
      const frame = await exchange.run(pageRequest(scope, args[0]!, cursor, options, batch));
      if (isError(frame)) {
        exchange.respond(frame);
        return;
      }
      const [next, page] = readReply(frame).items!;
      cursor = next!.bytes.toString('latin1');
      for (const { bytes } of page!.items!) {
        const key = logicalKey(scope, bytes);
        if (key !== undefined) keys.push(encode.bulk(key));
      }
      if (cursor === '0' || keys.length >= options.count || exchange.session.closed) break;
    }
    exchange.respond(aggregate('*', [encode.bulk(cursors.logical(cursor)), aggregate('*', keys)]));
  };
}

/** What of a page of the server's is the scope's. */
function ownPage(scope: Scope, frame: Buffer): Buffer {
  return rewriteReply(scope, 'scan', frame, { args: [], logical: [], keysAt: [] });
}

function pageRequest(scope: Scope, name: Buffer, cursor: string, options: ScanOptions, count: number): Buffer[] {
  const { pattern, others } = options;
  return [
    name,
    Buffer.from(cursor, 'latin1'),
    Buffer.from('MATCH'),
    physicalPattern(scope, pattern),
    Buffer.from('COUNT'),
    Buffer.from(String(count)),
    ...others,
  ];
}
