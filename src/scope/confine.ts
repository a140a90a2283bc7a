/**
 * The gate before everything that a scoped session asks for: what it may not do at all is refused here, whichever way the
 * proxy would carry it. Fails closed: what the table does not know is refused.
 */
import type { CommandEntry } from '../command/command.ts';
import { commandTable } from '../command/table.ts';
import { HoldfastError } from '../errors.ts';
import * as encode from '../resp/encode.ts';
import { NO_SCOPE_CHOSEN, notPermitted, rewriteRequest } from './rewrite-request.ts';
import { scopeRule } from './rules.ts';
import type { Scope } from './scope.ts';
import type { ScopedSession } from './scoped-session.ts';

/** Where a session stands when it asks. */
export type Situation = 'plain' | 'transaction' | 'subscribed';

export type Confinement =
  /** The error to answer with. */
  | { readonly refused: Buffer }
  /** Other arguments in place of the request's; with `scope`, another command, in that scope. */
  | { readonly args: readonly Buffer[]; readonly scope: Scope | undefined };

/** Commands that a RESP2 client may send while it is subscribed. */
const WHILE_SUBSCRIBED = new Set([
  'subscribe',
  'unsubscribe',
  'psubscribe',
  'punsubscribe',
  'ssubscribe',
  'sunsubscribe',
  'ping',
  'quit',
  'reset',
]);

/** In a transaction these are the KV store's, which knows lanes and not clients. */
const NOT_IN_TRANSACTION = new Set([
  'client|list',
  'client|kill',
  'client|unblock',
  'client|tracking',
  'client|getredir',
]);

export function refused(command: CommandEntry | undefined, args: readonly Buffer[]): HoldfastError {
  const given = args[0]!.subarray(0, 64).toString();
  const name = command === undefined ? given : command.name.replace('|', ' ').toUpperCase();
  return notPermitted(`'${name}' cannot be used in a scope`);
}

/** `undefined`: the request goes its way. */
export function confine(
  session: ScopedSession,
  command: CommandEntry | undefined,
  args: readonly Buffer[],
  situation: Situation,
): Confinement | undefined {
  try {
    return confineOrThrow(session, command, args, situation);
  } catch (thrown) {
    if (thrown instanceof HoldfastError) return { refused: encode.error(thrown.toReplyText()) };
    throw thrown;
  }
}

function confineOrThrow(
  session: ScopedSession,
  command: CommandEntry | undefined,
  args: readonly Buffer[],
  situation: Situation,
): Confinement | undefined {
  const rule = scopeRule(command);
  if (rule.kind === 'refused') {
    // A container alone: the server says what is missing.
    if (command?.subcommands !== undefined && args.length === 1) return undefined;
    throw refused(command, args);
  }
  const { name } = command!;
  requireMigrate(session, command!);
  if (situation === 'subscribed' && !WHILE_SUBSCRIBED.has(name)) {
    throw new HoldfastError(
      'ERR',
      `Can't execute '${name.replace('|', ' ')}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context`,
    );
  }
  if (situation === 'transaction' && NOT_IN_TRANSACTION.has(name)) {
    throw notPermitted(`'${name.replace('|', ' ').toUpperCase()}' cannot be used inside MULTI in a scope`);
  }
  if (name === 'client|tracking' && situation === 'plain') return confineTracking(session, args);
  return name === 'holdfast|with' ? confineWith(session, args) : undefined;
}

/** MIGRATE has the KV store connect to any host, wait for it as long as the client says, and send it real names of keys. */
function requireMigrate({ identity }: ScopedSession, { name }: CommandEntry): void {
  if (name === 'migrate' && !identity.mayMigrate) throw notPermitted("'MIGRATE' needs a user with may: [migrate]");
}

/** Sent by the proxy itself, which keeps it for the session's next connection. */
function confineTracking(session: ScopedSession, args: readonly Buffer[]): Confinement {
  const on = args[2]?.toString('latin1').toLowerCase() === 'on';
  if (on && !session.scope.chosen) throw notPermitted(NO_SCOPE_CHOSEN);
  session.tracking = on;
  const rule = scopeRule(commandTable().lookup('client|tracking'));
  return { args: on ? rewriteRequest(session.scope, rule, args).args : args, scope: undefined };
}

/** `HOLDFAST WITH orgId fleet templateVersion COMMAND …` */
function confineWith(session: ScopedSession, args: readonly Buffer[]): Confinement {
  const template = requireTemplate(session);
  const commandAt = 2 + template.parts.length;
  if (args.length <= commandAt) {
    throw new HoldfastError('ERR', `syntax: HOLDFAST WITH ${template.parts.join(' ')} COMMAND [argument …]`);
  }
  const inner = args.slice(commandAt);
  const table = commandTable();
  let command = table.lookupBytes(inner[0]!, 0, inner[0]!.length);
  if (command?.subcommands !== undefined && inner[1] !== undefined) {
    command = table.subcommand(command, inner[1], 0, inner[1].length) ?? command;
  }
  const rule = scopeRule(command);
  if (rule.kind === 'refused') throw refused(command, inner);
  requireMigrate(session, command!);
  const stays = rule.kind === 'plain' || (rule.kind === 'found' && rule.finder === 'tracking');
  if (stays || (rule.kind === 'special' && rule.special === 'subscribe')) {
    throw new HoldfastError('ERR', 'HOLDFAST WITH is for single commands on keys and channels');
  }
  const values = args.slice(2, commandAt).map(String);
  return { args: inner, scope: session.scopeOf(template, values) };
}

/** The template that the session may fill in. Throws NOPERM. */
export function requireTemplate(session: ScopedSession): NonNullable<ScopedSession['template']> {
  const { template, identity } = session;
  if (template === undefined || !identity.maySetScope) throw notPermitted('this user may not choose its scope');
  return template;
}
