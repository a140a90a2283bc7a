/**
 * Config items → the files of a device. Items are rendered in their order; a later file takes the place of an earlier one of the same path
 * and inherits nothing of it. The same inputs give the same bytes, on any worker.
 */
import { posix } from 'node:path';
import { devicePathReasons, PATH_REASONS, secretKeyPath } from './config-path.ts';

export interface InlineFile {
  readonly path: string;
  readonly content: string;
  readonly contentEncoding?: 'plain' | 'base64';
  readonly mode?: number;
  readonly user?: string;
  readonly group?: string;
}

/** One of `config[]`, after its templates were expanded. Exactly one of the last four is there. */
export interface ConfigItem {
  readonly name: string;
  readonly inline?: readonly InlineFile[];
  readonly gitRef?: { readonly repository: string; readonly targetRevision: string; readonly path: string };
  readonly httpRef?: { readonly repository: string; readonly suffix?: string; readonly filePath: string };
  readonly secretRef?: {
    readonly name: string;
    readonly namespace: string;
    readonly mountPath: string;
    readonly user?: string;
    readonly group?: string;
  };
}

/** A file of a git tree: its path below what was asked for, `''` where that is the file itself. */
export interface GitFile {
  readonly path: string;
  readonly content: Buffer;
  readonly executable: boolean;
}

export interface ConfigSources {
  git(repository: string, targetRevision: string, path: string): Promise<readonly GitFile[]>;
  http(repository: string, suffix: string): Promise<Buffer>;
  secret(namespace: string, name: string): Promise<ReadonlyMap<string, Buffer>>;
}

export type ItemFailure =
  | 'notFound'
  | 'noSuchRevision'
  | 'noSuchRepository'
  | 'noSuchSecret'
  | 'httpStatus'
  | 'unreachable'
  | 'forbiddenPath'
  | 'invalid';

/** `retry`: the source may give it later, without a change of the configuration. */
export class SourceError extends Error {
  readonly failure: ItemFailure;
  readonly retry: boolean;

  constructor(failure: ItemFailure, message: string, retry: boolean) {
    super(message);
    this.failure = failure;
    this.retry = retry;
  }
}

export interface RenderedFile {
  readonly path: string;
  /** Canonical base64 of the bytes. */
  readonly content: string;
  readonly contentEncoding: 'base64';
  readonly mode: number;
  readonly user: string;
  readonly group?: string;
}

export type RenderedConfig = readonly { readonly name: ''; readonly inline: readonly RenderedFile[] }[];

export interface FailedItem {
  readonly name: string;
  readonly failure: ItemFailure;
  readonly message: string;
  readonly retry: boolean;
}

export type RenderResult = { readonly rendered: RenderedConfig } | { readonly failed: readonly FailedItem[] };

const MODE_DEFAULT = 0o644;
const MODE_EXECUTABLE = 0o755;
const USER_DEFAULT = 'root';

function rendered(
  path: string,
  content: Buffer,
  { mode, user, group }: Partial<Pick<InlineFile, 'mode' | 'user' | 'group'>>,
): RenderedFile {
  const reasons = devicePathReasons(path);
  if (reasons.length > 0) {
    const why = reasons.map((reason) => PATH_REASONS[reason]).join(', ');
    throw new SourceError('forbiddenPath', `path ${JSON.stringify(path)}: ${why}`, false);
  }
  return {
    path,
    content: content.toString('base64'),
    contentEncoding: 'base64',
    mode: mode ?? MODE_DEFAULT,
    user: user === undefined || user === '' ? USER_DEFAULT : user,
    ...(group === undefined || group === '' ? {} : { group }),
  };
}

/** Line breaks in it are allowed. */
function decodeBase64(text: string, path: string): Buffer {
  const plain = text.replace(/[\r\n]/g, '');
  const bytes = Buffer.from(plain, 'base64');
  if (bytes.toString('base64') !== plain) throw new SourceError('invalid', `content of ${path} is not base64`, false);
  return bytes;
}

function inlineFiles(files: readonly InlineFile[]): RenderedFile[] {
  return files.map((file) => {
    const { path, content, contentEncoding } = file;
    return rendered(path, contentEncoding === 'base64' ? decodeBase64(content, path) : Buffer.from(content), file);
  });
}

function byPath(a: { readonly path: string }, b: { readonly path: string }): number {
  return Buffer.compare(Buffer.from(a.path), Buffer.from(b.path));
}

async function gitFiles(
  { repository, targetRevision, path }: NonNullable<ConfigItem['gitRef']>,
  sources: ConfigSources,
): Promise<RenderedFile[]> {
  const files = await sources.git(repository, targetRevision, path);
  return [...files].sort(byPath).map((file) => {
    const target = file.path === '' ? posix.basename(path) : file.path;
    return rendered(`/${target}`, file.content, { mode: file.executable ? MODE_EXECUTABLE : MODE_DEFAULT });
  });
}

async function secretFiles(ref: NonNullable<ConfigItem['secretRef']>, sources: ConfigSources): Promise<RenderedFile[]> {
  const data = await sources.secret(ref.namespace, ref.name);
  const keys = [...data.keys()].sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
  return keys.map((key) => {
    const place = secretKeyPath(ref.mountPath, key);
    if ('reasons' in place) {
      const why = place.reasons.map((reason) => PATH_REASONS[reason]).join(', ');
      throw new SourceError('forbiddenPath', `key ${JSON.stringify(key)} below ${ref.mountPath}: ${why}`, false);
    }
    return rendered(place.path, data.get(key)!, ref);
  });
}

async function renderItem(item: ConfigItem, sources: ConfigSources): Promise<RenderedFile[]> {
  if (item.inline !== undefined) return inlineFiles(item.inline);
  if (item.gitRef !== undefined) return gitFiles(item.gitRef, sources);
  if (item.secretRef !== undefined) return secretFiles(item.secretRef, sources);
  if (item.httpRef === undefined)
    throw new SourceError('invalid', 'has neither inline, gitRef, httpRef nor secretRef', false);
  const { repository, suffix = '', filePath } = item.httpRef;
  return [rendered(filePath, await sources.http(repository, suffix), {})];
}

/** Rejects only with faults of the program: what a source or an item does wrong is in `failed`, and then nothing is rendered. */
export async function renderConfig(
  items: readonly ConfigItem[] | null | undefined,
  sources: ConfigSources,
): Promise<RenderResult> {
  const files = new Map<string, RenderedFile>();
  const failed: FailedItem[] = [];
  for (const item of items ?? []) {
    try {
      for (const file of await renderItem(item, sources)) files.set(file.path, file);
    } catch (thrown) {
      if (!(thrown instanceof SourceError)) throw thrown;
      failed.push({ name: item.name, failure: thrown.failure, message: thrown.message, retry: thrown.retry });
    }
  }
  if (failed.length > 0) return { failed };
  return { rendered: files.size === 0 ? [] : [{ name: '', inline: [...files.values()] }] };
}

/** Of the condition, as the reference words it. */
export function failureMessage(failed: readonly { readonly name: string; readonly message: string }[]): string {
  const [first] = failed;
  if (first === undefined) return '';
  if (failed.length === 1) return `1 invalid configuration: ${first.name}. Error: ${first.message}`;
  const names = failed.map(({ name }) => name).join(', ');
  return `${failed.length} invalid configurations: ${names}. First error: ${first.message}`;
}
