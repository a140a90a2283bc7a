/** `spec.config` of a device or of a fleet's template. */
import { field, isList, isObject, type JsonObject } from '../manifest/json-value.ts';
import { devicePathReasons, PATH_REASONS } from '../rendering/config-path.ts';
import { badUser, isBase64, isDnsSubdomain } from './formats.ts';
import type { Report } from './problems.ts';
import { isTemplate, type SpecContext } from './spec-context.ts';
import { hasPlaceholders } from './template-text.ts';

const SOURCES = ['gitRef', 'httpRef', 'secretRef', 'inline'] as const;
type Source = (typeof SOURCES)[number];
const INLINE_BYTES_MAX = 1024 * 1024;
const MODE_MAX = 0o7777;

const KNOWN: Readonly<Record<Source, readonly string[]>> = {
  gitRef: ['repository', 'targetRevision', 'path'],
  httpRef: ['repository', 'suffix', 'filePath'],
  secretRef: ['name', 'namespace', 'mountPath', 'user', 'group'],
  inline: ['path', 'content', 'contentEncoding', 'mode', 'user', 'group'],
};

export function validateConfig(context: SpecContext, at: string, config: unknown): void {
  const { report } = context;
  if (config === null || config === undefined) return;
  if (!isList(config)) {
    report.refuse(at, 'must be a list', config);
    return;
  }
  const paths = new Set<string>();
  config.forEach((item, index) => {
    validateItem(context, `${at}[${index}]`, item, paths);
  });
}

function validateItem(context: SpecContext, at: string, item: unknown, paths: Set<string>): void {
  const { report } = context;
  if (!isObject(item)) {
    report.refuse(at, 'must be a map', item);
    return;
  }
  const name = field(item, 'name');
  if (typeof name !== 'string' || !isDnsSubdomain(name)) {
    report.refuse(
      `${at}.name`,
      name === undefined ? 'is missing' : 'is not a DNS-1123 subdomain of at most 253 characters',
      name,
    );
  }
  const given = SOURCES.filter((source) => field(item, source) !== undefined);
  if (given.length !== 1) {
    const reason =
      given.length === 0 ? `needs one of ${SOURCES.join(', ')}` : `is of several kinds at once: ${given.join(', ')}`;
    report.refuse(at, reason);
    return;
  }
  for (const key of Object.keys(item)) {
    if (key !== 'name' && key !== given[0]) report.warn(`${at}.${key}`, 'is not known, and has no effect');
  }
  const source = given[0]!;
  const place = `${at}.${source}`;
  const value = field(item, source);
  if (source === 'inline') {
    validateFiles(context, place, value, paths);
    return;
  }
  if (!isObject(value)) {
    report.refuse(place, 'must be a map', value);
    return;
  }
  warnUnknown(report, place, value, source);
  if (source === 'gitRef') validateGit(context, place, value);
  if (source === 'httpRef') validateHttp(context, place, value, paths);
  if (source === 'secretRef') validateSecret(context, place, value);
}

function warnUnknown(report: Report, at: string, value: JsonObject, source: Source): void {
  for (const key of Object.keys(value)) {
    if (KNOWN[source].includes(key)) continue;
    const reason =
      source === 'gitRef' && key === 'mountPath'
        ? 'has no effect: files of a repository go where they are in it'
        : 'is not known, and has no effect';
    report.warn(`${at}.${key}`, reason);
  }
}

/**
 * A text of at most `max` characters. Gives it where it is known here what it will be, which a template's is only when it is
 * expanded.
 */
function text(context: SpecContext, at: string, value: unknown, max: number, required = true): string | undefined {
  const { report } = context;
  if (value === undefined) {
    if (required) report.refuse(at, 'is missing');
    return undefined;
  }
  if (typeof value !== 'string') {
    report.refuse(at, 'must be text', value);
    return undefined;
  }
  if (isTemplate(context, at, value)) return undefined;
  if (Buffer.byteLength(value) > max) {
    report.refuse(at, `is longer than ${max} bytes`, value);
    return undefined;
  }
  return value;
}

function repositoryName({ report }: SpecContext, at: string, value: unknown): void {
  if (value === undefined) {
    report.refuse(at, 'is missing');
    return;
  }
  if (typeof value === 'string' && hasPlaceholders(value)) {
    report.refuse(at, 'no placeholders are allowed here', value);
    return;
  }
  if (typeof value !== 'string' || !isDnsSubdomain(value)) report.refuse(at, 'is not the name of a resource', value);
}

