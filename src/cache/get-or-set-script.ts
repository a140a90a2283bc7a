/**
 * Recognises the get-or-set that clients run as a Lua script today, so that it can be served by one native command:
 *
 *   local value = redis.call('get', KEYS[1])
 *   if not value then
 *     redis.call('set', KEYS[1], ARGV[1], 'NX')
 *     value = ARGV[1]
 *   end
 *   return value
 *
 * Scripts are compared token by token, so that white space, comments, quotes, the letter case of commands and the names
 * of local variables do not matter. Anything else does: a script that says more is not recognised and runs as it is.
 * EVALSHA is recognised by the SHA1 of a body that was seen, and by that of the reference client's script.
 */
import { createHash } from 'node:crypto';

export interface GetOrSetScripts {
  /**
   * Whether this body is a get-or-set that was seen before. The first time it runs as it came, so that the KV store knows
   * it like any other script.
   */
  isBody(buffer: Buffer, start?: number, end?: number): boolean;
  /** By SHA1 in any letter case. */
  isSha(buffer: Buffer, start?: number, end?: number): boolean;
}

/** Longer bodies are something else, and not worth a look. */
const BODY_BYTES_MAX = 1024;
const BODIES_MAX = 1000;
const SHA_BYTES = 40;

/** SHA1 of the script as Flight Control's client sends it (internal/kvstore). */
const REFERENCE_SHA1 = '26610f438b92998493b33ac87a6d788827211c98';

/** `$1`, `$2` stand for local variables in the order of their declaration. */
const FORMS: ReadonlySet<string> = new Set(
  // Whether `set` carries NX makes no difference: a script is atomic, and the key was absent.
  ['', ", 'nx' "].flatMap((condition) => {
    const get = "local $1 = redis . call ( 'get' , KEYS [ 1 ] )";
    const set = `redis . call ( 'set' , KEYS [ 1 ] , ARGV [ 1 ] ${condition})`;
    return [
      ...['not $1', '$1 == false'].flatMap((absent) => [
        `${get} if ${absent} then ${set} $1 = ARGV [ 1 ] end return $1`,
        `${get} if ${absent} then ${set} return ARGV [ 1 ] end return $1`,
      ]),
      `${get} if $1 then return $1 end ${set} return ARGV [ 1 ]`,
      `${get} if $1 then return $1 else ${set} return ARGV [ 1 ] end`,
    ];
  }),
);

export function getOrSetScripts(): GetOrSetScripts {
  const bodies = new Map<string, boolean>();
  const shas = new Set<string>([REFERENCE_SHA1]);
  // One script comes many times in a row.
  const latestBody = new Latest();
  const latestSha = new Latest();

  return {
    isBody(buffer, start = 0, end = buffer.length) {
      if (end - start > BODY_BYTES_MAX) return false;
      if (latestBody.is(buffer, start, end)) return latestBody.verdict;
      const text = buffer.toString('latin1', start, end);
      const known = bodies.get(text);
      if (known !== undefined) return latestBody.note(buffer, start, end, known);
      const recognised = isGetOrSet(text);
      if (bodies.size >= BODIES_MAX) bodies.clear();
      bodies.set(text, recognised);
      if (recognised && shas.size < BODIES_MAX) {
        shas.add(createHash('sha1').update(text, 'latin1').digest('hex'));
        latestSha.forget();
      }
      return false;
    },
    isSha(buffer, start = 0, end = buffer.length) {
      if (end - start !== SHA_BYTES) return false;
      if (latestSha.is(buffer, start, end)) return latestSha.verdict;
      return latestSha.note(buffer, start, end, shas.has(buffer.toString('latin1', start, end).toLowerCase()));
    },
  };
}

/** The text that was asked about last, and what was said of it: found again without a string for it. */
class Latest {
  verdict = false;
  private bytes: Buffer | undefined;

  is(buffer: Buffer, start: number, end: number): boolean {
    const { bytes } = this;
    if (bytes === undefined || bytes.length !== end - start) return false;
    for (let i = 0; i < bytes.length; i += 1) if (bytes[i] !== buffer[start + i]) return false;
    return true;
  }

  note(buffer: Buffer, start: number, end: number, verdict: boolean): boolean {
    this.bytes = Buffer.from(buffer.subarray(start, end));
    this.verdict = verdict;
    return verdict;
  }

  forget(): void {
    this.bytes = undefined;
  }
}

export function isGetOrSet(source: string): boolean {
  const tokens = tokenize(source);
  return tokens !== undefined && FORMS.has(normalize(tokens));
}

const TOKEN =
  /--\[\[[\s\S]*?\]\]|--(?!\[=*\[)[^\n]*|\s+|[A-Za-z_]\w*|\d+|==|[=().,[\];]|'(?:[^'\\\n]*)'|"(?:[^"\\\n]*)"/y;

/** `undefined` where there is something that no known form has. */
function tokenize(source: string): string[] | undefined {
  const tokens: string[] = [];
  TOKEN.lastIndex = 0;
  while (TOKEN.lastIndex < source.length) {
    const match = TOKEN.exec(source);
    if (match === null) return undefined;
    const [token] = match;
    if (token.startsWith('--') || token === ';' || token.trim() === '') continue;
    tokens.push(/^['"]/.test(token) ? `'${token.slice(1, -1).toLowerCase()}'` : token);
  }
  return tokens;
}

/** Local variables by number. */
function normalize(tokens: readonly string[]): string {
  const locals = new Map<string, string>();
  for (const [at, token] of tokens.entries()) {
    const name = tokens[at + 1];
    if (token === 'local' && name !== undefined && !locals.has(name)) locals.set(name, `$${locals.size + 1}`);
  }
  return tokens.map((token) => locals.get(token) ?? token).join(' ');
}
