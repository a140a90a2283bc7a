/** The kinds of resources, and what becomes of them here. */
const ACTED_ON = ['Device', 'Fleet', 'Repository'] as const;
const STORED = [
  'ResourceSync',
  'EnrollmentRequest',
  'CertificateSigningRequest',
  'AuthProvider',
  'Catalog',
  'CatalogItem',
] as const;
const NOT_STORED = ['ImageBuild', 'ImageExport', 'ImagePromotion', 'TemplateVersion', 'Event'] as const;

export type StoredKind = (typeof ACTED_ON)[number] | (typeof STORED)[number];
export const STORED_KINDS: readonly StoredKind[] = [...ACTED_ON, ...STORED];
/** A manifest may have them; they are named, and left out. */
export const UNSTORED_KINDS: readonly string[] = NOT_STORED;

export const API_VERSION = 'flightctl.io/v1beta1';
const ALPHA_VERSION = 'flightctl.io/v1alpha1';
const ALPHA_KINDS: readonly string[] = ['Catalog', 'CatalogItem', 'ImageBuild', 'ImageExport', 'ImagePromotion'];

export function apiVersionsOf(kind: unknown): readonly string[] {
  const beta = [API_VERSION, 'v1beta1', ''];
  return typeof kind === 'string' && ALPHA_KINDS.includes(kind) ? [...beta, ALPHA_VERSION, 'v1alpha1'] : beta;
}

export function isStoredKind(kind: unknown): kind is StoredKind {
  return (STORED_KINDS as readonly unknown[]).includes(kind);
}

/** The kind that a user means: `devices`, `dev/x`, `Device`. */
export function kindNamed(word: string): string | undefined {
  const plain = word.toLowerCase();
  const all = [...STORED_KINDS, 'TemplateVersion', 'Event'];
  const short: Readonly<Record<string, string>> = {
    dev: 'Device',
    flt: 'Fleet',
    repo: 'Repository',
    repositories: 'Repository',
    er: 'EnrollmentRequest',
    csr: 'CertificateSigningRequest',
    rs: 'ResourceSync',
    tv: 'TemplateVersion',
  };
  if (Object.hasOwn(short, plain)) return short[plain];
  return all.find((kind) => [kind.toLowerCase(), `${kind.toLowerCase()}s`].includes(plain));
}
