/** `spec` of a Repository. Values that may be secrets are never shown. */
import { field, isObject, type JsonObject } from '../manifest/json-value.ts';
import { isMask } from '../resources/secrets.ts';
import { isBase64, isRegistry, isToken } from './formats.ts';
import type { Report } from './problems.ts';

const URL_MAX = 2048;
const KNOWN: Readonly<Record<string, readonly string[]>> = {
  git: ['type', 'url', 'httpConfig', 'sshConfig'],
  http: ['type', 'url', 'httpConfig', 'validationSuffix'],
  oci: ['type', 'registry', 'scheme', 'accessMode', 'ociAuth', 'ca.crt', 'skipServerVerification'],
};
const HTTP_CONFIG = ['username', 'password', 'token', 'tls.crt', 'tls.key', 'ca.crt', 'skipServerVerification'];
const SSH_CONFIG = ['sshPrivateKey', 'privateKeyPassphrase', 'skipServerVerification'];

export function validateRepository(report: Report, spec: unknown): void {
  if (spec === undefined) {
    report.refuse('spec', 'is missing');
    return;
  }
  if (!isObject(spec)) {
    report.refuse('spec', 'must be a map', spec);
    return;
  }
  const type = field(spec, 'type');
  if (type === undefined || type === '') report.refuse('spec.type', 'is missing: it must be git, http or oci');
  else if (typeof type !== 'string' || !Object.hasOwn(KNOWN, type)) {
    report.refuse('spec.type', 'must be git, http or oci', type);
    return;
  } else refuseUnknown(report, 'spec', spec, KNOWN[type]!, ` for ${type}`);
  if (type === 'oci') {
    validateOci(report, spec);
    return;
  }
  requireText(report, 'spec.url', field(spec, 'url'), URL_MAX);
  const suffix = field(spec, 'validationSuffix');
  if (suffix !== undefined && type === 'http') requireText(report, 'spec.validationSuffix', suffix, URL_MAX);
  const http = field(spec, 'httpConfig') ?? undefined;
  const ssh = field(spec, 'sshConfig') ?? undefined;
  if (http !== undefined) validateHttpConfig(report, 'spec.httpConfig', http);
  if (ssh !== undefined) validateSshConfig(report, 'spec.sshConfig', ssh);
  if (http !== undefined && ssh !== undefined) {
    report.refuse('spec.httpConfig', 'and spec.sshConfig exclude each other');
    report.refuse('spec.sshConfig', 'and spec.httpConfig exclude each other');
  }
}

function refuseUnknown(report: Report, at: string, value: JsonObject, known: readonly string[], context = ''): void {
  for (const key of Object.keys(value)) {
    if (known.includes(key)) continue;
    const plain = (name: string): string => name.replace(/\W/g, '').toLowerCase();
    const meant = known.find((name) => plain(name) === plain(key));
    report.refuse(`${at}.${key}`, meant === undefined ? `is not known${context}` : `is not known: it is ${meant}`);
  }
}

function requireText(report: Report, at: string, value: unknown, max: number): void {
  if (value === undefined || value === null || value === '') {
    report.refuse(at, 'is missing');
    return;
  }
  if (typeof value !== 'string') {
    report.refuse(at, 'must be text', value);
    return;
  }
  if (Buffer.byteLength(value) > max) report.refuse(at, `is longer than ${max} bytes`);
}

/** A secret is text; its form is not asked of the mask that stands for a stored one. */
function secret(
  report: Report,
  at: string,
  value: unknown,
  max: number,
  form?: [(text: string) => boolean, string],
): void {
  if (value === undefined || value === null) return;
  if (typeof value !== 'string') {
    report.refuse(at, 'must be text');
    return;
  }
  if (isMask(value)) return;
  if (value === '') {
    report.refuse(at, 'is empty');
    return;
  }
  if (Buffer.byteLength(value) > max) {
    report.refuse(at, `is longer than ${max} bytes`);
    return;
  }
  if (form !== undefined && !form[0](value)) report.refuse(at, form[1]);
}

