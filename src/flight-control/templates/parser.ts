/**
 * Reads a template into a tree, by the grammar of Go's text/template (https://pkg.go.dev/text/template). Elements that are not supported are
 * read as well, so that a mistake in the syntax is named first, wherever it stands.
 */
import { type Token, tokenize } from './lexer.ts';
import { parseNumber, unquoteCharacter, unquoteRawString, unquoteString } from './literals.ts';
import { TemplateFault } from './problem.ts';
import type { GoNumber } from './values.ts';

export type Operand = { readonly position: number } & (
  | { readonly type: 'dot' | 'nil' }
  | { readonly type: 'literal'; readonly value: string | boolean | GoNumber; readonly text: string }
  /** `.a.b`: `path` is `['a', 'b']`. */
  | { readonly type: 'field'; readonly path: readonly string[] }
  /** `$` has the name `$`. */
  | { readonly type: 'variable'; readonly name: string; readonly path: readonly string[] }
  | { readonly type: 'function'; readonly name: string }
  /** In parentheses. */
  | { readonly type: 'pipe'; readonly pipe: Pipe }
  /** `(…).a` */
  | { readonly type: 'chain'; readonly of: Operand; readonly path: readonly string[] }
);

export interface Command {
  readonly position: number;
  /** At least one. */
  readonly args: readonly Operand[];
}

export interface Pipe {
  readonly position: number;
  readonly variable: string | undefined;
  /** `=`, not `:=`. */
  readonly assigns: boolean;
  /** At least one. */
  readonly commands: readonly Command[];
}

export type Node = { readonly position: number } & (
  | { readonly type: 'text'; readonly text: string }
  | { readonly type: 'action'; readonly pipe: Pipe }
  | {
      readonly type: 'if' | 'with';
      readonly pipe: Pipe;
      readonly then: readonly Node[];
      readonly otherwise: readonly Node[] | undefined;
    }
  | { readonly type: 'unsupported'; readonly keyword: string }
);

type Control = 'if' | 'with' | 'range';
/** What ended a list of nodes. */
interface Ending {
  readonly keyword: 'end' | 'else' | 'text';
  readonly token: Token;
}

const KEYWORDS = new Set(['if', 'else', 'end', 'range', 'with', 'template', 'block', 'define']);
/** Deeper ones are refused while they are read: this parser calls itself. */
const NESTING_MAX = 200;

export function parseTemplate(text: string, isFunction: (name: string) => boolean): Node[] {
  return new Parser(tokenize(text), isFunction).parse();
}

class Parser {
  readonly #tokens: readonly Token[];
  readonly #isFunction: (name: string) => boolean;
  #at = 0;
  /** Of the scopes that are open, innermost last. */
  #variables = ['$'];
  #ranges = 0;
  #nesting = 0;

  constructor(tokens: readonly Token[], isFunction: (name: string) => boolean) {
    this.#tokens = tokens;
    this.#isFunction = isFunction;
  }

  parse(): Node[] {
    const { nodes, ending } = this.#list(true);
    if (ending.keyword !== 'text') this.#fail(ending.token, `unexpected {{${ending.keyword}}}`);
    return nodes;
  }

