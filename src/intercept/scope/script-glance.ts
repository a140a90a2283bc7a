/**
 * EVAL and EVALSHA in a scope, for scripts that are known: sent as a plain request is, its keys prefixed, with the wrapped
 * script, or its SHA1, in place of the client's and the prefix behind its arguments where it needs a wrapper. Only errors are looked at. Everything else
 * about scripts is an exchange (scope-scripts.ts).
 */

import { EXCHANGE, type Glance, type SentForm, type SessionView } from '../../interceptor.ts';
import * as encode from '../../resp/encode.ts';
import { type ScriptRegistry, sha1, type WrappedScript } from '../../scope/lua/script-registry.ts';
import { isError } from '../../scope/rewrite-reply.ts';
import { rewriteRequest } from '../../scope/rewrite-request.ts';
import { scopeRule } from '../../scope/rules.ts';
import type { Scope } from '../../scope/scope.ts';
import { ScopedSession } from '../../scope/scoped-session.ts';
import { scriptError } from './scripts.ts';

export const SENT_SCRIPTS: readonly string[] = ['eval', 'eval_ro', 'evalsha', 'evalsha_ro'];

/** The command, the script or its SHA1 and the number of keys stand before the keys. */
const FIRST_KEY = 3;
const SHA_BYTES = 40;
/** A short request must not become one so long that many of them, read at once, are more than a lane may have waiting. */
const TEXT_BYTES_MAX = 2048;
const ZERO = 48;
const NOTHING = Buffer.alloc(0);

interface ScriptForm extends SentForm {
  readonly script: WrappedScript;
  readonly scope: Scope;
  readonly argc: number;
  readonly keyCount: number;
}

/** `name` is the command's. */
export function glanceAtScript(scripts: ScriptRegistry, name: string): Glance {
  /** Of a session: what it ran last, for the same request comes many times. */
  const latest = Symbol(name);
  const bySha = name.startsWith('evalsha');
  let marked: ScriptForm | undefined;

  function formFor(
    session: SessionView,
    script: WrappedScript,
    scope: Scope,
    argc: number,
    keyCount: number,
  ): ScriptForm {
    const last = session.state.get(latest) as ScriptForm | undefined;
    if (last?.script === script && last.scope === scope && last.argc === argc && last.keyCount === keyCount)
      return last;
    const { sha, text, wrapped } = script.plain;
    const sent = bySha ? Buffer.from(sha) : text;
    const count = wrapped ? argc + 1 : argc;
    const form = {
      head: Buffer.concat([Buffer.from(`*${count}\r\n$${name.length}\r\n${name}\r\n`), encode.bulk(sent)]),
      argumentsFrom: 2,
      tail: wrapped ? encode.bulk(scope.prefix) : NOTHING,
      keys: { first: FIRST_KEY, last: FIRST_KEY + keyCount - 1, step: 1 },
      script,
      scope,
      argc,
      keyCount,
    };
    session.state.set(latest, form);
    return form;
  }

  /** What the request's first argument names, among the session's own that nobody has to be asked for. */
  function named(
    session: SessionView,
    owner: string,
    buffer: Buffer,
    from: number,
    to: number,
  ): WrappedScript | undefined {
    if (bySha) return to - from === SHA_BYTES ? scripts.known(owner, buffer.toString('latin1', from, to)) : undefined;
    const last = (session.state.get(latest) as ScriptForm | undefined)?.script;
    const isLast = last?.body.length === to - from && last.body.compare(buffer, from, to) === 0;
    if (to - from > scripts.bytesMax) return undefined;
    const script = scripts.known(owner, isLast ? last.sha : sha1(buffer.subarray(from, to)));
    if (script === undefined || (script.plain.wrapped && script.plain.text.length > TEXT_BYTES_MAX)) return undefined;
    return script;
  }

  return {
    errorsOnly: true,
    get form() {
      return marked;
    },
    look(buffer, start, bounds, argc, prefix, session) {
      const { scope: scoped } = session;
      // Without a prefix there are shared keys, or no scope.
      if (prefix === undefined || argc < FIRST_KEY || !(scoped instanceof ScopedSession)) return EXCHANGE;
      if (!scoped.identity.fenced) return EXCHANGE;
      const keyCount = fewKeys(buffer, start + bounds[4]!, start + bounds[5]!);
      if (keyCount < 0 || keyCount > argc - FIRST_KEY) return EXCHANGE;
      const { owner } = scoped.identity;
      const script = named(session, owner, buffer, start + bounds[2]!, start + bounds[3]!);
      if (script === undefined) return EXCHANGE;
      marked = formFor(session, script, scoped.scope, argc, keyCount);
      return 0;
    },
    answered: () => undefined,
    late(exchange, form) {
      const { scope, script } = form as ScriptForm;
      const rewritten = rewriteRequest(scope, scopeRule(exchange.command), exchange.args);
      exchange.onReply((frame) => (isError(frame) ? scriptError(scope, script, frame, rewritten) : frame));
    },
  };
}

/** A number of keys up to 99; -1 for everything else. */
function fewKeys(buffer: Buffer, from: number, to: number): number {
  const digit = buffer[from]! - ZERO;
  if (!(digit >= 0 && digit <= 9)) return -1;
  if (to - from === 1) return digit;
  const second = buffer[from + 1]! - ZERO;
  return to - from === 2 && digit > 0 && second >= 0 && second <= 9 ? digit * 10 + second : -1;
}
