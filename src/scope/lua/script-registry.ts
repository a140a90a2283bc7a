/**
 * The scripts that scoped clients loaded: under the client's own SHA1, with what is sent to the KV store instead. Scripts
 * belong to an owner (an identity): nobody can run, list or show another's.
 *
 * A script must compile alone before it is wrapped (see lua-wrapper.ts); the KV store's own Lua judges that, without
 * running anything. What was judged once is kept, up to `SCRIPT_BYTES_MAX`. What other processes loaded is found in the KV
 * store (script-store.ts); that they flushed is noticed within `FLUSH_CHECK_MS` of use. A script that is in neither place is
 * unknown, which clients are used to from servers that restart.
 */

import { createHash } from 'node:crypto';
import { setImmediate as turn } from 'node:timers/promises';
import type { ScopeAdmin } from '../scope-admin.ts';
import { KNOWN_GLOBALS, needsNoWrapper, wrapScript } from './lua-wrapper.ts';
import { scriptStore } from './script-store.ts';

export interface WrappedScript {
  /** SHA1 of the client's script, 40 lower-case hex digits. */
  readonly sha: string;
  readonly body: Buffer;
  /** By whether the scope has shared keys. */
  readonly plain: SentScript;
  readonly shared: SentScript;
  /** Where the script calls the server in tail position: the line of the first such call, 1 where there is none. */
  readonly tailCallLine: number;
}

export interface SentScript {
  readonly text: Buffer;
  readonly sha: string;
  /** Whether it takes the prefix behind its arguments; the client's own script, sent as it is, does not. */
  readonly wrapped: boolean;
}

/** The server's words for a script that it does not take. */
export class ScriptRefusal {
  readonly text: string;

  constructor(text: string) {
    this.text = text;
  }
}

export interface ScriptRegistry {
  /** Longer scripts and libraries are refused: to compile one takes the KV store's time, which is everybody's. */
  readonly bytesMax: number;
  /** Takes a script in. Synchronous for one that is known; otherwise the KV store is asked. Rejects with KVDOWN. */
  add(owner: string, body: Buffer): WrappedScript | Promise<WrappedScript | ScriptRefusal>;
  /** As `add`, for other processes too. */
  load(owner: string, body: Buffer): Promise<WrappedScript | ScriptRefusal>;
  /** By SHA1 in lower case, among the owner's own, where nobody has to be asked. */
  known(owner: string, sha: string): WrappedScript | undefined;
  /** By SHA1 in any letter case, among the owner's own. A promise where the KV store has to be asked; it never rejects. */
  find(owner: string, sha: string): WrappedScript | Promise<WrappedScript | undefined>;
  /** Rejects where the KV store does not answer: nothing is forgotten then. */
  forget(owner: string): Promise<void>;
  /**
   * Judges a piece of Lua without running it: `0` where it compiles alone, else the compiler's message. `wrapped` are
   * forms of it in order of preference: the number of the first that compiles too is given.
   */
  compile(body: string, wrapped: readonly string[], chunk: string): Promise<number | string>;
  /** Globals of the server's Lua that the wrapper does not know by name. */
  unknownGlobals(): Promise<readonly string[]>;
}

const FLUSH_CHECK_MS = 1000;
const SCRIPT_BYTES_MAX = 64 * 1024 * 1024;
const SCRIPT_BYTES_DEFAULT = 1024 * 1024;
/** Wrapping such a script takes milliseconds. */
const LONG_SCRIPT_BYTES = 64 * 1024;
const ESCAPE = 27;
const SHA1 = /^[0-9a-f]{40}$/;

const COMPILE = `
local f,e=loadstring(ARGV[2],ARGV[1])
if not f then return e end
for i=3,#ARGV do if loadstring(ARGV[i],ARGV[1]) then return i-3 end end
return 'main function has too many local variables or upvalues'`;

const LIST_GLOBALS = 'local r={} for k in pairs(_G) do r[#r+1]=k end return r';
const COMPILING = 'ERR Error compiling script (new function): ';

export function sha1(bytes: Buffer | string): string {
  return createHash('sha1').update(bytes).digest('hex');
}

