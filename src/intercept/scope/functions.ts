/**
 * Libraries of functions in a scope. The KV store has one namespace for all: libraries and functions of an identity carry
 * a prefix of their own there, which its clients never see, and are wrapped as scripts are.
 */

import * as encode from '../../resp/encode.ts';
import { aggregate, type Reply, readReply } from '../../resp/reply.ts';
import { countedKeys } from '../../scope/find-names.ts';
import { LIBRARY_MARK, NESTED_END, NESTED_START, registrationError, wrapLibrary } from '../../scope/lua/lua-wrapper.ts';
import { sha1, splitShebang, tooLong } from '../../scope/lua/script-registry.ts';
import { isError, rewriteError } from '../../scope/rewrite-reply.ts';
import { rewriteRequest } from '../../scope/rewrite-request.ts';
import type { ScopedExchange } from './interceptors.ts';
import { notInTransaction } from './keyspace.ts';
import { answerError, requireFence, trailingArguments } from './scripts.ts';

const NO_FUNCTIONS = 'No functions registered';
const OTHER_METADATA = 'ERR library metadata is "#!lua name=<library>" and a line break in a scope';
/** The name may stand in quotes. */
const METADATA = /^(#!lua[ \t]+name=(["']?))([A-Za-z0-9_]+\2[ \t]*\r?\n)$/i;
const COMPILING = 'ERR Error compiling function: ';
const ESCAPE = 27;

/** Before the names of an identity's libraries and functions; letters and digits, as the server wants. */
function namePrefix({ session }: ScopedExchange): string {
  return `hf${sha1(session.identity.owner).slice(0, 16)}_`;
}

/** Errors speak of functions and libraries by the names that the server knows. */
function withoutPrefix(prefix: string, frame: Buffer): Buffer {
  const text = readReply(frame).bytes.toString('latin1');
  return encode.errorOfBytes(text.replaceAll(prefix, ''));
}

export function callFunction(scoped: ScopedExchange): void {
  requireFence(scoped);
  const { exchange, scope, rule } = scoped;
  const original = exchange.args;
  if (original.length < 3) return;
  const rewritten = rewriteRequest(scope, rule, original);
  const { args } = rewritten;
  const prefix = namePrefix(scoped);
  const named = args.with(1, Buffer.concat([Buffer.from(prefix), args[1]!]));
  const counted = countedKeys(original, { count: 2, first: 3 }) !== undefined;
  exchange.args = counted ? [...named, ...trailingArguments(scope)] : named;
  exchange.onReply((frame) => (isError(frame) ? rewriteError(scope, withoutPrefix(prefix, frame), rewritten) : frame));
}

/** FUNCTION LOAD [REPLACE] code */
export async function loadLibrary(scoped: ScopedExchange): Promise<void> {
  requireFence(scoped);
  const { exchange, session, scripts } = scoped;
  const { args } = exchange;
  if (args.length < 3) return;
  const { length } = args.at(-1)!;
  if (length > scripts.bytesMax) {
    answerError(exchange, tooLong(length, scripts.bytesMax));
    return;
  }
  const text = args.at(-1)!.toString('latin1');
  const split = splitShebang(text);
  const head = METADATA.exec(split?.shebang ?? '');
  if (split === undefined || head === null) {
    // The server says what is wrong with it, or that there are no functions in it: behind it is nothing.
    exchange.args = args.with(-1, Buffer.from(split?.shebang ?? text, 'latin1'));
    exchange.onReply((frame) => (frame.includes(NO_FUNCTIONS) ? encode.error(OTHER_METADATA) : frame));
    return;
  }
  if (split.code.charCodeAt(0) === ESCAPE) {
    answerError(exchange, `${COMPILING}user_function:2: malformed number near 'ESC'`);
    return;
  }
  const prefix = namePrefix(scoped);
  const shared = session.identity.shared.length > 0;
  const unknownGlobals = await scripts.unknownGlobals();
  const forms = [false, true].map((nested) => wrapLibrary(split.code, prefix, { shared, nested, unknownGlobals }));
  const judged = await scripts.compile(`\n${split.code}`, forms, 'user_function');
  if (typeof judged === 'string') {
    answerError(exchange, `${COMPILING}${judged}`);
    return;
  }
  const wrapped = `${head[1]}${prefix}${head[3]}${forms[judged]}`;
  exchange.args = args.with(-1, Buffer.from(wrapped, 'latin1'));
  exchange.onReply((frame) => {
    if (!isError(frame)) return ownName(prefix, readReply(frame));
    const text = readReply(withoutPrefix(prefix, frame)).bytes.toString('latin1');
    return encode.errorOfBytes(registrationError(text));
  });
}

function ownName(prefix: string, name: Reply): Buffer {
  return name.isNull ? name.raw : encode.bulk(Buffer.from(name.bytes.toString('latin1').replace(prefix, ''), 'latin1'));
}

export function deleteLibrary(scoped: ScopedExchange): void {
  const { exchange } = scoped;
  const { args } = exchange;
  if (args.length !== 3) return;
  const prefix = namePrefix(scoped);
  exchange.args = args.with(2, Buffer.concat([Buffer.from(prefix), args[2]!]));
  exchange.onReply((frame) => (isError(frame) ? withoutPrefix(prefix, frame) : frame));
}

/** FUNCTION LIST [LIBRARYNAME pattern] [WITHCODE] */
export function listLibraries(scoped: ScopedExchange): void {
  const { exchange } = scoped;
  const prefix = namePrefix(scoped);
  const args = [...exchange.args];
  let named = false;
  for (let at = 2; at + 1 < args.length; at += 1) {
    if (args[at]!.toString('latin1').toLowerCase() !== 'libraryname') continue;
    args[at + 1] = Buffer.concat([Buffer.from(prefix), args[at + 1]!]);
    named = true;
    at += 1;
  }
  // One without a pattern behind it is the server's to refuse.
  if (args.at(-1)!.toString('latin1').toLowerCase() === 'libraryname') named = true;
  if (!named) args.splice(2, 0, Buffer.from('LIBRARYNAME'), Buffer.from(`${prefix}*`));
  exchange.args = args;
  exchange.onReply((frame) => {
    if (isError(frame)) return withoutPrefix(prefix, frame);
    const libraries = readReply(frame).items!;
    const own = libraries.filter((library) =>
      field(library, 'library_name')?.bytes.toString('latin1').startsWith(prefix),
    );
    return aggregate(
      '*',
      own.map((library) => ownLibrary(prefix, library)),
    );
  });
}

function field(map: Reply, name: string): Reply | undefined {
  const at = map.items?.findIndex((item, index) => index % 2 === 0 && item.bytes.toString() === name) ?? -1;
  return at < 0 ? undefined : map.items![at + 1];
}

function mapFields(map: Reply, change: (name: string, value: Reply) => Buffer): Buffer {
  const items = map.items!.map((item, at, all) =>
    at % 2 === 0 ? item.raw : change(all[at - 1]!.bytes.toString(), item),
  );
  return aggregate(map.type === '%' ? '%' : '*', items);
}

function ownLibrary(prefix: string, library: Reply): Buffer {
  return mapFields(library, (name, value) => {
    switch (name) {
      case 'library_name':
        return ownName(prefix, value);
      case 'functions':
        return aggregate(
          '*',
          value.items!.map((one) => mapFields(one, (key, item) => (key === 'name' ? ownName(prefix, item) : item.raw))),
        );
      case 'library_code':
        return encode.bulk(Buffer.from(ownCode(prefix, value.bytes.toString('latin1')), 'latin1'));
      default:
        return value.raw;
    }
  });
}

/** The client's own code out of a wrapped library. */
function ownCode(prefix: string, wrapped: string): string {
  const { shebang, code } = splitShebang(wrapped)!;
  const body = code.slice(code.indexOf(LIBRARY_MARK) + LIBRARY_MARK.length + 1);
  const nested = body.startsWith(NESTED_START) && body.endsWith(NESTED_END);
  const text = nested ? body.slice(NESTED_START.length, -NESTED_END.length) : body;
  return shebang.replace(prefix, '') + text;
}

/** The identity's libraries, one by one. */
export async function flushLibraries(scoped: ScopedExchange): Promise<void> {
  const { exchange } = scoped;
  const [, , mode, ...more] = exchange.args;
  if (more.length > 0) {
    answerError(exchange, "ERR unknown subcommand or wrong number of arguments for 'flush'. Try FUNCTION HELP.");
    return;
  }
  if (mode !== undefined && !/^a?sync$/i.test(mode.toString('latin1'))) {
    answerError(exchange, 'ERR FUNCTION FLUSH only supports SYNC|ASYNC option');
    return;
  }
  if (exchange.queued) throw notInTransaction('FUNCTION FLUSH');
  const prefix = namePrefix(scoped);
  const listed = readReply(
    await exchange.run(['FUNCTION', 'LIST', 'LIBRARYNAME', `${prefix}*`].map((arg) => Buffer.from(arg))),
  );
  for (const library of listed.items ?? []) {
    const name = field(library, 'library_name');
    if (name === undefined || !name.bytes.toString('latin1').startsWith(prefix)) continue;
    await exchange.run([Buffer.from('FUNCTION'), Buffer.from('DELETE'), name.bytes]);
  }
  exchange.respond(encode.OK);
}
