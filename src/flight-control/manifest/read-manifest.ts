/**
 * The documents of a manifest, YAML or JSON, one after the other: a file of 10,000 devices is never held as 10,000 trees.
 * What is hostile ends with a message and in bounded time and memory: every document has a limit in bytes, depth and
 * nodes, aliases counted as what they stand for.
 */
import {
  Composer,
  type CST,
  type Document,
  isAlias,
  isCollection,
  isMap,
  isScalar,
  isSeq,
  Lexer,
  type Node,
  Parser,
} from 'yaml';
import { messageOf } from '../../errors.ts';
import type { JsonObject, JsonValue } from './json-value.ts';
import { resolveNumber, resolvePlain } from './yaml-scalar.ts';

export const DOCUMENT_BYTES_MAX = 8 * 1024 * 1024;
const DEPTH_MAX = 100;
const LEXEMES_MAX = 250_000;
/** Nodes that aliases add: what a bomb is made of. */
const ALIASED_NODES_MAX = 100_000;
const TOO_DEEP = `it is nested deeper than ${DEPTH_MAX} levels`;
const OPTIONS = { version: '1.1', schema: 'failsafe', uniqueKeys: false, logLevel: 'silent' } as const;

export interface ManifestDocument {
  /** From 1, as YAML counts them: empty documents count. */
  readonly number: number;
  readonly value?: JsonValue;
  /** What is wrong with it as YAML or JSON. */
  readonly problem?: string;
}

/** Throws where the bytes are not UTF-8. A byte order mark is none of the text. */
export function decodeManifest(bytes: Buffer): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw new Error('the file is not UTF-8');
  }
}

/** Documents without content are left out, as if they were not there. */
export function* readManifest(text: string): Generator<ManifestDocument> {
  let number = 0;
  for (const part of splitDocuments(text.startsWith('\ufeff') ? text.slice(1) : text)) {
    number += 1;
    if (part.length < EMPTY_LENGTH_MAX && /^(---)?\s*$/.test(part)) continue;
    let value: JsonValue | undefined;
    try {
      value = readDocument(part);
    } catch (error) {
      yield { number, problem: messageOf(error) };
      continue;
    }
    if (value !== undefined) yield { number, value };
  }
}

/** At `---` at the beginning of a line, which can be nothing but the beginning of a document. */
function* splitDocuments(text: string): Generator<string> {
  const marker = /^---(?=[ \t\r\n]|$)/gm;
  let from = 0;
  let begun = false;
  for (let match = marker.exec(text); match !== null; match = marker.exec(text)) {
    // Directives and comments in front of the first marker belong to its document.
    if (begun || !isPreamble(text.slice(0, match.index))) {
      yield text.slice(from, match.index);
      from = match.index;
    }
    begun = true;
  }
  yield text.slice(from);
}

const PREAMBLE_MAX = 4096;
/** Whether a longer one is empty is not asked before it is read. */
const EMPTY_LENGTH_MAX = 32;

