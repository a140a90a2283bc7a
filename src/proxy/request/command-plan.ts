/**
 * How each command is carried: on a shared lane, on a dedicated one, or answered by the session. The one place that
 * knows which commands belong to a connection's state; sessions act on it, `HOLDFAST COMMANDS` prints it.
 */
import type { CommandEntry, KeyRange } from '../../command/command.ts';
import { type CommandTable, commandTable } from '../../command/table.ts';
import { EXCHANGE, type Glance, type Interceptor } from '../../interceptor.ts';

export type Carriage =
  /** Shared lane. */
  | 'shared'
  /** Dedicated lane until its reply has come. */
  | 'blocking'
  /** As `blocking` where the arguments hold a BLOCK option, else `shared`. */
  | 'blocking-option'
  /** As `blocking`, behind a harmless command: WAIT speaks of its own connection's writes. */
  | 'wait'
  /** Dedicated lane from MULTI or WATCH until EXEC, DISCARD or UNWATCH. */
  | 'multi'
  | 'exec'
  | 'discard'
  | 'watch'
  | 'unwatch'
  /** Dedicated lane while there are subscriptions. */
  | 'subscribe'
  | 'unsubscribe'
  /** Dedicated lane until RESET or the end of the session, set up again on a new lane after a loss. */
  | 'sticky'
  /** Dedicated lane without framing until the end of the session. */
  | 'raw'
  /** Dedicated lane until the end of the session, framed until SYNC or PSYNC. */
  | 'replication'
  /** Dedicated lane, without framing from the script on that is debugged. */
  | 'debugging'
  /** A lane with nothing else on it, so that it gets through while the server is busy. */
  | 'control'
  /** Answered by Holdfast, for it speaks of Holdfast's clients or decides which lanes the session uses. */
  | 'session';

const CARRIAGES: Readonly<Record<string, Carriage>> = {
  multi: 'multi',
  exec: 'exec',
  discard: 'discard',
  watch: 'watch',
  unwatch: 'unwatch',
  subscribe: 'subscribe',
  psubscribe: 'subscribe',
  ssubscribe: 'subscribe',
  unsubscribe: 'unsubscribe',
  punsubscribe: 'unsubscribe',
  sunsubscribe: 'unsubscribe',
  monitor: 'raw',
  sync: 'raw',
  psync: 'raw',
  replconf: 'replication',
  'script|debug': 'debugging',
  readonly: 'sticky',
  readwrite: 'sticky',
  asking: 'blocking',
  wait: 'wait',
  waitaof: 'wait',
  xread: 'blocking-option',
  xreadgroup: 'blocking-option',
  shutdown: 'control',
  'script|kill': 'control',
  'function|kill': 'control',
  'client|unpause': 'control',
  hello: 'session',
  auth: 'session',
  select: 'session',
  reset: 'session',
  quit: 'session',
  'client|id': 'session',
  'client|getname': 'session',
  'client|setname': 'session',
  'client|setinfo': 'session',
  'client|info': 'session',
  'client|list': 'session',
  'client|kill': 'session',
  'client|pause': 'session',
  'client|reply': 'session',
  'client|unblock': 'session',
  'client|tracking': 'session',
  'client|caching': 'sticky',
  'client|no-evict': 'sticky',
  'client|no-touch': 'sticky',
  'client|getredir': 'session',
  'client|trackinginfo': 'session',
};

const SCRIPTS: ReadonlySet<string> = new Set(['eval', 'eval_ro', 'evalsha', 'evalsha_ro', 'fcall', 'fcall_ro']);

export function carriageOf(command: CommandEntry | undefined): Carriage {
  if (command === undefined) return 'shared';
  const named = CARRIAGES[command.name];
  if (named !== undefined) return named;
  return command.flags.has('blocking') ? 'blocking' : 'shared';
}

