/** The app of `--app ./my-handlers.js`. */
import { access } from 'node:fs/promises';
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { HoldfastError, messageOf } from '../errors.ts';
import { type App, appFromExport } from './app.ts';
import { prepareImport } from './typescript.ts';

export interface LoadedApp {
  readonly app: App;
  /** `file:` URL of its module. */
  readonly module: string;
  /** Ends what the app holds, after the worker's end. */
  close?(): Promise<void>;
}

/** `path`: relative to the working directory. Throws `CONFIG` naming the file and what is wrong with it. */
export async function loadApp(path: string): Promise<LoadedApp> {
  const file = resolve(path);
  const module = pathToFileURL(file).href;
  try {
    await access(file);
  } catch {
    throw new HoldfastError('CONFIG', `--app: there is no file ${file}`);
  }
  try {
    await prepareImport(module);
    const loaded = (await import(module)) as { default?: unknown };
    return { app: appFromExport(loaded.default), module };
  } catch (error) {
    throw new HoldfastError('CONFIG', `--app ${path}: ${messageOf(error)}`, { cause: error });
  }
}