function devicePath(context: SpecContext, at: string, value: unknown): string | undefined {
  const path = text(context, at, value, Number.POSITIVE_INFINITY);
  if (path !== undefined)
    for (const reason of devicePathReasons(path)) context.report.refuse(at, PATH_REASONS[reason], path);
  return path;
}

function once({ report }: SpecContext, at: string, path: string | undefined, paths: Set<string>): void {
  if (path === undefined) return;
  if (paths.has(path)) report.refuse(at, 'this path is used twice', path);
  paths.add(path);
}

function validateGit(context: SpecContext, at: string, git: JsonObject): void {
  repositoryName(context, `${at}.repository`, field(git, 'repository'));
  text(context, `${at}.targetRevision`, field(git, 'targetRevision'), 1024);
  text(context, `${at}.path`, field(git, 'path'), 2048);
}

function validateHttp(context: SpecContext, at: string, http: JsonObject, paths: Set<string>): void {
  repositoryName(context, `${at}.repository`, field(http, 'repository'));
  once(context, `${at}.filePath`, devicePath(context, `${at}.filePath`, field(http, 'filePath')), paths);
  text(context, `${at}.suffix`, field(http, 'suffix'), 2048, false);
}

function validateSecret(context: SpecContext, at: string, secret: JsonObject): void {
  for (const key of ['name', 'namespace']) {
    const name = text(context, `${at}.${key}`, field(secret, key), 253);
    if (name !== undefined && !isDnsSubdomain(name))
      context.report.refuse(`${at}.${key}`, 'is not a DNS-1123 name', name);
  }
  devicePath(context, `${at}.mountPath`, field(secret, 'mountPath'));
  validateOwner(context, at, secret);
}

function validateOwner({ report }: SpecContext, at: string, item: JsonObject): void {
  for (const key of ['user', 'group']) {
    const value = field(item, key);
    if (value === undefined || value === '') continue;
    const reason = typeof value === 'string' ? badUser(value) : 'must be text (quote it in YAML)';
    if (reason !== undefined) report.refuse(`${at}.${key}`, reason, value);
  }
}

function validateFiles(context: SpecContext, at: string, files: unknown, paths: Set<string>): void {
  const { report } = context;
  if (!isList(files)) {
    report.refuse(at, 'must be a list', files);
    return;
  }
  files.forEach((file, index) => {
    const place = `${at}[${index}]`;
    if (!isObject(file)) {
      report.refuse(place, 'must be a map', file);
      return;
    }
    warnUnknown(report, place, file, 'inline');
    once(context, `${place}.path`, devicePath(context, `${place}.path`, field(file, 'path')), paths);
    validateContent(context, place, file);
    validateMode(report, `${place}.mode`, field(file, 'mode'));
    validateOwner(context, place, file);
  });
}

/** `content` with its encoding: of a configuration file or of an application's. */
export function validateContent(context: SpecContext, at: string, file: JsonObject): void {
  const { report } = context;
  const encoding = field(file, 'contentEncoding') ?? 'plain';
  const content = field(file, 'content');
  if (encoding !== 'plain' && encoding !== 'base64') {
    report.refuse(`${at}.contentEncoding`, 'must be plain or base64', encoding);
  }
  if (content === undefined) {
    report.refuse(`${at}.content`, 'is missing');
    return;
  }
  if (typeof content !== 'string') {
    report.refuse(`${at}.content`, 'must be text', content);
    return;
  }
  if (Buffer.byteLength(content) > INLINE_BYTES_MAX) {
    report.refuse(`${at}.content`, `is longer than ${INLINE_BYTES_MAX} bytes`);
    return;
  }
  let plain = content;
  if (encoding === 'base64') {
    if (!isBase64(content)) {
      report.refuse(`${at}.content`, 'is not in base64, as contentEncoding says', content);
      return;
    }
    plain = Buffer.from(content, 'base64').toString();
  }
  isTemplate(context, `${at}.content`, plain);
}

function validateMode(report: Report, at: string, mode: unknown): void {
  if (mode === undefined || mode === null) return;
  if (typeof mode !== 'number' || !Number.isInteger(mode) || mode < 0 || mode > MODE_MAX) {
    report.refuse(at, 'must be a whole number from 0 to 07777', mode);
    return;
  }
  if (mode > 0o777 && /^[0-7]{3}$/.test(String(mode))) {
    report.warn(at, `is the decimal number ${mode}, which is 0${mode.toString(8)}; 0${mode} was probably meant`, mode);
  }
}