const CERTIFICATE_MAX = 20 * 1024 * 1024;
const BASE64: [(text: string) => boolean, string] = [isBase64, 'must be in base64'];

function given(config: JsonObject, key: string): boolean {
  return (field(config, key) ?? undefined) !== undefined;
}

function together(report: Report, at: string, config: JsonObject, first: string, second: string): void {
  if (given(config, first) === given(config, second)) return;
  report.refuse(at, `needs ${first} and ${second} together`);
}

function validateHttpConfig(report: Report, at: string, config: unknown): void {
  if (!isObject(config)) {
    report.refuse(at, 'must be a map');
    return;
  }
  refuseUnknown(report, at, config, HTTP_CONFIG);
  together(report, at, config, 'username', 'password');
  together(report, at, config, 'tls.crt', 'tls.key');
  secret(report, `${at}.username`, field(config, 'username'), 256);
  secret(report, `${at}.password`, field(config, 'password'), 256);
  secret(report, `${at}.token`, field(config, 'token'), CERTIFICATE_MAX, [isToken, 'must be a JSON Web Token']);
  for (const key of ['tls.crt', 'tls.key', 'ca.crt'])
    secret(report, `${at}.${key}`, field(config, key), CERTIFICATE_MAX, BASE64);
  validateSkip(report, at, config);
}

function validateSkip(report: Report, at: string, config: JsonObject): void {
  const skip = field(config, 'skipServerVerification');
  if (skip !== undefined && skip !== null && typeof skip !== 'boolean') {
    report.refuse(`${at}.skipServerVerification`, 'must be true or false', skip);
  }
}

function validateSshConfig(report: Report, at: string, config: unknown): void {
  if (!isObject(config)) {
    report.refuse(at, 'must be a map');
    return;
  }
  refuseUnknown(report, at, config, SSH_CONFIG);
  if (given(config, 'privateKeyPassphrase') && !given(config, 'sshPrivateKey')) {
    report.refuse(`${at}.privateKeyPassphrase`, 'needs sshPrivateKey');
  }
  secret(report, `${at}.sshPrivateKey`, field(config, 'sshPrivateKey'), CERTIFICATE_MAX, BASE64);
  secret(report, `${at}.privateKeyPassphrase`, field(config, 'privateKeyPassphrase'), 256);
  validateSkip(report, at, config);
}

function validateOci(report: Report, spec: JsonObject): void {
  const registry = field(spec, 'registry');
  requireText(report, 'spec.registry', registry, 261);
  if (typeof registry === 'string' && registry !== '' && !isRegistry(registry)) {
    report.refuse('spec.registry', 'must be a host name with an optional port, without a scheme', registry);
  }
  const choices: [string, string[]][] = [
    ['scheme', ['http', 'https']],
    ['accessMode', ['Read', 'ReadWrite']],
  ];
  for (const [key, allowed] of choices) {
    const value = field(spec, key) ?? undefined;
    if (value === undefined || (typeof value === 'string' && allowed.includes(value))) continue;
    report.refuse(`spec.${key}`, `must be ${allowed.join(' or ')}`, value);
  }
  secret(report, 'spec.ca.crt', field(spec, 'ca.crt'), CERTIFICATE_MAX, BASE64);
  validateSkip(report, 'spec', spec);
  const auth = field(spec, 'ociAuth') ?? undefined;
  if (auth === undefined) return;
  if (!isObject(auth)) {
    report.refuse('spec.ociAuth', 'must be a map');
    return;
  }
  refuseUnknown(report, 'spec.ociAuth', auth, ['authType', 'username', 'password']);
  for (const [key, max] of [
    ['username', 256],
    ['password', 8192],
  ] as const) {
    if (!given(auth, key)) report.refuse(`spec.ociAuth.${key}`, 'is missing');
    secret(report, `spec.ociAuth.${key}`, field(auth, key), max);
  }
}
