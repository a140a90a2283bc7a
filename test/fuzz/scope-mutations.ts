/**
 * Planted leaks: each breaks one rule of the scopes in a copy of the sources, and the isolation campaign has to find it.
 * A control run on an untouched copy has to find nothing.
 */
import { cpSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type KvBinary, temporaryDirectory } from '../../bench/processes.ts';
import { type IsolationReport, runIsolation } from './scope-isolation.ts';

export interface Mutation {
  readonly name: string;
  readonly file: string;
  /** Stands in the file exactly once. */
  readonly find: string;
  readonly replace: string;
}

export const MUTATIONS: readonly Mutation[] = [
  {
    name: 'the reply of BLPOP is not looked at',
    file: 'src/scope/rules.ts',
    find: "  blpop: 'first',\n",
    replace: '',
  },
  {
    name: 'FUNCTION DUMP counts as harmless',
    file: 'src/scope/rules.ts',
    find: "['ping echo time ",
    replace: "['function|dump ping echo time ",
  },
  {
    name: 'every argument of MSET is a key',
    file: 'src/scope/rules.ts',
    find: 'step: keyStep }',
    replace: 'step: keyStep === 2 ? 1 : keyStep }',
  },
  {
    name: 'GEORADIUS … STORE is overlooked',
    file: 'src/scope/find-names.ts',
    find: "(word === 'store' || word === 'storedist') && at + 1 < args.length) found((at += 1), 'key');",
    replace: "(word === 'store' || word === 'storedist') && at + 1 < args.length) at += 1;",
  },
  {
    name: 'SORT … STORE is overlooked',
    file: 'src/scope/find-names.ts',
    find: "else if (word === 'store' && left >= 1) found((at += 1), 'key');",
    replace: "else if (word === 'store' && left >= 1) at += 1;",
  },
  {
    name: 'the first of counted keys is overlooked',
    file: 'src/scope/find-names.ts',
    find: 'for (let at = counted.first; at <',
    replace: 'for (let at = counted.first + 1; at <',
  },
  {
    name: 'SCAN gives names as they are',
    file: 'src/intercept/scope/scan.ts',
    find: 'const key = logicalKey(scope, bytes);',
    replace: 'const key = bytes;',
  },
  {
    name: 'errors are passed on as they are',
    file: 'src/scope/rewrite-reply.ts',
    find: 'return text.includes(scope.id) ? ',
    replace: "return text === '' ? ",
  },
  {
    name: 'members of EXEC are passed on as they are',
    file: 'src/proxy/request/pending-exchange.ts',
    find: 'else parts[member.slot] = guard(() => member.transform(parts[member.slot] as Buffer));',
    replace: '',
  },
  {
    name: 'glob characters in the name of a scope are not escaped',
    file: 'src/scope/scope.ts',
    find: 'Buffer.concat([scope.prefixPattern, pattern])',
    replace: 'Buffer.concat([scope.prefix, pattern])',
  },
  {
    name: 'events tell of every key',
    file: 'src/scope/channels.ts',
    find: 'return key === undefined ? undefined : encode.bulk(key);',
    replace: 'return key === undefined ? payload.raw : encode.bulk(key);',
  },
  {
    name: 'invalidations are passed on as they are',
    file: 'src/scope/subscriptions.ts',
    find: 'return keys === undefined ? undefined : pushLike(',
    replace: 'return keys === undefined || keys.length > 0 ? frame : pushLike(',
  },
  {
    name: 'KEYS inside a script gives names as they are',
    file: 'src/scope/lua/lua-wrapper.ts',
    find: '  if bad then return r end\n  return own(r)',
    replace: '  if bad then return r end\n  return r',
  },
  {
    name: 'scripts name keys as they are',
    file: 'src/scope/lua/lua-wrapper.ts',
    // biome-ignore lint/suspicious/noTemplateCurlyInString: it is source text
    find: 'return shared ? `$S[${key}] and ${key} or $P..${key}` : `$P..${key}`;',
    replace: 'return key;',
  },
  {
    name: 'the last key of a known script is overlooked',
    file: 'src/intercept/scope/script-glance.ts',
    find: 'last: FIRST_KEY + keyCount - 1',
    replace: 'last: FIRST_KEY + keyCount - 2',
  },
  {
    name: 'libraries have the names that clients give them',
    file: 'src/intercept/scope/functions.ts',
    find: 'sha1(session.identity.owner).slice(0, 16)',
    replace: "sha1('').slice(0, 0)",
  },
  {
    name: 'INFO tells what all do',
    file: 'src/scope/rewrite-reply.ts',
    find: 'return INFO_FIELDS.has(',
    replace: 'return line.length > 0 || INFO_FIELDS.has(',
  },
  {
    name: 'scripts have the libraries of the server',
    file: 'src/scope/lua/lua-libraries.ts',
    find: "if (source.includes('_G')) return false;",
    replace: 'if (source.length > 0) return true;',
  },
  {
    name: 'who has logged out is nobody in particular',
    file: 'src/scope/identities.ts',
    find: 'return listeners[index]?.requireAuth === true ? STRANGER : undefined;',
    replace: 'return undefined;',
  },
  {
    name: 'users of the KV store get in everywhere',
    file: 'src/proxy/commands/login.ts',
    find: 'if (identities?.requiresAuth(session.listener) === true) return WRONG_PASSWORD;',
    replace: '',
  },
  {
    name: 'FLUSHDB walks everything',
    file: 'src/intercept/scope/keyspace.ts',
    find: 'const own = page.keys.filter((key) => key.subarray(0, prefix.length).equals(prefix));',
    replace: "const own = (await scanPage(exchange, Buffer.from('*'), '0', database)).keys;",
  },
];

const repository = join(dirname(fileURLToPath(import.meta.url)), '..', '..');

/** A copy of the sources with the mutation in it. Throws where it fits nowhere, or in more than one place. */
export function plantLeak(mutation: Mutation | undefined): string {
  const directory = temporaryDirectory('mutant');
  cpSync(join(repository, 'src'), join(directory, 'src'), { recursive: true });
  cpSync(join(repository, 'package.json'), join(directory, 'package.json'));
  cpSync(join(repository, 'tsconfig.json'), join(directory, 'tsconfig.json'));
  symlinkSync(join(repository, 'node_modules'), join(directory, 'node_modules'));
  if (mutation === undefined) return directory;
  const file = join(directory, mutation.file);
  const parts = readFileSync(file, 'utf8').split(mutation.find);
  if (parts.length !== 2) throw new Error(`"${mutation.name}" fits ${parts.length - 1} places in ${mutation.file}`);
  writeFileSync(file, parts.join(mutation.replace));
  return directory;
}

export function runMutation(
  mutation: Mutation | undefined,
  options: { server: KvBinary; seed: number; commands: number },
): Promise<IsolationReport> {
  return runIsolation({ ...options, checkout: plantLeak(mutation), violationsMax: 1 });
}
