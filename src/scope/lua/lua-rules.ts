/**
 * The scope rules as scripts need them: the one table of rules.ts, written as constants of the Lua wrapper.
 *
 *   SIMPLE   names of commands with one key, their first argument, whose replies and errors name none: ` get set … `
 *   OTHERS   ` name=code `, where code is
 *              p              names nothing
 *              k<places>      places: `first:last:step` or `#count:first`, joined by commas; `/first` or `/streams`
 *                             where the reply names keys, `/error` where an error may
 *              <finder>       one that the wrapper knows by name
 *
 * What is in neither is refused.
 */
import type { CommandEntry } from '../../command/command.ts';
import { commandTable } from '../../command/table.ts';
import { prefixedKeys, type ScopeRule, scopeRule } from '../rules.ts';

/** What the wrapper finds by itself; names that mean something else inside a scope too. */
const LUA_FINDERS = new Set([
  'sort',
  'georadius',
  'georadiusbymember',
  'xread',
  'keys',
  'scan',
  'publish',
  'dbsize',
  'randomkey',
  'flushdb',
]);

/** Plain commands that make sense in a script; others are the session's. */
const LUA_PLAIN = new Set(['ping', 'echo', 'time', 'select', 'lastsave', 'lolwut']);

function places(rule: ScopeRule & { kind: 'keys' }): string {
  const ranges = rule.ranges.map(({ first, last, step }) => `${first}:${last}:${step}`);
  const counted = rule.counted === undefined ? [] : [`#${rule.counted.count}:${rule.counted.first}`];
  return [...ranges, ...counted].join(',');
}

function code(entry: CommandEntry): string | undefined {
  const rule = scopeRule(entry);
  switch (rule.kind) {
    case 'refused':
      return undefined;
    case 'plain':
      return LUA_PLAIN.has(entry.name) ? 'p' : undefined;
    case 'found':
      return LUA_FINDERS.has(rule.finder) ? rule.finder : undefined;
    case 'special':
      return LUA_FINDERS.has(rule.special) ? rule.special : undefined;
    case 'keys':
      if (rule.reply !== 'none') return `k${places(rule)}/${rule.reply}`;
      return `k${places(rule)}${prefixedKeys(entry) === undefined ? '/error' : ''}`;
  }
}

function inScripts(entry: CommandEntry): boolean {
  return !entry.own && entry.subcommands === undefined;
}

const ENTRIES = commandTable().entries.filter(inScripts);

/** Commands whose keys are their first arguments, side by side: the last of these, -1 for all. */
export const KEYED_COMMANDS: ReadonlyMap<string, number> = new Map(
  ENTRIES.flatMap((entry) => {
    const keys = prefixedKeys(entry);
    return keys?.first === 1 && (keys.step === 1 || keys.last === 1) ? [[entry.name, keys.last]] : [];
  }),
);

/** Of these, those with one key. */
export const SIMPLE_COMMANDS: ReadonlySet<string> = new Set(
  [...KEYED_COMMANDS].filter(([, last]) => last === 1).map(([name]) => name),
);

/** Those that a script may call and that name no key. */
export const PLAIN_COMMANDS: ReadonlySet<string> = new Set(
  ENTRIES.filter((entry) => code(entry) === 'p').map((entry) => entry.name),
);

export const LUA_SIMPLE = ` ${[...SIMPLE_COMMANDS].join(' ')} `;

export const LUA_OTHERS = ` ${ENTRIES.filter(({ name }) => !SIMPLE_COMMANDS.has(name))
  .map((entry) => ({ name: entry.name, code: code(entry) }))
  .filter((rule) => rule.code !== undefined)
  .map((rule) => `${rule.name}=${rule.code}`)
  .join(' ')} `;