/** What a session does with one command, decided once. */
export interface CommandPlan {
  readonly command: CommandEntry | undefined;
  readonly carriage: Carriage;
  readonly interceptors: readonly Interceptor[];
  /** May run without end, with the server answering `-BUSY` on all other connections. */
  readonly endless: boolean;
  /** The bytes go on as they are: shared carriage, nobody looks, no subcommand that differs. */
  readonly simple: boolean;
  /** The plan is that of the subcommand. */
  readonly container: boolean;
  /**
   * In scoped plans: the arguments to prefix where nothing else has to be done, for neither replies nor errors of the
   * command name a key. Such requests are rewritten on the fast path.
   */
  readonly prefixedKeys: KeyRange | undefined;
  /** Decides on the bytes whether a request needs its interceptor at all. */
  readonly glance: Glance | undefined;
}

export interface CommandPlans {
  readonly table: CommandTable;
  /** By `CommandEntry.index`. */
  readonly plans: readonly CommandPlan[];
  /** For commands that the table does not know. */
  readonly unknown: CommandPlan;
}

/** Tells which commands of scoped sessions need nothing but a prefix before their keys. */
export type PrefixedKeys = (command: CommandEntry) => KeyRange | undefined;

/** Of interceptors that all decide on the bytes, and of which one at most marks requests. */
function glanceOf(interceptors: readonly Interceptor[]): Glance | undefined {
  const glances = interceptors.map(({ glance }) => glance);
  if (!glances.every((glance) => glance !== undefined)) return undefined;
  const sieves = glances.filter((glance) => glance.sieves === true);
  const marking = glances.filter((glance) => glance.sieves !== true);
  if (marking.length > 1) return undefined;
  const last = marking[0] ?? sieves.pop();
  if (last === undefined || sieves.length === 0) return last;
  return {
    errorsOnly: last.errorsOnly === true,
    get form() {
      return last.form;
    },
    look(buffer, start, bounds, argc, prefix, session) {
      for (let at = 0; at < sieves.length; at += 1) {
        if (sieves[at]!.look(buffer, start, bounds, argc, prefix, session) === EXCHANGE) return EXCHANGE;
      }
      return last.look(buffer, start, bounds, argc, prefix, session);
    },
    answered: (mark, replies, bytes) => last.answered(mark, replies, bytes),
    late: (exchange, form) => last.late(exchange, form),
  };
}

/**
 * Decides for every command of the table. `interceptors` are in the order of their calls; `prefixedKeys` is given for
 * scoped sessions and stands in for interceptors that are for these only.
 */
export function planCommands(interceptors: readonly Interceptor[], prefixedKeys?: PrefixedKeys): CommandPlans {
  const table = commandTable();
  const decide = (command: CommandEntry | undefined): CommandPlan => {
    const carriage = carriageOf(command);
    const others = prefixedKeys === undefined ? 'scoped' : 'unscoped';
    const own = interceptors.filter((interceptor) => interceptor.sessions !== others && interceptor.handles(command));
    const anyones = own.filter(({ sessions }) => sessions === undefined);
    const mayBePrefixed = anyones.length === 0 || (anyones.length === 1 && anyones[0]!.glance !== undefined);
    const keys = carriage === 'shared' && mayBePrefixed && command !== undefined ? prefixedKeys?.(command) : undefined;
    const rest = keys === undefined ? own : anyones;
    const endless = command !== undefined && SCRIPTS.has(command.name);
    return {
      command,
      carriage,
      interceptors: rest,
      endless,
      simple: carriage === 'shared' && rest.length === 0 && keys === undefined && !endless,
      container: false,
      prefixedKeys: keys,
      glance: carriage === 'shared' ? glanceOf(rest) : undefined,
    };
  };
  const plans = table.entries.map(decide);
  for (const entry of table.entries) {
    if (entry.subcommands === undefined) continue;
    const differs = [...entry.subcommands.values()].some((sub) => !plans[sub.index]!.simple);
    if (differs) plans[entry.index] = { ...plans[entry.index]!, simple: false, container: true };
  }
  return { table, plans, unknown: decide(undefined) };
}

/** Plans of a session that must log in first: nothing goes on, or is looked into, before it was judged. */
export function judgedPlans({ table, plans, unknown }: CommandPlans): CommandPlans {
  const judged = (plan: CommandPlan): CommandPlan => ({
    ...plan,
    interceptors: [],
    simple: false,
    prefixedKeys: undefined,
    glance: undefined,
  });
  return { table, plans: plans.map(judged), unknown: judged(unknown) };
}
