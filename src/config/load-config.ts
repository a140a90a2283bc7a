/**
 * Defaults < configuration file < environment < flags, merged, checked once, frozen. Every mistake becomes one line that
 * names the setting as the operator wrote it: the flag, the variable, or the file's line. Values of secrets are never in it.
 */
import { createHash } from 'node:crypto';
import { accessSync, constants, readFileSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { type ParseArgsConfig, parseArgs } from 'node:util';
import { isNode, LineCounter, parseDocument, type Document as YamlDocument } from 'yaml';
import type { z } from 'zod';
import { HoldfastError, messageOf } from '../errors.ts';
import { type Config, type ConfiguredUser, configSchema, type ParsedSettings, type RemoteKv } from './config.ts';
import { Secret } from './secret.ts';
import { CONFIG_FILE_VARIABLE, SETTINGS, type Setting } from './settings.ts';

export interface ConfigSource {
  /** Behind the subcommand. */
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly workingDirectory: string;
  /** Flags that the subcommand has besides the settings, as `parseArgs` describes them. */
  readonly flags?: NonNullable<ParseArgsConfig['options']>;
  /** How many words besides flags the subcommand takes; none by default. */
  readonly wordsMax?: number;
}

export interface LoadedConfig {
  readonly config: Config;
  /** Values of the subcommand's own flags. */
  readonly flags: Readonly<Record<string, string | boolean | (string | boolean)[] | undefined>>;
  readonly words: readonly string[];
}

type Path = readonly PropertyKey[];

interface Mistake {
  readonly path: Path;
  readonly message: string;
}

/**
 * Service links that Kubernetes puts into every container of a namespace in which a Service is called `holdfast…`.
 * https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
 */
const KUBERNETES_SERVICE_LINK = /_SERVICE_HOST$|_SERVICE_PORT(_|$)|_PORT(_\d+_(TCP|UDP|SCTP)(_|$)|$)/;

/** The settings file and where in it a path stands. */
interface ConfigFile {
  readonly name: string;
  readonly directory: string;
  readonly content: unknown;
  lineOf(path: Path): number | undefined;
}

function configError(lines: readonly string[]): HoldfastError {
  return new HoldfastError('CONFIG', lines.join('\n'));
}

function readConfigFile(name: string, workingDirectory: string): ConfigFile {
  const path = resolve(workingDirectory, name);
  const lineCounter = new LineCounter();
  let document: YamlDocument.Parsed;
  try {
    document = parseDocument(readFileSync(path, 'utf8'), { lineCounter });
  } catch (error) {
    throw configError([`--config: cannot read ${name}: ${messageOf(error)}`]);
  }
  if (document.errors.length > 0) {
    throw configError(
      document.errors.map((error) => `${name}:${error.linePos?.[0].line ?? 1}: ${error.message.split('\n', 1)[0]}`),
    );
  }
  const content: unknown = document.toJS() ?? {};
  if (typeof content !== 'object' || Array.isArray(content))
    throw configError([`${name}:1: expected settings by name`]);
  return {
    name,
    directory: dirname(path),
    content,
    lineOf(wanted) {
      for (let length = wanted.length; length > 0; length -= 1) {
        const node = document.getIn(wanted.slice(0, length), true);
        if (isNode(node) && node.range) return lineCounter.linePos(node.range[0]).line;
      }
      return undefined;
    },
  };
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** A copy of `target` in which `path` has `value`. What stands in the way keeps its place, for the schema to judge. */
function withValue(target: unknown, path: Path, value: unknown): unknown {
  const [name, ...rest] = path;
  if (name === undefined) return value;
  if (target !== undefined && target !== null && !isRecord(target)) return target;
  const record: Record<string, unknown> = { ...target };
  record[String(name)] = withValue(record[String(name)], rest, value);
  return record;
}

function pathText(path: Path): string {
  return path.reduce<string>(
    (text, part) =>
      typeof part === 'number' ? `${text}[${part}]` : text === '' ? String(part) : `${text}.${String(part)}`,
    '',
  );
}

function startsWith(path: Path, prefix: Path): boolean {
  return prefix.every((part, index) => path[index] === part);
}

/** What a person understands of the schema's issues; unknown keys one by one. */
function mistakesIn(issues: readonly z.core.$ZodIssue[]): Mistake[] {
  return issues.flatMap((issue): Mistake[] => {
    const { path, message } = issue;
    if (issue.code === 'unrecognized_keys') {
      return issue.keys.map((key) => ({ path: [...path, key], message: 'there is no such setting' }));
    }
    if (issue.code === 'invalid_key') return [{ path, message: issue.issues.map((inner) => inner.message).join(', ') }];
    if (issue.code === 'invalid_type' && message.endsWith('received undefined'))
      return [{ path, message: 'is missing' }];
    return [{ path, message: message.replace(/^(Invalid \w+|Too small|Too big): /, '') }];
  });
}

interface Override {
  readonly path: Path;
  /** The flag or the variable. */
  readonly name: string;
}

/** `--listen: …`, `HOLDFAST_LISTEN: …`, `holdfast.yaml:3: listen: …` or, for a default that does not work, `listen: …`. */
function lineOf({ path, message }: Mistake, file: ConfigFile | undefined, overrides: readonly Override[]): string {
  const override = overrides.findLast((entry) => startsWith(path, entry.path));
  if (override !== undefined) return `${override.name}: ${message}`;
  const line = file?.lineOf(path);
  const place = file === undefined || line === undefined ? '' : `${file.name}:${line}: `;
  return `${place}${pathText(path) || 'settings'}: ${message}`;
}

function environmentMistakes(env: ConfigSource['env']): string[] {
  const known = new Set([CONFIG_FILE_VARIABLE, ...SETTINGS.map((setting) => setting.variable)]);
  return Object.keys(env)
    .filter((name) => name.startsWith('HOLDFAST_') && !known.has(name) && !KUBERNETES_SERVICE_LINK.test(name))
    .map((name) => `${name}: there is no such setting`);
}

function parseFlags(source: ConfigSource) {
  const options: NonNullable<ParseArgsConfig['options']> = { config: { type: 'string' }, ...source.flags };
  for (const { flag, list } of SETTINGS) if (flag) options[flag] = { type: 'string', multiple: list === true };
  const wordsMax = source.wordsMax ?? 0;
  try {
    const parsed = parseArgs({ args: [...source.args], options, allowPositionals: true, strict: true });
    const surplus = parsed.positionals[wordsMax];
    if (surplus === undefined) return parsed;
    throw new Error(`unexpected argument ${surplus}`);
  } catch (error) {
    const unknown = /^Unknown option '([^']+)'/.exec(messageOf(error))?.[1];
    throw configError([
      unknown === undefined ? messageOf(error).split('\n', 1)[0]! : `${unknown}: there is no such flag`,
    ]);
  }
}