  #fail(token: Token, message: string): never {
    throw new TemplateFault('syntax', token.position, message);
  }

  #unexpected(token: Token, context: string): never {
    const what = token.kind === 'end' ? 'end of the template' : JSON.stringify(token.text);
    return this.#fail(token, `unexpected ${what} in ${context}`);
  }

  #peek(): Token {
    return this.#tokens[this.#at]!;
  }

  #next(): Token {
    const token = this.#tokens[this.#at]!;
    if (token.kind !== 'end') this.#at += 1;
    return token;
  }

  #skipSpace(): Token {
    while (this.#peek().kind === 'space') this.#at += 1;
    return this.#peek();
  }

  #expectClose(context: string): void {
    const token = this.#skipSpace();
    if (token.kind !== 'close') this.#unexpected(token, context);
    this.#next();
  }

  #deeper<Result>(token: Token, read: () => Result): Result {
    this.#nesting += 1;
    if (this.#nesting > NESTING_MAX) throw new TemplateFault('tooDeep', token.position, 'nested too deeply');
    const result = read();
    this.#nesting -= 1;
    return result;
  }

  #list(top: boolean): { nodes: Node[]; ending: Ending } {
    const nodes: Node[] = [];
    for (;;) {
      const token = this.#next();
      if (token.kind === 'end') {
        if (!top) this.#fail(token, 'unexpected end of the template: {{end}} is missing');
        return { nodes, ending: { keyword: 'text', token } };
      }
      if (token.kind === 'text') {
        nodes.push({ type: 'text', text: token.text, position: token.position });
        continue;
      }
      const first = this.#skipSpace();
      if (first.kind === 'word' && (first.text === 'end' || first.text === 'else')) {
        this.#next();
        if (first.text === 'end') this.#expectClose('end');
        return { nodes, ending: { keyword: first.text, token: first } };
      }
      nodes.push(this.#action(first, top));
    }
  }

  #action(first: Token, top: boolean): Node {
    const { position } = first;
    const word = first.kind === 'word' ? first.text : '';
    switch (word) {
      case 'if':
      case 'with':
      case 'range':
        this.#next();
        return this.#control(word, position);
      case 'template':
        this.#next();
        this.#templateName('template');
        if (this.#skipSpace().kind === 'close') this.#next();
        else this.#pipeline('template', 'close');
        return { type: 'unsupported', keyword: word, position };
      case 'block':
        this.#next();
        this.#templateName('block');
        this.#pipeline('block', 'close');
        this.#body('block');
        return { type: 'unsupported', keyword: word, position };
      case 'define':
        if (!top) this.#fail(first, 'unexpected {{define}}');
        this.#next();
        this.#templateName('define');
        this.#expectClose('define');
        this.#body('define');
        return { type: 'unsupported', keyword: word, position };
      case 'break':
      case 'continue':
        this.#next();
        this.#expectClose(word);
        if (this.#ranges === 0) this.#fail(first, `{{${word}}} outside {{range}}`);
        return { type: 'unsupported', keyword: word, position };
      default:
        return { type: 'action', pipe: this.#pipeline('command', 'close'), position };
    }
  }

  #templateName(context: string): void {
    const token = this.#skipSpace();
    if (token.kind !== 'string' && token.kind !== 'rawString') this.#unexpected(token, `${context} clause`);
    this.#next();
  }

  #body(context: string): void {
    const variables = this.#variables.length;
    const { ending } = this.#deeper(this.#peek(), () => this.#list(false));
    if (ending.keyword !== 'end') this.#fail(ending.token, `unexpected {{${ending.keyword}}} in ${context} clause`);
    this.#variables.length = variables;
  }

  #control(keyword: Control, position: number): Node {
    const variables = this.#variables.length;
    const pipe = this.#pipeline(keyword, 'close');
    if (keyword === 'range') this.#ranges += 1;
    const { nodes: then, ending } = this.#deeper(this.#peek(), () => this.#list(false));
    if (keyword === 'range') this.#ranges -= 1;
    const otherwise = ending.keyword === 'else' ? this.#otherwise(keyword) : undefined;
    this.#variables.length = variables;
    if (keyword === 'range') return { type: 'unsupported', keyword, position };
    return { type: keyword, pipe, then, otherwise, position };
  }

  /** Behind `else`: `}}` and a list, or another `if` (of an if) or `with` (of a with) that shares the `end`. */
  #otherwise(keyword: Control): Node[] {
    const token = this.#skipSpace();
    if (token.kind === 'word' && token.text === keyword && keyword !== 'range') {
      this.#next();
      return [this.#deeper(token, () => this.#control(keyword, token.position))];
    }
    this.#expectClose('else');
    const { nodes, ending } = this.#deeper(token, () => this.#list(false));
    if (ending.keyword !== 'end') this.#fail(ending.token, `expected end; found {{${ending.keyword}}}`);
    return nodes;
  }

  #pipeline(context: string, until: 'close' | ')'): Pipe {
    const { position } = this.#skipSpace();
    const declared = this.#declaration(context);
    const commands: Command[] = [];
    for (;;) {
      const token = this.#skipSpace();
      if (token.kind === 'close' || (token.kind === 'mark' && token.text === ')')) {
        if ((token.kind === 'close') !== (until === 'close')) this.#unexpected(token, context);
        this.#next();
        break;
      }
      if ((token.kind === 'mark' && token.text !== '(') || token.kind === 'end') this.#unexpected(token, context);
      commands.push(this.#command(context));
    }
    if (commands.length === 0) throw new TemplateFault('syntax', position, `missing value for ${context}`);
    for (const [stage, command] of commands.slice(1).entries()) {
      const [first] = command.args;
      if (first!.type === 'literal' || first!.type === 'dot' || first!.type === 'nil') {
        throw new TemplateFault('syntax', first!.position, `non executable command in pipeline stage ${stage + 2}`);
      }
    }
    return { position, variable: declared?.name, assigns: declared?.assigns ?? false, commands };
  }

  /** `$x :=`, `$x =`, and for range `$k, $v :=`. */
  #declaration(context: string): { name: string; assigns: boolean } | undefined {
    const variable = this.#peek();
    if (variable.kind !== 'variable') return undefined;
    const back = this.#at;
    this.#next();
    let mark = this.#skipSpace();
    let second: Token | undefined;
    if (mark.kind === 'mark' && mark.text === ',') {
      if (context !== 'range') this.#fail(mark, `too many declarations in ${context}`);
      this.#next();
      second = this.#skipSpace();
      if (second.kind !== 'variable') this.#fail(second, 'range can only initialize variables');
      this.#next();
      mark = this.#skipSpace();
    }
    if (mark.kind !== 'mark' || (mark.text !== ':=' && mark.text !== '=')) {
      this.#at = back;
      return undefined;
    }
    this.#next();
    this.#variables.push(variable.text);
    if (second !== undefined) this.#variables.push(second.text);
    return { name: variable.text, assigns: mark.text === '=' };
  }

  #command(context: string): Command {
    const { position } = this.#skipSpace();
    const args: Operand[] = [];
    for (;;) {
      this.#skipSpace();
      const operand = this.#operand();
      if (operand !== undefined) args.push(operand);
      const token = this.#peek();
      if (token.kind === 'space') {
        this.#next();
        continue;
      }
      if (token.kind === 'close' || (token.kind === 'mark' && token.text === ')')) break;
      if (token.kind === 'mark' && token.text === '|') {
        this.#next();
        const after = this.#skipSpace();
        if (after.kind === 'close' || (after.kind === 'mark' && after.text !== '('))
          this.#fail(after, 'missing command after |');
        break;
      }
      this.#unexpected(token, operand === undefined ? context : 'operand');
    }
    if (args.length === 0) throw new TemplateFault('syntax', position, 'empty command');
    return { position, args };
  }

  #operand(): Operand | undefined {
    const term = this.#term();
    if (term === undefined || this.#peek().kind !== 'field') return term;
    const path: string[] = [];
    while (this.#peek().kind === 'field') path.push(this.#next().text.slice(1));
    if (term.type === 'field' || term.type === 'variable') return { ...term, path: [...term.path, ...path] };
    if (term.type === 'literal' || term.type === 'nil' || term.type === 'dot') {
      throw new TemplateFault('syntax', term.position, `unexpected .${path[0]} behind a constant`);
    }
    return { type: 'chain', of: term, path, position: term.position };
  }

  #term(): Operand | undefined {
    const token = this.#peek();
    const { position, text } = token;
    const literal = (value: string | boolean | GoNumber): Operand => {
      this.#next();
      return { type: 'literal', value, text, position };
    };
    switch (token.kind) {
      case 'dot':
        this.#next();
        return { type: 'dot', position };
      case 'field':
        this.#next();
        return { type: 'field', path: [text.slice(1)], position };
      case 'variable':
        if (!this.#variables.includes(text)) this.#fail(token, `undefined variable ${text}`);
        this.#next();
        return { type: 'variable', name: text, path: [], position };
      case 'number':
        return literal(parseNumber(text, position));
      case 'character':
        return literal(unquoteCharacter(text, position));
      case 'string':
        return literal(unquoteString(text, position));
      case 'rawString':
        return literal(unquoteRawString(text));
      case 'word':
        return this.#word(token, literal);
      case 'mark':
        if (text !== '(') return undefined;
        this.#next();
        return {
          type: 'pipe',
          pipe: this.#deeper(token, () => this.#pipeline('parenthesized pipeline', ')')),
          position,
        };
      default:
        return undefined;
    }
  }

  #word(token: Token, literal: (value: boolean) => Operand): Operand {
    const { text, position } = token;
    if (text === 'true' || text === 'false') return literal(text === 'true');
    if (KEYWORDS.has(text)) this.#unexpected(token, 'operand');
    this.#next();
    if (text === 'nil') return { type: 'nil', position };
    if (!this.#isFunction(text)) this.#fail(token, `function ${JSON.stringify(text)} not defined`);
    return { type: 'function', name: text, position };
  }
}