function isPreamble(text: string): boolean {
  return text.length <= PREAMBLE_MAX && text.split('\n').every((line) => /^([#%]|\s*$|\s+#)/.test(line));
}

function readDocument(text: string): JsonValue | undefined {
  if (text.length > DOCUMENT_BYTES_MAX) {
    throw new Error(`the document has ${text.length} characters, at most ${DOCUMENT_BYTES_MAX} are read`);
  }
  const parsed = [...new Composer(OPTIONS).compose(shallow(tokensOf(text)))] as Document.Parsed[];
  const document = parsed[0];
  if (document === undefined) return undefined;
  for (const one of parsed) {
    const [error] = one.errors;
    if (error !== undefined) throw new Error(explain(error.message));
  }
  if (parsed.length > 1 && parsed.slice(1).some((one) => one.contents !== null)) {
    throw new Error('there is more content behind the end of the document');
  }
  if (document.contents === null) return undefined;
  const reader = new TreeReader(document);
  const value = reader.read(document.contents as Node, 0);
  return value === null ? undefined : value;
}

function explain(message: string): string {
  return message.split('\n', 1)[0]!.replace(/:$/, '');
}

/** Counted while they come, for each takes some hundred bytes and may be of one character. */
function* tokensOf(text: string): Generator<CST.Token> {
  const parser = new Parser();
  let lexemes = 0;
  let depth = 0;
  for (const lexeme of new Lexer().lex(text)) {
    lexemes += 1;
    if (lexemes > LEXEMES_MAX) throw new Error(`the document has more than ${LEXEMES_MAX} words and marks`);
    if (lexeme === '[' || lexeme === '{') depth += 1;
    if (lexeme === ']' || lexeme === '}') depth -= 1;
    if (depth > DEPTH_MAX + 1) throw new Error(TOO_DEEP);
    yield* parser.next(lexeme);
  }
  yield* parser.end();
}

/**
 * The tokens, unless one is too deep. The composer goes down by recursion, and a stack that is nearly full can end the whole
 * process: V8 gives up where it has to compile a regular expression there.
 */
function* shallow(tokens: Iterable<CST.Token>): Generator<CST.Token> {
  for (const token of tokens) {
    const left: { readonly token: CST.Token; readonly depth: number }[] = [{ token, depth: 0 }];
    for (let next = left.pop(); next !== undefined; next = left.pop()) {
      if (next.depth > DEPTH_MAX + 1) throw new Error(TOO_DEEP);
      for (const child of children(next.token)) left.push({ token: child, depth: next.depth + 1 });
    }
    yield token;
  }
}

function children(token: CST.Token): CST.Token[] {
  if (token.type === 'document') return token.value === undefined ? [] : [token.value];
  if (!('items' in token)) return [];
  return token.items.flatMap(({ key, value }) => [key, value].filter((child) => child !== null && child !== undefined));
}

class TreeReader {
  readonly #document: Document.Parsed;
  #aliased = 0;
  #inAlias = 0;

  constructor(document: Document.Parsed) {
    this.#document = document;
  }

  read(node: Node | null, depth: number): JsonValue {
    if (depth > DEPTH_MAX) throw new Error(TOO_DEEP);
    if (this.#inAlias > 0 && (this.#aliased += 1) > ALIASED_NODES_MAX) {
      throw new Error(`its aliases stand for more than ${ALIASED_NODES_MAX} nodes`);
    }
    if (node === null) return null;
    if (isAlias(node)) return this.#follow(node, depth);
    if (isScalar(node)) return scalarValue(node.value, node.type ?? 'PLAIN', node.tag);
    if (!isCollection(node)) throw new Error('it has a node that is neither scalar, list nor map');
    if (isSeq(node)) return node.items.map((item) => this.read(item as Node | null, depth + 1));
    if (isMap(node)) return this.#readMap(node.items as unknown as readonly Pair[], depth);
    throw new Error('it has a collection that is neither list nor map');
  }

  #follow(alias: Node, depth: number): JsonValue {
    if (!isAlias(alias)) throw new Error('not an alias');
    const target = alias.resolve(this.#document);
    if (target === undefined) throw new Error(`*${alias.source} stands for nothing`);
    this.#inAlias += 1;
    const value = this.read(target as Node, depth + 1);
    this.#inAlias -= 1;
    return value;
  }

  #readMap(pairs: readonly Pair[], depth: number): JsonObject {
    const members = new Map<string, JsonValue>();
    const merged: JsonObject[] = [];
    for (const { key, value } of pairs) {
      if (isScalar(key) && key.value === '<<' && (key.type ?? 'PLAIN') === 'PLAIN') {
        merged.push(...this.#mergeSources(value, depth));
        continue;
      }
      const name = this.#keyName(key, depth);
      if (members.has(name)) throw new Error(`the key ${shown(name)} stands twice in one map`);
      members.set(name, this.read(value, depth + 1));
    }
    for (const source of merged) {
      for (const [name, value] of Object.entries(source)) if (!members.has(name)) members.set(name, value);
    }
    return Object.fromEntries(members);
  }

  #mergeSources(value: Node | null, depth: number): JsonObject[] {
    const source = this.read(value, depth + 1);
    const list = Array.isArray(source) ? (source as JsonValue[]) : [source];
    return list.map((one) => {
      if (typeof one !== 'object' || one === null || Array.isArray(one)) throw new Error('<< must merge a map');
      return one as JsonObject;
    });
  }

  #keyName(key: Node | null, depth: number): string {
    const value = this.read(key, depth + 1);
    if (typeof value === 'object' && value !== null) throw new Error('a key must be a scalar');
    const name = String(value);
    if (name === '__proto__') throw new Error('the key __proto__ is not taken');
    return name;
  }
}

interface Pair {
  readonly key: Node | null;
  readonly value: Node | null;
}

const LONE_SURROGATE = /\p{Surrogate}/u;
const TAG = 'tag:yaml.org,2002:';

function scalarValue(value: unknown, type: string, tag: string | undefined): JsonValue {
  const text = typeof value === 'string' ? value : value === null || value === undefined ? '' : String(value);
  refuseUnstorable(text);
  if (tag === undefined || tag === '?') return type === 'PLAIN' ? resolvePlain(text) : text;
  switch (tag.startsWith(TAG) ? tag.slice(TAG.length) : tag) {
    case 'str':
    case '!':
      return text;
    case 'null':
      return null;
    case 'int':
    case 'float': {
      const number = resolveNumber(text);
      if (number === undefined) throw new Error(`${shown(text)} is no number`);
      return number;
    }
    case 'bool': {
      const truth = resolvePlain(text);
      if (typeof truth !== 'boolean') throw new Error(`${shown(text)} is neither true nor false`);
      return truth;
    }
    case 'binary':
      return Buffer.from(text, 'base64').toString('latin1');
    default:
      throw new Error(`the tag ${tag} is not known`);
  }
}

/** Neither can be stored as text by Postgres, nor sent as UTF-8. */
function refuseUnstorable(text: string): void {
  if (text.includes('\0')) throw new Error('it holds a NUL character, which text cannot');
  if (LONE_SURROGATE.test(text)) throw new Error('it holds a lone surrogate, which is no character');
}

function shown(text: string): string {
  return JSON.stringify(text.length > 60 ? `${text.slice(0, 60)}…` : text);
}
