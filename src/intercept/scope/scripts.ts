/** Scripts in a scope: what a client loads is wrapped, what it runs is its own, and it never sees the difference. */

import type { Exchange } from '../../interceptor.ts';
import * as encode from '../../resp/encode.ts';
import { readReply } from '../../resp/reply.ts';
import { countedKeys } from '../../scope/find-names.ts';
import { clientError, ScriptRefusal, type SentScript, type WrappedScript } from '../../scope/lua/script-registry.ts';
import { isError, rewriteError } from '../../scope/rewrite-reply.ts';
import { notPermitted, type RewrittenRequest, rewriteRequest } from '../../scope/rewrite-request.ts';
import type { Scope } from '../../scope/scope.ts';
import type { ScopedExchange } from './interceptors.ts';

const EVAL = Buffer.from('EVAL');
const ZERO = Buffer.from('0');
const RETURN_ERROR = Buffer.from('return {err=ARGV[1]}');
/** A script that does nothing, for requests that the server refuses for their arguments. */
const NOTHING = Buffer.from('return 0');
/** No script has it. */
const UNKNOWN_SHA = Buffer.from('0'.repeat(40));

/** The error as the server would give it: of a queued command it is part of EXEC's reply, and does not end the transaction. */
export function answerError(exchange: Exchange, text: string): void {
  if (exchange.queued) exchange.args = [EVAL, RETURN_ERROR, ZERO, Buffer.from(text, 'latin1')];
  else exchange.respond(encode.errorOfBytes(text));
}

export function requireFence({ session }: ScopedExchange): void {
  if (!session.identity.fenced) {
    throw notPermitted('scripts cannot be used in scopes here: the upstream user may not manage ACL users');
  }
}

/** What travels behind a script's own arguments: shared keys, their number, the prefix. */
export function trailingArguments(scope: Scope): Buffer[] {
  if (scope.shared.size === 0) return [scope.prefix];
  const shared = [...scope.shared].map((key) => Buffer.from(key, 'latin1'));
  return [...shared, Buffer.from(String(shared.length)), scope.prefix];
}

function sentFor(scope: Scope, script: WrappedScript): SentScript {
  return scope.shared.size === 0 ? script.plain : script.shared;
}

/** EVAL and EVALSHA, read-only or not. */
export function runScript(scoped: ScopedExchange): void | Promise<void> {
  requireFence(scoped);
  const { exchange, session, scripts } = scoped;
  const { args } = exchange;
  if (args.length < 3) return;
  const bySha = exchange.command!.name.startsWith('evalsha');
  if (countedKeys(args, { count: 2, first: 3 }) === undefined) {
    // The server refuses it for its number of keys.
    exchange.args = rewriteRequest(scoped.scope, scoped.rule, args).args.with(1, bySha ? UNKNOWN_SHA : NOTHING);
    return;
  }
  if (bySha) {
    const script = scripts.find(session.identity.owner, args[1]!.toString('latin1'));
    const runLoaded = (loaded: WrappedScript | undefined): void => {
      // The server has its own words for a script that it does not know.
      if (loaded === undefined)
        exchange.args = rewriteRequest(scoped.scope, scoped.rule, args).args.with(1, UNKNOWN_SHA);
      else send(scoped, loaded, Buffer.from(sentFor(scoped.scope, loaded).sha));
    };
    return script instanceof Promise ? script.then(runLoaded) : runLoaded(script);
  }
  const found = scripts.add(session.identity.owner, args[1]!);
  const run = (script: WrappedScript | ScriptRefusal): void => {
    if (script instanceof ScriptRefusal) answerError(exchange, script.text);
    else send(scoped, script, sentFor(scoped.scope, script).text);
  };
  return found instanceof Promise ? found.then(run) : run(found);
}

function send({ exchange, scope, rule }: ScopedExchange, script: WrappedScript, sent: Buffer): void {
  const rewritten = rewriteRequest(scope, rule, exchange.args);
  const { args } = rewritten;
  const trailing = sentFor(scope, script).wrapped ? trailingArguments(scope) : [];
  exchange.args = [args[0]!, sent, ...args.slice(2), ...trailing];
  exchange.onReply((frame) => (isError(frame) ? scriptError(scope, script, frame, rewritten) : frame));
}

/** An error of a script, as the client may see it. */
export function scriptError(scope: Scope, script: WrappedScript, frame: Buffer, request: RewrittenRequest): Buffer {
  const said = readReply(frame).bytes.toString('latin1');
  const text = sentFor(scope, script).wrapped ? clientError(script, said) : said;
  return rewriteError(scope, encode.errorOfBytes(text), request);
}

export async function loadScript(scoped: ScopedExchange): Promise<void> {
  requireFence(scoped);
  const { exchange, session, scope, scripts } = scoped;
  const { args } = exchange;
  if (args.length !== 3) return;
  const script = await scripts.load(session.identity.owner, args[2]!);
  if (script instanceof ScriptRefusal) {
    answerError(exchange, script.text);
    return;
  }
  exchange.args = args.with(2, sentFor(scope, script).text);
  exchange.onReply((frame) => (isError(frame) ? frame : encode.bulk(script.sha)));
}

export async function scriptsExist({ exchange, session, scope, scripts }: ScopedExchange): Promise<void> {
  const args = [...exchange.args];
  for (const [at, sha] of args.entries()) {
    if (at < 2) continue;
    const script = await scripts.find(session.identity.owner, sha.toString('latin1'));
    args[at] = script === undefined ? UNKNOWN_SHA : Buffer.from(sentFor(scope, script).sha);
  }
  exchange.args = args;
}

/** The KV store keeps them, for others may have loaded the same; nobody of this identity can run them any more. */
export async function flushScripts({ exchange, session, scripts }: ScopedExchange): Promise<void> {
  const [, , mode, ...more] = exchange.args;
  if (more.length > 0 || (mode !== undefined && !/^a?sync$/i.test(mode.toString('latin1')))) {
    answerError(exchange, 'ERR SCRIPT FLUSH only support SYNC|ASYNC option');
    return;
  }
  await scripts.forget(session.identity.owner);
  exchange.respond(encode.OK);
}

/** Answered here whatever it asks: the KV store knows wrapped scripts only, and does not let scopes see them. */
export async function showScript({ exchange, session, scripts }: ScopedExchange): Promise<void> {
  const [, , sha, ...more] = exchange.args;
  if (sha === undefined || more.length > 0) {
    answerError(exchange, "ERR wrong number of arguments for 'script|show' command");
    return;
  }
  const script = await scripts.find(session.identity.owner, sha.toString('latin1'));
  if (script === undefined) answerError(exchange, 'NOSCRIPT No matching script.');
  else exchange.respond(encode.bulk(script.body));
}
