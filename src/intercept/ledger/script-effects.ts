/**
 * What the text of a Lua script says that it may do to streams as wholes. It errs to one side: a script that names no such
 * command, and no command by anything but a literal, does nothing of the kind; of any other one it is found out when it ran.
 */

export interface ScriptEffects {
  /** It may end streams, or give them a time to live. */
  readonly ends: boolean;
  /** The keys of all such calls stand in the text as `KEYS[n]`. */
  readonly declaredOnly: boolean;
  /** It may give a time to live. */
  readonly expires: boolean;
  /** It may change groups. */
  readonly groups: boolean;
  /** It may reach other databases. */
  readonly elsewhere: boolean;
  /** It may make new streams. */
  readonly adds: boolean;
}

/** Of a text that nobody has seen, or that builds the names of commands. */
export const UNKNOWN_EFFECTS: ScriptEffects = {
  ends: true,
  declaredOnly: false,
  expires: false,
  groups: false,
  elsewhere: false,
  adds: true,
};

const KEY = String.raw`\s*,\s*KEYS\s*\[\s*\d+\s*\]`;
const EXPIRES = 'p?expire(?:at)?|persist';
const ENDS = new RegExp(
  String.raw`\b(?:del|unlink|rename(?:nx)?|move|copy|restore|migrate|flushdb|flushall|swapdb|${EXPIRES})\b`,
  'gi',
);
const ENDS_DECLARED = new RegExp(
  String.raw`(["'])(?:(?:del|unlink)\1(?:${KEY})+\s*\)|(?:${EXPIRES})\1${KEY}\s*[,)]|rename(?:nx)?\1${KEY}${KEY}\s*\))`,
  'gi',
);
const GROUPS = /\bxgroup\b/gi;
const GROUPS_DECLARED = new RegExp(String.raw`(["'])xgroup\1\s*,\s*(["'])\w+\2${KEY}\s*,`, 'gi');
const MAY_EXPIRE = new RegExp(String.raw`\b(?:${EXPIRES})\b`, 'i');
const ELSEWHERE = /\b(?:flushall|select|swapdb|move)\b/i;
const ADDS = /\b(?:xadd|xgroup|rename(?:nx)?|copy|restore)\b/i;
const KEYS_ASSIGNED = /\bKEYS\b\s*(?:\[[^\]]*\]\s*)?(?:=[^=]|,[^=\n]*=[^=])/;
/** `local call = redis.call` */
const ALIAS = /(\w+)\s*=\s*(?:redis|server)\s*\.\s*p?call\b(?!\s*\()/g;
const REFLECTION = /\b(?:loadstring|load|dofile|getfenv|_G)\b|\b(?:redis|server)\s*\[/;

function count(text: string, pattern: RegExp): number {
  return text.match(pattern)?.length ?? 0;
}

/** Whether a command is named by anything but one literal. */
function buildsCommands(text: string): boolean {
  if (REFLECTION.test(text)) return true;
  const names = ['p?call', ...[...text.matchAll(ALIAS)].map((match) => match[1]!)];
  return new RegExp(String.raw`(?:${names.join('|')})\s*\(\s*(?:[^"'\s]|(["'])\w*\1\s*\.\.)`).test(text);
}

/** `text` in latin1. */
export function effectsOf(text: string): ScriptEffects {
  if (buildsCommands(text)) return UNKNOWN_EFFECTS;
  const [ends, groups] = [count(text, ENDS), count(text, GROUPS)];
  return {
    ends: ends > 0,
    declaredOnly:
      ends === count(text, ENDS_DECLARED) && groups === count(text, GROUPS_DECLARED) && !KEYS_ASSIGNED.test(text),
    expires: MAY_EXPIRE.test(text),
    groups: groups > 0,
    elsewhere: ELSEWHERE.test(text),
    adds: ADDS.test(text),
  };
}
