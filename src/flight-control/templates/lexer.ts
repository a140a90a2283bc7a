/**
 * Cuts a template into tokens as Go's text/template does (https://pkg.go.dev/text/template, package text/template/parse): text outside of
 * `{{ }}`, and within it words, literals and marks. Trim markers and comments are dealt with here and leave no token.
 */
import { TemplateFault } from './problem.ts';

export type TokenKind =
  | 'text'
  | 'open' // {{
  | 'close' // }}
  | 'space'
  | 'word' // a function or a keyword
  | 'field' // .name
  | 'dot'
  | 'variable' // $ or $name
  | 'number'
  | 'character'
  | 'string'
  | 'rawString'
  | 'mark' // ( ) | = := ,
  | 'end';

export interface Token {
  readonly kind: TokenKind;
  readonly text: string;
  readonly position: number;
}

const SPACE = /[ \t\r\n]/;
const ALPHANUMERIC = /[\p{L}\p{Nd}_]/u;
const NUMBER =
  /[+-]?(?:0[xX][0-9a-fA-F_]*(?:\.[0-9a-fA-F_]*)?(?:[pP][+-]?[0-9_]*)?|0[bB][01_]*|0[oO][0-7_]*|[0-9_]*(?:\.[0-9_]*)?(?:[eE][+-]?[0-9_]*)?)i?/y;

export function tokenize(text: string): Token[] {
  const tokens: Token[] = [];
  let at = 0;

  const push = (kind: TokenKind, from: number, to: number): void => {
    tokens.push({ kind, text: text.slice(from, to), position: from });
    at = to;
  };
  const fail = (position: number, message: string): never => {
    throw new TemplateFault('syntax', position, message);
  };

  /** Gives where the text behind the comment begins. */
  function comment(from: number): number {
    const end = text.indexOf('*/', from);
    if (end < 0) return fail(from, 'unclosed comment');
    const close = closeAt(end + 2);
    return close === undefined ? fail(from, 'comment ends before closing delimiter') : close.next;
  }

  /** Whether `}}`, or ` -}}` with the spaces behind it, is there; `next` is behind both. */
  function closeAt(position: number): { readonly next: number } | undefined {
    if (text.startsWith('}}', position)) return { next: position + 2 };
    if (!SPACE.test(text[position] ?? '') || !text.startsWith('-}}', position + 1)) return undefined;
    let next = position + 4;
    while (SPACE.test(text[next] ?? '')) next += 1;
    return { next };
  }

  function endsWord(position: number): boolean {
    const next = text[position];
    return next === undefined || SPACE.test(next) || '.,|:()'.includes(next) || text.startsWith('}}', position);
  }

  function endOfWord(position: number): number {
    let end = position;
    for (;;) {
      const character = text.codePointAt(end);
      if (character === undefined || !ALPHANUMERIC.test(String.fromCodePoint(character))) return end;
      end += character > 0xffff ? 2 : 1;
    }
  }

  function word(kind: TokenKind, lead: number): void {
    const end = endOfWord(at + lead);
    if (!endsWord(end)) fail(end, `bad character ${JSON.stringify(String.fromCodePoint(text.codePointAt(end)!))}`);
    push(kind, at, end);
  }

  function quoted(quote: '"' | "'", kind: TokenKind, what: string): void {
    for (let end = at + 1; end < text.length; end += 1) {
      if (text[end] === '\n') break;
      if (text[end] === quote) {
        push(kind, at, end + 1);
        return;
      }
      if (text[end] === '\\' && text[end + 1] !== '\n') end += 1;
    }
    fail(at, `unterminated ${what}`);
  }

  function rawString(): void {
    const end = text.indexOf('`', at + 1);
    if (end < 0) fail(at, 'unterminated raw quoted string');
    push('rawString', at, end + 1);
  }

  function numberAt(position: number): string {
    NUMBER.lastIndex = position;
    return NUMBER.exec(text)![0];
  }

  function number(): void {
    const found = numberAt(at);
    const end = at + found.length;
    if (endOfWord(end) > end) fail(at, `bad number syntax: ${JSON.stringify(text.slice(at, endOfWord(end)))}`);
    if (/[+-]/.test(text[end] ?? '') && /i?$/.test(found) && numberAt(end).endsWith('i')) {
      fail(at, 'complex constants are not supported');
    }
    push('number', at, end);
  }

  /** One token within `{{ }}`. Gives whether the action goes on. */
  function insideAction(parentheses: { depth: number }): boolean {
    const close = closeAt(at);
    if (close !== undefined) {
      if (parentheses.depth > 0) fail(at, 'unclosed left paren');
      tokens.push({ kind: 'close', text: '}}', position: at });
      at = close.next;
      return false;
    }
    const character = text[at];
    if (character === undefined) return fail(at, 'unclosed action');
    if (SPACE.test(character)) {
      let end = at + 1;
      while (SPACE.test(text[end] ?? '') && closeAt(end) === undefined) end += 1;
      push('space', at, end);
    } else if (character === '"') quoted('"', 'string', 'quoted string');
    else if (character === "'") quoted("'", 'character', 'character constant');
    else if (character === '`') rawString();
    else if (character === '$') endsWord(at + 1) ? push('variable', at, at + 1) : word('variable', 1);
    else if (character === '.' && !/[0-9]/.test(text[at + 1] ?? '')) {
      endsWord(at + 1) ? push('dot', at, at + 1) : word('field', 1);
    } else if (/[+\-0-9.]/.test(character)) number();
    else if (ALPHANUMERIC.test(String.fromCodePoint(text.codePointAt(at)!))) word('word', 0);
    else if (text.startsWith(':=', at)) push('mark', at, at + 2);
    else if (character === ':') fail(at, 'expected :=');
    else if ('()|=,'.includes(character)) {
      if (character === '(') parentheses.depth += 1;
      if (character === ')') parentheses.depth -= 1;
      if (parentheses.depth < 0) fail(at, 'unexpected right paren');
      push('mark', at, at + 1);
    } else fail(at, `unexpected ${JSON.stringify(String.fromCodePoint(text.codePointAt(at)!))} in action`);
    return true;
  }

  while (at < text.length) {
    const open = text.indexOf('{{', at);
    if (open < 0) {
      push('text', at, text.length);
      break;
    }
    const trims = text[open + 2] === '-' && SPACE.test(text[open + 3] ?? '');
    const before = text.slice(at, open);
    const kept = trims ? before.replace(/[ \t\r\n]+$/, '') : before;
    if (kept !== '') tokens.push({ kind: 'text', text: kept, position: at });
    at = open + (trims ? 4 : 2);
    if (text.startsWith('/*', at)) {
      at = comment(at);
      continue;
    }
    tokens.push({ kind: 'open', text: '{{', position: open });
    const parentheses = { depth: 0 };
    while (insideAction(parentheses));
  }
  tokens.push({ kind: 'end', text: '', position: text.length });
  return tokens;
}
