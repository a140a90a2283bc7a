/**
 * Which commands a Lua script can call, where its text shows all of them: every mention of `redis` (or `server`) in it is
 * `redis.call("name", …)`, `redis.pcall("name", …)` or a field that calls nothing.
 *
 * Who relies on the answer must refuse at run time what is not in it: that a script slipped something past this reading
 * costs the script, and nothing else.
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
const NUMBER = /\.?[0-9](?:[eE][+-]?|[A-Za-z0-9_.])*/y;
/** Joining strings, and the rest of arguments: not two dots of a field. */
const DOTS = /\.{2,3}/y;
const COMMAND_NAME = /^[A-Za-z]+$/;

const OBJECTS = new Set(['redis', 'server']);
const CALLS = new Set(['call', 'pcall']);
/** With these a script may come by `redis` without naming it. */
const REFLECTION = new Set(['_G', 'getfenv', 'setfenv', 'load', 'loadstring', 'dofile', 'require']);

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

function tokens(source: string): Token[] {
  const found: Token[] = [];
  for (let at = 0; at < source.length; ) {
    const space = matchAt(SPACE, source, at);
    if (space !== null) {
      at += space[0].length;
      continue;
    }
    if (source.startsWith('--', at)) {
      const line = source.indexOf('\n', at);
      at = longEnd(source, at + 2) ?? (line < 0 ? source.length : line);
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
    else found.push({ kind: word !== null && !/^[.0-9]/.test(text) ? 'name' : 'other', text });
    at += text.length;
  }
  return found;
}

/** In the script's own spelling; `undefined` where its text does not show them all. `harmless`: fields of `redis` that call nothing. */
export function calledCommands(source: string, harmless: readonly string[]): Set<string> | undefined {
  const all = tokens(source);
  const names = new Set<string>();
  const isText = (at: number, text: string): boolean => all[at]?.kind === 'other' && all[at].text === text;
  for (const [at, token] of all.entries()) {
    if (token.kind !== 'name') continue;
    if (REFLECTION.has(token.text)) return undefined;
    if (!OBJECTS.has(token.text) || isText(at - 1, '.') || isText(at - 1, ':')) continue;
    const field = all[at + 2];
    if (!isText(at + 1, '.') || field?.kind !== 'name') return undefined;
    if (harmless.includes(field.text)) {
      if (isText(at + 3, '=') && !isText(at + 4, '=')) return undefined;
      continue;
    }
    const name = all[at + 4];
    const whole = isText(at + 5, ',') || isText(at + 5, ')');
    if (!CALLS.has(field.text) || !isText(at + 3, '(') || name?.kind !== 'string' || !whole) return undefined;
    if (!COMMAND_NAME.test(name.text)) return undefined;
    names.add(name.text);
  }
  return names;
}