/** The error for a script or library that is too long. */
export function tooLong(bytes: number, bytesMax: number): string {
  return `LIMIT the script has ${bytes} bytes, and limits.scopedScriptBytesMax is ${bytesMax}; send its data as arguments`;
}

/** Splits off a shebang line, with its line break. `undefined` where there is one without an end. */
export function splitShebang(text: string): { shebang: string; code: string } | undefined {
  if (!text.startsWith('#!')) return { shebang: '', code: text };
  const end = text.indexOf('\n');
  return end < 0 ? undefined : { shebang: text.slice(0, end + 1), code: text.slice(end + 1) };
}

export function createScriptRegistry(admin: ScopeAdmin, bytesMax = SCRIPT_BYTES_DEFAULT): ScriptRegistry {
  /** Of all owners, least recently used first. */
  const scripts = new Map<string, WrappedScript>();
  let scriptBytes = 0;
  /** Of `scripts`, the last one: one script comes many times in a row. */
  let latest: { readonly owner: string; readonly script: WrappedScript } | undefined;
  const store = scriptStore(admin);
  /** Of each owner: how often its scripts were flushed, as far as known, and when that was asked. */
  const flushes = new Map<string, { count: number | undefined; checkedAt: number }>();
  let globals: { generation: number; names: Promise<readonly string[]> } | undefined;

  const keyOf = (owner: string, sha: string): string => `${sha}${owner}`;

  function bytesOf(script: WrappedScript): number {
    return script.body.length + script.plain.text.length + script.shared.text.length;
  }

  function drop(key: string): void {
    const script = scripts.get(key);
    if (script === undefined) return;
    scripts.delete(key);
    scriptBytes -= bytesOf(script);
    latest = undefined;
  }

  function keep(owner: string, script: WrappedScript): void {
    const key = keyOf(owner, script.sha);
    drop(key);
    scripts.set(key, script);
    scriptBytes += bytesOf(script);
    latest = { owner, script };
    for (const oldest of scripts.keys()) {
      if (scriptBytes <= SCRIPT_BYTES_MAX || oldest === key) break;
      drop(oldest);
    }
  }

  function known(owner: string, sha: string): WrappedScript | undefined {
    if (latest === undefined || latest.script.sha !== sha || latest.owner !== owner) {
      const key = keyOf(owner, sha);
      const script = scripts.get(key);
      if (script === undefined) return undefined;
      scripts.delete(key);
      scripts.set(key, script);
      latest = { owner, script };
    }
    checkFlushes(owner);
    return latest.script;
  }

  /** Looks, while nobody waits, whether the owner's scripts were flushed through another process. */
  function checkFlushes(owner: string): void {
    const now = Date.now();
    const seen = flushes.get(owner) ?? { count: undefined, checkedAt: 0 };
    if (now - seen.checkedAt < FLUSH_CHECK_MS) return;
    flushes.set(owner, seen);
    seen.checkedAt = now;
    store.flushes(owner).then(
      (count) => {
        if (seen.count !== undefined && count > seen.count) dropAll(owner);
        seen.count = count;
      },
      () => undefined,
    );
  }

  function dropAll(owner: string): void {
    for (const [key] of scripts) if (key.slice(40) === owner) drop(key);
  }

  async function fetch(owner: string, sha: string): Promise<WrappedScript | undefined> {
    if (!SHA1.test(sha)) return undefined;
    try {
      const body = await store.get(owner, sha);
      // Whoever can write to the KV store could have put another script under that name.
      const genuine = body !== undefined && sha1(body) === sha;
      const script = !genuine ? undefined : await wrap(owner, sha, body);
      return script instanceof ScriptRefusal ? undefined : script;
    } catch {
      // Not to be had now: unknown, and the client will load it again.
      return undefined;
    }
  }

  function unknownGlobals(): Promise<readonly string[]> {
    if (globals === undefined || globals.generation !== admin.generation) {
      const names = admin
        .command(['EVAL', LIST_GLOBALS, '0'])
        .then((list) =>
          (list as Buffer[]).map(String).filter((name) => /^[A-Za-z_]\w*$/.test(name) && !KNOWN_GLOBALS.has(name)),
        );
      // Learnt anew after a reconnection: the server may be another one.
      globals = { generation: admin.generation, names };
      names.catch(() => {
        globals = undefined;
      });
    }
    return globals.names;
  }

  async function compile(body: string, wrapped: readonly string[], chunk: string): Promise<number | string> {
    const texts = [body, ...wrapped].map((text) => Buffer.from(text, 'latin1'));
    const reply = await admin.command(['EVAL', COMPILE, '0', `@${chunk}`, ...texts]);
    return typeof reply === 'number' ? reply : String(reply);
  }

  async function wrap(owner: string, sha: string, body: Buffer): Promise<WrappedScript | ScriptRefusal> {
    const split = splitShebang(body.toString('latin1'));
    if (split === undefined) return new ScriptRefusal('ERR Invalid script shebang');
    const { shebang, code } = split;
    // Bytecode is nothing that anybody can judge.
    if (code.charCodeAt(0) === ESCAPE)
      return new ScriptRefusal(`${COMPILING}user_script:1: malformed number near 'ESC'`);
    const names = await unknownGlobals();
    const forms: string[] = [];
    for (const nested of [false, true]) {
      for (const shared of [false, true]) {
        forms.push(wrapScript(code, { shared, nested, unknownGlobals: names }));
        if (code.length > LONG_SCRIPT_BYTES) await turn();
      }
    }
    // The plain and the shared form differ by one local variable: what leaves room for the latter suits both.
    const text = `${shebang === '' ? '' : '\n'}${code}`;
    const bare = needsNoWrapper(code, names);
    let judged = await compile(text, [forms[1]!, forms[3]!], 'user_script');
    // What leaves no room for a wrapper runs at least where it needs none.
    if (typeof judged === 'string' && bare) judged = await compile(text, [text], 'user_script');
    if (typeof judged === 'string') return new ScriptRefusal(`${COMPILING}${judged}`);
    const sent = (form: string): SentScript => {
      const bytes = Buffer.from(shebang + form, 'latin1');
      return { text: bytes, sha: sha1(bytes), wrapped: true };
    };
    const script: WrappedScript = {
      sha,
      body,
      plain: bare ? { text: body, sha, wrapped: false } : sent(forms[judged * 2]!),
      shared: sent(forms[judged * 2 + 1]!),
      tailCallLine: tailCallLine(body.toString('latin1')),
    };
    keep(owner, script);
    checkFlushes(owner);
    return script;
  }

  function add(owner: string, body: Buffer): WrappedScript | Promise<WrappedScript | ScriptRefusal> {
    if (body.length > bytesMax) return Promise.resolve(new ScriptRefusal(tooLong(body.length, bytesMax)));
    const sha = sha1(body);
    return known(owner, sha) ?? wrap(owner, sha, body);
  }

  return {
    bytesMax,
    add,
    known,
    async load(owner, body) {
      const script = await add(owner, body);
      // A KV store that takes no writes now takes the script all the same; only other processes do not hear of it.
      if (!(script instanceof ScriptRefusal)) await store.put(owner, script.sha, body).catch(() => undefined);
      return script;
    },
    find(owner, sha) {
      const lower = sha.toLowerCase();
      return known(owner, lower) ?? fetch(owner, lower);
    },
    async forget(owner) {
      await store.flush(owner);
      dropAll(owner);
    },
    compile,
    unknownGlobals,
  };
}

function tailCallLine(text: string): number {
  const at = /\breturn\s+(?:redis|server)\s*\.\s*call\b/.exec(text)?.index;
  return at === undefined ? 1 : text.slice(0, at).split('\n').length;
}

/** An error of a wrapped script, as it would be of the client's own. `text` is latin1. */
export function clientError(script: WrappedScript, text: string): string {
  return text
    .replaceAll(script.plain.sha, script.sha)
    .replaceAll(script.shared.sha, script.sha)
    .replace(
      `script: ${script.sha}, on @user_script:0.`,
      `script: ${script.sha}, on @user_script:${script.tailCallLine}.`,
    );
}
