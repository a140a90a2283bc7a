/** Which paths configuration may be written to on a device. The same rules hold for what a person wrote and for what came out of a source. */
import { posix } from 'node:path';

export type PathReason =
  | 'notAbsolute'
  | 'absolute'
  | 'notClean'
  | 'parentReference'
  | 'colon'
  | 'controlCharacter'
  | 'tooLong'
  | 'forbiddenRoot'
  | 'forbiddenFile'
  | 'badKey';

const PATH_BYTES_MAX = 4096;
const KEY_LENGTH_MAX = 253;
/** What belongs to the agent itself. */
const FORBIDDEN_ROOTS = ['/var/lib/flightctl', '/usr/lib/flightctl', '/etc/flightctl/certs'];
const FORBIDDEN_FILES: ReadonlySet<string> = new Set(['/etc/flightctl/config.yaml', '/etc/flightctl/config.yml']);

/** Reasons as sentences, for conditions and messages. */
export const PATH_REASONS: Readonly<Record<PathReason, string>> = {
  notAbsolute: 'must be absolute',
  absolute: 'must be relative',
  notClean: 'must not contain "..", "." or empty parts, or end with a slash',
  parentReference: 'must not begin with ".."',
  colon: 'must not contain ":"',
  controlCharacter: 'must not contain control characters',
  tooLong: `must not be longer than ${PATH_BYTES_MAX} bytes`,
  forbiddenRoot: `must not be below ${FORBIDDEN_ROOTS.join(', ')}`,
  forbiddenFile: `must not be ${[...FORBIDDEN_FILES].join(' or ')}`,
  badKey: 'the key of the secret cannot be a file name',
};

function isClean(path: string): boolean {
  // Node keeps a slash at the end, which is no clean path.
  return path !== '' && posix.normalize(path) === path && (path === '/' || !path.endsWith('/'));
}

function hasControlCharacter(path: string): boolean {
  return [...path].some((character) => character < ' ' || (character >= '\u007f' && character < '\u00a0'));
}

function forbidden(path: string): PathReason[] {
  const clean = posix.normalize(path);
  if (FORBIDDEN_ROOTS.some((root) => clean === root || clean.startsWith(`${root}/`))) return ['forbiddenRoot'];
  return FORBIDDEN_FILES.has(clean) ? ['forbiddenFile'] : [];
}

/** Of a file on a device: all reasons against it; none where it is fine. */
export function devicePathReasons(path: string): PathReason[] {
  const isAbsolute = path.startsWith('/');
  return [
    ...(isAbsolute ? [] : (['notAbsolute'] as const)),
    ...(isClean(path) ? [] : (['notClean'] as const)),
    ...(isAbsolute && path.includes(':') ? (['colon'] as const) : []),
    ...(hasControlCharacter(path) ? (['controlCharacter'] as const) : []),
    ...(Buffer.byteLength(path) > PATH_BYTES_MAX ? (['tooLong'] as const) : []),
    ...forbidden(path),
  ];
}

/** Of a file of an inline application. */
export function relativePathReasons(path: string): PathReason[] {
  const plain = path.startsWith('./') ? path.slice(2) : path;
  return [
    ...(path.startsWith('/') ? (['absolute'] as const) : []),
    ...(path.startsWith('..') ? (['parentReference'] as const) : []),
    ...(isClean(plain) ? [] : (['notClean'] as const)),
    ...(hasControlCharacter(path) ? (['controlCharacter'] as const) : []),
    ...(Buffer.byteLength(path) > PATH_BYTES_MAX ? (['tooLong'] as const) : []),
  ];
}

/** Where a key of a secret goes, or the reasons against it. */
export function secretKeyPath(
  mountPath: string,
  key: string,
): { readonly path: string } | { readonly reasons: PathReason[] } {
  const isName = /^[-._a-zA-Z0-9]+$/.test(key) && key !== '.' && key !== '..' && key.length <= KEY_LENGTH_MAX;
  if (!isName) return { reasons: ['badKey'] };
  const path = posix.join(mountPath, key);
  const reasons = devicePathReasons(path);
  return reasons.length === 0 ? { path } : { reasons };
}
