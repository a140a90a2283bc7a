/**
 * Confines a session to its scope: requests go out with physical names, replies come back with logical ones. It is the
 * first interceptor, so that all others see physical names only, as if the client had written them.
 *
 * What needs nothing but a prefix never comes here (`prefixedKeys`). What cannot be confined was refused before (`confine`).
 */

import type { Exchange, Interceptor } from '../../interceptor.ts';
import * as encode from '../../resp/encode.ts';
import { isLongList, rewriteNameList } from '../../resp/name-list.ts';
import { readReply } from '../../resp/reply.ts';
import { refused } from '../../scope/confine.ts';
import type { ScriptRegistry } from '../../scope/lua/script-registry.ts';
import { isError, rewriteReply } from '../../scope/rewrite-reply.ts';
import { NO_SCOPE_CHOSEN, notPermitted, rewriteRequest } from '../../scope/rewrite-request.ts';
import { type ScopeRule, type Special, scopeRule } from '../../scope/rules.ts';
import { logicalKey, type Scope, unprefixed } from '../../scope/scope.ts';
import { ScopedSession } from '../../scope/scoped-session.ts';
import { callFunction, deleteLibrary, flushLibraries, listLibraries, loadLibrary } from './functions.ts';
import { countKeys, flushDatabase, flushDatabases, type LedgeredStreams, randomKey } from './keyspace.ts';
import { scanScope } from './scan.ts';
import { glanceAtScript, SENT_SCRIPTS } from './script-glance.ts';
import { flushScripts, loadScript, runScript, scriptsExist, showScript } from './scripts.ts';

/** One request in a scope, as the handlers of special commands get it. */
export interface ScopedExchange {
  readonly exchange: Exchange;
  readonly session: ScopedSession;
  readonly scope: Scope;
  readonly rule: ScopeRule;
  readonly scripts: ScriptRegistry;
  readonly ledgered: LedgeredStreams;
}

type Handler = (scoped: ScopedExchange) => void | Promise<void>;

/** The session behind an exchange of a scoped interceptor, and the scope of this one request. */
export function scopeOf(exchange: Exchange): { session: ScopedSession; scope: Scope } {
  const session = exchange.session.scope;
  if (!(session instanceof ScopedSession)) throw notPermitted('this session has no scope');
  return { session, scope: (exchange.scope as Scope | undefined) ?? session.scope };
}

/** What a real key begins with where it is one of the request's scope; `undefined` for shared keys, and without a scope. */
export function prefixOf(exchange: Exchange, key: Buffer): Buffer | undefined {
  if (!(exchange.session.scope instanceof ScopedSession)) return undefined;
  const { prefix } = scopeOf(exchange).scope;
  return key.subarray(0, prefix.length).equals(prefix) ? prefix : undefined;
}

/** `secret` is the same in all sidecars of a KV store: cursors that one gave, another takes. */
export function scopeInterceptors(scripts: ScriptRegistry, ledgered: LedgeredStreams, secret: Buffer): Interceptor[] {
  /** Sessions of this process that have patterns, for PUBSUB NUMPAT. */
  const listening = new Set<ScopedSession>();

  const specials: Readonly<Record<Special, Handler>> = {
    script: runScript,
    'script-load': loadScript,
    'script-exists': scriptsExist,
    'script-flush': flushScripts,
    'script-show': showScript,
    'function-call': callFunction,
    'function-load': loadLibrary,
    'function-delete': deleteLibrary,
    'function-list': listLibraries,
    'function-flush': flushLibraries,
    flushdb: flushDatabase,
    flushall: flushDatabases,
    dbsize: countKeys,
    randomkey: randomKey,
    scan: scanScope(secret),
    subscribe({ exchange, session }) {
      const request = session.subscriptions.request(exchange.args);
      exchange.args = request.args;
      exchange.onReply(request.confirmed);
      if (!listening.has(session)) {
        listening.add(session);
        exchange.session.onClose(() => listening.delete(session));
      }
    },
    numpat({ exchange, scope }) {
      const patterns = new Set<string>();
      for (const other of listening) {
        if (other.scope.id === scope.id)
          for (const pattern of other.subscriptions.patterns.keys()) patterns.add(pattern);
      }
      exchange.respond(encode.integer(patterns.size));
    },
    whoami: ({ exchange, session }) => exchange.respond(encode.bulk(session.identity.user)),
  };

  function request(exchange: Exchange): void | Promise<void> {
    const { session, scope } = scopeOf(exchange);
    const rule = scopeRule(exchange.command);
    switch (rule.kind) {
      case 'refused':
        throw refused(exchange.command, exchange.args);
      case 'special':
        if (!scope.chosen && rule.special !== 'whoami') throw notPermitted(NO_SCOPE_CHOSEN);
        return specials[rule.special]({ exchange, session, scope, rule, scripts, ledgered });
      case 'plain':
        if (rule.reply === 'none') return;
    }
    const rewritten = rewriteRequest(scope, rule, exchange.args);
    exchange.args = rewritten.args;
    exchange.onReply((frame) => {
      if (isLongList(frame)) {
        if (rule.reply === 'keys') return rewriteNameList(frame, (name) => logicalKey(scope, name));
        if (rule.reply === 'channels') return rewriteNameList(frame, (name) => unprefixed(scope, name));
      }
      const seen = rewriteReply(scope, rule.reply, frame, rewritten);
      return rule.reply === 'info' ? withOwnClients(exchange, seen) : seen;
    });
  }

  return [
    {
      name: 'scope',
      sessions: 'scoped',
      handles(command) {
        const rule = scopeRule(command);
        return !SENT_SCRIPTS.includes(command?.name ?? '') && (rule.kind !== 'plain' || rule.reply !== 'none');
      },
      request,
    },
    ...SENT_SCRIPTS.map(
      (name): Interceptor => ({
        name: `scope of ${name}`,
        sessions: 'scoped',
        handles: (command) => command?.name === name,
        request,
        glance: glanceAtScript(scripts, name),
      }),
    ),
  ];
}

/** INFO's figures of clients, which mean those of the scope. */
async function withOwnClients(exchange: Exchange, frame: Buffer): Promise<Buffer> {
  if (isError(frame)) return frame;
  const { connected, blocked } = await exchange.session.clientsInScope();
  const reply = readReply(frame);
  const text = reply.bytes.toString('latin1', reply.type === '=' ? 4 : 0);
  const own = `# Clients\r\nconnected_clients:${connected}\r\nblocked_clients:${blocked}`;
  return encode.text(reply.type === '=' ? 3 : 2, text.replace(/^# Clients$/m, own));
}
