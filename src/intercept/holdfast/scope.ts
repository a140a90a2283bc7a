/** HOLDFAST SCOPE: chooses, shows and leaves the session's scope, and removes all keys of one. */
import type { Invalidations } from '../../cache/invalidations.ts';
import { HoldfastError } from '../../errors.ts';
import type { Exchange } from '../../interceptor.ts';
import * as encode from '../../resp/encode.ts';
import { requireTemplate } from '../../scope/confine.ts';
import { createScope } from '../../scope/scope.ts';
import { FLIGHT_CONTROL_TEMPLATE, parseScopeTemplate } from '../../scope/scope-template.ts';
import { ScopedSession } from '../../scope/scoped-session.ts';
import { type LedgeredStreams, removeKeys, removeScope, storedKeys } from '../scope/keyspace.ts';
import type { HoldfastSubcommand } from './command.ts';

const SYNTAX = 'SET orgId fleet templateVersion | GET | CLEAR | INVALIDATE orgId [fleet [templateVersion]]';

function sessionOf(exchange: Exchange): ScopedSession {
  const { scope } = exchange.session;
  if (!(scope instanceof ScopedSession)) throw new HoldfastError('NOPERM', 'this session has no scope');
  return scope;
}

function requireUnbound(exchange: Exchange, session: ScopedSession): void {
  if (exchange.queued) throw new HoldfastError('ERR', 'the scope cannot be changed inside MULTI');
  if (session.subscriptions.expected || session.tracking) {
    throw new HoldfastError('ERR', 'the scope cannot be changed with subscriptions or CLIENT TRACKING: end them first');
  }
}

function set(exchange: Exchange, values: readonly string[]): void {
  const session = sessionOf(exchange);
  const template = requireTemplate(session);
  if (values.length !== template.parts.length) {
    throw new HoldfastError('ERR', `syntax: HOLDFAST SCOPE SET ${template.parts.join(' ')}`);
  }
  requireUnbound(exchange, session);
  session.enter(session.scopeOf(template, values));
  exchange.respond(encode.OK);
}

function clear(exchange: Exchange): void {
  const session = sessionOf(exchange);
  requireTemplate(session);
  requireUnbound(exchange, session);
  session.enter(undefined);
  exchange.respond(encode.OK);
}

/** Only those who choose their scope know its name. */
function get(exchange: Exchange): void {
  const session = sessionOf(exchange);
  requireTemplate(session);
  const { scope } = session;
  exchange.respond(scope.chosen ? encode.bulk(scope.prefix) : encode.nullBulk(exchange.session.protocol));
}

/** Of a session with a template: its scopes. Of one without any scope: those of cached Flight Control data. */
async function invalidate(
  exchange: Exchange,
  values: readonly string[],
  invalidations: Invalidations,
  ledgered: LedgeredStreams,
): Promise<void> {
  if (values.length === 0) throw new HoldfastError('ERR', `syntax: HOLDFAST SCOPE ${SYNTAX}`);
  if (exchange.queued) throw new HoldfastError('ERR', 'HOLDFAST SCOPE INVALIDATE inside MULTI is not possible');
  const { scope, database, user, id } = exchange.session;
  const template =
    scope instanceof ScopedSession ? requireTemplate(scope) : parseScopeTemplate(FLIGHT_CONTROL_TEMPLATE);
  const invalidated = createScope(template.prefixOf(values));
  const keys = await invalidations.carryOut(
    { prefix: invalidated.prefix, database, by: `user ${user}, client ${id}` },
    {
      remove: (fetched, removed) => removeKeys(exchange, fetched, database, removed),
      removeAll: (removed) => removeScope(exchange, invalidated, ledgered, database, removed),
      stored: (fetched) => storedKeys(exchange, fetched, database),
    },
  );
  exchange.respond(encode.integer(keys));
}

export function holdfastScope(invalidations: Invalidations, ledgered: LedgeredStreams): HoldfastSubcommand {
  return {
    name: 'scope',
    syntax: SYNTAX,
    summary: 'Choose, show or leave the scope of this session, or remove all keys of a scope.',
    run(exchange, [verb, ...args]) {
      const values = args.map(String);
      switch (verb?.toString('latin1').toLowerCase()) {
        case 'set':
          return set(exchange, values);
        case 'get':
          return get(exchange);
        case 'clear':
          return clear(exchange);
        case 'invalidate':
          return invalidate(exchange, values, invalidations, ledgered);
        default:
          throw new HoldfastError('ERR', `syntax: HOLDFAST SCOPE ${SYNTAX}`);
      }
    },
  };
}

/** Sessions that may use it never get here: the proxy puts the command itself in its place (`confine`). */
export function holdfastWith(): HoldfastSubcommand {
  return {
    name: 'with',
    syntax: 'orgId fleet templateVersion COMMAND [argument ...]',
    summary: 'Run one command in a scope, on a session that may choose its scope.',
    run() {
      throw new HoldfastError('NOPERM', 'this user may not choose its scope');
    },
  };
}
