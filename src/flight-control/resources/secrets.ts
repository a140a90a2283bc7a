/** Secrets leave Postgres towards the server that they are for, and nowhere else: everybody is shown a mask. */
import { isList, isObject, type JsonObject, type JsonValue } from '../manifest/json-value.ts';

export const MASK = '*****';
const SECRETS: ReadonlySet<string> = new Set([
  'password',
  'token',
  'tls.key',
  'sshPrivateKey',
  'privateKeyPassphrase',
  'clientSecret',
]);
/** Kinds whose specs hold secrets. Devices and fleets have none: what `password` means in their files is their own. */
const KINDS: readonly string[] = ['Repository', 'AuthProvider', 'ResourceSync'];

/** `https://anna:hunter2@host`: what stands in front of the password, and it. */
const PASSWORD_IN_URL = /^([a-z][a-z0-9+.-]*:\/\/[^/@:\s]*):([^/@\s]*)@/i;
const URL_KEY = 'url';

export function maskUrl(url: string): string {
  return url.replace(PASSWORD_IN_URL, `$1:${MASK}@`);
}

export function isMask(value: unknown): boolean {
  return value === MASK;
}

export function maskSecrets(kind: string, spec: JsonValue | undefined): JsonValue | undefined {
  return spec === undefined || !KINDS.includes(kind) ? spec : mask(spec);
}

function mask(value: JsonValue): JsonValue {
  if (isList(value)) return value.map(mask);
  if (!isObject(value)) return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, member]) => [
      key,
      SECRETS.has(key) && member !== null && member !== '' ? MASK : maskMember(key, member),
    ]),
  );
}

function maskMember(key: string, member: JsonValue): JsonValue {
  return key === URL_KEY && typeof member === 'string' ? maskUrl(member) : mask(member);
}

/** A URL with the stored password where it has the mask; nothing where none is stored. */
function keepPassword(url: string, stored: JsonValue | undefined): string | undefined {
  const password = typeof stored === 'string' ? PASSWORD_IN_URL.exec(stored)?.[2] : undefined;
  return password === undefined
    ? undefined
    : url.replace(PASSWORD_IN_URL, (_all, user: string) => `${user}:${password}@`);
}

/**
 * `given`, with the stored secret wherever it has the mask. Gives the paths of masks that stand for nothing as well, and whether a
 * secret was kept.
 */
export function keepSecrets(
  given: JsonValue,
  stored: JsonValue | undefined,
): { value: JsonValue; unknown: string[]; kept: boolean } {
  const unknown: string[] = [];
  let anyKept = false;
  const keep = (value: JsonValue, old: JsonValue | undefined, path: string): JsonValue => {
    if (isList(value)) return value.map((item, at) => keep(item, isList(old) ? old[at] : undefined, `${path}[${at}]`));
    if (!isObject(value)) return value;
    const before: JsonObject = isObject(old) ? old : {};
    return Object.fromEntries(
      Object.entries(value).map(([key, member]) => {
        const kept = Object.hasOwn(before, key) ? before[key] : undefined;
        if (key === URL_KEY && typeof member === 'string' && PASSWORD_IN_URL.exec(member)?.[2] === MASK) {
          const whole = keepPassword(member, kept);
          if (whole === undefined) unknown.push(`${path}.${key}`);
          else anyKept = true;
          return [key, whole ?? member];
        }
        if (!SECRETS.has(key) || !isMask(member)) return [key, keep(member, kept, `${path}.${key}`)];
        if (kept === undefined) unknown.push(`${path}.${key}`);
        else anyKept = true;
        return [key, kept ?? null];
      }),
    );
  };
  const value = keep(given, stored, 'spec');
  return { value, unknown, kept: anyKept };
}

/** Whom the secrets of a repository are for: the server of its URL, or its registry. */
export function serverOf(spec: JsonValue | undefined): string {
  const { url, registry } = isObject(spec) ? spec : {};
  if (typeof registry === 'string') return registry;
  if (typeof url !== 'string') return '';
  if (URL.canParse(url)) {
    const { protocol, host } = new URL(url);
    return `${protocol}//${host}`;
  }
  // user@host:path, as ssh has it
  return /^(?:[^@/]*@)?([^:/]+):/.exec(url)?.[1] ?? url;
}
