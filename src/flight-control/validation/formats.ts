/** Forms of single values. Each check gives the reason why a value is not of its form, or nothing. */
const DNS_LABEL = '[a-z0-9](?:[-a-z0-9]*[a-z0-9])?';
const DNS_SUBDOMAIN = new RegExp(`^${DNS_LABEL}(?:\\.${DNS_LABEL})*$`);
const DNS_SUBDOMAIN_MAX = 253;
const LABEL_PART = /^[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?$/;
const LABEL_PART_MAX = 63;

export function isDnsSubdomain(text: string): boolean {
  return text.length <= DNS_SUBDOMAIN_MAX && DNS_SUBDOMAIN.test(text);
}

export function badLabelKey(key: string): string | undefined {
  const slash = key.indexOf('/');
  const [prefix, name] = slash < 0 ? [undefined, key] : [key.slice(0, slash), key.slice(slash + 1)];
  if (prefix !== undefined && !isDnsSubdomain(prefix))
    return `the prefix of the key ${JSON.stringify(key)} is not a DNS-1123 subdomain`;
  if (name.length <= LABEL_PART_MAX && LABEL_PART.test(name)) return undefined;
  return `the key ${JSON.stringify(key)} is not 1 to 63 letters, digits, -, _ and ., with a letter or digit at both ends`;
}

export function badLabelValue(value: string): string | undefined {
  if (value === '' || (value.length <= LABEL_PART_MAX && LABEL_PART.test(value))) return undefined;
  return 'is not at most 63 letters, digits, -, _ and ., with a letter or digit at both ends';
}

const BASE64 = /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/;

/** Standard alphabet with padding; line breaks are ignored, as by the reference. */
export function isBase64(text: string): boolean {
  return BASE64.test(text.replace(/[\r\n]/g, ''));
}

const USER_NAME = /^[a-zA-Z0-9_][a-zA-Z0-9_-]*\$?$/;

/** A user or group, by name or number. */
export function badUser(text: string): string | undefined {
  if (/^[-+]?[0-9]+$/.test(text)) {
    const id = Number(text);
    if (id < 0 || id >= 4_294_967_295 || id === 65_535) return 'is no valid ID: 0 to 4294967294, but not 65535';
    return undefined;
  }
  if (text.length > 32) return 'is longer than 32 characters';
  return USER_NAME.test(text) ? undefined : 'is not letters, digits, _ and -, without - in front';
}

const DOMAIN_PART = '(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])';
const DOMAIN = `${DOMAIN_PART}(?:\\.${DOMAIN_PART})*(?::[0-9]+)?`;
const NAME_PART = '[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*';
const TAG = '[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}';
const DIGEST = '[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}';
const BEHIND_NAME = `(?::${TAG})?(?:@${DIGEST})?`;
const IMAGE = new RegExp(`^(?:${DOMAIN}/)?${NAME_PART}(?:/${NAME_PART})*${BEHIND_NAME}$`);
const STRICT_IMAGE = new RegExp(`^${DOMAIN}/${NAME_PART}(?:/${NAME_PART})*${BEHIND_NAME}$`);
const IMAGE_MAX = 2048;

export function isImage(text: string): boolean {
  return text.length <= IMAGE_MAX && IMAGE.test(text);
}

/** With the name of its registry: what a short name means is the host's to say. */
export function isStrictImage(text: string): boolean {
  return text.length <= IMAGE_MAX && STRICT_IMAGE.test(text);
}

/** `10m`: a whole number above 0 with s, m or h. */
export function isDuration(value: unknown): boolean {
  return typeof value === 'string' && /^[1-9][0-9]*[smh]$/.test(value);
}

export function isPercentage(value: unknown): boolean {
  return typeof value === 'string' && /^(?:100|[1-9]?[0-9])%$/.test(value);
}

/** Host name or address, with an optional port, without scheme and path. */
export function isRegistry(text: string): boolean {
  return (
    text.length <= 261 &&
    new RegExp(`^(?:${DOMAIN_PART}(?:\\.${DOMAIN_PART})*|\\[[0-9a-fA-F:.]+\\])(?::[0-9]{1,5})?$`).test(text)
  );
}

/** Three parts in base64url, as a JSON Web Token has them. */
export function isToken(text: string): boolean {
  return (
    /^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$/.test(text) &&
    text.split('.').every((part) => part.length % 4 !== 1)
  );
}