function fromText(setting: Setting, text: string): unknown {
  return setting.list === true ? text.split(',').map((part) => part.trim()) : text;
}

/** The files that settings name, with the mistakes found there. */
interface SettingFiles {
  readonly mistakes: Mistake[];
  /** The first line ending at the end does not belong to the secret. */
  secret(path: Path, name: string): Secret | undefined;
  /** A copy of `entry` in which the members `names`, paths of readable files, are absolute. */
  absolute<T extends object>(path: Path, entry: T, names: readonly (keyof T)[]): T;
}

function settingFiles(directory: string): SettingFiles {
  const mistakes: Mistake[] = [];
  function cannotRead(path: Path, name: string, error: unknown): void {
    mistakes.push({ path, message: `cannot read ${name}: ${(error as NodeJS.ErrnoException).code}` });
  }
  return {
    mistakes,
    secret(path, name) {
      try {
        const text = readFileSync(resolve(directory, name), 'utf8').replace(/\r?\n$/, '');
        if (text !== '') return new Secret(text);
        mistakes.push({ path, message: `${name} is empty` });
      } catch (error) {
        cannotRead(path, name, error);
      }
      return undefined;
    },
    absolute(path, entry, names) {
      const copy = { ...entry };
      for (const name of names) {
        const value = entry[name];
        if (typeof value !== 'string') continue;
        const absolutePath = resolve(directory, value);
        try {
          accessSync(absolutePath, constants.R_OK);
        } catch (error) {
          cannotRead([...path, name], value, error);
        }
        copy[name] = absolutePath as typeof value;
      }
      return copy;
    },
  };
}

function finishKv(kv: ParsedSettings['kv'], files: SettingFiles): Config['kv'] {
  const tls = files.absolute(['kv', 'tls'], kv.tls, ['ca', 'cert', 'key']);
  const { maxmemory, maxmemoryPolicy, loglevel } = kv;
  const fromFile = kv.passwordFile === undefined ? undefined : files.secret(['kv', 'passwordFile'], kv.passwordFile);
  const fromUrl = kv.url === 'embedded' ? undefined : kv.url;
  if ([kv.password, kv.passwordFile, fromUrl?.password].filter((given) => given !== undefined).length > 1) {
    files.mistakes.push({ path: ['kv', 'password'], message: 'given more than once (url, password, passwordFile)' });
  }
  if (fromUrl === undefined) return { remote: undefined, tls, maxmemory, maxmemoryPolicy, loglevel };
  const remote: RemoteKv = {
    ...fromUrl,
    user: kv.user ?? fromUrl.user,
    password: kv.password ?? fromFile ?? fromUrl.password,
  };
  if (remote.user !== undefined && remote.password === undefined) {
    files.mistakes.push({ path: ['kv', 'user'], message: 'needs a password' });
  }
  return { remote, tls, maxmemory, maxmemoryPolicy, loglevel };
}

