/**
 * What a Lua script does with the server, where its text shows all of it: every mention of `redis` (or `server`) in it is
 * `redis.call("name", …)`, `redis.pcall("name", …)` or a field that calls nothing.
 *
 * The text is read as Lua 5.1 reads it, of scripts that compile. What slips past this reading all the same is refused at run
 * time: by the wrapper for names that it was not told of, by the KV store's permissions for keys.
 */

interface Token {
  readonly kind: 'name' | 'string' | 'other';
  /** Of a string: what stands between its quotes. */
  readonly text: string;
}

const SPACE = /[ \t\r\n\f\v]+/y;
const LONG_BRACKET = /\[(=*)\[/y;
const NAME = /[A-Za-z_][A-Za-z0-9_]*/y;
const QUOTED = /(["'])((?:\\[\s\S]|(?!\1)[^\\\n])*)\1/y;
/** With what may follow digits, so that the `e` of `1e5` is no name. */
const NUMBER = /\.?[0-9][0-9.]*(?:[eE][+-]?)?[A-Za-z0-9_]*/y;
/** Joining strings, and the rest of arguments: not two dots of a field. */
const DOTS = /\.{2,3}/y;
const SIGN = /[-+*/%^#=<>~(){}[\];:,.]/;
const LINE_END = /[\r\n]/g;
const COMMAND_NAME = /^[A-Za-z]+$/;

const OBJECTS = new Set(['redis', 'server']);
const CALLS = new Set(['call', 'pcall']);
/** With these a script may come by `redis` without naming it. */
const REFLECTION = new Set(['_G', 'getfenv', 'setfenv', 'load', 'loadstring', 'dofile', 'require']);
/** Names that Lua gives to what a script does not name. */
const IMPLICIT = new Set(['self', 'arg']);
/** Longer scripts are not read: reading takes its time, during which nobody else is served. */
const READ_BYTES_MAX = 64 * 1024;
/** What may stand behind `#KEYS`: nothing that makes one of the keys of it. */
const BEHIND_A_NUMBER = new Set([',', ')', '}', ';', '<', '>', '=', '~', '+', '-', '*', '/', '%']);

/** `KEYS`, `[`, an index and `]`. */
const KEY_TOKENS = 4;

/** A call of the server. `behind`: the token after the command's name. */
interface Call {
  readonly name: string;
  readonly behind: number;
}

/** Names of commands in lower case, and others in their own spelling. */
export interface ScriptNames {
  /** Commands whose keys are their arguments up to this one, or all where it is -1, and that name none in replies and errors. */
  readonly keyed: ReadonlyMap<string, number>;
  /** Commands that name no key. */
  readonly plain: ReadonlySet<string>;
  /** Fields of `redis` that call nothing. */
  readonly harmless: readonly string[];
  /** What the server's Lua offers. */
  readonly globals: ReadonlySet<string>;
  /** Of these, what a script may do anything with. */
  readonly powerful: readonly string[];
}

function matchAt(pattern: RegExp, source: string, at: number): RegExpExecArray | null {
  pattern.lastIndex = at;
  return pattern.exec(source);
}

/** The end of a long string or comment that begins at `at`; `undefined` where none begins there. */
function longEnd(source: string, at: number): number | undefined {
  const open = matchAt(LONG_BRACKET, source, at);
  if (open === null) return undefined;
  const end = source.indexOf(`]${open[1]}]`, at + open[0].length);
  return end < 0 ? source.length : end + open[1]!.length + 2;
}

/** The end of the line that `at` is in. */
function lineEnd(source: string, at: number): number {
  LINE_END.lastIndex = at;
  return LINE_END.exec(source)?.index ?? source.length;
}

/** `undefined` for what is no Lua, or too long. */
function tokens(source: string): Token[] | undefined {
  if (source.length > READ_BYTES_MAX) return undefined;
  const found: Token[] = [];
  for (let at = 0; at < source.length; ) {
    const space = matchAt(SPACE, source, at);
    if (space !== null) {
      at += space[0].length;
      continue;
    }
    if (source.startsWith('--', at)) {
      at = longEnd(source, at + 2) ?? lineEnd(source, at);
      continue;
    }
    const end = longEnd(source, at);
    if (end !== undefined) {
      found.push({ kind: 'other', text: '[[' });
      at = end;
      continue;
    }
    const quoted = matchAt(QUOTED, source, at);
    const word = quoted ?? matchAt(NAME, source, at) ?? matchAt(NUMBER, source, at) ?? matchAt(DOTS, source, at);
    const text = word?.[0] ?? source[at]!;
    if (quoted !== null) found.push({ kind: 'string', text: quoted[2]! });
    else if (word === null && !SIGN.test(text)) return undefined;
    else found.push({ kind: word !== null && !/^[.0-9]/.test(text) ? 'name' : 'other', text });
    at += text.length;
  }
  return found;
}

function isText(token: Token | undefined, text: string): boolean {
  return token?.kind === 'other' && token.text === text;
}

/** Whether the name at `at` is that of a field or method. */
function isField(all: readonly Token[], at: number): boolean {
  return isText(all[at - 1], '.') || isText(all[at - 1], ':');
}

function endsArgument(token: Token | undefined): boolean {
  return isText(token, ',') || isText(token, ')');
}

/** `undefined` where the text does not show them all. */
function callsIn(all: readonly Token[], harmless: readonly string[]): Call[] | undefined {
  const calls: Call[] = [];
  for (const [at, token] of all.entries()) {
    if (token.kind !== 'name') continue;
    if (REFLECTION.has(token.text)) return undefined;
    if (!OBJECTS.has(token.text) || isField(all, at)) continue;
    const field = all[at + 2];
    if (!isText(all[at + 1], '.') || field?.kind !== 'name') return undefined;
    if (harmless.includes(field.text)) {
      if (isText(all[at + 3], '=') && !isText(all[at + 4], '=')) return undefined;
      continue;
    }
    const name = all[at + 4];
    if (!CALLS.has(field.text) || !isText(all[at + 3], '(') || name?.kind !== 'string') return undefined;
    if (!endsArgument(all[at + 5]) || !COMMAND_NAME.test(name.text)) return undefined;
    calls.push({ name: name.text, behind: at + 5 });
  }
  return calls;
}

/** In the script's own spelling; `undefined` where its text does not show them all. `harmless`: fields of `redis` that call nothing. */
export function calledCommands(source: string, harmless: readonly string[]): Set<string> | undefined {
  const all = tokens(source);
  const calls = all === undefined ? undefined : callsIn(all, harmless);
  return calls === undefined ? undefined : new Set(calls.map(({ name }) => name));
}

/**
 * Whether all that the script does with its keys is to pass them on as the keys of commands, as they are or with something behind:
 * then it is the same script whatever the keys begin with.
 */
export function onlyPassesKeysOn(source: string, known: ScriptNames): boolean {
  const { keyed, plain, harmless, globals, powerful } = known;
  const all = tokens(source);
  const calls = all === undefined ? undefined : callsIn(all, harmless);
  if (all === undefined || calls === undefined) return false;
  /** Where keys stand that are passed on. */
  const passed = new Set<number>();
  const names = keyNames(all, globals, passed);
  for (const { name, behind } of calls) {
    const command = name.toLowerCase();
    if (plain.has(command)) continue;
    const last = keyed.get(command);
    if (last === undefined) return false;
    // With fewer arguments than keys the server has its own words for the script.
    let at = behind;
    for (let argument = 1; isText(all[at], ',') && (last < 0 || argument <= last); argument += 1) {
      passed.add(at + 1);
      at = keyEnd(all, at + 1, names);
      if (at < 0) return false;
    }
  }
  return all.every((token, at) => {
    if (token.kind !== 'name' || passed.has(at) || isField(all, at)) return true;
    if (token.text === 'KEYS') return isText(all[at - 1], '#') && endsNumber(all[at + 1]);
    return !names.has(token.text) && !powerful.includes(token.text);
  });
}

/** Local variables that are given a key: `local key = KEYS[1]`. Where they are not in force their names must name nothing. */
function keyNames(all: readonly Token[], globals: ReadonlySet<string>, passed: Set<number>): Set<string> {
  const names = new Set<string>();
  for (const [at, { kind, text }] of all.entries()) {
    const behind = at + KEY_TOKENS;
    if (kind !== 'name' || text !== 'KEYS' || !isIndexed(all, at) || !isText(all[at - 1], '=')) continue;
    const [local, variable] = [all[at - 3], all[at - 2]];
    if (local?.kind !== 'name' || local.text !== 'local' || variable?.kind !== 'name') continue;
    if (!endsStatement(all[behind]) || globals.has(variable.text) || IMPLICIT.has(variable.text)) continue;
    names.add(variable.text);
    passed.add(at - 2).add(at);
  }
  return names;
}

/** The end of an argument that begins at `at` and is a key, or one with something behind; -1 where it is none. */
function keyEnd(all: readonly Token[], at: number, names: ReadonlySet<string>): number {
  const token = all[at];
  if (token?.kind !== 'name') return -1;
  let end = names.has(token.text) ? at + 1 : -1;
  if (token.text === 'KEYS' && isIndexed(all, at)) end = at + KEY_TOKENS;
  while (end >= 0 && isText(all[end], '..')) {
    const operand = all[end + 1];
    const argument = operand?.kind === 'name' && operand.text === 'ARGV' && isIndexed(all, end + 1);
    if (operand === undefined || (operand.kind === 'other' && !isNumber(operand))) return -1;
    end += 1 + (argument ? KEY_TOKENS : 1);
  }
  return end >= 0 && endsArgument(all[end]) ? end : -1;
}

/** Whether behind the name at `at` there is an index: `[1]`, `[i]`. */
function isIndexed(all: readonly Token[], at: number): boolean {
  const which = all[at + 2];
  return isText(all[at + 1], '[') && (which?.kind === 'name' || isNumber(which)) && isText(all[at + 3], ']');
}

function isNumber(token: Token | undefined): boolean {
  return token?.kind === 'other' && /^\.?[0-9]/.test(token.text);
}

/** Whether it makes nothing of `#KEYS` but a number. */
function endsNumber(token: Token | undefined): boolean {
  return token === undefined || token.kind === 'name' || BEHIND_A_NUMBER.has(token.text);
}

/** Whether an expression ends before it, and with it a statement: what follows may be a part of it otherwise. */
function endsStatement(token: Token | undefined): boolean {
  return token === undefined || isText(token, ';') || (token.kind === 'name' && !/^(?:and|or)$/.test(token.text));
}
