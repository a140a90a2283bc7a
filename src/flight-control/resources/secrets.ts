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
      SECRETS.has(key) && member !== null && member !== '' ? MASK : mask(member),
    ]),
  );
}

/** `given`, with the stored secret wherever it has the mask. Gives the paths of masks that stand for nothing as well. */
export function keepSecrets(given: JsonValue, stored: JsonValue | undefined): { value: JsonValue; unknown: string[] } {
  const unknown: string[] = [];
  const keep = (value: JsonValue, old: JsonValue | undefined, path: string): JsonValue => {
    if (isList(value)) return value.map((item, at) => keep(item, isList(old) ? old[at] : undefined, `${path}[${at}]`));
    if (!isObject(value)) return value;
    const before: JsonObject = isObject(old) ? old : {};
    return Object.fromEntries(
      Object.entries(value).map(([key, member]) => {
        const kept = Object.hasOwn(before, key) ? before[key] : undefined;
        if (!SECRETS.has(key) || !isMask(member)) return [key, keep(member, kept, `${path}.${key}`)];
        if (kept === undefined) unknown.push(`${path}.${key}`);
        return [key, kept ?? null];
      }),
    );
  };
  return { value: keep(given, stored, 'spec'), unknown };
}