function finishLedger(ledger: ParsedSettings['ledger'], files: SettingFiles): Config['ledger'] {
  const { database, passwordFile, ...rest } = ledger;
  if (database === 'embedded') return { ...rest, databaseUrl: undefined };
  if (!URL.canParse(database.reveal())) {
    files.mistakes.push({ path: ['ledger', 'database'], message: 'is no URL: percent-encode special characters' });
    return { ...rest, databaseUrl: database };
  }
  const url = new URL(database.reveal());
  if (passwordFile !== undefined) {
    if (url.password !== '') {
      files.mistakes.push({ path: ['ledger', 'passwordFile'], message: 'the URL has a password already' });
    }
    const password = files.secret(['ledger', 'passwordFile'], passwordFile);
    url.password = encodeURIComponent(password?.reveal() ?? '');
  }
  return { ...rest, databaseUrl: new Secret(url.href) };
}

function finishUser(name: string, user: ParsedSettings['users'][string], files: SettingFiles): ConfiguredUser {
  let passwordHash = user.password;
  if (user.passwordFile !== undefined) {
    const text = files.secret(['users', name, 'passwordFile'], user.passwordFile)?.reveal() ?? '';
    passwordHash = new Secret(createHash('sha256').update(text).digest('hex'));
  }
  return { passwordHash: passwordHash!, scope: user.scope, may: user.may, shared: user.shared };
}

function finish(parsed: ParsedSettings, files: SettingFiles, workingDirectory: string): Config {
  for (const [index, { requireAuth }] of parsed.listen.entries()) {
    if (requireAuth && Object.keys(parsed.users).length === 0) {
      files.mistakes.push({
        path: ['listen', index, 'requireAuth'],
        message: 'there are no users: nobody could log in',
      });
    }
  }
  return {
    listen: parsed.listen.map((entry, index) =>
      entry.tls === undefined
        ? entry
        : { ...entry, tls: files.absolute(['listen', index, 'tls'], entry.tls, ['cert', 'key', 'ca']) },
    ),
    kv: finishKv(parsed.kv, files),
    pooling: parsed.pooling,
    processes: parsed.processes,
    ledger: finishLedger(parsed.ledger, files),
    checkpoint: parsed.checkpoint,
    users: new Map(Object.entries(parsed.users).map(([name, user]) => [name, finishUser(name, user, files)])),
    leases: parsed.leases,
    http: parsed.http,
    worker: { ...parsed.worker, connect: parsed.worker.connect },
    dataDir: resolve(workingDirectory, parsed.dataDir),
    limits: parsed.limits,
    log: parsed.log,
  };
}

function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value);
    for (const member of Object.values(value)) deepFreeze(member);
  }
  return value;
}

/**
 * Throws `CONFIG` whose message holds one line for each mistake. Files named in the configuration file are relative to
 * it; the data directory is relative to the working directory.
 */
export function loadConfig(source: ConfigSource): LoadedConfig {
  const { values, positionals } = parseFlags(source);
  const fileName = (values.config as string | undefined) ?? source.env[CONFIG_FILE_VARIABLE];
  const file = fileName === undefined ? undefined : readConfigFile(fileName, source.workingDirectory);
  const overrides: Override[] = [];
  let settings: unknown = file?.content ?? {};
  for (const setting of SETTINGS) {
    const variable = setting.variable === undefined ? undefined : source.env[setting.variable];
    if (variable !== undefined && variable !== '') {
      settings = withValue(settings, setting.path, fromText(setting, variable));
      overrides.push({ path: setting.path, name: setting.variable! });
    }
  }
  for (const setting of SETTINGS) {
    const value = setting.flag === undefined ? undefined : values[setting.flag];
    if (value === undefined) continue;
    const text = Array.isArray(value) ? value.flatMap((part) => fromText(setting, String(part))) : value;
    settings = withValue(settings, setting.path, text);
    overrides.push({ path: setting.path, name: `--${setting.flag}` });
  }
  const parsed = configSchema.safeParse(settings);
  const environment = environmentMistakes(source.env);
  if (!parsed.success) {
    const lines = mistakesIn(parsed.error.issues).map((mistake) => lineOf(mistake, file, overrides));
    throw configError([...new Set([...environment, ...lines])]);
  }
  const files = settingFiles(file?.directory ?? source.workingDirectory);
  const config = finish(parsed.data, files, source.workingDirectory);
  const lines = [...environment, ...files.mistakes.map((mistake) => lineOf(mistake, file, overrides))];
  if (lines.length > 0) throw configError(lines);
  const flags = Object.fromEntries(Object.keys(source.flags ?? {}).map((name) => [name, values[name]]));
  return { config: deepFreeze(config), flags, words: positionals };
}
