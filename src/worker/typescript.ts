/**
 * TypeScript handlers. Node 22.18 and later read them as they are; an older Node needs `tsx`, taken from the project of
 * the handlers or from here.
 */
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';
import { HoldfastError } from '../errors.ts';

const TYPESCRIPT = /\.[mc]?ts$/;

function nodeReadsTypescript(): boolean {
  return 'typescript' in process.features && Boolean(process.features.typescript);
}

function resolveTsx(specifier: string, from: string): string {
  for (const base of [from, import.meta.url]) {
    try {
      return pathToFileURL(createRequire(base).resolve(specifier)).href;
    } catch {
      // Not there; the next place may have it.
    }
  }
  throw new HoldfastError('CONFIG', `${from}: TypeScript needs Node 22.18 or later, or the package tsx`);
}

/** What threads must be started with to load the worker's own modules: in a built Holdfast nothing. */
export function threadArguments(): string[] {
  if (!TYPESCRIPT.test(new URL(import.meta.url).pathname) || nodeReadsTypescript()) return [];
  // Even a process that was itself started with tsx does not hand it on to its threads.
  return [`--import=${resolveTsx('tsx', import.meta.url)}`];
}

let registered = false;

/** Makes this thread able to import the module, a `file:` URL. Throws `CONFIG` where it cannot. */
export async function prepareImport(module: string): Promise<void> {
  if (registered || !TYPESCRIPT.test(module) || nodeReadsTypescript()) return;
  registered = true;
  // `require` finds the CommonJS one of the two, which looks for its hooks in the wrong place.
  const api = resolveTsx('tsx/esm/api', module).replace(/\.cjs$/, '.mjs');
  const { register } = (await import(api)) as { register: () => void };
  register();
}
